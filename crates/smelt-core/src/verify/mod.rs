//! Says whether a finished model is what it should be: as the loaders will see it, byte for byte as it was
//! written, and near enough to its source.
//!
//! A layer above the five rooms: it knows all of them, none knows it. It works on models that smelt wrote and
//! on models of other tools, so it takes nothing from a plan: what is expected follows from the config, the
//! family and MLX's own rules.
//!
//! * [`Verify`] checks one model: `model` (files, headers, index), `apart` (what lies beside it), `hashes`, `files` (beside the tensors),
//!   `quantization` (the dictionary), `keys` (names and shapes by the family), `scan` (every byte once), and
//!   against a source `against` (with `measured` and
//!   `verdict`).
//! * [`diff`] compares two models or checkpoints tensor by tensor.
//!
//! Every check notes what it finds and goes on; only what keeps the files from being read is an error of
//! the run. Workers hold a fixed block each, whatever the model's size.

mod against;
mod apart;
mod decode;
pub mod diff;
mod files;
mod finding;
mod hashes;
mod keys;
mod limits;
mod measured;
mod model;
mod parallel;
mod parameter;
mod quantization;
mod scan;
mod sums;
mod verdict;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use smelt_kernels::Format;

pub use finding::{Check, Finding, Severity};
pub use sums::Metrics;
pub use verdict::{Compared, Comparison, Kind};

use crate::Result;
use crate::checkpoint::{CONFIG, Checkpoint, DType};
use crate::layout::Layout;
use crate::layout::family::{self, Family};
use crate::pipeline::{Event, Observer};
use crate::plan::Memory;
use crate::source::Source;
use against::Against;
use finding::Findings;
use hashes::Hashes;
use keys::Chosen;
use model::Model;
use parallel::Crew;
use parameter::Parameter;
use scan::Scan;

/// Set aside for the program and the headers.
const RESERVE: u64 = 32 << 20;

/// A check of one model.
#[derive(Clone, Copy)]
pub struct Verify<'a> {
    /// The model.
    pub source: &'a Arc<dyn Source>,
    /// A family of the user's own, instead of the one of the `model_type`.
    pub family: Option<&'a Family>,
    /// The library that is to load it; without one, the library whose names it has.
    pub library: Option<&'a str>,
    /// The checkpoint that it was made from, to compare the weights with.
    pub against: Option<&'a Checkpoint>,
    /// How the tensors of that checkpoint become the model's parameters, where a library and no family says it.
    pub layout: Option<&'a Layout>,
    /// What the check may use.
    pub memory: Memory,
    /// Is told how far it is.
    pub observer: &'a dyn Observer,
    /// Ends the check when it is set.
    pub stop: &'a AtomicBool,
}

impl std::fmt::Debug for Verify<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Verify").field("source", self.source).finish_non_exhaustive()
    }
}

/// What a check found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What is wrong, errors first.
    pub findings: Vec<Finding>,
    /// The family whose parameters were expected; `None` if smelt has none for the model type.
    pub family: Option<String>,
    /// The library whose model was expected.
    pub library: Option<String>,
    /// Stored tensors.
    pub tensors: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Parameters: a quantized module is one.
    pub parameters: usize,
    /// Quantized modules.
    pub quantized: usize,
    /// Whether the bytes were compared with hashes written with them.
    pub hashed: bool,
    /// How far the weights are from the source.
    pub comparison: Option<Comparison>,
}

impl Report {
    /// How many findings are of this severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }

    /// Whether nothing is wrong; warnings do not count.
    pub fn is_sound(&self) -> bool {
        self.count(Severity::Error) == 0
    }
}

impl Verify<'_> {
    /// Checks the model.
    ///
    /// # Errors
    /// When files can't be read, when the layout of the source can't be made, or when it is stopped. What
    /// is wrong with the model is no error but a finding.
    pub fn run(&self) -> Result<Report> {
        let mut findings = Findings::default();
        let model = Model::look(Arc::clone(self.source), &mut findings)?;
        let apart = apart::look(&model, &mut findings)?;
        let hashes = Hashes::read(&model, &mut findings);
        if let Some(hashes) = &hashes {
            hashes.check(&model, apart.as_ref(), &mut findings)?;
        }
        hashes::check_papers(&model, &mut findings)?;
        files::check(&model, self.against, &mut findings);
        unreadable(&model, &mut findings);
        let of_config = || family::of_config(model.config.as_ref()?);
        let family = if self.layout.is_some() { None } else { self.family.or_else(of_config) };
        let chosen = family.and_then(|family| keys::choose(&model, family, self.library));
        let parameters = self.structure(&model, chosen.as_ref(), &mut findings);
        let mut sides = vec![(&model, parameters)];
        sides.extend(apart.iter().map(|apart| (apart, apart::parameters(apart, &mut findings))));
        self.tell_size(&sides);
        let crew = Crew { workers: self.workers(), stop: self.stop };
        for (model, parameters) in &sides {
            let scan = Scan { model, hashes: hashes.as_ref(), crew, observer: self.observer };
            scan.run(parameters, &mut findings)?;
        }
        let comparison = self.compare(&sides, family, crew, &mut findings)?;
        let mut findings = findings.all;
        findings.sort_by_key(|finding| (finding.severity, finding.check));
        Ok(Report {
            findings,
            family: chosen.as_ref().and(family).map(|family| family.name.clone()),
            library: chosen.map(|chosen| chosen.library).or_else(|| self.of_layout()),
            tensors: sides.iter().map(|(model, _)| model.tensors.len()).sum(),
            bytes: sides.iter().map(|(model, _)| model.bytes()).sum(),
            parameters: sides.iter().map(|(_, parameters)| parameters.len()).sum(),
            quantized: sides.iter().flat_map(|(_, all)| all).filter(|(one, _)| one.is_packed()).count(),
            hashed: hashes.is_some(),
            comparison,
        })
    }

    fn tell_size(&self, sides: &[Side<'_>]) {
        let parameters = sides.iter().flat_map(|(_, parameters)| parameters);
        let elements: u64 = parameters.map(|(parameter, format)| parameter.dense_bytes(*format)).sum();
        let compared = if self.against.is_some() { elements } else { 0 };
        let stored: u64 = sides.iter().map(|(model, _)| model.bytes()).sum();
        self.observer.on(&Event::Started { bytes: stored + compared });
    }

    fn compare(
        &self,
        sides: &[Side<'_>],
        family: Option<&Family>,
        crew: Crew<'_>,
        findings: &mut Findings,
    ) -> Result<Option<Comparison>> {
        let Some(source) = self.against else {
            return Ok(None);
        };
        let family = || crate::plan::family_of(source, self.family.or(family));
        let layout = match self.layout {
            Some(layout) => layout.clone(),
            None => against::layout(source, family()?, self.library, &sides[0].1)?,
        };
        let layouts =
            if sides.len() > 1 { against::parted(source, family()?, layout)? } else { vec![layout] };
        let mut comparison = Comparison::default();
        for ((model, parameters), layout) in sides.iter().zip(layouts) {
            let against = Against { model, parameters, source, crew, observer: self.observer };
            let Comparison { tensors, kinds } = against.run(layout, findings)?;
            comparison.tensors.extend(tensors);
            comparison.kinds.extend(kinds);
        }
        Ok(Some(comparison))
    }

    /// The library that a layout was taken from.
    fn of_layout(&self) -> Option<String> {
        self.layout.and(self.library).map(str::to_owned)
    }

    fn workers(&self) -> usize {
        let room = self.memory.limit.saturating_sub(RESERVE) / against::WORKER;
        self.memory.threads.max(1).min(usize::try_from(room).unwrap_or(usize::MAX)).max(1)
    }

    /// Parameters with their formats, checked against config and family. What a layout has is compared
    /// with the source's tensors, and not here.
    fn structure<'m>(
        &self,
        model: &'m Model,
        chosen: Option<&Chosen>,
        findings: &mut Findings,
    ) -> Vec<(Parameter<'m>, Option<Format>)> {
        let parameters = model.parameters();
        let rows = self.layout.map(rows).unwrap_or_default();
        let row = |name: &str| chosen.and_then(|chosen| chosen.row(name)).or_else(|| rows.get(name).copied());
        let formats = quantization::check(model, &parameters, &row, findings);
        let parameters: Vec<_> = parameters.into_iter().zip(formats).collect();
        match (chosen, &model.config) {
            (Some(chosen), _) => chosen.check(model, &parameters, findings),
            (None, Some(config)) if self.layout.is_none() => {
                let model_type = config.model_type().unwrap_or_default();
                let what =
                    format!("smelt has no family for `{model_type}`, so names and shapes were not checked");
                let advice = "give a family with `--family`, or the source with `--against` and `--discover`";
                findings.warning(Check::Keys, CONFIG, what, advice);
                keys::check_foreign(&parameters, findings);
            }
            (None, _) => {}
        }
        parameters
    }
}

/// The model, or what lies apart from it, with its parameters and their formats.
type Side<'a> = (&'a Model, Vec<(Parameter<'a>, Option<Format>)>);

/// The lengths of the rows that a layout gives the parameters.
fn rows(layout: &Layout) -> HashMap<&str, u64> {
    let outputs = layout.outputs.iter();
    outputs
        .filter_map(|output| Some((output.name.as_str(), *layout.graph.node(output.node).shape.last()?)))
        .collect()
}

/// Tensors of types that MLX does not read.
fn unreadable(model: &Model, findings: &mut Findings) {
    for tensor in &model.tensors {
        let odd = tensor.dtype.is_narrow_float() || tensor.dtype == DType::F64;
        if odd && !matches!(tensor.dtype, DType::F8E4M3 | DType::F8E8M0) {
            let what = format!("MLX does not load tensors of {}", tensor.dtype);
            findings.error(Check::Shards, &tensor.name, what, "write the model again");
        }
    }
}
