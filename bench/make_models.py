"""Write one of the 1 GB checkpoints of the benchmark: `make_models.py llama OUT`."""

import sys
from pathlib import Path

import shapes  # first: it makes `checkpoints` importable
from checkpoints import Variant, write_checkpoint

MANIFESTS = {
    "llama": shapes.llama(shapes.LLAMA),
    "qwen3_moe": shapes.qwen3_moe(shapes.QWEN3_MOE),
}


def main() -> None:
    name, out = sys.argv[1:]
    write_checkpoint(Path(out), MANIFESTS[name], Variant(shards=2, shuffle=False))


if __name__ == "__main__":
    main()
