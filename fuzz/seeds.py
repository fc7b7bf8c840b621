"""Writes a first corpus for each target from the repository's own files.

    python fuzz/seeds.py && cargo +nightly fuzz run header
"""

import json
import struct
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


def config_block(config: dict) -> bytes:
    """What a config says of its quantization."""
    return json.dumps(config.get("quantization_config", {"quant_method": "fp8"})).encode()


def safetensors(tensors: dict[str, tuple[str, list[int]]]) -> bytes:
    """A file of zeros."""
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + 2 * shape[0] * shape[1]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


def write(target: str, name: str, data: bytes) -> None:
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
