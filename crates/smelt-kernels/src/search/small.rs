//! The scale of an mxfp4, mxfp8 or nvfp4 group with the least weighted squared error.
//!
//! With `e` the code of the scale that rounding takes, each of the neighbours of `e` is tried:
//!
//! ```text
//! mxfp4, mxfp8    e - 2 ..= e + 1        powers of two
//! nvfp4           e - 6 ..= e + 6        E4M3, eight codes an octave; fast: e - 3 ..= e + 3
//! t = |w| * (1 / scale),  d = t - E(t),  error = scale² Σωdd
//! ```
//!
//! A smaller scale cuts the largest elements off at the greatest code and gives the others finer steps;
//! a greater one can bring the largest from the coarse end of E2M1, where 4 and 6 are neighbours, to a
//! better place. The codes follow the GPU's rule, the nearest value with the sign kept, under both
//! roundings: the CPU's differs in ties and in zeros' signs only, or is less exact (it rounds quotients
//! to the dtype).

use crate::arch::{Kernel, LANES, Simd};
use crate::float::{Small, absolute};
use crate::mx::{ScaleType, scale_gpu, scale_value};
use crate::search::Effort;
use crate::search::batch::Batch;

/// The distances from rounding's code, the nearest first, so that it wins at a tie.
pub(super) fn distances(kind: ScaleType, effort: Effort) -> &'static [i32] {
    match (kind, effort) {
        (ScaleType::E8m0, _) => &[0, -1, 1, -2],
        (ScaleType::E4m3, Effort::Fast) => &[0, -1, 1, -2, 2, -3, 3],
        (ScaleType::E4m3, _) => &[0, -1, 1, -2, 2, -3, 3, -4, 4, -5, 5, -6, 6],
    }
}

/// Finds the scale codes of a run of groups. `WEIGHTED`: by `weights`, else all count the same.
pub(super) struct Scales<'a, const WEIGHTED: bool> {
    pub(super) element: Small,
    pub(super) kind: ScaleType,
    pub(super) distances: &'static [i32],
    pub(super) values: &'a [f32],
    /// As long as the values if `WEIGHTED`, else empty.
    pub(super) weights: &'a [f32],
    pub(super) group_size: usize,
    pub(super) out: &'a mut [u8],
}

impl<const WEIGHTED: bool> Kernel for Scales<'_, WEIGHTED> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut batch = Batch::new();
        let size = LANES * self.group_size;
        let small = (self.element, self.kind);
        for (k, out) in self.out.chunks_mut(LANES).enumerate() {
            let end = self.values.len().min((k + 1) * size);
            let values = &self.values[k * size..end];
            let (values, weights) = if WEIGHTED {
                batch.both(values, &self.weights[k * size..end], self.group_size)
            } else {
                (batch.values(values, self.group_size), [].as_slice())
            };
            let best = search::<S, WEIGHTED>(s, small, self.distances, values, weights);
            let mut bytes = [0; 4 * LANES];
            s.store32(best, &mut bytes);
            out.iter_mut().zip(bytes.chunks(4)).for_each(|(out, lane)| *out = lane[0]);
        }
    }
}

/// The best code of eight groups.
#[inline(always)]
fn search<S: Simd, const WEIGHTED: bool>(
    s: S,
    (element, kind): (Small, ScaleType),
    distances: &[i32],
    values: &[[f32; LANES]],
    weights: &[[f32; LANES]],
) -> S::I {
    let mut most = s.splat(0.0);
    for x in values {
        most = s.max(absolute(s, s.load(x)), most);
    }
    let (rounded, _) = scale_gpu(s, kind, s.div(most, s.splat(element.max)));
    let (mut best, mut least) = (rounded, s.splat(f32::INFINITY));
    for distance in distances {
        let code = kind.clamp(s, s.add32(rounded, s.splat32(*distance as u32)));
        let scale = scale_value(s, kind, code);
        let sum = squares::<S, WEIGHTED>(s, element, s.div(s.splat(1.0), scale), values, weights);
        let unit = s.div(scale, most);
        let error = s.mul(sum, s.mul(unit, unit));
        let less = s.less(error, least);
        (best, least) = (s.select32(less, best, code), s.select(less, least, error));
    }
    best
}

/// Σωdd.
#[inline(always)]
fn squares<S: Simd, const WEIGHTED: bool>(
    s: S,
    element: Small,
    inverse: S::F,
    values: &[[f32; LANES]],
    weights: &[[f32; LANES]],
) -> S::F {
    let mut sum = s.splat(0.0);
    for (k, x) in values.iter().enumerate() {
        let t = s.mul(absolute(s, s.load(x)), inverse);
        let d = s.sub(t, element.decode(s, element.encode(s, t)));
        let wd = if WEIGHTED { s.mul(s.load(&weights[k]), d) } else { d };
        sum = s.add(sum, s.mul(wd, d));
    }
    sum
}
