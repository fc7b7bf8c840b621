//! `--mtp separate`: what predicts further tokens, in files of its own beside the model.
//!
//! They lie in a folder: mlx-lm loads every `model*.safetensors` of the model's folder, mlx-vlm every
//! `*.safetensors`, and neither looks into folders below. Drafts are worth nothing if they are rarely right,
//! and the layers are few, so their weights get eight bits whatever the model gets.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use smelt_kernels::{Format, Mode};

use super::config::{SOURCE_QUANTIZATION, quantization};
use super::{Note, Options, Task};
use crate::checkpoint::{Checkpoint, Config};
use crate::error::{LayoutError, Result};
use crate::layout::{Layout, Role, looks_like_mtp};

/// The folder, with what follows it in a path.
pub const FOLDER: &str = "mtp/";

/// What becomes of layers that predict further tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mtp {
    /// They are left out, as the libraries leave them out.
    #[default]
    Drop,
    /// They are written into files of their own, which the libraries do not load with the model.
    Separate,
}

/// What is written apart from the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Apart {
    /// The text of the config beside the tensors.
    pub config: String,
}

/// The format of weights that are not left dense.
pub(super) fn format() -> Option<Format> {
    Format::new(Mode::Affine, 8, 64)
}

/// Makes parameters of the layers that predict further tokens, if they are asked for.
pub(super) fn separate(
    checkpoint: &Checkpoint,
    family: &str,
    layout: &mut Layout,
    options: &Options,
    notes: &mut Vec<Note>,
) -> Result<()> {
    if options.mtp == Mtp::Drop {
        return Ok(());
    }
    let taken = layout
        .separate_mtp(checkpoint)
        .map_err(|problems| LayoutError::Misfit { family: family.to_owned(), problems: problems.into() })?;
    let mut unmarked = layout.dropped.iter().filter(|dropped| looks_like_mtp(&dropped.tensor));
    match unmarked.next().map(|first| first.tensor.clone()) {
        Some(first) => notes.push(Note::MtpUnknown { tensors: 1 + unmarked.count() as u64, first }),
        None if taken == 0 => notes.push(Note::NoMtp),
        None => {}
    }
    Ok(())
}

/// The parameters of the model, and those that are written apart; they are the last.
pub(super) fn parted(tasks: &[Task]) -> (&[Task], &[Task]) {
    tasks.split_at(tasks.partition_point(|task| task.role != Role::Mtp))
}

/// The config beside the tensors: what the language model's says, and how the weights are stored.
pub(super) fn apart(config: &Config, layout: &Layout, tasks: &[Task]) -> Option<Apart> {
    let (_, tasks) = parted(tasks);
    if tasks.is_empty() {
        return None;
    }
    let text = config.get("text_config").filter(|text| text.is_object()).unwrap_or(config.value());
    let mut text = text.as_object().cloned().unwrap_or_default();
    text.retain(|key, _| !SOURCE_QUANTIZATION.contains(&key.as_str()));
    let own = || format!("{}_mtp", config.model_type().unwrap_or_default());
    let mut all = Map::new();
    all.insert("model_type".to_owned(), json!(layout.mtp.model_type.clone().unwrap_or_else(own)));
    all.insert("text_config".to_owned(), Value::Object(text));
    if let Some(block) = quantization(format(), tasks) {
        all.insert("quantization".to_owned(), block.clone());
        all.insert("quantization_config".to_owned(), block);
    }
    let mut text = serde_json::to_string_pretty(&all).unwrap_or_default();
    text.push('\n');
    Some(Apart { config: text })
}
