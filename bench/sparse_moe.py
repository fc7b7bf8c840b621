"""Write a checkpoint with the shapes of a 397B mixture of experts, without its data.

The headers are real, the weights are holes: 60 layers of 512 experts in shards of
5 GB take seconds to make and a few MB of disk, and every reader sees 780 GB of zeros.
That is what plans and peak memory are measured on.

    sparse_moe.py OUT [--layers N]
"""

import argparse
import dataclasses
from collections.abc import Iterable
from pathlib import Path

import shapes  # first: it makes `checkpoints` importable
from checkpoints import (
    Tensor,
    Variant,
    hole,
    manifest_tensors,
    write_json,
    write_tensors,
    write_tokenizer,
)

SHARD_BYTES = 5 * 10**9


def in_layer_order(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Layer after layer, as checkpoints are saved; the rest first."""

    def layer(tensor: Tensor) -> int:
        parts = tensor.name.split(".")
        return int(parts[2]) if parts[1] == "layers" else -1

    return sorted(tensors, key=layer)


def split(tensors: Iterable[Tensor]) -> list[list[Tensor]]:
    """Fill one shard after the other."""
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=shapes.MOE_397B.layers)
    args = parser.parse_args()
    manifest = shapes.qwen3_moe(dataclasses.replace(shapes.MOE_397B, layers=args.layers))
    tensors = in_layer_order(manifest_tensors(manifest, Variant()))
    shards = split(tensors)
    args.out.mkdir(parents=True)
    write_json(args.out / "config.json", manifest["config"] | {"torch_dtype": "bfloat16"})
    write_tokenizer(args.out, manifest["config"]["eos_token_id"])
    write_tensors(args.out, shards, fill=hole)
    total = sum(t.nbytes for t in tensors)
    print(f"{len(tensors)} tensors, {total / 1e9:.0f} GB in {len(shards)} sparse shards")


if __name__ == "__main__":
    main()
