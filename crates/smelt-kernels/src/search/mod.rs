//! Quantization with the least weighted squared error that a group's format allows.
//!
//! Plain rounding takes the scale from the extremes of a group. Here the scale (and the bias) are
//! searched for as they will be stored, and the codes are the nearest ones for the stored pair:
//!
//! ```text
//! plain    what `quantize` stores
//! pair     the best scale and bias found: `fit` (affine), `small` (the other formats)
//! found    pair with q = clamp(round((w - b) / s), 0, n), or the nearest small floats;
//!          up to 3 bits the pair then grows a little: `restore`
//! stored   found if error(found) < error(plain), else plain
//! ```
//!
//! `error` is computed in double (`measure`), by weights that `weight` defines; so no group is ever
//! worse than plain rounding, and a group that is not finite is stored as `quantize` stores it.
//! Groups do not know each other: any cut between groups gives the same bytes.

mod batch;
mod fit;
mod lattice;
mod plan;
mod restore;
mod small;
mod weight;

use std::fmt;
use std::marker::PhantomData;

use crate::dispatch::Engine;
use crate::float::{self, Element, with_element};
use crate::measure::{self, EachGroup, SquaredError};
use crate::run::{self, GROUPS, RUN, Scratch, Task};
use crate::{Mode, Packed, affine, mx};
use plan::Plan;
use weight::Law;

/// How long a search goes on. A longer one finds less error in a tensor, though not in each group.
///
/// The scales of `mxfp4` and `mxfp8` have so few neighbours that every effort tries them all; of `nvfp4`
/// [`Effort::Fast`] tries 7, the others 13.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Effort {
    /// 8 passes over each affine group.
    Fast,
    /// 26 passes.
    #[default]
    Default,
    /// 100 passes.
    Best,
}

impl Effort {
    /// Every effort, the least first.
    pub const ALL: [Self; 3] = [Self::Fast, Self::Default, Self::Best];

    /// Its name in options and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Default => "default",
            Self::Best => "best",
        }
    }

    /// The effort called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|effort| effort.name() == name)
    }
}

impl fmt::Display for Effort {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// What to search, beside the task.
#[derive(Clone, Copy)]
pub(crate) struct Search<'a> {
    pub(crate) effort: Effort,
    /// One weight for each element of a row; the input is whole rows.
    pub(crate) importance: Option<&'a [f32]>,
}

/// What all runs of a block share.
struct Block<'a> {
    engine: Engine,
    task: Task,
    effort: Effort,
    law: Law<'a>,
    plan: Plan,
}

/// Codes of a run with their scales and biases as f32.
struct Version {
    codes: [u8; RUN],
    scales: [f32; GROUPS],
    biases: [f32; GROUPS],
    /// The scales of small floats as they are stored.
    bytes: [u8; GROUPS],
}

/// Quantizes a block; its parts fit together.
pub(crate) fn search(engine: Engine, task: Task, how: Search<'_>, input: &[u8], out: Packed<'_>) {
    let law = Law::new(how.importance);
    let plan = Plan::new(task.format, how.effort);
    let block = Block { engine, task, effort: how.effort, law, plan };
    let mut at = 0;
    run::quantize_by(engine, task, input, out, |scratch, scales, biases| {
        run::encode(engine, task, scratch, scales, biases);
        block.improve(at, scratch, scales, biases);
        at += scratch.len;
    });
}

impl Block<'_> {
    /// Replaces groups of a plainly rounded run, which begins at element `at`, by better ones.
    fn improve(&self, at: usize, scratch: &mut Scratch, scales: &mut [u8], biases: &mut [u8]) {
        let Self { engine, task, .. } = *self;
        let size = task.format.group_size();
        let mut weights = [0.0; RUN];
        let weights = self.law.weigh(at, size, &mut weights[..scratch.len]);
        scratch.widen_pairs(engine, task, scales, biases);
        let found = self.find(scratch, weights);
        let plain = self.errors(scratch, weights, (&scratch.codes, &scratch.scales, &scratch.biases));
        let better = self.errors(scratch, weights, (&found.codes, &found.scales, &found.biases));
        for k in 0..scratch.len / size {
            if better[k] < plain[k] {
                let group = k * size..(k + 1) * size;
                scratch.codes[group.clone()].copy_from_slice(&found.codes[group]);
                scratch.scales[k] = found.scales[k];
                scratch.biases[k] = found.biases[k];
                if !task.format.has_biases() {
                    scales[k] = found.bytes[k];
                }
            }
        }
        if task.format.has_biases() {
            let groups = scratch.len / size;
            float::narrow(engine, task.dtype, &scratch.scales[..groups], scales);
            float::narrow(engine, task.dtype, &scratch.biases[..groups], biases);
        }
    }

    /// The best scales and biases with the nearest codes.
    fn find(&self, plain: &Scratch, weights: &[f32]) -> Version {
        let Self { engine, task, .. } = *self;
        let mut found =
            Version { codes: [0; RUN], scales: plain.scales, biases: plain.biases, bytes: [0; GROUPS] };
        let padded = &plain.values[..plain.blocks_len()];
        if task.format.mode() == Mode::Affine {
            with_element!(task.dtype, T => if weights.is_empty() {
                self.fit::<T, false>(plain, weights, &mut found);
            } else {
                self.fit::<T, true>(plain, weights, &mut found);
            });
            affine::nearest(engine, task.format, padded, (&found.scales, &found.biases), &mut found.codes);
            if restore::applies(task.format) {
                with_element!(task.dtype, T => self.restore::<T>(plain, weights, &mut found));
            }
        } else {
            if weights.is_empty() {
                self.small::<false>(plain, weights, &mut found);
            } else {
                self.small::<true>(plain, weights, &mut found);
            }
            mx::scale_values(engine, task.format.mode(), &found.bytes, &mut found.scales);
            mx::nearest(engine, task.format, padded, &found.scales, &mut found.codes);
        }
        found
    }

    fn fit<T: Element, const WEIGHTED: bool>(&self, plain: &Scratch, weights: &[f32], found: &mut Version) {
        let group_size = self.task.format.group_size();
        let groups = plain.len / group_size;
        self.engine.run(fit::Fit::<T, WEIGHTED> {
            values: &plain.values[..plain.len],
            weights,
            group_size,
            plan: &self.plan,
            scales: &mut found.scales[..groups],
            biases: &mut found.biases[..groups],
            element: PhantomData,
        });
    }

    /// Makes up for half of the length that the groups of `found` lost.
    fn restore<T: Element>(&self, plain: &Scratch, weights: &[f32], found: &mut Version) {
        let Self { engine, task, .. } = *self;
        let group_size = task.format.group_size();
        let (mut levels, mut factors) = ([0.0; RUN], [1.0; GROUPS]);
        let levels = &mut levels[..plain.len];
        measure::levels(engine, task.format, &found.codes[..plain.len], levels);
        engine.run(EachGroup::<restore::Factor> {
            values: &plain.values[..plain.len],
            weights,
            levels,
            group_size,
            scales: &found.scales,
            biases: &found.biases,
            out: &mut factors[..plain.len / group_size],
        });
        let parts = [&mut found.scales, &mut found.biases];
        for part in parts {
            engine.run(restore::Grow::<T> { factors: &factors, out: part, element: PhantomData });
        }
    }

    fn small<const WEIGHTED: bool>(&self, plain: &Scratch, weights: &[f32], found: &mut Version) {
        let group_size = self.task.format.group_size();
        let (element, kind) = mx::types(self.task.format.mode());
        self.engine.run(small::Scales::<WEIGHTED> {
            element,
            kind,
            distances: small::distances(kind, self.effort),
            values: &plain.values[..plain.len],
            weights,
            group_size,
            out: &mut found.bytes[..plain.len / group_size],
        });
    }

    /// The error of each group of a run with these codes, scales and biases.
    fn errors(
        &self,
        run: &Scratch,
        weights: &[f32],
        (codes, scales, biases): (&[u8; RUN], &[f32; GROUPS], &[f32; GROUPS]),
    ) -> [f64; GROUPS] {
        let group_size = self.task.format.group_size();
        let (mut levels, mut errors) = ([0.0; RUN], [0.0; GROUPS]);
        let levels = &mut levels[..run.len];
        measure::levels(self.engine, self.task.format, &codes[..run.len], levels);
        self.engine.run(EachGroup::<SquaredError> {
            values: &run.values[..run.len],
            weights,
            levels,
            group_size,
            scales,
            biases,
            out: &mut errors[..run.len / group_size],
        });
        errors
    }
}
