"""Writes a first corpus for each target from the repository's own files.

python fuzz/seeds.py && cargo +nightly fuzz run header
"""

import io
import json
import struct
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


def main() -> None:
    manifests = sorted((ROOT / "tests" / "manifests").glob("*.json"))
    for path in manifests[::8]:
        manifest = json.loads(path.read_text())
        if "config" not in manifest:
            continue
        config = json.dumps(manifest["config"]).encode()
        write("config", path.stem, config)
        shard = safetensors({"model.embed_tokens.weight": ("BF16", [4, 8])})
        write("header", path.stem, shard)
        names = {"model.embed_tokens.weight": "model.safetensors"}
        index = json.dumps({"weight_map": names}).encode()
        write("index", path.stem, index)
        rest = len(config) + len(shard)
        write("checkpoint", path.stem, bytes([255 * len(config) // rest + 1, 0]) + config + shard)
        block = config_block(manifest["config"])
        # A weight of E4M3 with a scale for each block.
        tensors = bytes([2, 0, 0, 0, 2, 11, 11, 1, 2, 3, 4, 0, 1, 8, 2, 1, 1, 0, 0, 128, 63])
        write("pairing", path.stem, struct.pack("<H", len(block)) + block + tensors)
    for kind in range(9):
        write("decode", str(kind), bytes([kind, 20, 3, 5, 1, 9]) + bytes(range(1, 120)) * 3)
    for path in sorted((ROOT / "crates" / "smelt-core" / "families").glob("*.toml")):
        write("family", path.stem, path.read_bytes())
    write("trace", "operations", json.dumps(trace()).encode())
    for name, text in recipes().items():
        write("recipe", name, text.encode())
    # Without the first four bytes, which the targets put there.
    write("gguf", "small", gguf({"blk.0.attn_q": 64, "blk.0.ffn_down": 128})[4:])
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        modules = {"model.layers.0.self_attn.q_proj": 64, "model.layers.0.mlp.down_proj": 128}
        write("npz", f"small-{method}", npz(modules, method)[4:])


def trace() -> dict[str, object]:
    """A trace of the manifest that the target has, with the operations that need attributes."""
    name = "model.layers.0.self_attn.q_proj.weight"
    axis = {"axis": 0}
    steps = {"start": [0, 2], "len": [64, 32], "step": [2, 4]}
    wide = {"low": [0, 0], "high": [0, 4], "value": 0.0}
    nodes = [
        node("source", [], [128, 128], name=name, stored="BF16"),
        node("transpose", [0], [128, 128], perm=[1, 0]),
        node("slice", [0], [64, 32], **steps),
        node("stack", [0, 1], [2, 128, 128], **axis),
        node("concat", [0, 1], [256, 128], **axis),
        node("scalar", [], [], value=1.0),
        node("add", [0, 5], [128, 128]),
        node("pad", [0], [128, 132], **wide),
        node("repeat", [0], [256, 128], count=2, **axis),
        node("reshape", [3], [256, 128]),
        node("sum", [0], [128], axes=[1]),
        node("norm", [0], [128], axes=[1]),
        node("broadcast", [10], [4, 128]),
    ]
    outputs = [[f"out.{index}.weight", index] for index in range(len(nodes))]
    modules = [{"path": "out.0", "class": "Linear", "predicate": {"bits": 8, "group_size": 64}}]
    return {
        "version": 1,
        "library": "mlx-lm",
        "nodes": nodes,
        "outputs": outputs,
        "dropped": [],
        "model": {"modules": modules},
    }


def node(op: str, inputs: list[int], shape: list[int], **attributes: object) -> dict[str, object]:
    return {"op": op, "in": inputs, "dtype": "BF16", "shape": shape, **attributes}


def config_block(config: dict) -> bytes:
    """What a config says of its quantization."""
    return json.dumps(config.get("quantization_config", {"quant_method": "fp8"})).encode()


def recipes() -> dict[str, str]:
    """Each kind of budget, and each key of a rule."""
    budgets = {
        "bpw": "target_bpw = 4.5",
        "size": 'target_size = "96GiB"',
        "bytes": "target_size = 13607051",
        "fit": 'fit = "64G"\ncontext = 4096',
        "level": 'level = "oq3.5"\nformats = ["3/64", "mxfp4", "8"]',
        "plain": 'bits = 6\ngroup_size = 32\nmode = "affine"',
        "none": "",
    }
    rules = """
[[rule]]
match = "down_proj$"
layers = "0-3,-2--1"
format = "6/64"
reason = "near the ends"

[[rule]]
role = ["expert-up", "router"]
format = "keep"
"""
    bounds = '\n[[rule]]\nrole = "head"\nfloor = 4\nceiling = 8\n'
    head = 'schema = 1\ndescription = "what for"\n'
    seeds = {name: f"{head}{budget}\n{rules}" for name, budget in budgets.items()}
    return seeds | {"bounds": f"{head}target_bpw = 4\n{rules}{bounds}"}


def safetensors(tensors: dict[str, tuple[str, list[int]]]) -> bytes:
    """A file of zeros."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + 2 * shape[0] * shape[1]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def gguf(entries: dict[str, int]) -> bytes:
    """An imatrix of llama.cpp: ones for so many channels."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    out = b"GGUF" + struct.pack("<IQQ", 3, 2 * len(entries), 1)
    out += text("general.type") + struct.pack("<I", 8) + text("imatrix")
    data = b""
    for name, width in entries.items():
        for what, count in (("counts", 1), ("in_sum2", width)):
            out += text(f"{name}.weight.{what}") + struct.pack("<IQQIQ", 2, count, 1, 0, len(data))
            data += struct.pack("<f", 1) * count + bytes(-4 * count % 32)
    return out + bytes(-len(out) % 32) + data


def npz(entries: dict[str, int], method: int) -> bytes:
    """The same as arrays of numpy."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, width in entries.items():
            for what, dtype, values in (
                ("in_sum2", "<f4", struct.pack("<f", 1) * width),
                ("counts", "<i8", struct.pack("<q", 1)),
            ):
                size = len(values) // int(dtype[2])
                head = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({size},), }}\n"
                array = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + values
                archive.writestr(f"{name}.{what}.npy", array)
    return out.getvalue()


def write(target: str, name: str, data: bytes) -> None:
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
