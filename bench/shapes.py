"""Manifests of the benchmark's models: real names, sensible shapes, bf16."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The writer of checkpoints is that of the conformance tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "conformance"))

HEAD_DIM = 128


@dataclass(frozen=True)
class Dims:
    """The sizes that make a transformer; `experts` 0 means a dense one."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocab: int
    experts: int = 0


LLAMA = Dims(layers=16, hidden=1536, inner=4096, heads=12, kv_heads=4, vocab=32768)
QWEN3_MOE = Dims(layers=4, hidden=1024, inner=512, heads=16, kv_heads=4, vocab=50048, experts=64)
MOE_397B = Dims(layers=60, hidden=4096, inner=1024, heads=32, kv_heads=4, vocab=151936, experts=512)


def llama(d: Dims) -> dict[str, Any]:
    """Half a billion parameters: 1 GB of bf16."""
    layer = f"model.layers.{{0-{d.layers - 1}}}"
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **_config(d)}
    tensors = _outside(d) | _attention(d, layer) | _mlp(d, f"{layer}.mlp")
    return {"config": config, "tensors": tensors}


def qwen3_moe(d: Dims) -> dict[str, Any]:
    """Each expert's projections are tensors of their own, as on the hub."""
    layer = f"model.layers.{{0-{d.layers - 1}}}"
    config = _config(d) | {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": d.inner,
        "norm_topk_prob": True,
        "num_experts": d.experts,
        "num_experts_per_tok": 8,
    }
    norms = {f"{layer}.self_attn.{x}_norm.weight": [HEAD_DIM] for x in "qk"}
    experts = _mlp(d, f"{layer}.mlp.experts.{{0-{d.experts - 1}}}")
    gate = {f"{layer}.mlp.gate.weight": [d.experts, d.hidden]}
    tensors = _outside(d) | _attention(d, layer) | norms | gate | experts
    return {"config": config, "tensors": tensors}


def _config(d: Dims) -> dict[str, Any]:
    return {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": HEAD_DIM,
        "hidden_act": "silu",
        "hidden_size": d.hidden,
        "intermediate_size": d.inner,
        "max_position_embeddings": 4096,
        "num_attention_heads": d.heads,
        "num_hidden_layers": d.layers,
        "num_key_value_heads": d.kv_heads,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": d.vocab,
    }


def _outside(d: Dims) -> dict[str, list[int]]:
    table = [d.vocab, d.hidden]
    return {
        "model.embed_tokens.weight": table,
        "model.norm.weight": [d.hidden],
        "lm_head.weight": table,
    }


def _attention(d: Dims, layer: str) -> dict[str, list[int]]:
    q, kv = d.heads * HEAD_DIM, d.kv_heads * HEAD_DIM
    return {
        f"{layer}.input_layernorm.weight": [d.hidden],
        f"{layer}.post_attention_layernorm.weight": [d.hidden],
        f"{layer}.self_attn.q_proj.weight": [q, d.hidden],
        f"{layer}.self_attn.k_proj.weight": [kv, d.hidden],
        f"{layer}.self_attn.v_proj.weight": [kv, d.hidden],
        f"{layer}.self_attn.o_proj.weight": [d.hidden, q],
    }


def _mlp(d: Dims, prefix: str) -> dict[str, list[int]]:
    return _swiglu(prefix, d.hidden, d.inner)


@dataclass(frozen=True)
class Latent:
    """What differs between models of DeepSeek-V3's architecture."""

    model_type: str
    layers: int
    dense: int
    experts: int
    heads: int
    vocab: int
    groups: int
    chosen_groups: int


DEEPSEEK_V3 = Latent("deepseek_v3", 61, 3, 256, 128, 129280, 8, 4)
KIMI_K2 = Latent("kimi_k2", 61, 1, 384, 64, 163840, 1, 1)


def latent(d: Latent) -> dict[str, Any]:
    """The published shapes, without the layer that predicts further tokens."""
    hidden, heads, rank, layers = 7168, d.heads, 512, d.layers
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "model_type": d.model_type,
        "attention_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "first_k_dense_replace": d.dense,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": 18432,
        "kv_lora_rank": rank,
        "max_position_embeddings": 163840,
        "moe_intermediate_size": 2048,
        "moe_layer_freq": 1,
        "n_group": d.groups,
        "n_routed_experts": d.experts,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": heads,
        "num_experts_per_tok": 8,
        "num_hidden_layers": layers,
        "num_key_value_heads": heads,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": d.chosen_groups,
        "topk_method": "noaux_tc",
        "v_head_dim": 128,
        "vocab_size": d.vocab,
    }
    layer, moe = f"model.layers.{{0-{layers - 1}}}", f"model.layers.{{{d.dense}-{layers - 1}}}.mlp"
    attention = {
        "q_a_proj": [1536, hidden],
        "q_b_proj": [heads * 192, 1536],
        "kv_a_proj_with_mqa": [rank + 64, hidden],
        "kv_b_proj": [heads * 256, rank],
        "o_proj": [hidden, heads * 128],
        "q_a_layernorm": [1536],
        "kv_a_layernorm": [rank],
    }
    tensors: dict[str, Any] = {
        "model.embed_tokens.weight": [d.vocab, hidden],
        "model.norm.weight": [hidden],
        "lm_head.weight": [d.vocab, hidden],
        f"{layer}.input_layernorm.weight": [hidden],
        f"{layer}.post_attention_layernorm.weight": [hidden],
    }
    tensors |= {f"{layer}.self_attn.{name}.weight": shape for name, shape in attention.items()}
    dense = min(layers, d.dense)
    tensors |= _swiglu(f"model.layers.{{0-{dense - 1}}}.mlp", hidden, 18432)
    if layers > d.dense:
        tensors |= _swiglu(f"{moe}.experts.{{0-{d.experts - 1}}}", hidden, 2048)
        tensors |= _swiglu(f"{moe}.shared_experts", hidden, 2048)
        tensors[f"{moe}.gate.weight"] = [d.experts, hidden]
        tensors[f"{moe}.gate.e_score_correction_bias"] = ["F32", [d.experts]]
    return {"config": config, "tensors": tensors}


def _swiglu(prefix: str, hidden: int, inner: int) -> dict[str, list[int]]:
    return {
        f"{prefix}.gate_proj.weight": [inner, hidden],
        f"{prefix}.up_proj.weight": [inner, hidden],
        f"{prefix}.down_proj.weight": [hidden, inner],
    }
