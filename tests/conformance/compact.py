"""Writes the compact manifest of a checkpoint: its config and the shapes of its tensors.

    python tests/conformance/compact.py CHECKPOINT > tests/conformance/manifests/NAME.json

CHECKPOINT is a directory, or a JSON file {"config": …, "files": {file: {tensor: [dtype, shape]}}}.
Names that differ in numbers alone become one line: `layers.{0-3}.mlp.experts.{0,2}.w1.weight`.
A shape stands for BF16; any other dtype is written before it: `["F32", [4, 1]]`.
"""

from __future__ import annotations

import json
import struct
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

Tensors = dict[str, tuple[str, list[int]]]
Numbers = tuple[int, ...]


def read(path: Path) -> tuple[dict[str, Any], Tensors]:
    """The config and the tensors of a checkpoint."""
    if path.is_file():
        manifest = json.loads(path.read_text())
        files = manifest["files"].values()
        return manifest["config"], {name: (d, s) for file in files for name, (d, s) in file.items()}
    tensors: Tensors = {}
    for shard in sorted(path.glob("*.safetensors")):
        with shard.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        header.pop("__metadata__", None)
        tensors |= {name: (info["dtype"], info["shape"]) for name, info in header.items()}
    return json.loads((path / "config.json").read_text()), tensors


def compact(tensors: Tensors) -> dict[str, Any]:
    """The tensors by the form of their names, in the order of the names."""
    forms: dict[tuple[tuple[str, ...], str], set[Numbers]] = defaultdict(set)
    for name, (dtype, shape) in sorted(tensors.items()):
        parts = name.split(".")
        form = tuple("" if part.isdigit() else part for part in parts)
        numbers = tuple(int(part) for part in parts if part.isdigit())
        forms[form, json.dumps(shape if dtype == "BF16" else [dtype, shape])].add(numbers)
    lines = {}
    for (form, value), numbers in forms.items():
        for ranges in products(numbers):
            left = iter(ranges)
            lines[".".join(part or f"{{{next(left)}}}" for part in form)] = json.loads(value)
    return lines


def products(numbers: set[Numbers]) -> list[tuple[str, ...]]:
    """Few products of ranges that hold exactly these combinations of numbers."""
    if numbers == {()}:
        return [()]
    tails: dict[int, set[Numbers]] = defaultdict(set)
    for first, *rest in numbers:
        tails[first].add(tuple(rest))
    alike: dict[frozenset[Numbers], list[int]] = defaultdict(list)
    for first, rest in sorted(tails.items()):
        alike[frozenset(rest)].append(first)
    return [
        (ranges(firsts), *tail) for rest, firsts in alike.items() for tail in products(set(rest))
    ]


def ranges(numbers: list[int]) -> str:
    """`0-3`, or `0,2,5-7`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def main() -> None:
    config, tensors = read(Path(sys.argv[1]))
    lines = ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in compact(tensors).items())
    print(f'{{"config": {json.dumps(config)},\n"tensors": {{\n{lines}\n}}}}')


if __name__ == "__main__":
    main()
