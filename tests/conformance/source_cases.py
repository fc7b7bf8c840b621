"""Checkpoints in every storage format, each beside the plain checkpoint that it stands for.

Names, shapes, dtypes and configs come from manifests of published checkpoints (`tests/manifests`). Where
there is one of a quantized checkpoint, the plain one is derived from it and has to encode back to exactly
what the manifest lists; other formats are put on a plain model.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import (
    CONFIG_DTYPE,
    Tensor,
    Variant,
    manifest_tensors,
    weights,
    write_json,
    write_tokenizer,
)
from number_formats import F32, to_bf16
from record import MANIFESTS
from sources import (
    Array,
    Awq,
    Encoded,
    Encoder,
    Fp8,
    Gptq,
    Mxfp4,
    Mxfp4Blocks,
    Nvfp4,
    PackQuantized,
    compressed,
    float_quantized,
    floats,
    fp8_block,
    write_arrays,
)

Shape = tuple[int, ...]

COMPANION = re.compile(
    r"(_scale_inv|\.scale|\.weight_scale|\.weight_scale_2|\.input_scale|\.activation_scale|\.weight_shape"
    r"|\.weight_global_scale|\.input_global_scale|\.qzeros|\.scales|_scales)$"
)
DENSE = re.compile(r"embed|lm_head|norm|\.gate\.|router|visual|vision|conv1d|shared_expert_gate|eh_proj")
GPT_OSS_BIAS = "proj_bias"


@dataclass(frozen=True)
class Case:
    """A checkpoint in one storage format."""

    id: str
    manifest: str
    encoder: Encoder
    words: tuple[str, ...]
    """what `smelt inspect` has to say of it"""
    experts: Encoder | None = None
    """for routed experts, where they are stored in another way"""
    dtype: str = "BF16"
    library: str = "mlx-lm"
    side: dict[str, Any] = field(default_factory=dict)
    """side files, JSON"""
    only: str = ""
    """a pattern of the modules that are quantized, on a plain manifest"""
    config_in: str = ""
    """the block of config.json that holds `quantization_config`"""

    def __str__(self) -> str:
        return self.id

    def encoder_of(self, name: str) -> Encoder:
        return self.experts if self.experts and ".experts." in name else self.encoder


@dataclass(frozen=True)
class Made:
    """A case on the disk."""

    case: Case
    source: Path
    """as it is published"""
    plain: Path
    """the same model in floats, as the library takes it"""
    stored: dict[str, Array]
    encoded: dict[str, Encoded]
    """by the name of the plain weight"""


def manifest(name: str) -> dict[str, Any]:
    return json.loads((MANIFESTS / f"{name}.json").read_text())


def stored_tensors(name: str) -> Iterator[tuple[str, str, Shape]]:
    """What a manifest lists: name, dtype, shape."""
    for tensor in manifest_tensors(manifest(name), Variant()):
        yield tensor.name, tensor.dtype, tensor.shape


def plain_tensor(name: str, dtype: str, shape: Shape) -> tuple[str, Shape] | None:
    """The weight that a packed tensor stands for."""
    if name.endswith("_blocks"):
        experts, rows, groups, _ = shape
        return name.removesuffix("_blocks"), (experts, groups * 32, rows)
    if name.endswith(".qweight"):
        return name.replace(".qweight", ".weight"), (shape[1] * 8, shape[0])
    if name.endswith(".weight_packed"):
        factor = 8 if dtype == "I32" else 2
        return name.replace("_packed", ""), (*shape[:-1], shape[-1] * factor)
    if dtype in ("U8", "I8"):
        return name, (*shape[:-1], shape[-1] * 2)
    return (name, shape) if dtype.startswith("F8_E") else None


def is_quantized(case: Case, name: str, shape: Shape) -> bool:
    """On a plain manifest: which weights the publisher would have quantized."""
    if is_packed(case.manifest):
        return False
    if case.only:
        return re.search(case.only, name) is not None
    return name.endswith(".weight") and len(shape) == 2 and not DENSE.search(name)


@functools.cache
def is_packed(name: str) -> bool:
    """Whether a manifest is that of a quantized checkpoint: then it says itself what is quantized."""
    return "quantization_config" in manifest(name)["config"]


def plain_tensors(case: Case) -> Iterator[tuple[str, str, Shape, bool]]:
    """Name, dtype and shape of the plain model's tensors, and whether they are quantized."""
    for name, dtype, shape in stored_tensors(case.manifest):
        if COMPANION.search(name):
            continue
        if plain := plain_tensor(name, dtype, shape):
            yield *(plain[0], case.dtype, plain[1]), True
        else:
            own = case.dtype if dtype in ("BF16", "F16") else dtype
            yield name, own, shape, is_quantized(case, name, shape)


def values_of(name: str, dtype: str, shape: Shape) -> np.ndarray:
    """The weight that is encoded: as in all tests, drawn from the name."""
    return weights(Tensor(name, "F32", shape)).astype(F32)


def make(case: Case, folder: Path) -> Made:
    """Write both checkpoints."""
    stored, plain, encoded = {}, {}, {}
    for name, dtype, shape, quantized in plain_tensors(case):
        if quantized:
            encoded[name] = case.encoder_of(name).encode(name, values_of(name, dtype, shape))
            stored |= encoded[name].stored
            plain[name] = floats(case.dtype, encoded[name].decoded)
        else:
            stored[name] = plain[name] = dense(name, dtype, shape)
    config = manifest(case.manifest)["config"]
    written = folder / "source", folder / "plain"
    write(written[0], quantized_config(case, config), stored, case.side)
    write(written[1], plain_config(case, config), library_names(case, plain), {})
    return Made(case, *written, stored, encoded)


def dense(name: str, dtype: str, shape: Shape) -> Array:
    if dtype.startswith("I"):
        return Array(dtype, np.zeros(shape, np.int64 if dtype == "I64" else np.int32))
    return Array(dtype, weights(Tensor(name, dtype, shape)))


def plain_config(case: Case, config: dict[str, Any]) -> dict[str, Any]:
    config = {k: v for k, v in config.items() if k != "quantization_config"}
    return config | {"dtype": CONFIG_DTYPE[case.dtype], "torch_dtype": CONFIG_DTYPE[case.dtype]}


def quantized_config(case: Case, config: dict[str, Any]) -> dict[str, Any]:
    config, block = plain_config(case, config), case.encoder.config
    if not block:
        return config
    if case.config_in:
        inner = config[case.config_in] | {"quantization_config": block}
        return config | {case.config_in: inner}
    return config | {"quantization_config": block}


def read_config(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "config.json").read_text())


def write(out: Path, config: dict[str, Any], arrays: dict[str, Array], side: dict[str, Any]) -> None:
    out.mkdir(parents=True)
    write_json(out / "config.json", config)
    for name, value in side.items():
        write_json(out / name, value)
    write_tokenizer(out, config.get("eos_token_id"))
    write_arrays(out / "model.safetensors", arrays)


def library_names(case: Case, plain: dict[str, Array]) -> dict[str, Array]:
    """gpt-oss in floats has a layout that no library takes; it is given the library's own."""
    if case.manifest != "gpt_oss":
        return plain
    named = {}
    for name, array in plain.items():
        bits = array.bits
        if name.endswith(GPT_OSS_BIAS):
            bits = bits[..., None, :]  # [experts, 1, out], as a weight of [experts, in, out]
        for new, part in gpt_oss_parts(name, bits):
            named[new] = Array(array.dtype, part[..., 0] if name.endswith(GPT_OSS_BIAS) else part)
    return named


def gpt_oss_parts(name: str, bits: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Fused, transposed experts as the library's projections; gate and up take turns."""
    base, suffix = name.removesuffix("_bias"), ".bias" if name.endswith(GPT_OSS_BIAS) else ".weight"
    if base.endswith("experts.gate_up_proj"):
        rows = np.swapaxes(bits, 1, 2)
        yield base.replace("gate_up", "gate") + suffix, rows[:, 0::2]
        yield base.replace("gate_up", "up") + suffix, rows[:, 1::2]
    elif base.endswith("experts.down_proj"):
        yield base + suffix, np.swapaxes(bits, 1, 2)
    else:
        yield name, bits


# -- the table -----------------------------------------------------------------------

STATIC = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
FBGEMM = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": ["lm_head"]}
MXFP4_CONFIG = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}
MXFP8_CONFIG = {
    "quant_method": "mxfp8",
    "fmt": "e4m3",
    "weight_block_size": [1, 32],
    "scale_fmt": "ue8m0",
}


def modelopt(algorithm: str, **more: Any) -> dict[str, Any]:
    """config.json's block of ModelOpt."""
    return {
        "quant_method": "modelopt",
        "quant_algo": algorithm,
        "producer": {"name": "modelopt", "version": "0.33.0"},
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"]}},
        **more,
    }


def hf_quant_config(algorithm: str, **more: Any) -> dict[str, Any]:
    """The side file in which ModelOpt says the same, or says it alone."""
    inner = {"quant_algo": algorithm, "kv_cache_quant_algo": "FP8", "exclude_modules": ["lm_head"]}
    return {"producer": {"name": "modelopt", "version": "0.33.0"}, "quantization": inner | more}


INPUT_SCALE = (("input_scale", "F32", ()),)
PER_TENSOR = Fp8(
    modelopt("FP8", kv_cache_scheme={"dynamic": False, "num_bits": 8, "type": "float"}),
    scale_shape="scalar",
    suffix="_scale",
    extra=INPUT_SCALE,
)
CT_NVFP4 = compressed("nvfp4-pack-quantized", {"num_bits": 4, "group_size": 16, "type": "float"})
CT_MXFP4 = compressed("mxfp4-pack-quantized", {"num_bits": 4, "group_size": 32, "type": "float"})
ACTIVATION = (("activation_scale", "BF16", ()),)
E8M0 = "F8_E8M0"

BLOCK = [
    Case("fp8-block-f32-edges", "deepseek_v3_fp8", fp8_block(128), ("FP8", "128")),
    Case("fp8-block-f32-dsa", "deepseek_v32_fp8", fp8_block(128), ("FP8", "128")),
    Case("fp8-block-f32-kimi", "kimi_k2_fp8", fp8_block(128), ("FP8", "128")),
    Case("fp8-block-f32-minimax", "minimax_m2_fp8", fp8_block(128), ("FP8", "128")),
    Case("fp8-block-f32-mimo", "mimo_v2_flash_fp8", fp8_block(128), ("FP8", "128")),
    Case("fp8-block-f32-llama", "llama_fp8", fp8_block(128), ("FP8", "128")),
    Case("fp8-block-bf16-qwen3-moe", "qwen3_moe_fp8", fp8_block(128, "BF16"), ("FP8", "128")),
    Case("fp8-block-bf16-qwen3-next", "qwen3_next_fp8", fp8_block(128, "BF16"), ("FP8", "128")),
    Case("fp8-block-bf16-qwen3.5-moe", "qwen3_5_moe_fp8", fp8_block(128, "BF16"), ("FP8", "128"), library="mlx-vlm"),
    Case("fp8-block-64", "llama", fp8_block(64), ("FP8", "64")),
    Case("fp8-block-oblong", "llama", fp8_block((48, 80)), ("FP8", "48", "80")),
    Case("fp8-block-ct", "llama", float_quantized("block", block=(128, 128)), ("FP8", "128")),
    Case("fp8-block-e8m0-scale", "qwen3_moe", fp8_block(128, E8M0, suffix=".scale"), ("FP8", "128")),
    Case("fp8-block-e8m0-scale-inv", "llama", fp8_block(32, E8M0), ("FP8", "32")),
    Case("fp8-block-u8", "llama", fp8_block(128, "U8"), ("FP8", "128")),
    Case("mxfp8-u8-minimax-m3", "minimax_m3_mxfp8", Fp8(MXFP8_CONFIG, (1, 32), "U8"), ("MXFP8",), library="mlx-vlm"),
    Case("mxfp8-u8", "qwen3_moe", Fp8(MXFP8_CONFIG, (1, 32), "U8"), ("MXFP8",)),
]
E5M2 = [
    Case("fp8-e5m2-block", "llama", fp8_block(128, code="F8_E5M2", config={"fmt": "e5m2"}), ("E5M2",)),
    Case("fp8-e5m2-tensor", "qwen3", replace(PER_TENSOR, code="F8_E5M2"), ("E5M2",)),
]
FUSED = [
    Case(
        "fp8-fused-experts",
        "qwen3_5_moe_fused",
        fp8_block(64, "BF16"),
        ("FP8", "64"),
        library="mlx-vlm",
        only=r"language_model\.layers.*(mlp\.experts\.(gate_up|down)_proj|(q|k|v|o)_proj\.weight)$",
    )
]
WHOLE = [
    Case("fp8-tensor-static", "ministral3_fp8", Fp8(STATIC, scale_dtype="BF16", scale_shape="scalar", extra=ACTIVATION), ("FP8",)),
    Case("fp8-tensor-static-vlm", "mistral3_fp8", Fp8(STATIC, scale_dtype="BF16", scale_shape="scalar", extra=ACTIVATION), ("FP8",), library="mlx-vlm"),
    Case("fp8-tensor-modelopt", "llama", PER_TENSOR, ("FP8",), side={"hf_quant_config.json": hf_quant_config("FP8")}),
    Case("fp8-tensor-modelopt-side-file", "llama", replace(PER_TENSOR, config={}), ("FP8",), side={"hf_quant_config.json": hf_quant_config("FP8")}),
    Case("fp8-tensor-ct", "llama", float_quantized("tensor", scale_shape="one", extra=(("input_scale", "F32", (1,)),)), ("FP8",)),
    Case("fp8-channel-ct", "glm4_moe_fp8ct", float_quantized("channel", scale_shape="column", scale_dtype="BF16"), ("FP8",)),
    Case("fp8-channel-ct-qwen3", "qwen3_ct_fp8", float_quantized("channel", scale_shape="column", scale_dtype="BF16"), ("FP8",)),
    Case("fp8-channel-1d", "llama", float_quantized("channel", scale_shape="row"), ("FP8",)),
    Case("fp8-channel-fbgemm", "llama", Fp8(FBGEMM, scale_shape="column", suffix="_scale"), ("FP8",), only=r"mlp\..*_proj\.weight$"),
]
FP4 = [
    Case("mxfp4-gpt-oss", "gpt_oss", Mxfp4Blocks(MXFP4_CONFIG), ("MXFP4",)),
    Case("fp4-i8-experts", "qwen3_moe", fp8_block(128, E8M0, suffix=".scale"), ("FP4", "FP8"), experts=Mxfp4({})),
    Case("mxfp4-ct", "llama", Mxfp4(CT_MXFP4, ".weight_packed", "U8", ".weight_scale", "U8"), ("MXFP4",)),
    Case("nvfp4-modelopt", "qwen3_nvfp4", Nvfp4(modelopt("NVFP4", group_size=16)), ("NVFP4",)),
    Case("nvfp4-modelopt-moe", "qwen3_moe_nvfp4", Nvfp4({}), ("NVFP4",), side={"hf_quant_config.json": hf_quant_config("NVFP4", group_size=16)}),
    Case("nvfp4-modelopt-vlm", "qwen3_5_nvfp4", Nvfp4(modelopt("NVFP4", group_size=16)), ("NVFP4",), library="mlx-vlm"),
    Case("nvfp4-modelopt-exact", "qwen3_nvfp4", Nvfp4(modelopt("NVFP4", group_size=16), exact="self_attn"), ("NVFP4",)),
    Case("nvfp4-ct", "qwen3_ct_nvfp4", Nvfp4(CT_NVFP4, divisor=True), ("NVFP4",)),
    Case("nvfp4-ct-exact", "qwen3_ct_nvfp4", Nvfp4(CT_NVFP4, divisor=True, exact="self_attn"), ("NVFP4",)),
]
INTEGERS = [
    Case("int4-g32-kimi", "kimi_k2_thinking_int4", PackQuantized(), ("INT4", "32")),
    Case("int4-g32-moe", "qwen3_moe_ct_int4", PackQuantized(), ("INT4", "32")),
    Case("int4-g32-llama", "llama_ct_int4", PackQuantized(), ("INT4", "32")),
    Case("int4-g128-i64-shape", "llama", PackQuantized(128, shape_dtype="I64"), ("INT4", "128")),
    Case("int4-asymmetric-g32", "llama", PackQuantized(symmetric=False), ("INT4", "32")),
    Case("int4-asymmetric-g128", "llama", PackQuantized(128, symmetric=False), ("INT4", "128")),
    Case("int4-act-order", "llama", PackQuantized(act_order=True), ("INT4", "32")),
    Case("int8-g128", "llama", PackQuantized(128, bits=8), ("INT8", "128")),
]
PACKED = [
    Case("awq", "llama_awq", Awq(), ("AWQ",), dtype="F16"),
    Case("awq-qwen2", "qwen2_awq", Awq(), ("AWQ",), dtype="F16"),
    Case("awq-g128", "llama", Awq(128), ("AWQ", "128"), dtype="F16"),
    Case("awq-exact", "llama_awq", Awq(few_bits=True), ("AWQ",), dtype="F16"),
    Case("gptq-4", "llama", Gptq(), ("GPTQ",), dtype="F16"),
    Case("gptq-4-act-order", "qwen3", Gptq(act_order=True), ("GPTQ",), dtype="F16"),
    Case("gptq-4-symmetric-g128", "llama", Gptq(group=128, symmetric=True), ("GPTQ", "128"), dtype="F16"),
    Case("gptq-8", "llama", Gptq(bits=8), ("GPTQ", "8"), dtype="F16"),
    Case("gptq-8-act-order", "llama", Gptq(bits=8, act_order=True), ("GPTQ", "8"), dtype="F16"),
    Case("gptq-v2", "llama", Gptq(version=2), ("GPTQ",), dtype="F16"),
    Case("gptq-exact", "llama", Gptq(few_bits=True), ("GPTQ",), dtype="F16"),
    Case("gptq-bf16", "qwen3_moe", Gptq(dtype="BF16"), ("GPTQ",)),
]
CASES = [*BLOCK, *E5M2, *FUSED, *WHOLE, *FP4, *INTEGERS, *PACKED]
BY_ID = {case.id: case for case in CASES}
GENUINE = [case for case in CASES if is_packed(case.manifest)]
