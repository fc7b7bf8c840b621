"""The small number formats of quantized checkpoints, from their definitions alone.

Every table is built here from sign, exponent and mantissa; nothing is taken from mlx, so that mlx
can be compared with it. All values are float32, which holds each of them exactly.
"""

import numpy as np
from checkpoints import bf16_bits

F32 = np.float32


def _minifloat(exponent_bits: int, mantissa_bits: int, bias: int) -> np.ndarray:
    """The values of all codes of a float without infinities: sign, exponent, mantissa."""
    codes = np.arange(1 << (1 + exponent_bits + mantissa_bits))
    mantissa = codes & ((1 << mantissa_bits) - 1)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    sign = np.where(codes >> (exponent_bits + mantissa_bits), -1.0, 1.0)
    fraction = mantissa / (1 << mantissa_bits)
    normal = (1 + fraction) * 2.0 ** (exponent - bias)
    subnormal = fraction * 2.0 ** (1 - bias)
    return (sign * np.where(exponent > 0, normal, subnormal)).astype(F32)


E2M1 = _minifloat(2, 1, 1)
"""0, ½, 1, 1½, 2, 3, 4, 6 and their negatives"""

E4M3 = _minifloat(4, 3, 7)
"""E4M3FN: no infinity, 0x7F and 0xFF are NaN"""
E4M3[[0x7F, 0xFF]] = np.nan

E5M2 = _minifloat(5, 2, 15)
"""The upper byte of an IEEE half: from 0x7C on infinity and NaN"""
E5M2[(np.arange(256) & 0x7F) == 0x7C] = np.inf
E5M2[(np.arange(256) & 0x7F) > 0x7C] = np.nan
E5M2[0xFC] = -np.inf

E8M0 = np.append(2.0 ** (np.arange(255.0) - 127), np.nan).astype(F32)
"""2^(byte - 127); 255 is NaN"""


def nearest(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each value the code whose value is nearest: codes as u8, saturating."""
    codes = np.flatnonzero(np.isfinite(table))
    codes = codes[np.argsort(table[codes], kind="stable")]
    steps = table[codes]
    places = np.searchsorted((steps[1:] + steps[:-1]) / 2, values)
    return codes[places].astype(np.uint8)


def to_bf16(values: np.ndarray) -> np.ndarray:
    """f32 values rounded to bf16, as f32."""
    bits = bf16_bits(np.ascontiguousarray(values, dtype=F32))
    return (bits.astype(np.uint32) << 16).view(F32).reshape(values.shape)


def to_f16(values: np.ndarray) -> np.ndarray:
    """f32 values rounded to f16, as f32."""
    return values.astype(np.float16).astype(F32)


ROUND = {"BF16": to_bf16, "F16": to_f16, "F32": lambda values: values.astype(F32)}


def blocks_to_elements(
    scales: np.ndarray, block: tuple[int, ...], shape: tuple[int, ...]
) -> np.ndarray:
    """The scale of each element; blocks at the far edges may stick out of `shape`."""
    for axis, length in enumerate(block):
        scales = np.repeat(scales, length, axis)
    return scales[tuple(slice(n) for n in shape)]


def block_maxima(values: np.ndarray, block: tuple[int, ...]) -> np.ndarray:
    """The largest magnitude of each block."""
    grid = tuple(-(-n // b) for n, b in zip(values.shape, block, strict=True))
    padding = [(0, g * b - n) for g, b, n in zip(grid, block, values.shape, strict=True)]
    padded = np.pad(np.abs(values), padding)
    split = padded.reshape([size for pair in zip(grid, block, strict=True) for size in pair])
    return split.max(axis=tuple(range(1, 2 * len(block), 2)))


def pack(
    codes: np.ndarray, bits: int, axis: int = -1, order: tuple[int, ...] | None = None
) -> np.ndarray:
    """Codes in 32-bit words along an axis, the first in the lowest bits, padded with zeros.

    `order[i]` is the code of each word's run that lies in its i-th place, where it isn't the i-th.
    """
    count = 32 // bits
    codes = np.moveaxis(codes, axis, -1).astype(np.uint32)
    codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % count)])
    runs = codes.reshape(*codes.shape[:-1], -1, count)
    words = np.zeros(runs.shape[:-1], np.uint32)
    for place, index in enumerate(order or range(count)):
        words |= runs[..., index] << np.uint32(bits * place)
    return np.ascontiguousarray(np.moveaxis(words, -1, axis)).view(np.int32)


def nibbles(codes: np.ndarray) -> np.ndarray:
    """4-bit codes two a byte along the last axis, the first in the low half."""
    return (codes[..., 0::2] | (codes[..., 1::2] << 4)).astype(np.uint8)
