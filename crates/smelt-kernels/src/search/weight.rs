//! What the error of each element counts in the search.
//!
//! Up to a factor that is the same for the whole group, and cancels, with `h` the importance of the
//! element's input channel and `σ² = mean w²` of the group:
//!
//! ```text
//! with importance             ω = h sqrt(σ² + w²)
//! without it, 2 bits          ω = σ + |w|
//! without it, more bits       ω = 1
//! ```
//!
//! Without data, `ω = 1` gives the least divergence of the model's output from 3 bits up. At 2 bits, where
//! few codes are left and the large weights carry most of the output, `σ + |w|` was clearly better on one
//! small model (by 3.5 %) and the same within the error of measurement on two larger ones; it costs a
//! twentieth of plain squared error. `ω = w²` is the worst at every width. With data, `h` is the mean square
//! of the channel's input, so that `h` alone would be the squared error of the output if inputs were
//! uncorrelated; the factor under the root is the choice of llama.cpp's quantizers and best or equal at 2
//! and 3 bits, one per cent behind at 4.
//!
//! `w` is divided by the group's greatest magnitude, so that no square leaves f32's range. A group with
//! no weight above zero, or with one that is not finite, keeps plain rounding.

use crate::Format;
use crate::arch::{Kernel, LANES, Simd};
use crate::dispatch::Engine;
use crate::float::absolute;

/// How elements are weighed.
#[derive(Clone, Copy)]
pub(super) enum Law<'a> {
    /// All the same.
    Equal,
    /// By magnitude.
    Magnitude,
    /// By the importance of a row's channels.
    Channel(&'a [f32]),
}

impl<'a> Law<'a> {
    /// The law for a format.
    pub(super) fn new(format: Format, importance: Option<&'a [f32]>) -> Self {
        match importance {
            Some(row) => Self::Channel(row),
            None if format.bits() == 2 => Self::Magnitude,
            None => Self::Equal,
        }
    }

    /// Weights of groups that begin at element `at` of the block into `out`; what is used of it.
    pub(super) fn weigh<'b>(
        self,
        engine: Engine,
        (at, group_size): (usize, usize),
        values: &[f32],
        out: &'b mut [f32],
    ) -> &'b [f32] {
        if matches!(self, Self::Equal) {
            return &[];
        }
        let out = &mut out[..values.len()];
        engine.run(Weigh { law: self, at, group_size, values, out });
        out
    }
}

/// Weights of whole groups.
struct Weigh<'a> {
    law: Law<'a>,
    at: usize,
    group_size: usize,
    values: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let size = self.group_size;
        let groups = self.values.chunks_exact(size).zip(self.out.chunks_exact_mut(size));
        for (k, (values, out)) in groups.enumerate() {
            let (values, out) = (values.as_chunks().0, out.as_chunks_mut().0);
            if let Law::Channel(row) = self.law {
                let channel = (self.at + k * size) % row.len();
                by_channel(s, values, row[channel..channel + size].as_chunks().0, out);
            } else {
                by_magnitude(s, values, out);
            }
        }
    }
}

/// `ω = h sqrt(σ² + w²)` of a group.
#[inline(always)]
fn by_channel<S: Simd>(s: S, values: &[[f32; LANES]], importance: &[[f32; LANES]], out: &mut [[f32; LANES]]) {
    let (inverse, variance) = moments(s, values);
    for ((x, h), out) in values.iter().zip(importance).zip(out) {
        let u = s.mul(s.load(x), inverse);
        let root = s.sqrt(s.add(variance, s.mul(u, u)));
        s.store(s.mul(s.load(h), root), out);
    }
}

/// `ω = σ + |w|` of a group.
#[inline(always)]
fn by_magnitude<S: Simd>(s: S, values: &[[f32; LANES]], out: &mut [[f32; LANES]]) {
    let (inverse, variance) = moments(s, values);
    let deviation = s.sqrt(variance);
    for (x, out) in values.iter().zip(out) {
        s.store(s.add(deviation, absolute(s, s.mul(s.load(x), inverse))), out);
    }
}

/// What makes the greatest magnitude 1, and the mean square then.
#[inline(always)]
fn moments<S: Simd>(s: S, values: &[[f32; LANES]]) -> (S::F, S::F) {
    let mut most = s.splat(0.0);
    for x in values {
        most = s.max(absolute(s, s.load(x)), most);
    }
    let inverse = s.div(s.splat(1.0), s.splat(s.greatest(most)));
    let mut squares = s.splat(0.0);
    for x in values {
        let u = s.mul(s.load(x), inverse);
        squares = s.add(squares, s.mul(u, u));
    }
    let mut lanes = [0.0; LANES];
    s.store(squares, &mut lanes);
    let [a, b, c, d, e, f, g, h] = lanes;
    let sum = ((a + e) + (c + g)) + ((b + f) + (d + h));
    (inverse, s.splat(sum / (values.len() * LANES) as f32))
}
