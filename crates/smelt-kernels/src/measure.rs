//! The error of stored groups.
//!
//! For a group with scale `s` and bias `b`, in double, where the product is exact:
//!
//! ```text
//! Σ ω (x - (s v + b))²       v: the code, or the value of a small float; b = 0 for those
//! ```
//!
//! Eight sums run over every eighth element and are added in pairs, on any instruction set. This is
//! what the weights decode to in a matrix product, which multiplies and adds in f32 at least; MLX's
//! `dequantize` rounds the product and the sum to the dtype of the scales, which adds the same noise to
//! every choice of codes.

use crate::arch::{Kernel, LANES, Simd};
use crate::dispatch::Engine;
use crate::run::{GROUPS, Groups, Scratch, Stored, Task};
use crate::{Float, Format, Mode, float, mx, run};

/// How far a quantized block is from what it was made of.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distortion {
    /// Weighted sum of squared differences, `Σ h (x - x̂)²`.
    pub error: f64,
    /// Weighted sum of squares, `Σ h x²`; the relative error is `error / energy`.
    pub energy: f64,
    /// Greatest difference, `max |x - x̂|`, whatever its weight; NaN is passed over.
    pub max: f32,
}

impl std::ops::AddAssign for Distortion {
    fn add_assign(&mut self, other: Self) {
        self.error += other.error;
        self.energy += other.energy;
        self.max = self.max.max(other.max);
    }
}

/// Values of codes before scale and bias.
pub(crate) fn levels(engine: Engine, format: Format, codes: &[u8], out: &mut [f32]) {
    match format.mode() {
        Mode::Affine => engine.run(Integers { codes, out }),
        mode => mx::levels(engine, mode, codes, out),
    }
}

/// Codes as numbers.
struct Integers<'a> {
    codes: &'a [u8],
    out: &'a mut [f32],
}

impl Kernel for Integers<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (codes, out) in self.codes.as_chunks().0.iter().zip(self.out.as_chunks_mut().0) {
            s.store(s.to_float(s.load8(*codes)), out);
        }
    }
}

/// A number that depends on a group's values and on what its codes, scale and bias stand for.
pub(crate) trait OfGroup {
    type Number;

    /// `weights` has a chunk of [`LANES`] for each of `values` and `levels`.
    fn of<'a>(
        values: &[f32],
        levels: &[f32],
        weights: impl Iterator<Item = &'a [f32; LANES]>,
        scale_and_bias: (f64, f64),
    ) -> Self::Number;
}

/// The number of each group of a run.
pub(crate) struct EachGroup<'a, F: OfGroup> {
    pub(crate) values: &'a [f32],
    /// As long as the values, or empty if all count the same.
    pub(crate) weights: &'a [f32],
    pub(crate) levels: &'a [f32],
    pub(crate) group_size: usize,
    pub(crate) scales: &'a [f32],
    pub(crate) biases: &'a [f32],
    pub(crate) out: &'a mut [F::Number],
}

impl<F: OfGroup> Kernel for EachGroup<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let size = self.group_size;
        let groups = self.values.chunks_exact(size).zip(self.levels.chunks_exact(size));
        for (k, ((values, levels), out)) in groups.zip(self.out).enumerate() {
            let pair = (f64::from(self.scales[k]), f64::from(self.biases[k]));
            *out = if self.weights.is_empty() {
                F::of(values, levels, std::iter::repeat(&[1.0; LANES]), pair)
            } else {
                let weights = self.weights[k * size..][..size].as_chunks().0;
                F::of(values, levels, weights.iter(), pair)
            };
        }
    }
}

/// The weighted squared error.
pub(crate) struct SquaredError;

impl OfGroup for SquaredError {
    type Number = f64;

    #[inline(always)]
    fn of<'a>(
        values: &[f32],
        levels: &[f32],
        weights: impl Iterator<Item = &'a [f32; LANES]>,
        (scale, bias): (f64, f64),
    ) -> f64 {
        let mut sums = [0.0; LANES];
        let lanes = values.as_chunks::<LANES>().0.iter().zip(levels.as_chunks::<LANES>().0);
        for ((x, v), w) in lanes.zip(weights) {
            for i in 0..LANES {
                let difference = f64::from(x[i]) - (scale * f64::from(v[i]) + bias);
                sums[i] += f64::from(w[i]) * (difference * difference);
            }
        }
        sum(sums)
    }
}

#[inline(always)]
pub(crate) fn sum([a, b, c, d, e, f, g, h]: [f64; LANES]) -> f64 {
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

/// The greatest difference of a run.
struct Farthest<'a> {
    values: &'a [f32],
    levels: &'a [f32],
    groups: Groups,
    scales: &'a [f32; GROUPS],
    biases: &'a [f32; GROUPS],
}

impl Kernel for Farthest<'_> {
    type Output = f64;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> f64 {
        let mut most = [0.0; LANES];
        let lanes = self.values.as_chunks::<LANES>().0.iter().zip(self.levels.as_chunks::<LANES>().0);
        for (k, (x, v)) in lanes.enumerate() {
            let group = self.groups.of(k * LANES);
            let (scale, bias) = (f64::from(self.scales[group]), f64::from(self.biases[group]));
            for i in 0..LANES {
                let difference = (f64::from(x[i]) - (scale * f64::from(v[i]) + bias)).abs();
                most[i] = if difference > most[i] { difference } else { most[i] };
            }
        }
        most.into_iter().fold(0.0, f64::max)
    }
}

/// The distortion of a block; its parts fit together, and whole rows if there is an importance.
pub(crate) fn distortion(
    engine: Engine,
    (format, dtype): (Format, Float),
    input: &[u8],
    importance: Option<&[f32]>,
    stored: Stored<'_>,
) -> Distortion {
    let mut total = Distortion::default();
    let mut scratch = Scratch::new();
    let mut weights = [0.0; run::RUN];
    let task = Task { format, rounding: crate::Rounding::Cpu, dtype };
    for (k, (input, stored)) in input.chunks(run::RUN * dtype.size()).zip(stored.runs(task)).enumerate() {
        scratch.len = input.len() / dtype.size();
        let weights = match importance {
            Some(row) => repeat(row, k * run::RUN, &mut weights[..scratch.len]),
            None => &[],
        };
        total += run_distortion(engine, task, input, weights, stored, &mut scratch);
    }
    total
}

/// A row again and again, from element `at` on.
fn repeat<'a>(row: &[f32], at: usize, out: &'a mut [f32]) -> &'a [f32] {
    let channels = row.iter().cycle().skip(at % row.len());
    out.iter_mut().zip(channels).for_each(|(out, h)| *out = *h);
    out
}

fn run_distortion(
    engine: Engine,
    task: Task,
    input: &[u8],
    weights: &[f32],
    stored: Stored<'_>,
    scratch: &mut Scratch,
) -> Distortion {
    let (size, len) = (task.format.group_size(), scratch.len);
    let mut levels_of = [0.0; run::RUN];
    let (mut errors, mut energies) = ([0.0; GROUPS], [0.0; GROUPS]);
    scratch.unpack(engine, task.format, stored.codes);
    levels(engine, task.format, &scratch.codes[..len], &mut levels_of[..len]);
    scratch.widen_pairs(engine, task, stored.scales, stored.biases);
    float::widen(engine, task.dtype, input, &mut scratch.values[..len]);
    let Scratch { values, scales, biases, .. } = scratch;
    let (values, levels) = (&values[..len], &levels_of[..len]);
    let of = |scales, biases, out| EachGroup::<SquaredError> {
        values,
        weights,
        levels,
        group_size: size,
        scales,
        biases,
        out,
    };
    engine.run(of(scales, biases, &mut errors[..len / size]));
    // The error of nothing at all is the energy.
    let zeros = &[0.0; GROUPS];
    engine.run(of(zeros, zeros, &mut energies[..len / size]));
    let farthest = Farthest { values, levels, groups: Groups::new(size), scales, biases };
    Distortion {
        error: errors[..len / size].iter().sum(),
        energy: energies[..len / size].iter().sum(),
        max: engine.run(farthest) as f32,
    }
}
