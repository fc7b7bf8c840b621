//! Keys of config.json without which a library does not load a model at all.
//!
//! A library reads config.json into a class, and raises where a field without default is not there. That
//! says nothing of the weights, so it would show only when the result is loaded. `data/required_keys.json` has these
//! fields as they are in the versions that it names; a test compares it with the installed libraries.

use std::collections::HashMap;
use std::sync::OnceLock;

use serde::Deserialize;
use serde_json::Value;

use crate::checkpoint::Config;
use crate::error::{Error, Result};

/// What is known of a library.
#[derive(Deserialize)]
struct Library {
    version: String,
    /// By model type.
    models: HashMap<String, Vec<String>>,
}

fn libraries() -> &'static HashMap<String, Library> {
    static TABLE: OnceLock<HashMap<String, Library>> = OnceLock::new();
    let text = include_str!("../../data/required_keys.json");
    TABLE.get_or_init(|| serde_json::from_str(text).expect("the table is part of smelt, and tested"))
}

/// Refuses a config without a key that the library asks for.
pub(super) fn check(config: &Config, library: &str) -> Result<()> {
    let (Some(model_type), Some(known)) = (config.model_type(), libraries().get(library)) else {
        return Ok(());
    };
    let Some(required) = known.models.get(model_type) else {
        return Ok(());
    };
    let keys: Vec<String> = required.iter().filter(|key| config.get(key).is_none()).cloned().collect();
    if keys.is_empty() {
        return Ok(());
    }
    Err(Error::ConfigKeys {
        library: library.to_owned(),
        version: known.version.clone(),
        model_type: model_type.to_owned(),
        keys,
        writer: config.get("transformers_version").and_then(Value::as_str).map(str::to_owned),
    })
}
