//! A small checkpoint with a layer that predicts a further token.

use serde_json::json;

use crate::common::Model;

/// A DeepSeek-V3 of one layer, with one that predicts a further token.
pub(crate) fn deepseek() -> Model {
    let config = json!({
        "model_type": "deepseek_v3", "vocab_size": 64, "hidden_size": 64, "intermediate_size": 64,
        "moe_intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "n_routed_experts": 3, "n_shared_experts": 1, "num_experts_per_tok": 2,
        "first_k_dense_replace": 0, "moe_layer_freq": 1, "kv_lora_rank": 64, "q_lora_rank": 64,
        "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 32, "tie_word_embeddings": false,
        "num_nextn_predict_layers": 1,
    });
    let mut model = Model { config, tensors: Vec::new() };
    let mut add = |name: &str, shape: &[u64]| model.tensors.push((name.to_owned(), shape.to_vec()));
    add("model.embed_tokens.weight", &[64, 64]);
    add("model.norm.weight", &[64]);
    add("lm_head.weight", &[64, 64]);
    for layer in ["model.layers.0.", "model.layers.1."] {
        let mut add = |name: &str, shape: &[u64]| add(&format!("{layer}{name}"), shape);
        for norm in ["input_layernorm", "post_attention_layernorm", "self_attn.q_a_layernorm"] {
            add(&format!("{norm}.weight"), &[64]);
        }
        add("self_attn.kv_a_layernorm.weight", &[64]);
        add("self_attn.q_a_proj.weight", &[64, 64]);
        add("self_attn.q_b_proj.weight", &[192, 64]);
        add("self_attn.kv_a_proj_with_mqa.weight", &[96, 64]);
        add("self_attn.kv_b_proj.weight", &[192, 64]);
        add("self_attn.o_proj.weight", &[64, 64]);
        add("mlp.gate.weight", &[3, 64]);
        add("mlp.gate.e_score_correction_bias", &[3]);
        for part in ["experts.0", "experts.1", "experts.2", "shared_experts"] {
            for projection in ["gate_proj", "up_proj", "down_proj"] {
                add(&format!("mlp.{part}.{projection}.weight"), &[64, 64]);
            }
        }
    }
    for (name, shape) in [("enorm", vec![64]), ("hnorm", vec![64]), ("eh_proj", vec![64, 128])] {
        add(&format!("model.layers.1.{name}.weight"), &shape);
    }
    add("model.layers.1.embed_tokens.weight", &[64, 64]);
    add("model.layers.1.shared_head.norm.weight", &[64]);
    add("model.layers.1.shared_head.head.weight", &[64, 64]);
    model
}
