"""What it means for two converted checkpoints to be the same.

Files are not compared as a whole: MLX writes tensors in the order of a hash map.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BASES = {"rope_theta", "rope_global_base_freq", "rope_local_base_freq"}
SOURCE_KEYS = {"quantization_config", "compression_config"}
"""Keys by which a source tells of its own quantization."""


@dataclass(frozen=True)
class Stored:
    """A tensor as its file holds it."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def read_tensors(checkpoint: Path) -> dict[str, Stored]:
    """All tensors of all `model*.safetensors`, as mlx-lm would find them."""
    tensors: dict[str, Stored] = {}
    for path in sorted(checkpoint.glob("model*.safetensors")):
        found = _read_file(path)
        assert not tensors.keys() & found.keys(), f"{path} repeats a tensor of another file"
        tensors |= found
    return tensors


def _read_file(path: Path) -> dict[str, Stored]:
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        data = raw[start + begin : start + end]
        tensors[name] = Stored(entry["dtype"], tuple(entry["shape"]), data)
    return tensors


def assert_same_tensors(ours: Path, theirs: Path) -> None:
    """Same names, dtypes, shapes and bytes."""
    left, right = read_tensors(ours), read_tensors(theirs)
    assert left, f"no tensors in {ours}"
    missing, extra = right.keys() - left.keys(), left.keys() - right.keys()
    assert not missing, f"smelt lacks {sorted(missing)}"
    assert not extra, f"smelt has more: {sorted(extra)}"
    faults = [fault for name in right if (fault := _fault(name, left[name], right[name]))]
    assert not faults, "\n".join(faults[:10])


def _fault(name: str, ours: Stored, theirs: Stored) -> str | None:
    if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape):
        return f"{name}: {ours.dtype} {ours.shape}, mlx-lm {theirs.dtype} {theirs.shape}"
    if ours.data != theirs.data:
        count = sum(a != b for a, b in zip(ours.data, theirs.data, strict=True))
        return f"{name}: {count} of {len(theirs.data)} bytes differ"
    return None


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def resolve(checkpoint: Path) -> dict[str, tuple[int, int, str] | None]:
    """(bits, group size, mode) of every module with a weight; None: dense.

    This reads the config as loaders do that do not infer parameters from the
    shapes, so every module that deviates from the defaults needs its entry.
    """
    names = read_tensors(checkpoint).keys()
    modules = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
    block = read_json(checkpoint / "config.json").get("quantization", {})
    return {m: _resolve(m, block) if f"{m}.scales" in names else _dense(m, block) for m in modules}


def _resolve(module: str, block: dict[str, Any]) -> tuple[int, int, str]:
    entry = block.get(module, True)
    assert entry is not False, f"{module} is packed, but the config says dense"
    entry = block if entry is True else entry
    return entry["bits"], entry["group_size"], entry.get("mode", "affine")


def _dense(module: str, block: dict[str, Any]) -> None:
    assert block.get(module, False) is False, f"{module} is dense, but has an entry"


def assert_equivalent_config(ours: Path, theirs: Path, source: Path) -> None:
    """The same meaning of every module; all that is not quantization as in the source."""
    config, given = read_json(ours / "config.json"), read_json(source / "config.json")
    assert resolve(ours) == resolve(theirs)
    expected_block = "quantization" in read_json(theirs / "config.json")
    assert ("quantization" in config) == expected_block
    # Without quantization no block of either name may be left from the source.
    assert config.pop("quantization", None) == config.pop("quantization_config", None)
    given = {k: v for k, v in given.items() if k not in SOURCE_KEYS}
    rope = given.get("rope_parameters", {})
    bases = [kind["rope_theta"] for kind in rope.values() if isinstance(kind, dict)]
    # A base of transformers 5 stands at the top as well, where the libraries look for it.
    extra = {k: config.pop(k) for k in BASES & (config.keys() - given.keys())}
    assert all(value in bases for value in extra.values())
    assert config == given
