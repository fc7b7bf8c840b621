//! What was done, for whoever uses the result or publishes it.
//!
//! The report is the plan once more, in fewer words, with what only the run knows: how far each
//! weight is from its source, how long it took and what it needed. [`card`] says it to the readers of
//! a model page, [`html`] shows it.

pub mod card;
pub mod html;
mod weights;
mod words;

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use smelt_kernels::Distortion;

use crate::error::{Error, Result};
use crate::layout::{Dropped, Role};
pub use crate::pipeline::REPORT;
use crate::pipeline::{Outlier, Weighed, seal};
use crate::plan::{Coverage, Method, Plan, RuleEffect, Spec, Task, Totals};

/// The version of the report's JSON.
pub const VERSION: u32 = 1;

/// A run and its result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Version of this format.
    pub version: u32,
    /// Version of smelt.
    pub smelt: String,
    /// The name of the model that was converted.
    pub model: String,
    /// The arguments that decided about the result.
    pub command: Vec<String>,
    /// The family, or the library that was asked.
    pub family: String,
    /// The format of most weights; `None` if nothing was quantized.
    pub format: Option<Spec>,
    /// How codes were found.
    #[serde(default)]
    pub method: Method,
    /// What size was asked for, in words, where bits were given out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// What the run took.
    pub run: Facts,
    /// Sums.
    pub totals: Totals,
    /// Every parameter, in the order in which they are stored.
    pub tensors: Vec<TensorReport>,
    /// What each rule came to: of the model that was copied, of the recipe file, overrides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleEffect>,
    /// What is done differently from what was asked, or worth knowing, in words.
    pub notes: Vec<String>,
    /// The parameters whose weights can't be right.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outliers: Vec<Outlier>,
    /// The tensors of the source that are left out, and why.
    pub dropped: Vec<Dropped>,
    /// BLAKE3 of the model card that was written with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub card: Option<String>,
    /// Sizes that other targets would have had with their predicted losses, smallest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frontier: Vec<Point>,
    /// What importance weighed the channels, if one did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub importance: Option<Coverage>,
}

/// What only the run knows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// Seconds from the first byte to the last.
    pub seconds: f64,
    /// The most memory that the process held, in bytes, where the system tells.
    pub peak_memory: Option<u64>,
    /// Whether it went on where an earlier run was stopped.
    pub resumed: bool,
}

/// A parameter of the result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorReport {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its shape before quantization.
    pub shape: Vec<u64>,
    /// Its format; `None` if it is not quantized.
    #[serde(default)]
    pub format: Option<Spec>,
    /// How it is stored: `4-bit g64`, `mxfp4`, or its dtype.
    pub stored: String,
    /// Bits of a code, or of an element that is not quantized.
    pub bits: u8,
    /// Bytes in the result, scales and biases included.
    pub bytes: u64,
    /// How far it is from the source; `None` if it is not quantized or was not measured.
    pub error: Option<TensorError>,
    /// What the weights amounted to before quantization; `None` of what is no float.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weights: Option<Weighed>,
}

/// How far a stored weight is from its source.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct TensorError {
    /// Root of the mean squared error over the root of the mean square of the weight.
    pub relative_rmse: f64,
    /// The largest difference of an element.
    pub largest: f64,
}

impl TensorError {
    /// Of the sums over a sample; `None` of one without weights that differ from zero, or with some that are
    /// no numbers.
    pub fn of(sums: &Distortion) -> Option<Self> {
        let (relative, largest) = ((sums.error / sums.energy).sqrt(), f64::from(sums.max));
        let finite = relative.is_finite() && largest.is_finite();
        finite.then(|| Self { relative_rmse: short(relative), largest: short(largest) })
    }
}

/// Four digits: what lies behind them depends on how the work was cut.
fn short(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// A point of the frontier of size against loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Bytes of all tensors.
    pub bytes: u64,
    /// The predicted loss.
    pub loss: f64,
}

impl Report {
    /// The report of a plan that was carried out. `errors` has an entry for each task.
    pub fn new(plan: &Plan, model: &str, command: Vec<String>, errors: &[Option<TensorError>]) -> Self {
        let errors = errors.iter().copied().chain(std::iter::repeat(None));
        let points = plan.allocation.iter().flat_map(|allocation| &allocation.frontier);
        Self {
            version: VERSION,
            smelt: plan.smelt.clone(),
            model: model.to_owned(),
            command,
            family: plan.family.clone(),
            format: plan.format.clone(),
            method: plan.method,
            target: plan.allocation.as_ref().map(|allocation| allocation.asked.clone()),
            run: Facts::default(),
            totals: plan.totals.clone(),
            tensors: plan.tasks.iter().zip(errors).map(|(task, error)| tensor(task, error)).collect(),
            rules: plan.rules.clone(),
            notes: plan.notes.iter().map(ToString::to_string).collect(),
            outliers: Vec::new(),
            dropped: plan.dropped.clone(),
            card: None,
            importance: plan.importance.clone(),
            frontier: points.map(|at| Point { bytes: at.tensor_bytes, loss: at.loss }).collect(),
        }
    }

    /// Reads the report of a finished model.
    ///
    /// # Errors
    /// [`Error::NoReport`] if there is none, [`Error::Report`] if it can't be understood.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(REPORT);
        let bytes = fs::read(&path).map_err(|source| Error::NoReport { path: folder.to_owned(), source })?;
        serde_json::from_slice(&bytes).map_err(|source| Error::Report { path, source })
    }

    /// Takes note of the card that is written with it, so that a change of it is seen.
    pub fn vouch_for(&mut self, card: &str) {
        self.card = Some(blake3::hash(card.as_bytes()).to_hex().to_string());
    }

    /// The text of the file, with its own hash at the end.
    ///
    /// # Panics
    /// Never: a report is data that serialises.
    pub fn to_json(&self) -> String {
        seal::sealed(serde_json::to_string_pretty(self).expect("a report has string keys only"))
    }
}

fn tensor(task: &Task, error: Option<TensorError>) -> TensorReport {
    let stored = task.format.as_ref();
    TensorReport {
        name: task.name.clone(),
        role: task.role,
        shape: task.shape.clone(),
        format: task.format.clone(),
        stored: stored.map_or_else(|| task.dtype.name().to_lowercase(), |spec| spec.0.to_string()),
        bits: stored.map_or(task.dtype.bits() as u8, |spec| spec.0.bits()),
        bytes: task.bytes(),
        error,
        weights: None,
    }
}
