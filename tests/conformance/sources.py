"""One encoder for each way in which publishers store quantized weights.

An encoder turns the float weight of a module into the tensors that a checkpoint holds for it, and
says which values those stand for: `Encoded.decoded`, computed here with numpy from the format's
definition, in the order in which the publisher's own code computes it, rounded to the model's type.
Every code that a format has occurs in every weight, so that a wrong table can't stay unseen.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from checkpoints import bf16_bits
from number_formats import (
    E2M1,
    E4M3,
    E5M2,
    E8M0,
    F32,
    ROUND,
    block_maxima,
    blocks_to_elements,
    nearest,
    nibbles,
    pack,
)

FP8 = {"F8_E4M3": E4M3, "F8_E5M2": E5M2}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True)
class Array:
    """A stored tensor: the safetensors name of its dtype, and its elements' bits."""

    dtype: str
    bits: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bits.shape


@dataclass(frozen=True)
class Encoded:
    """What a checkpoint holds for one weight, and the values that it stands for."""

    stored: dict[str, Array]
    decoded: np.ndarray


class Encoder(Protocol):
    """A storage format."""

    @property
    def config(self) -> dict[str, Any]:
        """What the publisher's tool writes as `quantization_config`."""

    def encode(self, name: str, values: np.ndarray) -> Encoded:
        """`name` is that of the plain weight, `….weight` or that of a fused tensor."""


def floats(dtype: str, values: np.ndarray) -> Array:
    """f32 values that `dtype` holds exactly."""
    values = np.asarray(values, F32)
    if dtype == "BF16":
        return Array(dtype, bf16_bits(np.atleast_1d(values)).reshape(values.shape))
    return Array(dtype, values.astype(np.float16) if dtype == "F16" else values)


def seeded(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def salted(codes: np.ndarray, every: np.ndarray) -> np.ndarray:
    """The codes with each of `every` put at places all over the tensor."""
    flat = codes.reshape(-1).copy()
    every = every[: flat.size]
    flat[np.arange(every.size) * (flat.size // every.size)] = every
    return flat.reshape(codes.shape)


def finite_codes(table: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.isfinite(table)).astype(np.uint8)


def power_of_two(scales: np.ndarray) -> np.ndarray:
    """The E8M0 byte of the next power of two; zero gets that of one."""
    scales = np.where(scales > 0, scales, 1.0)
    return (np.ceil(np.log2(scales)) + 127).astype(np.uint8)


# -- FP8 ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Fp8:
    """8-bit floats with one scale a tensor, a row or a block, of which the weight is the product.

    DeepSeek calls the scale `weight_scale_inv`; it multiplies all the same, as `weight_scale` does.
    """

    config: dict[str, Any]
    block: tuple[int, ...] | None = None
    """elements a scale covers on each of the last axes; None: all"""
    scale_dtype: str = "F32"
    scale_shape: str = "grid"
    """how scales lie: `grid` of blocks, `scalar` [], `one` [1], `column` [out, 1], `row` [out]"""
    suffix: str = "_scale_inv"
    """appended to the weight's name; with a dot before, put in the place of `.weight`"""
    code: str = "F8_E4M3"
    dtype: str = "BF16"
    extra: tuple[tuple[str, str, tuple[int, ...]], ...] = ()
    """further tensors of a module: name after the module's, dtype, shape"""

    def encode(self, name: str, values: np.ndarray) -> Encoded:
        table, block = FP8[self.code], self._block(values.shape)
        largest = block_maxima(values, block) / table[np.isfinite(table)].max()
        scale, value = self._scale(largest.astype(F32))
        spread = blocks_to_elements(value, block, values.shape)
        codes = salted(nearest(table, values / spread), finite_codes(table))
        # As mlx-lm does it: one product in f32, one rounding.
        decoded = ROUND[self.dtype](table[codes] * spread)
        stored = {name: Array(self.code, codes), self._scale_name(name): self._shaped(scale)}
        for suffix, dtype, shape in self.extra:
            stored[f"{module(name)}.{suffix}"] = floats(dtype, np.full(shape, 0.0125, F32))
        return Encoded(stored, decoded)

    def _block(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        if self.scale_shape in ("column", "row"):
            return (*[1] * (len(shape) - 1), shape[-1])
        block = self.block or shape
        return (*[1] * (len(shape) - len(block)), *block)

    def _scale(self, largest: np.ndarray) -> tuple[Array, np.ndarray]:
        if self.scale_dtype in ("F8_E8M0", "U8"):
            byte = power_of_two(largest)
            return Array(self.scale_dtype, byte), E8M0[byte]
        value = ROUND[self.scale_dtype](np.maximum(largest, F32(1e-8)))
        return floats(self.scale_dtype, value), value

    def _shaped(self, scale: Array) -> Array:
        shapes = {"scalar": (), "one": (1,), "row": scale.shape[:1]}
        shape = shapes.get(self.scale_shape, scale.shape)
        return Array(scale.dtype, scale.bits.reshape(shape))

    def _scale_name(self, name: str) -> str:
        base = module(name) if self.suffix.startswith(".") else name
        return base + self.suffix


def module(name: str) -> str:
    return name.removesuffix(".weight")


def fp8_block(block: int | tuple[int, int], scale: str = "F32", **options: Any) -> Fp8:
    """As DeepSeek and those after it write it."""
    sizes = (block, block) if isinstance(block, int) else block
    config = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": list(sizes),
    }
    if scale in ("F8_E8M0", "U8"):
        config["scale_fmt"] = "ue8m0"
    config |= options.pop("config", {})
    return Fp8(config, sizes, scale, **options)


def compressed(fmt: str, weights: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The config of compressed-tensors."""
    group = {"format": fmt, "targets": ["Linear"], "weights": weights, "input_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": fmt,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        **more,
    }


def float_quantized(strategy: str, **options: Any) -> Fp8:
    """FP8 by compressed-tensors."""
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True}
    if strategy == "block":
        weights["block_structure"] = list(options["block"])
    return Fp8(compressed("float-quantized", weights), suffix="_scale", **options)


# -- four-bit floats -----------------------------------------------------------------


def fp4_codes(values: np.ndarray) -> np.ndarray:
    return salted(nearest(E2M1, values), np.arange(16, dtype=np.uint8))


@dataclass(frozen=True)
class Mxfp4Blocks:
    """gpt-oss: `[…, in, out]` stored as `[…, out, in/32, 16]` bytes, and one E8M0 byte a group."""

    config: dict[str, Any]

    def encode(self, name: str, values: np.ndarray) -> Encoded:
        groups = np.swapaxes(values, -1, -2)
        groups = groups.reshape(*groups.shape[:-1], -1, 32)
        byte = power_of_two(np.abs(groups).max(-1) / 6)
        byte.reshape(-1)[:2] = [0, 1]  # 2^-127 is a subnormal of bf16
        codes = fp4_codes(groups / E8M0[byte][..., None])
        decoded = (E2M1[codes] * E8M0[byte][..., None]).reshape(*groups.shape[:-2], -1)
        stored = {
            f"{name}_blocks": Array("U8", nibbles(codes)),
            f"{name}_scales": Array("U8", byte),
        }
        return Encoded(stored, np.swapaxes(decoded, -1, -2))


@dataclass(frozen=True)
class Mxfp4:
    """Two codes a byte, one E8M0 byte for 32: DeepSeek-V4's experts, compressed-tensors' MXFP4."""

    config: dict[str, Any]
    weight: str = ".weight"
    weight_dtype: str = "I8"
    scale: str = ".scale"
    scale_dtype: str = "F8_E8M0"

    def encode(self, name: str, values: np.ndarray) -> Encoded:
        groups = values.reshape(*values.shape[:-1], -1, 32)
        byte = power_of_two(np.abs(groups).max(-1) / 6)
        codes = fp4_codes(groups / E8M0[byte][..., None])
        decoded = (E2M1[codes] * E8M0[byte][..., None]).reshape(values.shape)
        packed = nibbles(codes.reshape(values.shape))
        stored = {
            module(name) + self.weight: Array(self.weight_dtype, packed),
            module(name) + self.scale: Array(self.scale_dtype, byte),
        }
        return Encoded(stored, decoded)


@dataclass(frozen=True)
class Nvfp4:
    """E2M1 codes with an E4M3 scale for 16 and a second scale for all.

    ModelOpt stores the second scale as a factor, compressed-tensors its reciprocal, a divisor. Both
    join the scales in f32 first, then multiply the code.
    """

    config: dict[str, Any]
    divisor: bool = False
    exact: str = "^$"
    """a pattern of the weights whose second scale can be folded into the first without rounding"""
    dtype: str = "BF16"

    def encode(self, name: str, values: np.ndarray) -> Encoded:
        groups = values.reshape(*values.shape[:-1], -1, 16)
        first, second = self._scales(name, np.abs(groups).max(-1))
        joined = E4M3[first] / (F32(1) / second) if self.divisor else E4M3[first] * second
        codes = fp4_codes(groups / joined[..., None])
        decoded = ROUND[self.dtype](E2M1[codes] * joined[..., None]).reshape(values.shape)
        packed = Array("U8", nibbles(codes.reshape(values.shape)))
        return Encoded(self._stored(module(name), packed, Array("F8_E4M3", first), second), decoded)

    def _scales(self, name: str, largest: np.ndarray) -> tuple[np.ndarray, np.float32]:
        positive = E4M3[:0x7F]
        if re.search(self.exact, name):
            folded = positive[np.maximum(nearest(positive, largest / 6), 1)]
            return nearest(positive, folded * 64), F32(1 / 64)
        second = F32(largest.max() / (6 * 448))
        return np.maximum(nearest(positive, largest / (6 * second)), 1), second

    def _stored(
        self, base: str, packed: Array, first: Array, second: np.float32
    ) -> dict[str, Array]:
        if self.divisor:
            return {
                f"{base}.weight_packed": packed,
                f"{base}.weight_scale": first,
                f"{base}.weight_global_scale": floats("F32", np.array([F32(1) / second])),
                f"{base}.input_global_scale": floats("F32", np.array([100.0])),
            }
        return {
            f"{base}.weight": packed,
            f"{base}.weight_scale": first,
            f"{base}.weight_scale_2": floats("F32", second),
            f"{base}.input_scale": floats("F32", np.array(0.01)),
        }


# -- integers ------------------------------------------------------------------------


@dataclass(frozen=True)
class Integers:
    """Codes, scales and zero points of groups along the input: w = (code - zero) · scale."""

    codes: np.ndarray
    """[out, in]"""
    zeros: np.ndarray
    """[out, groups]"""
    scales: np.ndarray
    """[out, groups], of the scales' dtype"""
    group_of: np.ndarray
    """[in]: the group of each input"""

    def decoded(self, dtype: str) -> np.ndarray:
        steps = self.codes.astype(F32) - self.zeros[:, self.group_of].astype(F32)
        return ROUND[dtype](steps * self.scales[:, self.group_of])


@dataclass(frozen=True)
class Grid:
    """How integers are chosen."""

    bits: int
    group: int
    scale_dtype: str
    symmetric: bool
    few_bits: bool = False
    """scales whose products with zero points are exact in their dtype"""
    act_order: bool = False

    def quantize(self, name: str, values: np.ndarray) -> Integers:
        rows, columns = values.shape
        groups = columns // self.group
        group_of = np.arange(columns) // self.group
        if self.act_order:
            group_of = seeded(name).permutation(group_of)
        order = np.argsort(group_of, kind="stable")
        grouped = values[:, order].reshape(rows, groups, self.group)
        half, top = 1 << (self.bits - 1), (1 << self.bits) - 1
        if self.symmetric:
            scales = np.abs(grouped).max(-1) / (half - 1)
            zeros = np.full((rows, groups), half)
        else:
            low, high = np.minimum(grouped.min(-1), 0), np.maximum(grouped.max(-1), 0)
            scales = (high - low) / top
            zeros = np.clip(np.rint(-low / scales), 1, top - 1).astype(int)
        scales = self._rounded(scales.astype(F32))
        steps = np.rint(values / scales[:, group_of]) + zeros[:, group_of]
        codes = np.clip(steps, 0, top).astype(np.uint8)
        every = np.arange(1 << self.bits, dtype=np.uint8)
        return Integers(salted(codes, every), zeros, scales, group_of)

    def _rounded(self, scales: np.ndarray) -> np.ndarray:
        if self.few_bits:
            mantissa, exponent = np.frexp(scales)
            return np.ldexp(np.ceil(mantissa * 8) / 8, exponent).astype(F32)
        return ROUND[self.scale_dtype](scales)


@dataclass(frozen=True)
class PackQuantized:
    """Integers of compressed-tensors: weights packed along the input, zeros along the output."""

    group: int = 32
    symmetric: bool = True
    act_order: bool = False
    shape_dtype: str = "I32"
    dtype: str = "BF16"
    bits: int = 4
    config_extra: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        weights = {
            "num_bits": self.bits,
            "group_size": self.group,
            "type": "int",
            "symmetric": self.symmetric,
            "strategy": "group",
            "actorder": "group" if self.act_order else None,
        }
        return compressed("pack-quantized", weights) | self.config_extra

    def encode(self, name: str, values: np.ndarray) -> Encoded:
        grid = Grid(self.bits, self.group, self.dtype, self.symmetric, act_order=self.act_order)
        ints, base = grid.quantize(name, values), module(name)
        shape = np.array(values.shape, np.int64 if self.shape_dtype == "I64" else np.int32)
        stored = {
            f"{base}.weight_packed": Array("I32", pack(ints.codes, self.bits)),
            f"{base}.weight_scale": floats(self.dtype, ints.scales),
            f"{base}.weight_shape": Array(self.shape_dtype, shape),
        }
        if not self.symmetric:
            packed = pack(ints.zeros, self.bits, axis=0)
            stored[f"{base}.weight_zero_point"] = Array("I32", packed)
        if self.act_order:
            stored[f"{base}.weight_g_idx"] = Array("I32", ints.group_of.astype(np.int32))
        return Encoded(stored, ints.decoded(self.dtype))


@dataclass(frozen=True)
class Awq:
    """AutoAWQ's gemm layout: `[in, out/8]`, the outputs of a word in the order 0 2 4 6 1 3 5 7."""

    group: int = 32
    few_bits: bool = False
    dtype: str = "F16"

    @property
    def config(self) -> dict[str, Any]:
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": self.group,
            "version": "gemm",
            "zero_point": True,
            "modules_to_not_convert": None,
        }

    def encode(self, name: str, values: np.ndarray) -> Encoded:
        grid = Grid(4, self.group, self.dtype, symmetric=False, few_bits=self.few_bits)
        ints, base = grid.quantize(name, values), module(name)
        stored = {
            f"{base}.qweight": Array("I32", pack(ints.codes.T, 4, order=AWQ_ORDER)),
            f"{base}.qzeros": Array("I32", pack(ints.zeros.T, 4, order=AWQ_ORDER)),
            f"{base}.scales": floats(self.dtype, ints.scales.T),
        }
        return Encoded(stored, ints.decoded(self.dtype))


@dataclass(frozen=True)
class Gptq:
    """GPTQ: `[in/8, out]` words along the input; the first version stores zero points less one."""

    bits: int = 4
    group: int = 32
    symmetric: bool = False
    act_order: bool = False
    version: int = 1
    few_bits: bool = False
    dtype: str = "F16"

    @property
    def config(self) -> dict[str, Any]:
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group,
            "desc_act": self.act_order,
            "sym": self.symmetric,
            "static_groups": False,
            "damp_percent": 0.01,
            "checkpoint_format": "gptq" if self.version == 1 else "gptq_v2",
        }

    def encode(self, name: str, values: np.ndarray) -> Encoded:
        options = {"few_bits": self.few_bits, "act_order": self.act_order}
        grid = Grid(self.bits, self.group, self.dtype, self.symmetric, **options)
        ints, base = grid.quantize(name, values), module(name)
        zeros = ints.zeros - (1 if self.version == 1 else 0)
        stored = {
            f"{base}.qweight": Array("I32", pack(ints.codes.T, self.bits, axis=0)),
            f"{base}.qzeros": Array("I32", pack(zeros.T, self.bits)),
            f"{base}.scales": floats(self.dtype, ints.scales.T),
            f"{base}.g_idx": Array("I32", ints.group_of.astype(np.int32)),
        }
        return Encoded(stored, ints.decoded(self.dtype))


# -- files ---------------------------------------------------------------------------


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """One safetensors file. Tensors lie in the order of the mapping, names in the header sorted."""
    entries, offset = {}, 0
    for name, array in arrays.items():
        span = [offset, offset + array.bits.nbytes]
        entries[name] = {"dtype": array.dtype, "shape": list(array.shape), "data_offsets": span}
        offset = span[1]
    head = {"__metadata__": {"format": "pt"}, **dict(sorted(entries.items()))}
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array.bits).tobytes())
