//! What a check has to say: how bad it is, of which tensors or files, and what to do.

use std::collections::HashMap;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The model does not load, or is not what it should be.
    Error,
    /// The model loads, but something is odd or will not work everywhere.
    Warning,
}

/// Which check found something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// `config.json` is there and can be read.
    Config,
    /// Files of tensors are there, with sound headers.
    Shards,
    /// The index names the tensors that there are.
    Index,
    /// What an unfinished run or another model left behind.
    Leftovers,
    /// Tokenizer, template and processor files.
    SideFiles,
    /// The quantization dictionary against the stored tensors.
    Quantization,
    /// The parameters that the library's model has.
    Keys,
    /// Shapes of the parameters.
    Shapes,
    /// Stored bytes against the hashes that were written with them.
    Hashes,
    /// No NaN, no infinity.
    Finite,
    /// No groups whose codes or scales were lost.
    Dead,
    /// Values against the source.
    Source,
}

/// Something that a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// Which check found it.
    pub check: Check,
    /// The tensors, modules or files concerned.
    pub names: Vec<String>,
    /// What is wrong.
    pub what: String,
    /// What to do.
    pub advice: &'static str,
}

/// Findings in the making.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) all: Vec<Finding>,
    /// Where the finding with these words is.
    places: HashMap<(Severity, Check, String), usize>,
}

impl Findings {
    /// Adds a finding. One of the same check with the same words gets the names as well, so that a
    /// hundred tensors with one fault are one finding.
    pub(super) fn add(
        &mut self,
        (severity, check): (Severity, Check),
        name: impl Into<String>,
        what: impl Into<String>,
        advice: &'static str,
    ) {
        let (name, what) = (name.into(), what.into());
        let place = *self.places.entry((severity, check, what.clone())).or_insert(self.all.len());
        match self.all.get_mut(place) {
            Some(found) => found.names.push(name),
            None => self.all.push(Finding { severity, check, names: vec![name], what, advice }),
        }
    }

    /// The names in the findings of a check.
    pub(super) fn of(&self, check: Check) -> impl Iterator<Item = &str> {
        let of_check = self.all.iter().filter(move |found| found.check == check);
        of_check.flat_map(|found| found.names.iter().map(String::as_str))
    }

    pub(super) fn error(&mut self, check: Check, name: &str, what: impl Into<String>, advice: &'static str) {
        self.add((Severity::Error, check), name, what, advice);
    }

    pub(super) fn warning(
        &mut self,
        check: Check,
        name: &str,
        what: impl Into<String>,
        advice: &'static str,
    ) {
        self.add((Severity::Warning, check), name, what, advice);
    }
}

impl From<Severity> for &'static str {
    fn from(severity: Severity) -> Self {
        match severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        }
    }
}
