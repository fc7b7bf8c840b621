//! The configuration: what is read can be edited, and what is edited is read as it was set.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smelt_core::checkpoint::{Config, JsonText};

fuzz_target!(|data: &[u8]| {
    let Ok(config) = Config::parse("fuzz", data) else { return };
    let _ = (config.model_type(), config.get("text_config.hidden_size"));
    let mut text = config.json().clone();
    text.set(&["quantization"], &serde_json::json!({ "bits": 4 }));
    text.set(&["text_config", "tie_word_embeddings"], &serde_json::json!(true));
    text.remove(&["quantization_config"]);
    let again = JsonText::parse("edited", text.text().as_bytes()).expect("an edit leaves JSON").value();
    assert_eq!(again["quantization"]["bits"], 4);
    assert!(again.get("quantization_config").is_none());
});
