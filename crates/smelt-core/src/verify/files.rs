//! What lies beside the tensors: tokenizer, template, processor, and what should not be there.

use std::path::Path;

use super::finding::{Check, Findings};
use super::model::{Model, in_full};
use crate::checkpoint::{CONFIG, Checkpoint, Config, INDEX, JsonText};

/// A tokenizer is one of these, or a `*.tiktoken`.
const TOKENIZERS: [&str; 8] = [
    "tokenizer.json",
    "tokenizer.model",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.tiktoken",
];

/// Files of processors, of which a model that sees or hears needs one.
const PROCESSORS: [&str; 4] = [
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "image_processor_config.json",
];

/// Where a chat template may stand besides `tokenizer_config.json`.
const TEMPLATES: [&str; 3] = ["chat_template.jinja", "chat_template.json", "additional_chat_templates"];

/// The file of NVIDIA's tools.
const MODELOPT: &str = "hf_quant_config.json";

/// Files that describe how the source was quantized.
const SOURCE_QUANTIZATION: [&str; 3] = [MODELOPT, "quantize_config.json", "quant_config.json"];

/// Endings of files that were never finished.
const UNFINISHED: [&str; 4] = [".partial", ".tmp", ".incomplete", ".part"];

/// Larger files are not read as a whole.
const LARGEST_JSON: u64 = 64 << 20;

const COPY: &str = "copy it from the source";

/// Checks the files beside the tensors, against those of the source if that is at hand.
pub(super) fn check(model: &Model, source: Option<&Checkpoint>, findings: &mut Findings) {
    unfinished(model, findings);
    readable(model, findings);
    for name in SOURCE_QUANTIZATION.into_iter().filter(|name| model.file(name).is_some()) {
        let what = "it describes the quantization of the source, which is not that of the model";
        // mlx-lm reads this one where config.json speaks of no quantization.
        let read = name == MODELOPT && !model.config.as_ref().is_some_and(speaks_of_quantization);
        let add = if read { Findings::error } else { Findings::warning };
        add(findings, Check::Leftovers, name, what, "remove it");
    }
    if !has_tokenizer(&|name| model.file(name).is_some(), paths(model)) {
        findings.warning(Check::SideFiles, "tokenizer.json", "the model has no tokenizer", COPY);
    }
    let sees = model.config.as_ref().is_some_and(|config| {
        ["vision_config", "audio_config"]
            .iter()
            .any(|key| config.get(key).is_some_and(serde_json::Value::is_object))
    });
    if sees && !PROCESSORS.iter().any(|name| model.file(name).is_some()) {
        let what = "the config speaks of images or sound, and there is no processor's file";
        findings.warning(Check::SideFiles, PROCESSORS[0], what, COPY);
    }
    if let Some(source) = source {
        like_source(model, source, findings);
    }
}

fn speaks_of_quantization(config: &Config) -> bool {
    ["quantization", "quantization_config"]
        .iter()
        .any(|key| config.get(key).is_some_and(|value| !value.is_null()))
}

fn paths(model: &Model) -> impl Iterator<Item = &str> {
    model.files.iter().map(|file| file.path.as_str())
}

fn has_tokenizer<'a>(has: &dyn Fn(&str) -> bool, mut all: impl Iterator<Item = &'a str>) -> bool {
    TOKENIZERS.iter().any(|name| has(name))
        || all.any(|path| path.ends_with(".tiktoken") || path.starts_with("tokenization_"))
}

fn unfinished(model: &Model, findings: &mut Findings) {
    let is_open = |path: &&str| UNFINISHED.iter().any(|ending| path.ends_with(ending));
    for path in paths(model).filter(is_open) {
        let what = "a file that was never finished";
        findings.error(Check::Leftovers, path, what, "finish the run that writes it, or remove the file");
    }
}

/// Every JSON file must be JSON: a broken download or a bad disk shows here first.
fn readable(model: &Model, findings: &mut Findings) {
    let json = |path: &&str| {
        Path::new(path).extension().is_some_and(|ending| ending == "json") && !matches!(*path, CONFIG | INDEX)
    };
    let small = model.files.iter().filter(|file| file.size <= LARGEST_JSON);
    for path in small.map(|file| file.path.as_str()).filter(json) {
        let broken = match model.read_file(path) {
            Some(Ok(bytes)) => JsonText::parse(path, &bytes).err().map(|error| in_full(&error)),
            Some(Err(error)) => Some(in_full(&error)),
            None => None,
        };
        if let Some(why) = broken {
            findings.error(Check::SideFiles, path, format!("it can't be read: {why}"), COPY);
        }
    }
}

/// What the source has for the tokenizer and the like, the model must have in some form. Other tools write
/// these files anew, so that their bytes say nothing.
fn like_source(model: &Model, source: &Checkpoint, findings: &mut Findings) {
    let theirs = |name: &str| source.side_files().iter().any(|file| file.path == name);
    let ours = |name: &str| model.file(name).is_some();
    let all = source.side_files().iter().map(|file| file.path.as_str());
    if has_tokenizer(&theirs, all) && !has_tokenizer(&ours, paths(model)) {
        findings.error(
            Check::SideFiles,
            "tokenizer.json",
            "the source has a tokenizer, the model none",
            COPY,
        );
    }
    let single = ["generation_config.json"].into_iter().chain(PROCESSORS);
    for name in single.filter(|name| theirs(name) && !ours(name)) {
        let processor = PROCESSORS.contains(&name) && PROCESSORS.iter().any(|name| ours(name));
        if !processor {
            findings.warning(Check::SideFiles, name, "the source has this file, the model not", COPY);
        }
    }
    let template = TEMPLATES.into_iter().find(|name| theirs(name));
    if let Some(name) = template.filter(|_| !TEMPLATES.iter().any(|name| ours(name)) && !has_template(model))
    {
        findings.warning(Check::SideFiles, name, "the source has a chat template, the model none", COPY);
    }
}

/// Whether the template stands in the tokenizer's config.
fn has_template(model: &Model) -> bool {
    let text = model.read_file("tokenizer_config.json").and_then(Result::ok);
    let value = text.and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
    value.is_some_and(|value| value.get("chat_template").is_some_and(|template| !template.is_null()))
}
