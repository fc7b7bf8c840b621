//! The quantization dictionary of `config.json` against the stored tensors, by the loaders' own rules.
//!
//! * Without `quantization` both libraries build a float model, and packed tensors do not fit it.
//! * `group_size` and `bits` must stand at the top; `mode` is affine where it lacks.
//! * An entry by module path wins. A dictionary without `mode` is affine whatever the top says; `true` is
//!   the top; `false` is not quantized.
//! * Without an entry a module with scales has the format of the top. mlx-lm from 0.32.2 on takes it from the
//!   shapes instead; mlx-vlm and older mlx-lm do not, so a module that differs needs its entry.
//! * mlx-vlm looks a path up without `language_model.` too.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};
use smelt_kernels::{Format, Mode};

use super::finding::{Check, Findings};
use super::model::Model;
use super::parameter::{Packed, Parameter, Stored, module};
use crate::checkpoint::{CONFIG, Config, DType};

const CHECK: Check = Check::Quantization;
const EDIT: &str = "correct `quantization` in config.json";
const AGAIN: &str = "quantize the model again";

/// What the dictionary says of one module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Entry {
    /// As the top says.
    Common,
    /// Not quantized.
    Dense,
    /// In a format of its own; `None` for one that smelt does not know.
    Own(Option<Format>),
}

/// The dictionary, as far as it makes sense.
#[derive(Debug, Default)]
struct Dictionary {
    /// The format at the top; `None` if it is missing or smelt does not know it.
    common: Option<Format>,
    entries: BTreeMap<String, Entry>,
}

impl Dictionary {
    fn parse(block: &Map<String, Value>, findings: &mut Findings) -> Self {
        let mut found = Self { common: None, entries: BTreeMap::new() };
        match format(block) {
            Ok(format) => found.common = Some(format),
            Err(why) => findings.error(CHECK, CONFIG, format!("`quantization`: {why}"), EDIT),
        }
        for (path, value) in block {
            let entry = match value {
                Value::Bool(true) => Entry::Common,
                Value::Bool(false) => Entry::Dense,
                Value::Object(own) => Entry::Own(match format(own) {
                    Ok(format) => Some(format),
                    Err(why) => {
                        findings.error(CHECK, path, format!("its entry in `quantization`: {why}"), EDIT);
                        None
                    }
                }),
                _ => continue,
            };
            found.entries.insert(path.clone(), entry);
        }
        found
    }

    /// What it says of a module.
    fn entry(&self, path: &str) -> Option<(&str, Entry)> {
        let short = path.strip_prefix("language_model.");
        let found = self.entries.get_key_value(path);
        let found = found.or_else(|| self.entries.get_key_value(short?));
        found.map(|(key, entry)| (key.as_str(), *entry))
    }
}

/// The format of a dictionary, by its keys `bits`, `group_size` and `mode`.
fn format(block: &Map<String, Value>) -> Result<Format, String> {
    let mode = match block.get("mode") {
        None | Some(Value::Null) => Mode::Affine,
        Some(name) => name
            .as_str()
            .and_then(Mode::from_name)
            .ok_or_else(|| format!("mode {name} is none that MLX has"))?,
    };
    let number = |key: &str| match block.get(key) {
        // mlx-lm writes null for the group size of some recipes, and reads it as the default.
        Some(Value::Null) if key == "group_size" => Ok(mode.defaults().1 as u64),
        Some(value) => value.as_u64().ok_or_else(|| format!("{key} {value} is no number")),
        None => Err(format!("`{key}` is missing")),
    };
    let (bits, group) = (number("bits")?, number("group_size")?);
    let known = u8::try_from(bits).ok().and_then(|bits| Format::new(mode, bits, group as usize));
    known.ok_or_else(|| format!("{} with {bits} bits in groups of {group} is no format of MLX", mode.name()))
}

/// Checks the dictionary; returns for every parameter the format that it is stored in, where it is packed
/// and that can be told. `row` gives the length of a parameter's rows where the config tells it.
pub(super) fn check(
    model: &Model,
    parameters: &[Parameter<'_>],
    row: &dyn Fn(&str) -> Option<u64>,
    findings: &mut Findings,
) -> Vec<Option<Format>> {
    let Some(config) = &model.config else {
        return parameters.iter().map(|parameter| alone(parameter, row)).collect();
    };
    let block = config.get("quantization").and_then(Value::as_object);
    twin(config, block.is_some(), findings);
    let dictionary = block.map(|block| Dictionary::parse(block, findings));
    let mut checking = Checking { dictionary: dictionary.as_ref(), row, findings, used: BTreeSet::new() };
    let formats = parameters.iter().map(|parameter| checking.parameter(parameter)).collect();
    let used = checking.used;
    if let Some(dictionary) = &dictionary {
        unused(dictionary, &used, findings);
    }
    formats
}

/// The copy under another name that other readers look at.
fn twin(config: &Config, quantized: bool, findings: &mut Findings) {
    let (block, copy) = (config.get("quantization"), config.get("quantization_config"));
    let Some(copy) = copy.filter(|copy| !copy.is_null()) else { return };
    let method = copy.get("quant_method").and_then(Value::as_str);
    match method {
        Some(method) if quantized => {
            let what = format!("`quantization_config` still says `{method}`, the source's quantization");
            findings.warning(CHECK, CONFIG, what, "make it a copy of `quantization`, or remove it");
        }
        Some(method) => {
            let what =
                format!("`quantization_config` says `{method}`, and the loaders will treat the weights so");
            findings.error(CHECK, CONFIG, what, "remove it if the weights are plain");
        }
        None if block != Some(copy) => {
            let what = "`quantization_config` is not equal to `quantization`; readers that look at it see another model";
            findings.error(CHECK, CONFIG, what, EDIT);
        }
        None => {}
    }
}

/// Entries that belong to no module.
fn unused(dictionary: &Dictionary, used: &BTreeSet<String>, findings: &mut Findings) {
    let spare = dictionary.entries.iter().filter(|(path, _)| !used.contains(*path));
    for (path, _) in spare.filter(|(_, entry)| matches!(entry, Entry::Own(_))) {
        let what = "`quantization` has an entry for this path, and no module of the model has it";
        findings.warning(CHECK, path, what, "entries need the path of the module in MLX");
    }
}

/// The format of a parameter by its shapes alone, where only one fits.
fn alone(parameter: &Parameter<'_>, row: &dyn Fn(&str) -> Option<u64>) -> Option<Format> {
    let Stored::Packed(packed) = parameter.stored else { return None };
    match packed.formats(row(parameter.name))[..] {
        [only] => Some(only),
        _ => None,
    }
}

struct Checking<'a> {
    dictionary: Option<&'a Dictionary>,
    row: &'a dyn Fn(&str) -> Option<u64>,
    findings: &'a mut Findings,
    used: BTreeSet<String>,
}

impl Checking<'_> {
    fn parameter(&mut self, parameter: &Parameter<'_>) -> Option<Format> {
        let entry = self.dictionary.and_then(|dictionary| dictionary.entry(module(parameter.name)));
        if let Some((key, _)) = entry {
            self.used.insert(key.to_owned());
        }
        let entry = entry.map(|(_, entry)| entry);
        match parameter.stored {
            Stored::Plain(tensor) => {
                if matches!(entry, Some(Entry::Own(_) | Entry::Common)) {
                    let what = "`quantization` has an entry for it, but it is not quantized";
                    self.error(parameter, what, EDIT);
                }
                if tensor.dtype == DType::U32 && parameter.name.ends_with(".weight") {
                    self.error(parameter, "it holds codes, and there are no scales for them", AGAIN);
                }
                None
            }
            Stored::Packed(packed) => self.packed(parameter, &packed, entry),
        }
    }

    fn packed(
        &mut self,
        parameter: &Parameter<'_>,
        packed: &Packed<'_>,
        entry: Option<Entry>,
    ) -> Option<Format> {
        if let Some(why) = packed.mismatch() {
            self.error(parameter, why, AGAIN);
            return None;
        }
        let Some(dictionary) = self.dictionary else {
            let what = "it is quantized, and config.json has no `quantization`";
            self.error(parameter, what, "add `quantization` to config.json");
            return alone(parameter, self.row);
        };
        if entry == Some(Entry::Dense) {
            self.error(parameter, "`quantization` says that it is not quantized, but it is", EDIT);
            return alone(parameter, self.row);
        }
        let says = match entry {
            Some(Entry::Own(format)) => format,
            _ => dictionary.common,
        }?;
        let fitting = packed.formats((self.row)(parameter.name));
        if fitting.contains(&says) {
            return Some(says);
        }
        self.differs(parameter, says, &fitting, entry.is_some());
        if let [only] = fitting[..] { Some(only) } else { None }
    }

    fn differs(&mut self, parameter: &Parameter<'_>, says: Format, fitting: &[Format], own: bool) {
        let names: Vec<String> = fitting.iter().map(ToString::to_string).collect();
        let shapes = match names.len() {
            0 => "its shapes are those of no format".to_owned(),
            _ => format!("its shapes are those of {}", names.join(" or ")),
        };
        let what = if own {
            format!("its entry in `quantization` says {says}, {shapes}")
        } else {
            format!(
                "`quantization` says {says} for what has no entry, {shapes}; only mlx-lm from 0.32.2 on looks at them"
            )
        };
        self.error(
            parameter,
            what,
            "correct `quantization` in config.json: what stands at its top, or an entry for the module",
        );
    }

    fn error(&mut self, parameter: &Parameter<'_>, what: impl Into<String>, advice: &'static str) {
        self.findings.error(CHECK, parameter.name, what, advice);
    }
}
