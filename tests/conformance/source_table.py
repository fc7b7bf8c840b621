"""The table of source formats: each with a checkpoint that comes in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from source_cases import Case, is_packed
from sources import (
    Awq,
    Fp8,
    Gptq,
    Mxfp4,
    Mxfp4Blocks,
    Nvfp4,
    PackQuantized,
    compressed,
    float_quantized,
    fp8_block,
)

STATIC = {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": None}
FBGEMM = {
    "quant_method": "fbgemm_fp8",
    "activation_scale_ub": 1200.0,
    "modules_to_not_convert": ["lm_head"],
}
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

FUSED_NAMES = r"language_model\.layers.*(mlp\.experts\.(gate_up|down)_proj|[qkvo]_proj\.weight)$"

BLOCK = [
    Case("fp8-block-f32-edges", "deepseek_v3_fp8", fp8_block(128), ("FP8", "128")),
    Case("fp8-block-f32-dsa", "deepseek_v32_fp8", fp8_block(128), ("FP8", "128")),
    Case("fp8-block-f32-kimi", "kimi_k2_fp8", fp8_block(128), ("FP8", "128")),
    Case("fp8-block-f32-minimax", "minimax_m2_fp8", fp8_block(128), ("FP8", "128")),
    Case("fp8-block-f32-mimo", "mimo_v2_flash_fp8", fp8_block(128), ("FP8", "128")),
    Case("fp8-block-f32-llama", "llama_fp8", fp8_block(128), ("FP8", "128")),
    Case("fp8-block-bf16-qwen3-moe", "qwen3_moe_fp8", fp8_block(128, "BF16"), ("FP8", "128")),
    Case("fp8-block-bf16-qwen3-next", "qwen3_next_fp8", fp8_block(128, "BF16"), ("FP8", "128")),
    Case(
        "fp8-block-bf16-qwen3.5-moe",
        "qwen3_5_moe_fp8",
        fp8_block(128, "BF16"),
        ("FP8", "128"),
        library="mlx-vlm",
    ),
    Case("fp8-block-64", "llama", fp8_block(64), ("FP8", "64")),
    Case("fp8-block-oblong", "llama", fp8_block((48, 80)), ("FP8", "48", "80")),
    Case("fp8-block-ct", "llama", float_quantized("block", block=(128, 128)), ("FP8", "128")),
    Case(
        "fp8-block-e8m0-scale", "qwen3_moe", fp8_block(128, E8M0, suffix=".scale"), ("FP8", "128")
    ),
    Case("fp8-block-e8m0-scale-inv", "llama", fp8_block(32, E8M0), ("FP8", "32")),
    Case("fp8-block-u8", "llama", fp8_block(128, "U8"), ("FP8", "128")),
    # The manifest's `rotary_dim` is larger than its heads, which no library computes.
    Case(
        "mxfp8-u8-minimax-m3",
        "minimax_m3_mxfp8",
        Fp8(MXFP8_CONFIG, (1, 32), "U8"),
        ("MXFP8", "32"),
        library="mlx-vlm",
        text_config={"rotary_dim": 16},
    ),
    Case("mxfp8-u8", "qwen3_moe", Fp8(MXFP8_CONFIG, (1, 32), "U8"), ("MXFP8", "32")),
]
E5M2 = [
    Case(
        "fp8-e5m2-block", "llama", fp8_block(128, code="F8_E5M2", config={"fmt": "e5m2"}), ("E5M2",)
    ),
    Case("fp8-e5m2-tensor", "qwen3", replace(PER_TENSOR, code="F8_E5M2"), ("E5M2",)),
]
FUSED = [
    Case(
        "fp8-fused-experts",
        "qwen3_5_moe_fused",
        fp8_block(64, "BF16"),
        ("FP8", "64"),
        library="mlx-vlm",
        only=FUSED_NAMES,
    ),
    Case(
        "fp8-fused-experts-channel",
        "qwen3_5_moe_fused",
        float_quantized("channel", scale_shape="column"),
        ("FP8",),
        library="mlx-vlm",
        only=FUSED_NAMES,
    ),
]
WHOLE = [
    Case(
        "fp8-tensor-static",
        "ministral3_fp8",
        Fp8(STATIC, scale_dtype="BF16", scale_shape="scalar", extra=ACTIVATION),
        ("FP8",),
    ),
    Case(
        "fp8-tensor-static-vlm",
        "mistral3_fp8",
        Fp8(STATIC, scale_dtype="BF16", scale_shape="scalar", extra=ACTIVATION),
        ("FP8",),
        library="mlx-vlm",
    ),
    Case(
        "fp8-tensor-modelopt",
        "llama",
        PER_TENSOR,
        ("FP8",),
        side={"hf_quant_config.json": hf_quant_config("FP8")},
    ),
    Case(
        "fp8-tensor-modelopt-side-file",
        "llama",
        replace(PER_TENSOR, config={}),
        ("FP8",),
        side={"hf_quant_config.json": hf_quant_config("FP8")},
    ),
    Case(
        "fp8-tensor-ct",
        "llama",
        float_quantized("tensor", scale_shape="one", extra=(("input_scale", "F32", (1,)),)),
        ("FP8",),
    ),
    Case(
        "fp8-channel-ct",
        "glm4_moe_fp8ct",
        float_quantized("channel", scale_shape="column", scale_dtype="BF16"),
        ("FP8",),
    ),
    Case(
        "fp8-channel-ct-qwen3",
        "qwen3_ct_fp8",
        float_quantized("channel", scale_shape="column", scale_dtype="BF16"),
        ("FP8",),
    ),
    Case("fp8-channel-1d", "llama", float_quantized("channel", scale_shape="row"), ("FP8",)),
    Case(
        "fp8-channel-fbgemm",
        "llama",
        Fp8(FBGEMM, scale_shape="column", suffix="_scale"),
        ("FP8",),
        only=r"mlp\..*_proj\.weight$",
    ),
]
FP4 = [
    Case("mxfp4-gpt-oss", "gpt_oss", Mxfp4Blocks(MXFP4_CONFIG), ("MXFP4",)),
    Case(
        "fp4-i8-experts",
        "qwen3_moe",
        fp8_block(128, E8M0, suffix=".scale"),
        ("FP4", "FP8"),
        experts=Mxfp4({}),
    ),
    # mlx-vlm takes whole blocks alone, which the sizes of this manifest are made of.
    Case(
        "fp4-i8-deepseek-v4",
        "hub_deepseek_v4",
        fp8_block(128, E8M0, suffix=".scale"),
        ("FP4", "FP8"),
        experts=Mxfp4({}),
        library="mlx-vlm",
        only=r"ffn\.(shared_)?experts\.|attn\.w|indexer\.wq",
    ),
    Case(
        "mxfp4-ct",
        "llama",
        Mxfp4(CT_MXFP4, ".weight_packed", "U8", ".weight_scale", "U8"),
        ("MXFP4",),
    ),
    Case("nvfp4-modelopt", "qwen3_nvfp4", Nvfp4(modelopt("NVFP4", group_size=16)), ("NVFP4",)),
    Case(
        "nvfp4-modelopt-moe",
        "qwen3_moe_nvfp4",
        Nvfp4({}),
        ("NVFP4",),
        side={"hf_quant_config.json": hf_quant_config("NVFP4", group_size=16)},
    ),
    Case(
        "nvfp4-modelopt-vlm",
        "qwen3_5_nvfp4",
        Nvfp4(modelopt("NVFP4", group_size=16)),
        ("NVFP4",),
        library="mlx-vlm",
    ),
    Case(
        "nvfp4-modelopt-exact",
        "qwen3_nvfp4",
        Nvfp4(modelopt("NVFP4", group_size=16), exact="self_attn"),
        ("NVFP4",),
    ),
    Case("nvfp4-ct", "qwen3_ct_nvfp4", Nvfp4(CT_NVFP4, divisor=True), ("NVFP4",)),
    Case(
        "nvfp4-ct-exact",
        "qwen3_ct_nvfp4",
        Nvfp4(CT_NVFP4, divisor=True, exact="self_attn"),
        ("NVFP4",),
    ),
]
INTEGERS = [
    Case("int4-g32-kimi", "kimi_k2_thinking_int4", PackQuantized(), ("4-bit integers", "32")),
    Case(
        "int4-g32-kimi-k2.5",
        "kimi_k25",
        PackQuantized(),
        ("4-bit integers", "32"),
        library="mlx-vlm",
        only=r"\.experts\.",
        config_in="text_config",
    ),
    Case("int4-g32-moe", "qwen3_moe_ct_int4", PackQuantized(), ("4-bit integers", "32")),
    Case("int4-g32-llama", "llama_ct_int4", PackQuantized(), ("4-bit integers", "32")),
    Case(
        "int4-g128-i64-shape",
        "llama",
        PackQuantized(128, shape_dtype="I64"),
        ("4-bit integers", "128"),
    ),
    Case("int4-asymmetric-g32", "llama", PackQuantized(symmetric=False), ("4-bit integers", "32")),
    Case(
        "int4-asymmetric-g128",
        "llama",
        PackQuantized(128, symmetric=False),
        ("4-bit integers", "128"),
    ),
    Case("int4-act-order", "llama", PackQuantized(act_order=True), ("4-bit integers", "32")),
    Case("int8-g128", "llama", PackQuantized(128, bits=8), ("8-bit integers", "128")),
]
PACKED = [
    Case("awq", "llama_awq", Awq(), ("AWQ",), dtype="F16"),
    Case("awq-qwen2", "qwen2_awq", Awq(), ("AWQ",), dtype="F16"),
    Case("awq-g128", "llama", Awq(128), ("AWQ", "128"), dtype="F16"),
    Case("awq-exact", "llama_awq", Awq(few_bits=True), ("AWQ",), dtype="F16"),
    Case("gptq-4", "llama", Gptq(), ("GPTQ",), dtype="F16"),
    Case("gptq-4-act-order", "qwen3", Gptq(act_order=True), ("GPTQ",), dtype="F16"),
    Case(
        "gptq-4-symmetric-g128",
        "llama",
        Gptq(group=128, symmetric=True),
        ("GPTQ", "128"),
        dtype="F16",
    ),
    Case("gptq-8", "llama", Gptq(bits=8), ("GPTQ", "8"), dtype="F16"),
    Case("gptq-8-act-order", "llama", Gptq(bits=8, act_order=True), ("GPTQ", "8"), dtype="F16"),
    Case("gptq-v2", "llama", Gptq(version=2), ("GPTQ",), dtype="F16"),
    Case("gptq-exact", "llama", Gptq(few_bits=True), ("GPTQ",), dtype="F16"),
    Case("gptq-bf16", "qwen3_moe", Gptq(dtype="BF16"), ("GPTQ",)),
]
CT_MIXED = compressed("mixed-precision", {}) | {
    "config_groups": {
        "group_0": {
            "format": "float-quantized",
            "targets": [r"re:.*self_attn.*"],
            "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": True},
        },
        "group_1": {
            "format": "pack-quantized",
            "targets": [r"re:.*mlp\.experts.*"],
            "weights": PackQuantized(64).config["config_groups"]["group_0"]["weights"],
        },
    }
}
MIXED = [
    Case(
        "mixed-modelopt",
        "qwen3_moe",
        replace(PER_TENSOR, config={}),
        ("FP8", "NVFP4"),
        experts=Nvfp4({}),
        side={"hf_quant_config.json": hf_quant_config("MIXED_PRECISION")},
        extra={
            "model.layers.{0-3}.self_attn.k_proj.k_scale": ("F32", ()),
            "model.layers.{0-3}.self_attn.v_proj.v_scale": ("F32", ()),
        },
    ),
    Case(
        "mixed-ct",
        "qwen3_moe",
        replace(float_quantized("channel", scale_shape="column"), config=CT_MIXED),
        ("FP8", "4-bit integers", "64"),
        experts=PackQuantized(64),
        extra={
            "model.layers.{0-3}.self_attn.k_scale": ("BF16", (1,)),
            "model.layers.{0-3}.self_attn.v_scale": ("BF16", (1,)),
        },
    ),
]
WIDE = [
    Case("wide-fp8-block", "wide", fp8_block(128), ("FP8",)),
    Case("wide-int4-asymmetric", "wide", PackQuantized(symmetric=False), ("4-bit integers",)),
    Case("wide-awq", "wide", Awq(), ("AWQ",), dtype="F16"),
    Case("wide-gptq-act-order", "wide", Gptq(act_order=True), ("GPTQ",), dtype="F16"),
]
"""larger than a block of a run in little memory"""
CASES = [*BLOCK, *E5M2, *FUSED, *WHOLE, *FP4, *INTEGERS, *PACKED, *MIXED]
BY_ID = {case.id: case for case in [*CASES, *WIDE]}
GENUINE = [case for case in CASES if is_packed(case.manifest)]
