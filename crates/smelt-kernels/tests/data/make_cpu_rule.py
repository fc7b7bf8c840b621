#!/usr/bin/env python3
"""Writes cpu_rule.safetensors: inputs and what stock MLX stores for them on an x86-64 CPU.

    python make_cpu_rule.py FILE            writes FILE
    python make_cpu_rule.py --check FILE    makes it again and compares; exit 1 on a difference

Needs `mlx[cpu]` 0.32.2 or newer (the scales of mxfp4 and mxfp8 were rounded otherwise before) and
numpy. Tensors are `dtype/case/input` and `dtype/case/format/part` with part one of weight, scales,
biases and, of a few cases, dequantized; 16-bit floats as raw bits in U16, f32 in U32. The file
depends on nothing but MLX: the numbers come from a small integer generator.
"""

import json
import struct
import sys

import mlx.core as mx
import numpy as np

ROWS, COLS = 4, 128
MLX = {"bf16": mx.bfloat16, "f16": mx.float16, "f32": mx.float32}
AFFINE = [(bits, size) for bits in (2, 3, 4, 5, 6, 8) for size in (32, 64, 128)]
SMALL_FLOATS = ("mxfp4", "mxfp8", "nvfp4")


def words(seed, count):
    """SplitMix64, upper halves."""
    with np.errstate(over="ignore"):
        z = np.uint64(seed) * np.uint64(0x2545F4914F6CDD1D)
        z = z + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((z ^ (z >> np.uint64(31))) >> np.uint64(32)).astype(np.uint32)


def bell(seed):
    """Roughly normal, mean 0, deviation 1: sums of eight uniform numbers."""
    w = words(seed, ROWS * COLS * 8).astype(np.float64) / 2.0**32 - 0.5
    return w.reshape(ROWS, COLS, 8).sum(-1) * np.sqrt(12 / 8)


def integers(seed, low, high):
    return low + (words(seed, ROWS * COLS) % np.uint32(high - low + 1)).reshape(ROWS, COLS).astype(np.float64)


def spread(value, step):
    x = bell(7)
    x.reshape(-1)[::step] = value
    return x


def cases(dtype):
    """Name and values; float64, rounded to the dtype later."""
    half = dtype == "f16"
    yield "weights", bell(1) * 0.02
    yield "wide", bell(2) * np.exp2(integers(3, *((-14, 10) if half else (-60, 60))))
    yield "halves", integers(4, -31, 31) / 2
    yield "quarters", integers(5, -25, 25) / 4
    yield "eighths", integers(6, -49, 49) / 8
    yield "positive", np.abs(bell(8)) + 0.5
    yield "negative", -np.abs(bell(9)) - 0.5
    yield "constant", np.repeat(bell(10)[:, :4], 32, 1)
    yield "zero", np.zeros((ROWS, COLS))
    yield "negative_zero", -np.zeros((ROWS, COLS))
    yield "outlier", bell(11) + (np.arange(COLS) == 40) * 1e4
    yield "tiny", bell(12) * 1e-7
    yield "denormal", bell(13) * (1e-7 if half else 1e-39)
    yield "huge", bell(14) * (1e4 if half else 4e37)
    yield "powers", np.exp2(integers(15, *((-24, 15) if half else (-126, 127)))) * np.sign(bell(16))
    yield "overflow", np.where(bell(17) > 0, 1, -1) * (65504.0 if half else 3.38e38)
    yield "nan", spread(np.nan, 51)
    yield "inf", spread(np.inf, 77)
    yield "negative_inf", spread(-np.inf, 77)
    yield "all_nan", np.full((ROWS, COLS), np.nan)


NOT_FOR_SMALL_FLOATS = {"nan", "inf", "negative_inf", "all_nan"}
DEQUANTIZED = {"weights", "wide", "eighths"}


def raw(array):
    """The bits of an MLX array."""
    if array.dtype in (mx.bfloat16, mx.float16):
        return np.array(array.view(mx.uint16))
    return np.array(array.view(mx.uint32) if array.dtype == mx.float32 else array)


def record(tensors, prefix, array, values, options):
    """Quantizes `array` and keeps the parts."""
    parts = mx.quantize(array, **options)
    for name, part in zip(("weight", "scales", "biases"), parts):
        tensors[f"{prefix}/{name}"] = raw(part)
    if values:
        tensors[f"{prefix}/dequantized"] = raw(mx.dequantize(*parts, dtype=array.dtype, **options))


def make():
    mx.set_default_device(mx.cpu)
    tensors = {}
    for dtype, mlx_dtype in MLX.items():
        for case, x in cases(dtype):
            array = mx.array(x.astype(np.float32)).astype(mlx_dtype)
            tensors[f"{dtype}/{case}/input"] = raw(array)
            values = case in DEQUANTIZED
            for bits, size in AFFINE:
                name = f"{dtype}/{case}/affine-b{bits}-g{size}"
                record(tensors, name, array, values, {"bits": bits, "group_size": size})
            for mode in () if case in NOT_FOR_SMALL_FLOATS else SMALL_FLOATS:
                record(tensors, f"{dtype}/{case}/{mode}", array, values, {"mode": mode})
    return tensors


def serialize(tensors):
    """A safetensors file, tensors in the order of their names."""
    names = {"uint8": "U8", "uint16": "U16", "uint32": "U32"}
    header = {"__metadata__": {"about": "MLX quantization on an x86-64 CPU; see make_cpu_rule.py"}}
    data = b""
    for name, array in sorted(tensors.items()):
        start, data = len(data), data + array.tobytes()
        header[name] = {
            "dtype": names[array.dtype.name],
            "shape": array.shape,
            "data_offsets": [start, len(data)],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def main():
    arguments = sys.argv[1:]
    check = arguments[:1] == ["--check"]
    if len(arguments) != 1 + check:
        sys.exit(__doc__)
    made = serialize(make())
    if not check:
        with open(arguments[0], "wb") as file:
            file.write(made)
    else:
        with open(arguments[1], "rb") as file:
            if file.read() != made:
                sys.exit(f"`{arguments[1]}` is not what mlx {mx.__version__} gives")


if __name__ == "__main__":
    main()
