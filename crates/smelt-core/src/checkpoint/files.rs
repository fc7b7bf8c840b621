//! What each file of a checkpoint is: a shard, a side file that goes along, or left out.
//!
//! A deny-list and not an allow-list: model families invent tokenizer, template and processor files
//! faster than any list of wanted names grows, and a model without one of them does not run. So
//! everything goes along byte for byte except weights, indexes of weights, and what would say
//! something untrue of the result.
//!
//! **Which shards count.** With an index, the files that it names. Without one, the files
//! `model*.safetensors` of the top folder, as mlx-lm loads them; if there is none, every
//! `*.safetensors` of the top folder except `consolidated*`, which is a second copy in another
//! layout.

use std::collections::HashSet;

use super::index::Index;
use super::{LeftOut, Shard};
use crate::source::FileEntry;

/// Endings of weights in formats other than safetensors.
const OTHER_WEIGHTS: [&str; 25] = [
    "bin",
    "pt",
    "pth",
    "ckpt",
    "gguf",
    "ggml",
    "onnx",
    "onnx_data",
    "h5",
    "keras",
    "msgpack",
    "ot",
    "tflite",
    "npz",
    "npy",
    "mlmodel",
    "pb",
    "pkl",
    "pickle",
    "nemo",
    "engine",
    "llamafile",
    "pte",
    "params",
    "distcp",
];

/// Folders that hold the same weights for another runtime.
const OTHER_FOLDERS: [&str; 6] = ["original", "metal", "onnx", "openvino", "coreml", "tensorrt"];

/// Files that describe how the source was quantized, which is no longer true of the result.
pub(super) const SOURCE_QUANTIZATION: [&str; 3] =
    ["hf_quant_config.json", "quantize_config.json", "quant_config.json"];

/// What smelt writes beside a result: it would say something untrue of the next one.
const RECORDS: [&str; 4] =
    ["smelt-manifest.json", "smelt-journal.partial", "smelt-report.json", "smelt-report.html"];

/// The config of what smelt writes apart from a model; the weights beside it are not copied.
const APART: &str = "mtp/config.json";

/// The files of a source by what happens to them.
#[derive(Clone, Debug, Default)]
pub struct Files {
    /// Shards to read, sorted by path.
    pub shards: Vec<Shard>,
    /// Files to copy, sorted by path; without `config.json`, which is edited.
    pub side: Vec<FileEntry>,
    /// The rest, sorted by path, with reasons.
    pub left_out: Vec<LeftOut>,
}

/// Sorts `files` (as [`Source::list`](crate::source::Source::list) gives them) into the three.
pub fn classify(files: &[FileEntry], index: Option<&Index>) -> Files {
    let shards = shard_names(files, index);
    let mut out = Files::default();
    for file in files {
        let FileEntry { path, size } = file.clone();
        if shards.contains(path.as_str()) {
            out.shards.push(Shard { path, size });
        } else if let Some(why) = reason(&path) {
            out.left_out.push(LeftOut { path, why });
        } else if path != super::config::CONFIG {
            out.side.push(FileEntry { path, size });
        }
    }
    out
}

fn shard_names<'a>(files: &'a [FileEntry], index: Option<&'a Index>) -> HashSet<&'a str> {
    if let Some(index) = index {
        return index.files().iter().map(String::as_str).collect();
    }
    let top = files.iter().map(|file| file.path.as_str());
    let top = top.filter(|path| !path.contains('/') && ending(path) == "safetensors");
    let top: HashSet<&str> = top.filter(|path| !path.starts_with('.')).collect();
    let named: HashSet<&str> = top.iter().copied().filter(|path| path.starts_with("model")).collect();
    if named.is_empty() {
        top.into_iter().filter(|path| !path.starts_with("consolidated")).collect()
    } else {
        named
    }
}

/// A weight file that cannot be read, for the message when there is nothing else.
pub(super) fn other_weights(files: &[FileEntry]) -> Option<&str> {
    let mut paths = files.iter().map(|file| file.path.as_str());
    paths.find(|path| OTHER_WEIGHTS.contains(&ending(path).as_str()))
}

/// Why a file that is no shard is left out, or `None` if it goes along.
fn reason(path: &str) -> Option<&'static str> {
    let name = path.rsplit('/').next().unwrap_or(path).to_ascii_lowercase();
    let ending = ending(&name);
    if path.split('/').any(|part| part.starts_with('.')) {
        Some("hidden file")
    } else if in_other_folder(path) {
        Some("the same model for another runtime")
    } else if ending == "safetensors" {
        Some("weights that the model does not name")
    } else if OTHER_WEIGHTS.contains(&ending.as_str()) {
        Some("weights in another format")
    } else if name.ends_with(".index.json") {
        Some("index of the source's weights; the result has its own")
    } else if SOURCE_QUANTIZATION.contains(&name.as_str()) {
        Some("describes the source's quantization")
    } else if path == APART {
        Some("describes weights beside the model, which are not read")
    } else if RECORDS.contains(&name.as_str()) {
        Some("smelt's own record of how the source was made")
    } else {
        None
    }
}

fn in_other_folder(path: &str) -> bool {
    let folder = path.split_once('/').map(|(folder, _)| folder.to_ascii_lowercase());
    folder.is_some_and(|folder| OTHER_FOLDERS.contains(&folder.as_str()) || ending(&folder) == "mlpackage")
}

/// What follows the last dot of the name, in lower case.
fn ending(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.rsplit_once('.').map_or_else(String::new, |(_, ending)| ending.to_ascii_lowercase())
}
