//! A file of importance against a small model: it is refused, or gives finite weights for the model's modules.

use std::sync::{Arc, LazyLock};

use serde_json::{Map, Value, json};
use smelt_core::checkpoint::Checkpoint;
use smelt_core::plan::{Importance, Options, Origin, Plan, Statistics, family_of};
use smelt_core::source::MemorySource;

static MODEL: LazyLock<(Checkpoint, Plan)> = LazyLock::new(|| {
    let config = json!({
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 8,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": false,
    });
    let matrices = [
        ("model.embed_tokens", 8, 64),
        ("model.layers.0.mlp.down_proj", 64, 128),
        ("model.layers.0.mlp.gate_proj", 128, 64),
        ("model.layers.0.mlp.up_proj", 128, 64),
        ("model.layers.0.self_attn.k_proj", 64, 64),
        ("model.layers.0.self_attn.o_proj", 64, 64),
        ("model.layers.0.self_attn.q_proj", 64, 64),
        ("model.layers.0.self_attn.v_proj", 64, 64),
        ("lm_head", 8, 64),
    ];
    let norms = ["model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm", "model.norm"];
    let (mut header, mut end) = (Map::new(), 0);
    let shapes = matrices.iter().map(|&(name, rows, columns)| (name, vec![rows, columns]));
    for (name, shape) in shapes.chain(norms.iter().map(|&name| (name, vec![64]))) {
        let (begin, len) = (end, 2 * shape.iter().product::<usize>());
        end += len;
        header.insert(
            format!("{name}.weight"),
            json!({ "dtype": "BF16", "shape": shape, "data_offsets": [begin, end] }),
        );
    }
    let header = Value::Object(header).to_string().into_bytes();
    let shard = [(header.len() as u64).to_le_bytes().to_vec(), header, vec![0; end]].concat();
    let files = [("config.json", config.to_string().into_bytes()), ("model.safetensors", shard)];
    let checkpoint = Checkpoint::open(Arc::new(MemorySource::new(files))).expect("the model is sound");
    let origin = family_of(&checkpoint, None).and_then(|family| Origin::family(&checkpoint, family, None));
    let plan = Plan::new(&checkpoint, origin.expect("llama is known"), &Options::default());
    (checkpoint, plan.expect("the model is sound"))
});

/// Reads a file and all that it has for the model.
pub fn check(file: Vec<u8>) {
    let (checkpoint, plan) = &*MODEL;
    let size = file.len() as u64;
    let source = Arc::new(MemorySource::new([("fuzz", file)]));
    let Ok(statistics) = Statistics::read(source, "fuzz", size) else { return };
    let Ok(importance) = Importance::new(statistics, plan, checkpoint.config()) else { return };
    let mut reader = importance.reader();
    for task in &plan.tasks {
        if let Ok(Some((channels, _))) = reader.channels(task.module(), 0, 1) {
            assert!(channels.entry(0).iter().all(|weight| weight.is_finite() && *weight >= 0.0));
        }
    }
}
