//! Keys of config.json that transformers 5 writes in another place or form than the libraries read them.
//!
//! transformers 5 has all that concerns rotary positions in `rope_parameters`, calls layers without attention
//! `linear_attention`, and leaves out what it computes itself. mlx-lm and mlx-vlm read most model types'
//! `rope_theta` at the top and take a default where it is not there: such a model loads, and computes something
//! else. So what lacks is added in the place where it was before; what stands there already stays, and
//! so does `rope_parameters`, which some classes read.

use serde_json::{Map, Value, json};

use super::json::JsonText;

/// Kinds of layers in `rope_parameters`, each with the key that its base has elsewhere.
type Kinds = &'static [(&'static str, &'static str)];

/// Model types whose layers differ in their rotary positions.
const BY_KIND: [(&[&str], Kinds); 4] = [
    (
        &["gemma3", "gemma3_text", "gemma3n", "gemma3n_text"],
        // mlx-vlm has a word of its own for the first.
        &[
            ("full_attention", "rope_theta"),
            ("full_attention", "rope_global_base_freq"),
            ("sliding_attention", "rope_local_base_freq"),
        ],
    ),
    (&["olmo3"], &[("full_attention", "rope_theta")]),
    (&["modernbert"], &[("full_attention", "global_rope_theta"), ("sliding_attention", "local_rope_theta")]),
    (&["mimo_v2_flash"], &[("full_attention", "rope_theta"), ("sliding_attention", "swa_rope_theta")]),
];

/// Lists of kinds of layers that the libraries know by other words.
const KINDS: [(&str, &str); 2] = [("granitemoehybrid", "layer_types"), ("nemotron_h", "layers_block_type")];

/// Model types for which transformers computes the size of a head where none is given.
const HEAD_DIM: [&str; 4] = ["qwen3_moe", "glm4_moe", "exaone4", "exaone_moe"];

/// Model types whose class in mlx-lm asks for `rope_scaling`, be it null.
const SCALING: [&str; 2] = ["glm4_moe", "exaone4"];

/// Model types whose class reads `rope_parameters`, and takes no key that it does not know.
const ROPE_PARAMETERS: [&str; 1] = ["glm_ocr_text"];

/// Model types that count experts by another key.
const EXPERTS: [&str; 2] = ["qwen3_moe", "mellum"];

/// Adds the keys that the libraries read to a config, of which `value` is the parsed text.
pub(super) fn spell_out(text: &mut JsonText, value: &Value) {
    let nested = value.get("text_config").is_some_and(Value::is_object);
    let path: &[&str] = if nested { &["text_config"] } else { &[] };
    let Some(section) = path.iter().try_fold(value, |value, key| value.get(key)).and_then(Value::as_object)
    else {
        return;
    };
    let model_type =
        |of: &Map<String, Value>| of.get("model_type").and_then(Value::as_str).map(str::to_owned);
    let model_type = model_type(section).or_else(|| model_type(value.as_object()?)).unwrap_or_default();
    let mut all = counts(section, &model_type);
    let own = ROPE_PARAMETERS.contains(&model_type.as_str());
    if let Some(rope) = section.get("rope_parameters").and_then(Value::as_object).filter(|_| !own) {
        all.extend(rotary(rope, &model_type));
    }
    all.retain(|(key, value)| section.get(*key).is_none_or(|known| known.is_null() && !value.is_null()));
    all.extend(kinds(section, &model_type));
    for (key, value) in all {
        text.set(&[path, &[key]].concat(), &value);
    }
}

type Keys = Vec<(&'static str, Value)>;

/// What `rope_parameters` says, by the keys of before.
fn rotary(rope: &Map<String, Value>, model_type: &str) -> Keys {
    if !rope.is_empty() && rope.values().all(|value| value.is_object() || value.is_null()) {
        let kinds = BY_KIND.iter().find(|(types, _)| types.contains(&model_type)).map(|(_, kinds)| *kinds);
        return by_kind(rope, kinds.unwrap_or_default());
    }
    let mut keys: Keys = Vec::new();
    for key in ["rope_theta", "partial_rotary_factor"] {
        keys.extend(rope.get(key).map(|value| (key, value.clone())));
    }
    match scaling(rope) {
        Some(scaling) => keys.push(("rope_scaling", scaling)),
        None if SCALING.contains(&model_type) => keys.push(("rope_scaling", Value::Null)),
        None => {}
    }
    keys
}

fn by_kind(rope: &Map<String, Value>, kinds: Kinds) -> Keys {
    let own = |kind: &str| rope.get(kind).and_then(Value::as_object);
    let base = |(kind, key): &(&str, &'static str)| Some((*key, own(kind)?.get("rope_theta")?.clone()));
    let mut keys: Keys = kinds.iter().filter_map(base).collect();
    // The layers that see all have the scaling of longer contexts.
    let full = kinds.first().and_then(|(kind, _)| own(kind)).and_then(scaling);
    keys.extend(full.map(|scaling| ("rope_scaling", scaling)));
    keys
}

/// How positions are scaled, if they are.
fn scaling(rope: &Map<String, Value>) -> Option<Value> {
    let is_scaling = |key: &str| !matches!(key, "rope_theta" | "partial_rotary_factor");
    let mut rest: Map<String, Value> = rope
        .iter()
        .filter(|(key, _)| is_scaling(key))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    let kind = rest.get("rope_type").or_else(|| rest.get("type")).cloned();
    let kind = kind.unwrap_or_else(|| json!("default"));
    if kind == "default" && rest.keys().all(|key| matches!(key.as_str(), "rope_type" | "type")) {
        return None;
    }
    for key in ["rope_type", "type"] {
        rest.entry(key).or_insert_with(|| kind.clone());
    }
    Some(Value::Object(rest))
}

/// What transformers computes or counts by another key.
fn counts(section: &Map<String, Value>, model_type: &str) -> Keys {
    let number = |key: &str| section.get(key).and_then(Value::as_u64);
    let mut keys: Keys = Vec::new();
    if EXPERTS.contains(&model_type) {
        keys.extend(number("num_local_experts").map(|count| ("num_experts", json!(count))));
    }
    if let (true, Some(hidden), Some(heads @ 1..)) =
        (HEAD_DIM.contains(&model_type), number("hidden_size"), number("num_attention_heads"))
    {
        keys.push(("head_dim", json!(hidden / heads)));
    }
    keys
}

/// The kinds of layers in the words of before.
fn kinds(section: &Map<String, Value>, model_type: &str) -> Option<(&'static str, Value)> {
    let (_, key) = KINDS.iter().find(|(known, _)| *known == model_type)?;
    let kinds = section.get(*key)?.as_array()?;
    let word = |kind: &Value| match kind.as_str() {
        Some("linear_attention") => json!("mamba"),
        Some("full_attention") => json!("attention"),
        _ => kind.clone(),
    };
    let words: Vec<Value> = kinds.iter().map(word).collect();
    (words != *kinds).then(|| (*key, Value::Array(words)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spelled(config: &Value) -> Value {
        let mut text = JsonText::parse("config.json", config.to_string().as_bytes()).unwrap();
        spell_out(&mut text, config);
        text.value()
    }

    #[test]
    fn rotary_positions_stand_where_they_stood() {
        let flat =
            json!({"model_type": "exaone4", "rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}});
        let found = spelled(&flat);
        assert_eq!((&found["rope_theta"], &found["rope_scaling"]), (&json!(5e5), &Value::Null));
        assert!(found.as_object().unwrap().contains_key("rope_scaling"));
        assert_eq!(found["rope_parameters"], flat["rope_parameters"]);
        let yarn = json!({"model_type": "qwen2", "rope_scaling": null, "rope_parameters":
            {"rope_theta": 1e6, "rope_type": "yarn", "factor": 4.0, "partial_rotary_factor": 0.5}});
        let found = spelled(&yarn);
        assert_eq!(found["rope_scaling"], json!({"rope_type": "yarn", "factor": 4.0, "type": "yarn"}));
        assert_eq!(found["partial_rotary_factor"], 0.5);
    }

    #[test]
    fn what_is_there_stays() {
        let config = json!({"model_type": "llama", "rope_theta": 1e4, "rope_scaling": {"type": "linear"},
            "rope_parameters": {"rope_theta": 5e5, "rope_type": "yarn", "factor": 2.0}});
        assert_eq!(spelled(&config), config);
        let old = json!({"model_type": "qwen3_moe", "rope_theta": 1e4, "head_dim": 128, "num_experts": 8,
            "hidden_size": 64, "num_attention_heads": 4});
        assert_eq!(spelled(&old), old);
    }

    #[test]
    fn kinds_of_layers_have_keys_of_their_own() {
        let rope = json!({"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}});
        let found = spelled(&json!({"model_type": "gemma3", "text_config":
            {"model_type": "gemma3_text", "rope_parameters": rope}}));
        let text = &found["text_config"];
        assert_eq!((&text["rope_theta"], &text["rope_local_base_freq"]), (&json!(1e6), &json!(1e4)));
        assert_eq!(text["rope_scaling"]["factor"], 8.0);
        // Its class reads them by kind.
        let own = json!({"model_type": "gemma4_text", "rope_parameters": rope});
        assert_eq!(spelled(&own), own);
    }

    #[test]
    fn what_transformers_computes_is_written() {
        let found = spelled(&json!({"model_type": "qwen3_moe", "hidden_size": 64, "num_attention_heads": 4,
            "num_local_experts": 8}));
        assert_eq!((&found["head_dim"], &found["num_experts"]), (&json!(16), &json!(8)));
        let found = spelled(&json!({"model_type": "granitemoehybrid",
            "layer_types": ["linear_attention", "full_attention"]}));
        assert_eq!(found["layer_types"], json!(["mamba", "attention"]));
    }

    #[test]
    fn odd_values_are_left_to_others() {
        for config in [
            json!({"text_config": {}}),
            json!({"rope_parameters": 3}),
            json!({"model_type": 1, "rope_parameters": {}}),
            json!({"text_config": {"rope_parameters": {"a": null}}}),
            json!({"model_type": "qwen3_moe", "hidden_size": 64, "num_attention_heads": 0}),
        ] {
            assert_eq!(spelled(&config), config);
        }
    }
}
