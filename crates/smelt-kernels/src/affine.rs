//! Integer codes with a scale and a bias for each group.
//!
//! For a group `x` and `n = 2^bits - 1`, all in f32, each operation rounded once:
//!
//! ```text
//! lo, hi = least and greatest x        NaN never counts; on a GPU hi starts at 0
//! s    = max((hi - lo) / n, 1e-7)
//! s    = s if |lo| > |hi|, else -s     code 0 lies at the end of greater magnitude,
//! edge = lo if |lo| > |hi|, else hi    `edge`
//! q0   = round(edge / s)
//! s, b = edge / q0, edge               or s, 0 if q0 = 0; so that 0 is a whole number of steps
//! q    = clamp(round((x - b) / s), 0, n)        NaN: 0
//! ```
//!
//! `round` takes halves to even on a CPU and away from zero on a GPU. The codes are computed from
//! the f32 scale, which is rounded only when it is stored, and by a true division: both show in
//! the last bit.
//!
//! Groups that are not finite follow the same formula with IEEE arithmetic. For the CPU's rounding
//! these are the bits that MLX stores on x86-64, except that a NaN scale in f32 is 0x7FC00000 (its
//! sign there depends on the CPU); for a GPU's rounding MLX leaves them open.

use std::marker::PhantomData;

use crate::arch::{BLOCK, Kernel, LANES, Simd};
use crate::dispatch::Engine;
use crate::float::{self, Element, NAN, absolute, replace_nan, sign, with_element};
use crate::run::{GROUPS, Groups, Scratch, Stored, Task};
use crate::{Float, Format, Rounding};

/// The largest f32 below a half: added before truncation it rounds halves away from zero, while a
/// half itself would also carry the number just below a half to one.
const ALMOST_HALF: f32 = 0.499_999_97;

/// The least magnitude of a scale.
const LEAST_SCALE: f32 = 1e-7;

/// Least and greatest value of each group.
struct Extremes<'a> {
    values: &'a [f32],
    group_size: usize,
    /// Where the search for the greatest value starts.
    top: f32,
    lo: &'a mut [f32],
    hi: &'a mut [f32],
}

impl Kernel for Extremes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let groups = self.values.chunks_exact(self.group_size);
        for ((group, lo), hi) in groups.zip(self.lo).zip(self.hi) {
            let (mut least, mut greatest) = (s.splat(f32::INFINITY), s.splat(self.top));
            for lanes in group.as_chunks::<LANES>().0 {
                let x = s.load(lanes);
                least = s.min(x, least);
                greatest = s.max(x, greatest);
            }
            *lo = s.least(least);
            *hi = s.greatest(greatest);
        }
    }
}

/// Nearest integer by the rule of `AWAY`: halves away from zero, or to even.
#[inline(always)]
fn round<S: Simd, const AWAY: bool>(s: S, x: S::F) -> S::F {
    if AWAY {
        let half = s.or(sign(s, x), s.splat32(ALMOST_HALF.to_bits()));
        s.trunc(s.add(x, s.float(half)))
    } else {
        s.round_even(x)
    }
}

/// Scales and biases from the extremes, in place: `lo` becomes the scale, `hi` the bias.
struct Scales<'a, const AWAY: bool> {
    levels: f32,
    lo: &'a mut [f32; GROUPS],
    hi: &'a mut [f32; GROUPS],
}

impl<const AWAY: bool> Kernel for Scales<'_, AWAY> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (zero, levels) = (s.splat(0.0), s.splat(self.levels));
        let lanes = self.lo.as_chunks_mut::<LANES>().0.iter_mut();
        for (lo_to_scale, hi_to_bias) in lanes.zip(self.hi.as_chunks_mut::<LANES>().0) {
            let (lo, hi) = (s.load(lo_to_scale), s.load(hi_to_bias));
            let span = s.max(s.splat(LEAST_SCALE), s.div(s.sub(hi, lo), levels));
            let low_end = s.less(absolute(s, hi), absolute(s, lo));
            let scale = s.select(low_end, s.sub(zero, span), span);
            let edge = s.select(low_end, hi, lo);
            let steps = round::<S, AWAY>(s, s.div(edge, scale));
            let none = s.equal(steps, zero);
            s.store(s.select(none, s.div(edge, steps), scale), lo_to_scale);
            s.store(s.select(none, edge, zero), hi_to_bias);
        }
    }
}

/// Codes as bytes, from values, scales and biases.
struct Codes<'a, const AWAY: bool> {
    values: &'a [f32],
    groups: Groups,
    levels: f32,
    scale: &'a [f32; GROUPS],
    bias: &'a [f32; GROUPS],
    out: &'a mut [u8],
}

impl<const AWAY: bool> Kernel for Codes<'_, AWAY> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (zero, levels) = (s.splat(0.0), s.splat(self.levels));
        let blocks = self.values.as_chunks::<BLOCK>().0;
        for (k, (values, out)) in blocks.iter().zip(self.out.as_chunks_mut().0).enumerate() {
            let group = self.groups.of(k * BLOCK);
            let (scale, bias) = (s.splat(self.scale[group]), s.splat(self.bias[group]));
            let mut q = [s.splat32(0); BLOCK / LANES];
            for (q, x) in q.iter_mut().zip(values.as_chunks::<LANES>().0) {
                let steps = s.div(s.sub(s.load(x), bias), scale);
                // Clamped before it is rounded, which is the same and fits the conversion; `max`
                // turns NaN into 0.
                let steps = s.min(s.max(steps, zero), levels);
                *q = if AWAY { s.code_trunc(s.add(steps, s.splat(ALMOST_HALF))) } else { s.code_even(steps) };
            }
            s.store_block(s.bytes(q), out);
        }
    }
}

/// `code * scale + bias`, each operation rounded to `T`.
struct Decode<'a, T> {
    codes: &'a [u8],
    groups: Groups,
    scale: &'a [f32; GROUPS],
    bias: &'a [f32; GROUPS],
    values: &'a mut [f32],
    element: PhantomData<T>,
}

impl<T: Element> Kernel for Decode<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let lanes = self.codes.as_chunks::<LANES>().0.iter();
        for (k, (codes, out)) in lanes.zip(self.values.as_chunks_mut().0).enumerate() {
            let group = self.groups.of(k * LANES);
            let product = s.mul(s.to_float(s.load8(*codes)), s.splat(self.scale[group]));
            let sum = T::round(s, s.add(T::round(s, product), s.splat(self.bias[group])));
            s.store(replace_nan(s, sum, NAN), out);
        }
    }
}

/// Fixes the bits of the NaN scales of groups that are not finite.
fn settle_nan(dtype: Float, scales: &mut [f32]) {
    let bits = match dtype {
        // Stored as 0xFD00, as MLX has it on x86-64; bf16 has one NaN only.
        Float::Bf16 | Float::F16 => NAN | 1 << 31,
        Float::F32 => NAN,
    };
    for scale in scales.iter_mut().filter(|scale| scale.is_nan()) {
        *scale = f32::from_bits(bits);
    }
}

/// Codes of one run into `scratch.codes`; stores its scales and biases.
pub(crate) fn encode(
    engine: Engine,
    task: Task,
    scratch: &mut Scratch,
    scales: &mut [u8],
    biases: &mut [u8],
) {
    match task.rounding {
        Rounding::Cpu => encode_by::<false>(engine, task, scratch, scales, biases),
        Rounding::Gpu => encode_by::<true>(engine, task, scratch, scales, biases),
    }
}

fn encode_by<const AWAY: bool>(
    engine: Engine,
    task: Task,
    scratch: &mut Scratch,
    scales: &mut [u8],
    biases: &mut [u8],
) {
    let Scratch { len, values, codes, scales: lo, biases: hi, .. } = scratch;
    let levels = f32::from((1u16 << task.format.bits()) - 1);
    let top = if AWAY { 0.0 } else { f32::NEG_INFINITY };
    let groups = Groups::new(task.format.group_size());
    let count = *len / groups.size();
    engine.run(Extremes { values: &values[..*len], group_size: groups.size(), top, lo, hi });
    engine.run(Scales::<AWAY> { levels, lo, hi });
    let values = &values[..*len];
    engine.run(Codes::<AWAY> { values, groups, levels, scale: lo, bias: hi, out: codes });
    settle_nan(task.dtype, &mut lo[..count]);
    float::narrow(engine, task.dtype, &lo[..count], scales);
    float::narrow(engine, task.dtype, &hi[..count], biases);
}

/// The nearest codes of whole blocks of values for given scales and biases, halves to even.
pub(crate) fn nearest(
    engine: Engine,
    format: Format,
    values: &[f32],
    (scale, bias): (&[f32; GROUPS], &[f32; GROUPS]),
    out: &mut [u8],
) {
    let levels = f32::from((1u16 << format.bits()) - 1);
    let groups = Groups::new(format.group_size());
    engine.run(Codes::<false> { values, groups, levels, scale, bias, out });
}

/// Values of one run from `scratch.codes` and its scales and biases.
pub(crate) fn decode(engine: Engine, task: Task, scratch: &mut Scratch, stored: Stored<'_>) {
    scratch.widen_pairs(engine, task, stored.scales, stored.biases);
    let Scratch { len, values, codes, scales, biases, .. } = scratch;
    let groups = Groups::new(task.format.group_size());
    let (codes, values) = (&codes[..*len], &mut values[..]);
    with_element!(task.dtype, T => engine.run(Decode::<T> {
        codes, groups, scale: scales, bias: biases, values, element: PhantomData,
    }));
}
