//! The output's config.json: the source's text with as little changed as the result needs.

use serde_json::{Map, Value, json};
use smelt_kernels::Format;

use super::{Note, Task, libraries};
use crate::checkpoint::Config;

/// What says how the source is quantized, activations too: mlx-lm refuses to quantize those of other formats.
pub(super) const SOURCE_QUANTIZATION: [&str; 4] =
    ["quantization", "quantization_config", "compression_config", "quantize_activations"];

/// What names a file in the model's folder that loaders run as the model's code.
const CODE: &str = "model_file";

/// What is to be known of code that the config names.
pub(super) fn code(config: &Config) -> Option<Note> {
    let file = config.get(CODE).filter(|file| !file.is_null())?;
    let file = file.as_str().map_or_else(|| file.to_string(), str::to_owned);
    // Without it there would be no model where no library has one.
    let kept = config.model_type().is_none_or(|model_type| libraries::of_type(model_type).is_empty());
    Some(Note::Code { file, kept })
}

/// The text of the config to write.
///
/// `quantization` and its twin `quantization_config` (which other readers look at) hold the format
/// of the run and an entry for every module that differs; `edits` are what the
/// layout changes; whatever said how the *source* was quantized goes,
/// and so does what would have loaders run a file where they have a model of their own.
pub(super) fn edited(
    config: &Config,
    edits: &[(String, Value)],
    format: Option<Format>,
    tasks: &[Task],
) -> String {
    let mut text = config.json().clone();
    for key in SOURCE_QUANTIZATION {
        text.remove(&[key]);
        text.remove(&["text_config", key]);
    }
    if matches!(code(config), Some(Note::Code { kept: false, .. })) {
        text.remove(&[CODE]);
    }
    for (key, value) in edits.iter().filter(|(key, value)| config.get(key) != Some(value)) {
        text.set(&key.split('.').collect::<Vec<_>>(), value);
    }
    if let Some(block) = quantization(format, tasks) {
        text.set(&["quantization"], &block);
        text.set(&["quantization_config"], &block);
    }
    text.text().to_owned()
}

/// The block of a config that says how `tasks` are stored, `format` those of which it does not say otherwise.
pub(super) fn quantization(format: Option<Format>, tasks: &[Task]) -> Option<Value> {
    let quantized =
        || tasks.iter().filter_map(|task| task.format.as_ref().map(|spec| (task.module(), spec.0)));
    // A run that only has overrides takes the first of them as the common format.
    let common = format.or_else(|| quantized().next().map(|(_, format)| format))?;
    quantized().next()?;
    let mut block = parts(common);
    for (module, format) in quantized().filter(|&(_, format)| format != common) {
        block.insert(module.to_owned(), Value::Object(parts(format)));
    }
    Some(Value::Object(block))
}

/// The keys in the order in which mlx-lm writes them.
fn parts(format: Format) -> Map<String, Value> {
    let mut parts = Map::new();
    parts.insert("group_size".to_owned(), json!(format.group_size()));
    parts.insert("bits".to_owned(), json!(format.bits()));
    parts.insert("mode".to_owned(), json!(format.mode().name()));
    parts
}
