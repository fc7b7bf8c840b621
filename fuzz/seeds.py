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
    for path in sorted((ROOT / "crates" / "smelt-core" / "families").glob("*.toml")):
        write("family", path.stem, path.read_bytes())
    for name, text in recipes().items():
        write("recipe", name, text.encode())


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


def write(target: str, name: str, data: bytes) -> None:
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
