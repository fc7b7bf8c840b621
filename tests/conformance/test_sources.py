"""Quantized checkpoints of every kind: smelt reads them right, and what it makes of them is used.

The expected values come from `sources.py`, which knows nothing of smelt. Where mlx-lm or mlx-vlm load a
format themselves, they are held against those values too, so that the judge is judged.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
import source_cases
from compare import Stored, read_json, read_tensors
from conftest import Smelt
from libraries import PROMPT, load, logits, parameters
from number_formats import E2M1, E4M3, E8M0
from source_cases import BY_ID, CASES, GENUINE, Case, Made

SOURCE_KEYS = ("quantization_config", "compression_config")

# The library makes floats of these on its own.
DECODED_BY_LIBRARY = [
    ("fp8-block-f32-edges", "mlx-lm"),
    ("fp8-block-f32-dsa", "mlx-lm"),
    ("fp8-block-f32-kimi", "mlx-lm"),
    ("fp8-block-f32-minimax", "mlx-lm"),
    ("fp8-block-f32-mimo", "mlx-lm"),
    ("fp8-block-ct", "mlx-vlm"),
    ("fp8-tensor-static-vlm", "mlx-vlm"),
    ("fp8-tensor-ct", "mlx-vlm"),
    ("fp8-channel-ct", "mlx-vlm"),
    ("fp8-channel-ct-qwen3", "mlx-vlm"),
    ("fp8-channel-1d", "mlx-vlm"),
]
# It keeps these packed, and mx.dequantize decodes them.
PACKED_BY_LIBRARY = [
    ("mxfp4-gpt-oss", "mlx-lm"),
    ("mxfp4-gpt-oss", "mlx-vlm"),
    ("nvfp4-modelopt", "mlx-vlm"),
    ("nvfp4-modelopt-vlm", "mlx-vlm"),
    ("nvfp4-ct", "mlx-vlm"),
    ("int4-g32-kimi", "mlx-lm"),
    ("int4-g32-moe", "mlx-vlm"),
    ("int4-g32-llama", "mlx-vlm"),
    ("int4-g128-i64-shape", "mlx-vlm"),
    ("int8-g128", "mlx-vlm"),
    ("awq-exact", "mlx-lm"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """Each case's checkpoints, written once."""
    root, known = tmp_path_factory.mktemp("sources"), {}

    def get(name: str) -> Made:
        if name not in known:
            known[name] = source_cases.make(BY_ID[name], root / name)
        return known[name]

    return get


every_case = pytest.mark.parametrize("case", CASES, ids=str)


# -- the judge -----------------------------------------------------------------------


def test_tables_are_those_of_mlx() -> None:
    codes = mx.array(np.arange(256, dtype=np.uint8))
    assert np.array_equal(np.array(mx.from_fp8(codes, mx.float32)), E4M3, equal_nan=True)
    words = mx.array(np.array([[0x76543210, 0xFEDCBA98] * 2], np.uint32))
    unit = mx.array(np.array([[127]], np.uint8))
    values = mx.dequantize(words, unit, group_size=32, bits=4, mode="mxfp4", dtype=mx.float32)
    assert np.array_equal(np.array(values)[0, :16], E2M1)
    ones = mx.array(np.full((255, 8), 0x38383838, np.uint32))
    scales = mx.array(np.arange(255, dtype=np.uint8)[:, None])
    values = mx.dequantize(ones, scales, group_size=32, bits=8, mode="mxfp8", dtype=mx.float32)
    assert np.array_equal(np.array(values)[:, 0], E8M0[:255])


@pytest.mark.parametrize("case", GENUINE, ids=str)
def test_names_dtypes_and_shapes_are_genuine(case: Case, made: Callable[[str], Made]) -> None:
    expected = {name: (dtype, shape) for name, dtype, shape in source_cases.stored_tensors(case.manifest)}
    ours = {name: (array.dtype, array.shape) for name, array in made(case.id).stored.items()}
    assert ours == expected


@pytest.mark.parametrize(("name", "library"), DECODED_BY_LIBRARY)
def test_library_decodes_to_the_expected(name: str, library: str, made: Callable[[str], Made]) -> None:
    case = made(name)
    assert parameters(case.source, library) == parameters(case.plain, library)


@pytest.mark.parametrize(("name", "library"), PACKED_BY_LIBRARY)
def test_library_packs_the_expected(name: str, library: str, made: Callable[[str], Made]) -> None:
    case = made(name)
    theirs = parameters(case.source, library)
    differ = inexact(theirs, parameters(case.plain, library))
    assert differ <= (2e-5 if "nvfp4" in name else 0), differ


def inexact(packed: dict[str, Stored], plain: dict[str, Stored]) -> float:
    """The largest share of a module's elements that don't decode to the plain ones."""
    shares = [0.0]
    for module in packed_modules(packed):
        expected = floats(plain[f"{module}.weight"])
        values = dequantized(packed, module, expected.shape[-1])
        shares.append(np.mean(rounded(values, plain[f"{module}.weight"].dtype) != expected))
    assert len(shares) > 1
    return max(shares)


def packed_modules(tensors: dict[str, Stored]) -> set[str]:
    return {name.removesuffix(".scales") for name in tensors if name.endswith(".scales")}


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


def as_mlx(tensor: Stored) -> mx.array:
    kinds = {"U32": np.uint32, "U8": np.uint8, "F16": np.float16, "F32": np.float32, "BF16": np.uint16}
    array = mx.array(np.frombuffer(tensor.data, kinds[tensor.dtype]).reshape(tensor.shape))
    return array.view(mx.bfloat16) if tensor.dtype == "BF16" else array


def floats(tensor: Stored) -> np.ndarray:
    return np.array(as_mlx(tensor).astype(mx.float32))


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    kind = {"BF16": mx.bfloat16, "F16": mx.float16, "F32": mx.float32}[dtype]
    return np.array(mx.array(values).astype(kind).astype(mx.float32))
