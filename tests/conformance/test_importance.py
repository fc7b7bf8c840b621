"""Importance that other tools have collected: read, used, and refused where it does not fit."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from compare import read_tensors
from conftest import Smelt, Workspace
from safetensors.numpy import save_file

Statistics = dict[str, tuple[np.ndarray, np.ndarray]]
"""By name, sums of squares `[rows, channels]` and counts `[rows]`."""

LAYERS, EXPERTS, HIDDEN, INNER = 4, 8, 128, 128
MODULES = {
    "self_attn.q_proj": ("attn_q", 1),
    "self_attn.k_proj": ("attn_q", 1),
    "self_attn.v_proj": ("attn_q", 1),
    "self_attn.o_proj": ("attn_output", 1),
    "mlp.switch_mlp.gate_proj": ("ffn_gate_exps", EXPERTS),
    "mlp.switch_mlp.up_proj": ("ffn_gate_exps", EXPERTS),
    "mlp.switch_mlp.down_proj": ("ffn_down_exps", EXPERTS),
}


def collected(*, mlx: bool) -> Statistics:
    """Uneven channels for the sample of the repository; one expert had no input."""
    found: Statistics = {}
    for layer in range(LAYERS):
        for module, (llama, rows) in MODULES.items():
            # What has one input has one statistic.
            rng = np.random.default_rng([*llama.encode(), layer])
            counts = np.full(rows, 32.0)
            counts[1:2] = 0
            sums = rng.lognormal(sigma=2, size=(rows, HIDDEN)) * counts[:, None]
            name = f"model.layers.{layer}.{module}" if mlx else f"blk.{layer}.{llama}"
            found[name] = (sums.astype(np.float32), counts)
    return found


def write_gguf(path: Path) -> None:
    tensors: list[tuple[str, tuple[int, ...], np.ndarray]] = []
    for name, (sums, counts) in collected(mlx=False).items():
        rows, width = sums.shape
        tensors.append((f"{name}.weight.counts", (1, rows), counts.astype(np.float32)))
        tensors.append((f"{name}.weight.in_sum2", (width, rows), sums))
    text = lambda value: struct.pack("<Q", len(value)) + value.encode()  # noqa: E731
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 2)
    out += text("general.type") + struct.pack("<I", 8) + text("imatrix")
    out += text("imatrix.chunk_size") + struct.pack("<II", 4, 512)
    data = b""
    for name, shape, values in tensors:
        out += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, 0, len(data))
        data += values.tobytes() + bytes(-values.nbytes % 32)
    path.write_bytes(out + bytes(-len(out) % 32) + data)


def write_dat(path: Path) -> None:
    entries = collected(mlx=False)
    out = struct.pack("<i", len(entries))
    for name, (sums, counts) in entries.items():
        means = np.ones_like(sums)
        means[counts > 0] = sums[counts > 0] / counts[counts > 0, None]
        encoded = f"{name}.weight".encode()
        out += struct.pack("<i", len(encoded)) + encoded + struct.pack("<ii", 7, means.size)
        out += (means * 7).astype(np.float32).tobytes()
    path.write_bytes(out + struct.pack("<ii", 3, 4) + b"text")


def write_npz(path: Path) -> None:
    arrays = {}
    for name, (sums, counts) in collected(mlx=True).items():
        arrays[f"{name}.in_sum2"] = sums[0] if len(sums) == 1 else sums
        arrays[f"{name}.counts"] = counts.astype(np.int64)
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def write_own(path: Path) -> None:
    tensors = {}
    for name, (sums, counts) in collected(mlx=True).items():
        means = (sums / np.maximum(counts, 1)[:, None]).astype(np.float32)
        tensors[name] = means[0] if len(means) == 1 else means
        tensors[f"{name}.counts"] = counts.astype(np.int64)
    save_file(tensors, path)


WRITERS = {"gguf": write_gguf, "dat": write_dat, "npz": write_npz, "safetensors": write_own}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_level_with_importance_loads(
    kind: str, smelt: Smelt, workspace: Workspace, tmp_path: Path
) -> None:
    import mlx.core as mx
    from mlx_lm.utils import load

    # The name says nothing of what a file is.
    file, out = tmp_path / "importance", tmp_path / "out"
    WRITERS[kind](file)
    source = workspace.source("sample")
    smelt.run("quantize", source, "-o", out, "--level", "oq3e", "--imatrix", file)
    model, _ = load(str(out))
    logits = model(mx.array([[1, 2, 3, 4]]))
    assert mx.isfinite(logits.astype(mx.float32)).all().item()
    report = json.loads((out / "smelt-report.json").read_text())
    coverage = report["importance"]
    # All but the routers.
    assert (coverage["weighed"], coverage["modules"]) == (28, 32)
    assert coverage["experts_without_data"] == 3 * LAYERS
    assert coverage["unused_entries"] == 0
    assert coverage["file"] == "importance"
    assert str(tmp_path) not in json.dumps(report)


def test_means_are_the_same_in_every_file(
    smelt: Smelt, workspace: Workspace, tmp_path: Path
) -> None:
    """Of all that have counts; without any, experts can't be compared, but channels can."""
    results = {}
    for kind, write in WRITERS.items():
        write(tmp_path / kind)
        out = tmp_path / f"out-{kind}"
        args = ("--bits", "3", "--effort", "fast", "--imatrix", tmp_path / kind)
        smelt.run("quantize", workspace.source("sample"), "-o", out, *args)
        results[kind] = read_tensors(out)
    first = results["safetensors"]
    for kind in ("gguf", "npz"):
        assert results[kind].keys() == first.keys()
        assert all((results[kind][name].data == first[name].data) for name in first)


def dequantized(out: Path, name: str) -> np.ndarray:
    import mlx.core as mx

    tensors = mx.load(str(out / "model.safetensors"))
    parts = (tensors[f"{name}.{part}"] for part in ("weight", "scales", "biases"))
    weight, scales, biases = parts
    return np.array(mx.dequantize(weight, scales, biases, 64, 2).astype(mx.float32))


def test_channels_that_matter_come_out_closer(
    smelt: Smelt, workspace: Workspace, tmp_path: Path
) -> None:
    import mlx.core as mx

    source, file = workspace.source("sample"), tmp_path / "importance"
    write_own(file)
    for name, args in {"with": ("--imatrix", file), "without": ()}.items():
        smelt.run("quantize", source, "-o", tmp_path / name, "--bits", "2", *args)
    weights = mx.load(str(source / "model.safetensors"))
    better = 0
    for layer in range(LAYERS):
        name = f"model.layers.{layer}.self_attn.o_proj"
        weight = np.array(weights[f"{name}.weight"].astype(mx.float32))
        mean = collected(mlx=True)[name][0][0]
        with_it, without = (
            (mean * (dequantized(tmp_path / which, name) - weight) ** 2).sum()
            for which in ("with", "without")
        )
        better += with_it < without
    assert better == LAYERS


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-600])


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("damage", [cut, lambda path: path.write_bytes(b"")], ids=["cut", "empty"])
def test_a_damaged_file_is_refused(
    kind: str, damage: Callable[[Path], object], smelt: Smelt, workspace: Workspace, tmp_path: Path
) -> None:
    file, out = tmp_path / "importance", tmp_path / "out"
    WRITERS[kind](file)
    damage(file)
    args = ("quantize", workspace.source("sample"), "-o", out, "--imatrix", file)
    said = smelt.run(*args, code=1).stderr
    assert "importance" in said
    assert not out.exists()


def test_importance_of_another_model_is_refused(
    smelt: Smelt, workspace: Workspace, tmp_path: Path
) -> None:
    file, out = tmp_path / "importance", tmp_path / "out"
    write_gguf(file)
    args = ("-o", out, "--imatrix", file)
    # The same names of attention, and no experts: nothing fits where the hidden size is another.
    tensors = {"model.layers.0.self_attn.q_proj": np.ones(96, np.float32)}
    save_file(tensors, tmp_path / "narrow")
    refused = smelt.run(
        "quantize", workspace.source("sample"), "-o", out, "--imatrix", tmp_path / "narrow", code=1
    )
    assert "96 channels" in refused.stderr
    assert "128]; it is of another model" in refused.stderr
    save_file({"transformer.h.0.mlp": np.ones(128, np.float32)}, tmp_path / "foreign")
    refused = smelt.run(
        "quantize", workspace.source("llama"), "-o", out, "--imatrix", tmp_path / "foreign", code=1
    )
    assert "none of the 1 entries" in refused.stderr
    refused = smelt.run("quantize", workspace.source("sample"), *args, "--method", "rtn", code=1)
    assert "only rounds" in refused.stderr
    refused = smelt.run("quantize", workspace.source("sample"), *args, "--strict", code=1)
    assert "--strict" in refused.stderr
    assert not out.exists()


def test_measures_of_another_importance_are_not_used(
    smelt: Smelt, workspace: Workspace, tmp_path: Path
) -> None:
    file, source = tmp_path / "importance", workspace.source("sample")
    write_own(file)
    args = ("--target-bpw", "3.5", "--effort", "fast", "--measures", tmp_path / "kept.json")
    first = smelt.run("quantize", source, "-o", tmp_path / "a", *args, "--imatrix", file)
    again = smelt.run("quantize", source, "-o", tmp_path / "b", *args, "--imatrix", file)
    without = smelt.run("quantize", source, "-o", tmp_path / "c", *args)
    assert ["no weight is read" in run.stderr for run in (first, again, without)] == [
        False,
        True,
        False,
    ]
