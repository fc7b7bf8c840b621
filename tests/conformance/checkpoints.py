"""Write Hugging Face checkpoints from small manifests.

A manifest holds a `config` and the tensors' shapes. Names may hold ranges
(`model.layers.{0-3}.mlp.up_proj.weight`) or lists (`{1,3}`), so that a whole
family fits a page. Weights are drawn per tensor *name*: the same tensor has the
same values however the checkpoint is sharded or ordered. Tensors are written one
at a time, so the size of a checkpoint is limited by the disk only.
"""

import hashlib
import itertools
import json
import math
import os
import random
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

MANIFESTS = Path(__file__).parent / "manifests"
ITEM_SIZE = {"F8_E4M3": 1, "BF16": 2, "F16": 2, "F32": 4, "U8": 1, "I64": 8}
CONFIG_DTYPE = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
TOKENS = 512


@dataclass(frozen=True)
class Tensor:
    """One tensor of a checkpoint, with its safetensors dtype name."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * ITEM_SIZE[self.dtype]


@dataclass(frozen=True)
class Variant:
    """How a manifest is written out."""

    dtype: str = "BF16"
    norm_dtype: str | None = None
    """dtype of the norms, where it differs; the config then names no dtype"""
    shards: int | None = None
    """number of files; None: what the manifest says"""
    shuffle: bool = False
    """tensors in random order over and inside the files"""

    @property
    def id(self) -> str:
        parts = [self.dtype.lower()]
        if self.norm_dtype:
            parts.append(f"norms-{self.norm_dtype.lower()}")
        if self.shards:
            parts.append(f"{self.shards}-shards")
        if self.shuffle:
            parts.append("shuffled")
        return "-".join(parts)


def expand(template: str) -> Iterator[str]:
    """`a.{0-2}.b` -> `a.0.b`, `a.1.b`, `a.2.b`; several ranges multiply."""
    texts, axes = [], []
    for i, part in enumerate(re.split(r"\{([^}]*)\}", template)):
        (axes if i % 2 else texts).append(part)
    for numbers in itertools.product(*map(_numbers, axes)):
        pairs = itertools.zip_longest(texts, numbers, fillvalue="")
        yield "".join(itertools.chain.from_iterable(pairs))


def _numbers(axis: str) -> list[str]:
    """`0-3,5` -> 0, 1, 2, 3, 5."""
    numbers: list[str] = []
    for item in axis.split(","):
        first, _, last = item.partition("-")
        numbers += map(str, range(int(first), int(last or first) + 1))
    return numbers


def manifest_tensors(manifest: dict[str, Any], variant: Variant) -> list[Tensor]:
    """The manifest's tensors in the order of their templates."""
    tensors = []
    for template, shape in manifest["tensors"].items():
        # `["F32", [4]]` has a dtype of its own, whatever the variant's.
        own, shape = shape if shape and isinstance(shape[0], str) else (None, shape)
        names = expand(template)
        tensors += [Tensor(name, own or _dtype(name, variant), tuple(shape)) for name in names]
    return tensors


def _dtype(name: str, variant: Variant) -> str:
    is_norm = name.endswith("norm.weight")
    return variant.norm_dtype if is_norm and variant.norm_dtype else variant.dtype


def weights(tensor: Tensor) -> np.ndarray:
    """Deterministic values: N(0, 0.02), norms N(1, 0.1). bf16 comes as u16 bits."""
    seed = hashlib.sha256(tensor.name.encode()).digest()[:8]
    rng = np.random.default_rng(int.from_bytes(seed, "little"))
    if tensor.dtype in ("U8", "I64"):
        integer = np.uint8 if tensor.dtype == "U8" else np.int64
        return rng.integers(0, 256, tensor.shape).astype(integer)
    values = rng.standard_normal(tensor.shape, dtype=np.float32)
    if tensor.name.endswith("norm.weight"):
        values = 1 + np.float32(0.1) * values
    else:
        values *= np.float32(0.02)
    if tensor.dtype == "BF16":
        return bf16_bits(values)
    return values.astype(np.float16 if tensor.dtype == "F16" else np.float32)


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """Finite f32 rounded to bf16, ties to even, as u16."""
    bits = values.view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)


Fill = Callable[[Tensor], np.ndarray | None]
"""A tensor's data; None leaves a hole in the file, which reads as zeros."""


def hole(tensor: Tensor) -> None:
    """No data at all."""


def write_shard(path: Path, tensors: Iterable[Tensor], *, fill: Fill = weights) -> None:
    """Write one safetensors file."""
    entries: dict[str, Any] = {}
    offset = 0
    tensors = list(tensors)
    for t in tensors:
        span = [offset, offset + t.nbytes]
        entries[t.name] = {"dtype": t.dtype, "shape": list(t.shape), "data_offsets": span}
        offset += t.nbytes
    # The header is in name order whatever the order of the data: readers have
    # to go by the offsets.
    head = {"__metadata__": {"format": "pt"}, **dict(sorted(entries.items()))}
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for t in tensors:
            data = fill(t)
            if data is None:
                file.seek(t.nbytes, os.SEEK_CUR)
            else:
                file.write(np.ascontiguousarray(data).data)
        file.truncate(8 + len(text) + offset)


def write_tensors(out: Path, shards: list[list[Tensor]], *, fill: Fill = weights) -> None:
    """Write all shards, and the index where there is more than one."""
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
        index = {
            "metadata": {"total_size": sum(t.nbytes for shard in shards for t in shard)},
            "weight_map": {
                t.name: name for name, shard in zip(names, shards, strict=True) for t in shard
            },
        }
        write_json(out / "model.safetensors.index.json", index)
    for name, shard in zip(names, shards, strict=True):
        write_shard(out / name, shard, fill=fill)


def write_tokenizer(out: Path, eos_token_id: int | None) -> None:
    """A byte-level tokenizer of 512 entries and the small files around it."""
    from tokenizers import Tokenizer, decoders, models

    vocab = {f"<0x{i:02X}>": i for i in range(256)}
    vocab |= {f"<{i}>": i for i in range(256, TOKENS)}
    tokenizer = Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<511>"))
    tokenizer.decoder = decoders.ByteFallback()
    tokenizer.save(str(out / "tokenizer.json"))
    special = {"eos_token": "<511>", "bos_token": "<510>", "unk_token": "<511>"}
    write_json(
        out / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **special}
    )
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (out / "chat_template.jinja").write_text(template)
    # mlx-lm copies this id into config.json, so it has to agree with it.
    eos = {} if eos_token_id is None else {"eos_token_id": eos_token_id}
    write_json(out / "generation_config.json", {"do_sample": True, "temperature": 0.6, **eos})


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n")


def write_checkpoint(
    out: Path, manifest: dict[str, Any], variant: Variant, fill: Fill = weights
) -> Path:
    """Write a whole checkpoint directory and return it."""
    out.mkdir(parents=True)
    config = dict(manifest["config"])
    # mlx-lm casts everything to `torch_dtype`; without it the file's dtypes stay.
    config["dtype"] = config["torch_dtype"] = CONFIG_DTYPE[variant.dtype]
    if variant.norm_dtype:
        del config["torch_dtype"], config["dtype"]
    write_json(out / "config.json", config)
    write_tokenizer(out, config.get("eos_token_id"))
    tensors = manifest_tensors(manifest, variant)
    if variant.shuffle:
        random.Random(0).shuffle(tensors)
    count = variant.shards or manifest.get("shards", 1)
    size = -(-len(tensors) // count)
    write_tensors(out, [tensors[i : i + size] for i in range(0, len(tensors), size)], fill=fill)
    return out


def load_manifest(family: str) -> dict[str, Any]:
    return json.loads((MANIFESTS / f"{family}.json").read_text())


def families() -> list[str]:
    """Names of all manifests."""
    return sorted(path.stem for path in MANIFESTS.glob("*.json"))
