//! Weights that can't be right: too large, too small, or far from those of the other layers.
//!
//! Trained weights keep near the size at which they began, about one over the root of a row's length.
//! The bounds leave two orders of magnitude and more around what published models have; only misread
//! or missing scales lie beyond. Codes of E4M3 that nobody scaled, for one, have an RMS of about 100,
//! because their scales were made to use up 448. One-dimensional parameters (norms, biases) may
//! have any size and are compared with their like only.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::weigh::Weighed;
use crate::plan::{Plan, Task};

/// A matrix with a weight above this is misread.
const LARGEST: f32 = 1e4;

/// A matrix with an RMS above this is misread.
const MOST: f32 = 50.0;

/// A matrix with an RMS below this is misread, or was never trained.
const LEAST: f32 = 1e-7;

/// How many times the median of its like is too much; so is one part of it too little.
const FACTOR: f32 = 1000.0;

/// A share of zeros above this, as a hole in a file makes, where most of its like have fewer than
/// [`FEW_ZEROS`]. Pruned models have as many everywhere.
const MANY_ZEROS: f32 = 0.5;

/// The share of zeros that rounding alone may make.
const FEW_ZEROS: f32 = 0.25;

/// Fewer parameters than this have no median to speak of.
const FEWEST: usize = 3;

/// A parameter whose weights can't be right.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outlier {
    /// The parameter.
    pub tensor: String,
    /// What was measured.
    pub measure: Measure,
    /// What it is.
    pub value: f32,
    /// The median of its like, or the bound that it exceeds.
    pub usual: f32,
    /// How many parameters the median is of; `None` for a bound.
    pub siblings: Option<usize>,
}

/// What is measured of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// The largest magnitude.
    Largest,
    /// Root of the mean square.
    Rms,
    /// The share of weights that are 0.
    Zeros,
}

impl Measure {
    fn of(self, task: &Task, weighed: &Weighed) -> f32 {
        match self {
            Self::Largest => weighed.largest,
            Self::Rms => weighed.rms,
            // Norms and biases may be anything.
            Self::Zeros if task.shape.len() < 2 => 0.0,
            Self::Zeros => (weighed.zeros as f64 / task.elements().max(1) as f64) as f32,
        }
    }

    /// Whether a value is far from what its like have.
    fn is_far(self, value: f32, usual: f32) -> bool {
        match self {
            Self::Largest | Self::Rms => {
                let far = value > usual * FACTOR || value < usual / FACTOR;
                // A bias of zeros is one that was never needed.
                far && value > 0.0 && usual > 0.0
            }
            Self::Zeros => value > MANY_ZEROS && usual < FEW_ZEROS,
        }
    }
}

impl fmt::Display for Measure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Largest => "largest weight",
            Self::Rms => "RMS",
            Self::Zeros => "share of zeros",
        })
    }
}

impl fmt::Display for Outlier {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tensor, measure, value, usual, siblings } = self;
        match siblings {
            Some(count) => write!(
                out,
                "`{tensor}`: its {measure} is {value:.3e}, the median of {count} parameters like it {usual:.3e}"
            ),
            None if *value == 0.0 => write!(out, "`{tensor}`: all weights are 0"),
            None if value > usual => {
                write!(
                    out,
                    "`{tensor}`: its {measure} is {value:.3e}, trained weights stay below {usual:.0e}"
                )
            }
            None => {
                write!(
                    out,
                    "`{tensor}`: its {measure} is {value:.3e}, trained weights stay above {usual:.0e}"
                )
            }
        }
    }
}

/// Every parameter of a plan that can't be right, in the plan's order; `weighed` has an entry for each.
pub(super) fn outliers(plan: &Plan, weighed: &[Option<Weighed>]) -> Vec<Outlier> {
    let mut found: Vec<(usize, Outlier)> = Vec::new();
    let known = plan.tasks.iter().zip(weighed).enumerate();
    let known = known.filter_map(|(index, (task, weighed))| Some((index, task, (*weighed)?)));
    let mut alike: BTreeMap<String, Vec<(usize, Weighed)>> = BTreeMap::new();
    for (index, task, weighed) in known {
        match beyond_bounds(task, &weighed) {
            Some(outlier) => found.push((index, outlier)),
            None if task.elements() > 0 => {
                alike.entry(pattern(&task.name)).or_default().push((index, weighed));
            }
            None => {}
        }
    }
    for group in alike.values().filter(|group| group.len() >= FEWEST) {
        found.extend(unlike(plan, group));
    }
    found.sort_by_key(|(index, _)| *index);
    found.into_iter().map(|(_, outlier)| outlier).collect()
}

/// What no trained matrix has.
fn beyond_bounds(task: &Task, weighed: &Weighed) -> Option<Outlier> {
    if task.shape.len() < 2 || task.elements() == 0 {
        return None;
    }
    let outlier = |measure: Measure, usual| Outlier {
        tensor: task.name.clone(),
        measure,
        value: measure.of(task, weighed),
        usual,
        siblings: None,
    };
    if weighed.rms > MOST {
        Some(outlier(Measure::Rms, MOST))
    } else if weighed.largest > LARGEST {
        Some(outlier(Measure::Largest, LARGEST))
    } else if weighed.rms < LEAST {
        Some(outlier(Measure::Rms, LEAST))
    } else {
        None
    }
}

/// Those of parameters alike that are far from the median of all.
fn unlike<'a>(
    plan: &'a Plan,
    group: &'a [(usize, Weighed)],
) -> impl Iterator<Item = (usize, Outlier)> + use<'a> {
    let of = |measure: Measure| {
        let all = group.iter().map(|(index, weighed)| measure.of(&plan.tasks[*index], weighed));
        (measure, median(all))
    };
    let medians = [Measure::Rms, Measure::Largest, Measure::Zeros].map(of);
    group.iter().filter_map(move |(index, weighed)| {
        let task = &plan.tasks[*index];
        let unlike = |(measure, usual): &(Measure, f32)| measure.is_far(measure.of(task, weighed), *usual);
        let (measure, usual) = medians.into_iter().find(unlike)?;
        let (tensor, value) = (task.name.clone(), measure.of(task, weighed));
        Some((*index, Outlier { tensor, measure, value, usual, siblings: Some(group.len()) }))
    })
}

fn median(values: impl Iterator<Item = f32>) -> f32 {
    let mut values: Vec<f32> = values.collect();
    values.sort_by(f32::total_cmp);
    values[values.len() / 2]
}

/// The name without its numbers: that of the parameter in every layer.
fn pattern(name: &str) -> String {
    let part = |part: &str| {
        let number = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if number { "*".to_owned() } else { part.to_owned() }
    };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}
