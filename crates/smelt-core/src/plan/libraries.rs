//! What the libraries load at all: their model types, and the keys of config.json that each can't do without.
//!
//! A library looks for a class by `model_type` and reads config.json into another, which raises where a field
//! without default is not there. Neither says anything of the weights, so it would show only when the result is
//! loaded. `data/libraries.json` has both as they are in the versions that it names; a test compares it
//! with the installed libraries.

use std::collections::HashMap;
use std::sync::OnceLock;

use indexmap::IndexMap;
use serde::Deserialize;
use serde_json::Value;

use crate::checkpoint::Config;
use crate::error::{LayoutError, Result};
use crate::layout::family::{self, Family};

/// Names as near as this, of 1 for equal ones, are worth a hint.
const LIKE: f64 = 0.88;

/// As many hints help.
const HINTS: usize = 4;

/// What is known of a library.
#[derive(Deserialize)]
struct Library {
    version: String,
    /// It looks for a model type in lower case: `GOT` is `got`.
    any_case: bool,
    /// By model type the keys without which it does not load.
    models: HashMap<String, Vec<String>>,
}

impl Library {
    /// The keys that a model type can't do without, if the library has it.
    fn required(&self, model_type: &str) -> Option<&Vec<String>> {
        let lower = || self.any_case.then(|| self.models.get(&model_type.to_lowercase())).flatten();
        self.models.get(model_type).or_else(lower)
    }
}

fn libraries() -> &'static IndexMap<String, Library> {
    static TABLE: OnceLock<IndexMap<String, Library>> = OnceLock::new();
    let text = include_str!("../../data/libraries.json");
    TABLE.get_or_init(|| serde_json::from_str(text).expect("the table is part of smelt, and tested"))
}

/// A library's name with its version.
fn named((name, library): (&String, &Library)) -> String {
    format!("{name} {}", library.version)
}

/// The libraries that have a model of a type.
pub(super) fn of_type(model_type: &str) -> Vec<String> {
    libraries().iter().filter(|(_, library)| library.required(model_type).is_some()).map(named).collect()
}

/// Model types whose checkpoints a library loads as they are published and in no other form, and why.
const FINISHED: [(&str, &str); 1] = [(
    "prism_hadamard_qwen35",
    "the library loads their rotated weights in these 2 bits alone; load the checkpoint as it is, or quantize \
     the model that it was made from",
)];

/// Why nothing is to be made of the checkpoints of a model type.
pub(super) fn finished(model_type: &str) -> Option<&'static str> {
    FINISHED.iter().find(|(known, _)| *known == model_type).map(|(_, why)| *why)
}

/// Known model types whose names are like one that is not, the likest first.
pub(super) fn near(model_type: &str) -> Vec<String> {
    let known = family::all().flat_map(|family| &family.model_types);
    let mut like: Vec<(f64, &String)> = known
        .map(|name| (strsim::jaro_winkler(model_type, name), name))
        .filter(|(score, _)| *score > LIKE)
        .collect();
    like.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    like.into_iter().take(HINTS).map(|(_, name)| name.clone()).collect()
}

/// Whether a library has a model of the config's type.
fn has(library: &str, config: &Config) -> bool {
    let known = libraries().get(library).zip(config.model_type());
    known.is_none_or(|(library, model_type)| library.required(model_type).is_some())
}

/// The usual library, unless it has no model of the type and one of `described` has.
pub(super) fn choose<'a>(config: &Config, described: &'a [String], usual: &'a str) -> &'a str {
    let other = || described.iter().find(|library| has(library, config));
    if has(usual, config) { usual } else { other().map_or(usual, String::as_str) }
}

/// Refuses what a library does not load whatever its weights are.
pub(super) fn check(config: &Config, family: &Family, library: &str) -> Result<()> {
    let (Some(model_type), Some((name, known))) = (config.model_type(), libraries().get_key_value(library))
    else {
        return Ok(());
    };
    let library = named((name, known));
    let Some(required) = known.required(model_type) else {
        // A user's own family may be for a library that the user has changed.
        let own = family::of_config(config).is_none_or(|ours| ours.name != family.name);
        let other = of_type(model_type).into_iter().next();
        return if own {
            Ok(())
        } else {
            Err(LayoutError::NotInLibrary { library, model_type: model_type.to_owned(), other }.into())
        };
    };
    let keys: Vec<String> = required.iter().filter(|key| config.get(key).is_none()).cloned().collect();
    if keys.is_empty() {
        return Ok(());
    }
    let writer = config.get("transformers_version").and_then(Value::as_str).map(str::to_owned);
    Err(LayoutError::ConfigKeys { library, model_type: model_type.to_owned(), keys, writer }.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn likely_slips_are_found() {
        assert_eq!(near("qwen3moe").first().map(String::as_str), Some("qwen3_moe"));
        assert!(near("glm4_moe2").contains(&"glm4_moe".to_owned()));
        assert!(near("llama5").contains(&"llama".to_owned()));
        assert!(near("zzz").is_empty() && near("qwen").len() <= HINTS);
    }

    #[test]
    fn the_library_that_has_a_model_is_taken() {
        let config = |model_type: &str| {
            let text = format!("{{\"model_type\": \"{model_type}\"}}");
            Config::parse("config.json", text.as_bytes()).unwrap()
        };
        let both = ["mlx-lm".to_owned(), "mlx-vlm".to_owned()];
        assert_eq!(choose(&config("llama"), &both, "mlx-lm"), "mlx-lm");
        assert_eq!(choose(&config("klear"), &both, "mlx-lm"), "mlx-vlm");
        assert_eq!(choose(&config("nobody's"), &both, "mlx-lm"), "mlx-lm");
        assert_eq!(of_type("llama").len(), 2);
        assert_eq!(choose(&config("GOT"), &both, "mlx-lm"), "mlx-vlm");
        assert_eq!(of_type("LLAMA").len(), 1);
    }

    #[test]
    fn finished_checkpoints_have_no_family_and_a_library() {
        for (model_type, why) in FINISHED {
            assert!(family::all().all(|family| !family.model_types.iter().any(|known| known == model_type)));
            assert!(!of_type(model_type).is_empty() && finished(model_type) == Some(why));
        }
        assert_eq!(finished("llama"), None);
    }
}
