//! The quantization dictionary of `config.json` against the stored tensors, by the loaders' own rules.
//!
//! * Without `quantization` both libraries build a float model, and packed tensors do not fit it.
//! * `group_size` and `bits` must stand at the top; `mode` is affine where it lacks.
//! * An entry by module path wins. A dictionary without `mode` is affine whatever the top says; `true` is
//!   the top; `false` is not quantized.
//! * Without an entry a module with scales has the format of the top. mlx-lm from 0.32.2 on takes it from the
//!   shapes instead; mlx-vlm and older mlx-lm do not, so a module that differs needs its entry.
//! * mlx-vlm looks a path up without `language_model.` too.
//! * Without `quantization`, a `quantization_config` with the `quant_method` mxfp4 or mxfp8 stands for that format;
//!   one without a method is looked at by no loader.

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
    /// Entries without a `mode`, which are affine then; the top is the empty path.
    modeless: BTreeSet<String>,
}

impl Dictionary {
    fn parse(block: &Map<String, Value>, findings: &mut Findings) -> Self {
        let mut found = Self::default();
        let modeless = |block: &Map<String, Value>| block.get("mode").is_none_or(Value::is_null);
        found.modeless.extend(modeless(block).then(String::new));
        match format(block) {
            Ok(format) => found.common = Some(format),
            Err(why) => findings.error(CHECK, CONFIG, format!("`quantization`: {why}"), EDIT),
        }
        for (path, value) in block {
            let entry = match value {
                Value::Bool(true) => Entry::Common,
                Value::Bool(false) => Entry::Dense,
                Value::Object(own) => {
                    found.modeless.extend(modeless(own).then(|| path.clone()));
                    Entry::Own(own_format(path, own, findings))
                }
                _ => continue,
            };
            found.entries.insert(path.clone(), entry);
        }
        found
    }

    /// A format for everything, as some `quant_method` stands for it.
    fn of_method(method: &str) -> Option<Self> {
        let mode = [Mode::Mxfp4, Mode::Mxfp8].into_iter().find(|mode| mode.name() == method)?;
        let (bits, group_size) = mode.defaults();
        Some(Self { common: Format::new(mode, bits, group_size), ..Self::default() })
    }

    /// What it says of a module.
    fn entry(&self, path: &str) -> Option<(&str, Entry)> {
        let short = path.strip_prefix("language_model.");
        let found = self.entries.get_key_value(path);
        let found = found.or_else(|| self.entries.get_key_value(short?));
        found.map(|(key, entry)| (key.as_str(), *entry))
    }
}

fn own_format(path: &str, own: &Map<String, Value>, findings: &mut Findings) -> Option<Format> {
    let tell = |why| findings.error(CHECK, path, format!("its entry in `quantization`: {why}"), EDIT);
    format(own).map_err(tell).ok()
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
    let packed = parameters.iter().any(Parameter::is_packed);
    let dictionary = dictionary(config, packed, findings);
    let mut checking = Checking { dictionary: dictionary.as_ref(), row, findings, used: BTreeSet::new() };
    let formats = parameters.iter().map(|parameter| checking.parameter(parameter)).collect();
    let used = checking.used;
    if let Some(dictionary) = &dictionary {
        unused(dictionary, &used, findings);
    }
    formats
}

/// The dictionary that the loaders take, and what is wrong with where it stands.
fn dictionary(config: &Config, packed: bool, findings: &mut Findings) -> Option<Dictionary> {
    let block = config.get("quantization").and_then(Value::as_object);
    let copy = config.get("quantization_config").filter(|copy| !copy.is_null());
    // Where nothing stands at the top, the loaders look into the config of the language model.
    let nested = || config.get("text_config")?.get("quantization_config").filter(|copy| !copy.is_null());
    let copy = if block.is_some() { copy } else { copy.or_else(nested) };
    let method = copy.and_then(|copy| copy.get("quant_method")).and_then(Value::as_str);
    match (block, copy, method) {
        (Some(block), ..) => {
            twin(block, copy, method, findings);
            Some(Dictionary::parse(block, findings))
        }
        (None, Some(_), Some(method)) => of_method(method, packed, findings),
        (None, Some(Value::Object(copy)), None) if packed => {
            let what = "the formats stand under `quantization_config` alone, where no loader looks for them";
            findings.error(CHECK, CONFIG, what, "give config.json a copy of it as `quantization`");
            Some(Dictionary::parse(copy, findings))
        }
        (None, Some(_), None) => {
            let what =
                "`quantization_config` has no `quant_method`, without which mlx-lm does not load the model";
            findings.error(CHECK, CONFIG, what, "remove it if the weights are plain");
            None
        }
        (None, None, _) => None,
    }
}

/// The copy under another name that other readers look at.
fn twin(block: &Map<String, Value>, copy: Option<&Value>, method: Option<&str>, findings: &mut Findings) {
    if let Some(method) = method {
        let what = format!("`quantization_config` still says `{method}`, the source's quantization");
        findings.warning(CHECK, CONFIG, what, "make it a copy of `quantization`, or remove it");
    } else if copy.is_some_and(|copy| copy.as_object() != Some(block)) {
        let what =
            "`quantization_config` is not equal to `quantization`; readers that look at it see another model";
        findings.error(CHECK, CONFIG, what, EDIT);
    }
}

/// What a model is to the loaders that has the `quant_method` of a source and no dictionary.
fn of_method(method: &str, packed: bool, findings: &mut Findings) -> Option<Dictionary> {
    let dictionary = Dictionary::of_method(method).filter(|_| packed);
    if dictionary.is_some() {
        let what = format!(
            "only `quant_method` says the format, `{method}`; loaders of other programs look for `quantization`"
        );
        findings.warning(CHECK, CONFIG, what, "add `quantization` to config.json");
    } else {
        let what =
            format!("`quantization_config` says `{method}`, and the loaders will treat the weights so");
        findings.error(CHECK, CONFIG, what, "remove it if the weights are plain");
    }
    dictionary
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
        let (key, entry) = entry.unzip();
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
            Stored::Packed(packed) => self.packed(parameter, &packed, key.zip(entry)),
        }
    }

    fn packed(
        &mut self,
        parameter: &Parameter<'_>,
        packed: &Packed<'_>,
        entry: Option<(&str, Entry)>,
    ) -> Option<Format> {
        let (key, entry) = entry.unzip();
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
        self.differs(parameter, says, &fitting, key);
        if let [only] = fitting[..] { Some(only) } else { None }
    }

    /// Whether nothing says that a format is affine but that no mode is given.
    fn affine_unsaid(&self, says: Format, key: &str, fitting: &[Format]) -> bool {
        let other = !fitting.is_empty() && fitting.iter().all(|format| format.mode() != Mode::Affine);
        says.mode() == Mode::Affine
            && other
            && self.dictionary.is_some_and(|dictionary| dictionary.modeless.contains(key))
    }

    fn differs(&mut self, parameter: &Parameter<'_>, says: Format, fitting: &[Format], key: Option<&str>) {
        let names: Vec<String> = fitting.iter().map(ToString::to_string).collect();
        let shapes = match names.len() {
            0 => "its shapes are those of no format".to_owned(),
            _ => format!("its shapes are those of {}", names.join(" or ")),
        };
        let what = if self.affine_unsaid(says, key.unwrap_or_default(), fitting) {
            let place = if key.is_some() { "its entry in `quantization`" } else { "`quantization`" };
            format!("{place} has no `mode` and so says affine, {shapes}")
        } else if key.is_some() {
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
