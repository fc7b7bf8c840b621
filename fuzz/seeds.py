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
    for path in sorted((ROOT / "crates" / "smelt-core" / "families").glob("*.toml")):
        write("family", path.stem, path.read_bytes())
    # Without the first four bytes, which the targets put there.
    write("gguf", "small", gguf({"blk.0.attn_q": 64, "blk.0.ffn_down": 128})[4:])
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        modules = {"model.layers.0.self_attn.q_proj": 64, "model.layers.0.mlp.down_proj": 128}
        write("npz", f"small-{method}", npz(modules, method)[4:])


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
