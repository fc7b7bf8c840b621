"""What a library holds after its strict load of a checkpoint, in bytes and in values."""

from __future__ import annotations

from pathlib import Path

import library
import mlx.core as mx
import numpy as np
from compare import Stored

KINDS = {
    "BF16": (mx.bfloat16, np.uint16),
    "F16": (mx.float16, np.float16),
    "F32": (mx.float32, np.float32),
    "U8": (mx.uint8, np.uint8),
    "U32": (mx.uint32, np.uint32),
    "I32": (mx.int32, np.int32),
    "I64": (mx.int64, np.int64),
}
"""the types of mlx and of numpy by safetensors names; bf16 comes to numpy as bits"""
NAMES = {kind: name for name, (kind, _) in KINDS.items()}


def parameters(checkpoint: Path, name: str) -> dict[str, Stored]:
    """All parameters, as the bytes that a file would hold."""
    model, _ = library.load(name, checkpoint)
    return {key: stored(array) for key, array in library.parameters(model).items()}


def logits(checkpoint: Path, name: str) -> mx.array:
    """Of a few tokens."""
    return library.run(name, library.load(name, checkpoint)[0])


def stored(array: mx.array) -> Stored:
    bits = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return Stored(NAMES[array.dtype], tuple(array.shape), np.array(bits).tobytes())


def as_mlx(tensor: Stored) -> mx.array:
    kind, bits = KINDS[tensor.dtype]
    array = mx.array(np.frombuffer(tensor.data, bits).reshape(tensor.shape))
    return array.view(kind) if tensor.dtype == "BF16" else array


def dequantized(tensors: dict[str, Stored], module: str, columns: int) -> np.ndarray:
    """By mx.dequantize in f32, in which the products of codes and scales are exact."""
    weight, scales = as_mlx(tensors[f"{module}.weight"]), as_mlx(tensors[f"{module}.scales"])
    if biases := tensors.get(f"{module}.biases"):
        biases = as_mlx(biases).astype(mx.float32)
        group, bits = columns // scales.shape[-1], weight.shape[-1] * 32 // columns
        scales = scales.astype(mx.float32)
        return np.array(mx.dequantize(weight, scales, biases, group_size=group, bits=bits))
    mode = floating_mode(weight, scales)
    values = np.array(mx.dequantize(weight, scales, mode=mode, dtype=mx.float32))
    if second := tensors.get(f"{module}.weight_scale_2"):
        values = values * floats(second)
    if divisor := tensors.get(f"{module}.weight_global_scale"):
        values = values / floats(divisor)
    return values


def floating_mode(weight: mx.array, scales: mx.array) -> str:
    words = weight.shape[-1] // scales.shape[-1]
    return {2: "nvfp4", 4: "mxfp4", 8: "mxfp8"}[words]


def packed_modules(tensors: dict[str, Stored]) -> set[str]:
    return {name.removesuffix(".scales") for name in tensors if name.endswith(".scales")}


def floats(tensor: Stored) -> np.ndarray:
    return np.array(as_mlx(tensor).astype(mx.float32))


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    return np.array(mx.array(values).astype(KINDS[dtype][0]).astype(mx.float32))
