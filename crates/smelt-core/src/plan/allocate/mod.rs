//! Gives bits to modules: the least predicted loss within a budget of bytes.
//!
//! `loss = Σ weight(role) × error(module, format)`, the error as measured ([`super::measures`]), the weight from
//! [`prior`]; which formats a module may get and which modules share one is in `scope`; the choice is a
//! multiple-choice knapsack (`knapsack`). Headers alone say whether a target can be reached, so that is
//! refused before a weight is read.

mod error;
mod fit;
mod knapsack;
mod layers;
mod level;
pub mod prior;
mod scope;

use serde::{Deserialize, Serialize};
use smelt_kernels::{Format, Mode};

pub use error::BitsError;
pub use fit::Fit;
pub use layers::LayerPrior;
pub(crate) use layers::layer_of;
pub use level::Level;
pub use scope::{Candidate, Free, Scope};

use super::measures::Measures;
use super::{Plan, Widths};
use crate::units::bytes;
use knapsack::Knapsack;

/// Points of the frontier that a plan keeps.
const POINTS: usize = 65;

/// How much the result may take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// Bits per weight, over all parameters, as [`super::Totals::bits_per_weight`].
    BitsPerWeight(f64),
    /// Bits per weight of everything but the towers that stay as they are, which come on top.
    Level(f64),
    /// Bytes of the files with weights, headers included.
    FileBytes(u64),
    /// Bytes of tensors at most; more than the model can take is fine.
    AtMost(u64),
}

/// What is asked of an allocation.
#[derive(Clone, Debug)]
pub struct Request {
    /// The budget.
    pub target: Target,
    /// What the user typed, for plan and messages.
    pub asked: String,
    /// Formats to choose from.
    pub formats: Vec<Format>,
    /// How much layers matter, besides roles.
    pub layers: Option<LayerPrior>,
}

/// The usual formats to choose from. Groups of 32 are not among them: a bit more is better use of the bytes.
pub fn candidates() -> Vec<Format> {
    let bits = [2, 3, 4, 5, 6, 8].into_iter();
    bits.flat_map(|bits| [128, 64].map(|group| Format::new(Mode::Affine, bits, group))).flatten().collect()
}

/// Parses formats to choose from: `BITS/GROUP`, or the name of a mode, with commas between them.
///
/// # Errors
/// [`BitsError::Formats`], which says what is wrong.
pub fn parse_formats(text: &str) -> Result<Vec<Format>, BitsError> {
    let error = |why: String| BitsError::Formats { text: text.to_owned(), why };
    let mut formats = Vec::new();
    for part in text.split(',').map(str::trim) {
        let format = parse_candidate(part).map_err(error)?;
        if formats.contains(&format) {
            return Err(error(format!("`{part}` stands there twice")));
        }
        formats.push(format);
    }
    Ok(formats)
}

/// Parses one of them.
pub(super) fn parse_candidate(text: &str) -> Result<Format, String> {
    if let Some(mode) = Mode::from_name(text).filter(|mode| *mode != Mode::Affine) {
        let (bits, group) = mode.defaults();
        return Format::new(mode, bits, group).ok_or_else(|| super::options::unknown(mode, bits, group));
    }
    let shape = || format!("`{text}` is not BITS/GROUP, such as 4/64, nor a mode such as mxfp4");
    let (bits, group) = text.split_once('/').unwrap_or((text, "64"));
    let (bits, group) = (bits.parse().map_err(|_| shape())?, group.parse().map_err(|_| shape())?);
    Format::new(Mode::Affine, bits, group).ok_or_else(|| super::options::unknown(Mode::Affine, bits, group))
}

/// What an allocation came to, for the plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Allocation {
    /// What was asked for.
    pub asked: String,
    /// Predicted loss: the sum over modules of role weight times relative error.
    pub loss: f64,
    /// No allocation of these formats within the budget has a smaller loss than this.
    pub bound: f64,
    /// What other sizes would lose, the smallest first.
    pub frontier: Vec<FrontierPoint>,
}

/// A size and the loss that it has.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct FrontierPoint {
    /// Bytes of all tensors.
    pub tensor_bytes: u64,
    /// Bits per weight.
    pub bits_per_weight: f64,
    /// Predicted loss.
    pub loss: f64,
}

/// An allocation at work: measured modules, ready for any budget.
#[derive(Debug)]
pub struct Allocator<'a> {
    scope: &'a Scope,
    request: &'a Request,
    items: Vec<Vec<knapsack::Choice>>,
    parameters: u64,
}

impl<'a> Allocator<'a> {
    /// Over a scope whose candidates are all measured.
    pub fn new(scope: &'a Scope, request: &'a Request, measures: &Measures, parameters: u64) -> Self {
        let items = scope.items(measures, request.layers.as_ref());
        Self { scope, request, items, parameters }
    }

    /// The formats of least loss that keep all tensors within `budget` bytes, and what they come to. `None` if
    /// nothing does.
    pub fn solve(&self, budget: u64) -> Option<(Widths, Allocation)> {
        let knapsack = Knapsack::new(&self.items);
        let solution = knapsack.solve(budget.checked_sub(self.scope.fixed_bytes)?)?;
        let allocation = Allocation {
            asked: self.request.asked.clone(),
            loss: short(solution.loss),
            bound: short(solution.bound),
            frontier: self.frontier(&knapsack),
        };
        Some((self.scope.formats(&solution.picks).collect(), allocation))
    }

    /// The frontier, thinned out evenly in bytes.
    fn frontier(&self, knapsack: &Knapsack<'_>) -> Vec<FrontierPoint> {
        let points = knapsack.frontier();
        let (first, last) = (points[0].bytes, points[points.len() - 1].bytes);
        let step = ((last - first) / (POINTS as u64 - 1)).max(1);
        let mut next = first;
        let mut thinned = Vec::new();
        for (index, point) in points.iter().enumerate() {
            if point.bytes < next && index + 1 < points.len() {
                continue;
            }
            next = point.bytes + step;
            let tensor_bytes = self.scope.fixed_bytes + point.bytes;
            let bits_per_weight = short(8.0 * tensor_bytes as f64 / self.parameters.max(1) as f64);
            thinned.push(FrontierPoint { tensor_bytes, bits_per_weight, loss: short(point.loss) });
        }
        thinned
    }
}

/// Parameters and bytes of what sees or hears and is not quantized.
fn towers(plan: &Plan) -> (u64, u64) {
    let kept = plan.tasks.iter().filter(|task| task.role.is_tower() && task.format.is_none());
    kept.fold((0, 0), |(parameters, bytes), task| (parameters + task.elements(), bytes + task.bytes()))
}

/// Six digits, more than a prediction has: they are the same when they are written and read.
fn short(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

impl Request {
    /// The bytes of tensors that may be used, given what a plan of the same modules takes for headers.
    pub fn budget(&self, plan: &Plan) -> u64 {
        let totals = &plan.totals;
        match self.target {
            Target::BitsPerWeight(bits) => (bits * totals.parameters as f64 / 8.0) as u64,
            Target::Level(bits) => {
                let (parameters, bytes) = towers(plan);
                (bits * (totals.parameters - parameters) as f64 / 8.0) as u64 + bytes
            }
            Target::FileBytes(bytes) => bytes.saturating_sub(totals.file_bytes - totals.tensor_bytes),
            Target::AtMost(bytes) => bytes,
        }
    }

    /// Refuses a target that lies outside of what the scope reaches.
    ///
    /// # Errors
    /// [`BitsError::Unreachable`] with the range, [`BitsError::NothingFree`].
    pub fn check(&self, plan: &Plan, scope: &Scope) -> Result<(), BitsError> {
        if scope.modules.is_empty() {
            return Err(BitsError::NothingFree);
        }
        let ((least, most), budget) = (scope.reach(), self.budget(plan));
        let slack = most / 1000;
        let too_much = budget > most + slack && !matches!(self.target, Target::AtMost(_));
        if budget >= least && !too_much { Ok(()) } else { Err(self.unreachable(plan, scope)) }
    }

    /// The error that names the range.
    pub fn unreachable(&self, plan: &Plan, scope: &Scope) -> BitsError {
        let (least, most) = scope.reach();
        let headers = plan.totals.file_bytes - plan.totals.tensor_bytes;
        let show = |size: u64, up: bool| match self.target {
            Target::BitsPerWeight(_) | Target::Level(_) => {
                let bits = 8000.0 * size as f64 / plan.totals.parameters.max(1) as f64;
                format!("{:.3}", if up { bits.ceil() } else { bits.floor() } / 1000.0)
            }
            Target::FileBytes(_) => format!("{} ({} bytes)", bytes(size + headers), size + headers),
            Target::AtMost(_) => bytes(size),
        };
        let unit = if matches!(self.target, Target::BitsPerWeight(_) | Target::Level(_)) {
            " bits per weight"
        } else {
            ""
        };
        BitsError::Unreachable {
            asked: self.asked.clone(),
            least: show(least, true),
            most: format!("{}{unit}", show(most, false)),
            bounded: scope.bounded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_read() {
        let listed = |text: &str| match parse_formats(text) {
            Ok(formats) => formats.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
            Err(error) => error.to_string(),
        };
        assert_eq!(listed("4/64, 8/128,mxfp4,3"), "4-bit g64 8-bit g128 mxfp4 3-bit g64");
        assert!(listed("7/64").contains("2, 3, 4, 5, 6 or 8 bits"));
        assert!(listed("4:64").contains("BITS/GROUP"));
        assert!(listed("4/64,4").contains("twice"));
        assert_eq!(candidates().len(), 12);
    }
}
