//! The names and shapes of a model's parameters against those that its family has for the library.

use std::collections::BTreeSet;

use smelt_kernels::Format;

use super::finding::{Check, Findings};
use super::model::Model;
use super::parameter::{Parameter, Stored, module};
use crate::checkpoint::CONFIG;
use crate::layout::family::{Expectation, Expected, Family};

const AGAIN: &str = "quantize the model again; if it was made by another tool, report it there";

/// What stands beside the scales of a quantized module in some modes, beyond the biases.
const COMPANIONS: [&str; 3] = [".global_scale", ".weight_scale_2", ".weight_global_scale"];

/// Endings that only the storage formats of other tools have.
const FOREIGN: [&str; 14] = [
    ".weight_scale",
    ".weight_scale_inv",
    ".weight_packed",
    ".weight_shape",
    ".weight_zero_point",
    ".input_scale",
    ".input_global_scale",
    ".qweight",
    ".qzeros",
    ".g_idx",
    ".weight_g_idx",
    "_blocks",
    "_scales",
    "_scale_inv",
];

/// What a family has for a library.
#[derive(Debug)]
pub(super) struct Chosen {
    /// The library.
    pub(super) library: String,
    expectation: Expectation,
}

/// The library that the names of a model are those of: the one asked for, or the one with fewest
/// differences.
pub(super) fn choose(model: &Model, family: &Family, asked: Option<&str>) -> Option<Chosen> {
    let config = model.config.as_ref()?;
    let parameters = model.parameters();
    let names: BTreeSet<&str> = parameters.iter().map(|parameter| parameter.name).collect();
    let known = family.targets.iter().filter(|library| asked.is_none_or(|asked| asked == library.as_str()));
    let all = known.map(|library| {
        let expectation = family.expected(config, library, &|name| names.contains(name));
        (differences(&names, &expectation), Chosen { library: library.clone(), expectation })
    });
    all.min_by_key(|(count, _)| *count).map(|(_, chosen)| chosen)
}

fn differences(names: &BTreeSet<&str>, expectation: &Expectation) -> usize {
    let spare = names.iter().filter(|name| !expectation.parameters.contains_key(**name)).count();
    spare + missing(names, expectation).count()
}

fn missing<'a>(names: &'a BTreeSet<&str>, expectation: &'a Expectation) -> impl Iterator<Item = &'a String> {
    let required = expectation.parameters.iter().filter(|(_, all)| all.iter().any(|one| one.required));
    required.map(|(name, _)| name).filter(|name| !names.contains(name.as_str()))
}

impl Chosen {
    fn expected(&self, name: &str) -> Option<&[Expected]> {
        self.expectation.parameters.get(name).map(Vec::as_slice)
    }

    /// The length of a parameter's rows, where the config tells it.
    pub(super) fn row(&self, name: &str) -> Option<u64> {
        let mut rows = self.expected(name)?.iter().map(|one| one.shape.as_ref()?.last().copied().flatten());
        let first = rows.next().flatten()?;
        rows.all(|row| row == Some(first)).then_some(first)
    }

    /// Compares the parameters with what the library's model has.
    pub(super) fn check(
        &self,
        model: &Model,
        parameters: &[(Parameter<'_>, Option<Format>)],
        findings: &mut Findings,
    ) {
        let names: BTreeSet<&str> = parameters.iter().map(|(parameter, _)| parameter.name).collect();
        if model.complete {
            for name in missing(&names, &self.expectation) {
                let what =
                    format!("the parameter is missing; {} does not load the model without it", self.library);
                findings.error(Check::Keys, name, what, AGAIN);
            }
        }
        for (parameter, format) in parameters {
            match self.expected(parameter.name) {
                None => self.spare(parameter, &names, findings),
                Some(expected) => self.one(parameter, *format, expected, findings),
            }
        }
        for (key, value) in &self.expectation.config {
            let what =
                format!("`{key}` should be {value}: the tensors that it speaks of are not in the model");
            findings.warning(Check::Keys, CONFIG, what, "loaders that read the key look for them in vain");
        }
    }

    fn spare(&self, parameter: &Parameter<'_>, names: &BTreeSet<&str>, findings: &mut Findings) {
        let name = parameter.name;
        let of_module = COMPANIONS.iter().find_map(|ending| name.strip_suffix(ending));
        if of_module.is_some_and(|path| names.contains(format!("{path}.weight").as_str()))
            || self.expectation.may_have(name)
        {
            return;
        }
        if self.expectation.leaves_out(name) {
            let what = format!("{} leaves this tensor out", self.library);
            findings.warning(Check::Keys, name, what, "it only takes space");
        } else if FOREIGN.iter().any(|ending| name.ends_with(ending)) {
            let what = "a scale or code of the source's quantization was left in the model";
            findings.error(Check::Leftovers, name, what, AGAIN);
        } else {
            let what = format!("{} has no such parameter and refuses to load it", self.library);
            findings.error(Check::Keys, name, what, AGAIN);
        }
    }

    fn one(
        &self,
        parameter: &Parameter<'_>,
        format: Option<Format>,
        expected: &[Expected],
        findings: &mut Findings,
    ) {
        let shape = match parameter.stored {
            Stored::Plain(tensor) => tensor.shape.to_vec(),
            Stored::Packed(packed) => {
                if expected.iter().all(|one| one.module.is_none()) {
                    let what =
                        format!("it is quantized, but {} can't quantize what it belongs to", self.library);
                    findings.error(Check::Quantization, parameter.name, what, AGAIN);
                }
                let Some(format) = format else { return };
                packed.shape(format)
            }
        };
        let fits = |one: &Expected| one.shape.as_ref().is_none_or(|sizes| same_shape(sizes, &shape));
        if let Some(first) = expected.first().filter(|_| !expected.iter().any(fits)) {
            let asked = first.shape.as_deref().unwrap_or_default().iter();
            let asked: Vec<String> =
                asked.map(|size| size.map_or_else(|| "?".to_owned(), |size| size.to_string())).collect();
            let what = format!("its shape is {shape:?}, config.json asks for [{}]", asked.join(", "));
            findings.error(Check::Shapes, parameter.name, what, AGAIN);
        }
    }
}

fn same_shape(sizes: &[Option<u64>], shape: &[u64]) -> bool {
    sizes.len() == shape.len()
        && sizes.iter().zip(shape).all(|(size, found)| size.is_none_or(|size| size == *found))
}

/// Without a family: at least what other tools' formats leave behind.
pub(super) fn check_foreign(parameters: &[(Parameter<'_>, Option<Format>)], findings: &mut Findings) {
    for (parameter, _) in parameters {
        let ours = module(parameter.name) != parameter.name;
        if !ours && FOREIGN.iter().any(|ending| parameter.name.ends_with(ending)) {
            let what = "a scale or code of another tool's quantization";
            findings.warning(
                Check::Leftovers,
                parameter.name,
                what,
                "MLX loads it only where the model expects it",
            );
        }
    }
}
