//! Small-float codes with a scale of one byte for each group: mxfp4, mxfp8 and nvfp4.
//!
//! `E` is E2M1 (greatest value 6) or E4M3 (448). For a group `x`, in f32:
//!
//! ```text
//! m = max |x|,  s = m / greatest value of E
//! mxfp4, mxfp8:  scale = the least power of two >= s, byte = its exponent + 127     (E8M0)
//! nvfp4:         scale = s rounded to E4M3, byte = its code
//! ```
//!
//! The GPU's rule multiplies by a rounded reciprocal, 0 for a scale of 0, and keeps the sign of
//! zeros and of what rounds to zero:
//!
//! ```text
//! q = E(x * (1 / scale)),  to nearest even; E8M0 is clamped below, byte 0 for a zero group
//! ```
//!
//! The CPU's rule is a graph that runs in the dtype `T` of the input: `s` and the quotient are
//! rounded to `T`.
//!
//! ```text
//! s = T(s);  a zero group has scale 1, byte 127;  an exponent below -127 wraps in its byte
//! mxfp8:  q = E4M3(T(x / scale)), to nearest even, sign kept
//! fp4:    q = the code k that minimises |T(x / scale) - value of k| in f32, the first if several
//!         do: halves go towards zero, there is no negative zero, and where all differences are
//!         equal (0/0 and x/0 under an E4M3 scale of 0; x so large that f32 does not see the 6)
//!         q is 0
//! ```
//!
//! MLX leaves groups with a NaN or an infinity to the platform. Here, under both rules, their byte
//! is 255 (E8M0) or 126 (E4M3), NaN elements get the greatest code (0 for the CPU's fp4) with the
//! sign of the element, and the others follow from the scale's value: infinity or 448.

use std::marker::PhantomData;

use crate::arch::{BLOCK, Kernel, LANES, Simd};
use crate::dispatch::Engine;
use crate::float::{E2M1, E4M3, Element, NAN, Small, absolute, replace_nan, sign, with_element};
use crate::run::{GROUPS, Groups, Scratch, Task};
use crate::{Format, Mode, Rounding};

/// Greatest magnitude of each group; NaN if there is one.
struct Magnitudes<'a> {
    values: &'a [f32],
    group_size: usize,
    out: &'a mut [f32],
}

impl Kernel for Magnitudes<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (group, out) in self.values.chunks_exact(self.group_size).zip(self.out) {
            // As integers, the bits of magnitudes have their order, and NaN is above infinity.
            let mut greatest = s.splat32(0);
            for lanes in group.as_chunks::<LANES>().0 {
                greatest = s.max32(greatest, s.bits(absolute(s, s.load(lanes))));
            }
            *out = f32::from_bits(s.greatest32(greatest));
        }
    }
}

/// How a scale is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScaleType {
    /// A power of two.
    E8m0,
    /// A small float, always positive.
    E4m3,
}

impl ScaleType {
    /// A code moved into the range of finite scales above zero.
    #[inline(always)]
    pub(crate) fn clamp<S: Simd>(self, s: S, code: S::I) -> S::I {
        let (least, greatest) = match self {
            Self::E8m0 => (0, 254),
            Self::E4m3 => (1, 126),
        };
        let (least, greatest) = (s.splat32(least), s.splat32(greatest));
        let code = s.max32(code, least);
        s.select32(s.greater32(code, greatest), code, greatest)
    }
}

/// 2^-64: brings f32's subnormals among the normal numbers and back, exactly.
const TINY: f32 = 1.0 / (1u128 << 64) as f32;

/// The least power of two that is at least `a >= 0`, and its exponent + 127, which is negative for
/// some subnormals. 0 has -64 and 0; infinity and NaN have 255 and infinity.
#[inline(always)]
fn power_above<S: Simd>(s: S, a: S::F) -> (S::I, S::F) {
    let a = s.min(a, s.splat(f32::INFINITY));
    let small = s.less(a, s.splat(TINY));
    let scaled = s.select(small, a, s.mul(a, s.splat(1.0 / TINY)));
    let carried = s.add32(s.bits(scaled), s.splat32(0x007F_FFFF));
    let power = s.and(carried, s.splat32(0x7F80_0000));
    let exponent = s.shr(power, 23);
    let exponent = s.select32(small, exponent, s.sub32(exponent, s.splat32(64)));
    let power = s.float(power);
    (exponent, s.select(small, power, s.mul(power, s.splat(TINY))))
}

/// The byte and value of a scale for `s = m / greatest`, by the GPU's rule.
#[inline(always)]
pub(crate) fn scale_gpu<S: Simd>(s: S, kind: ScaleType, ratio: S::F) -> (S::I, S::F) {
    if kind == ScaleType::E4m3 {
        return scale_e4m3(s, ratio);
    }
    let (exponent, power) = power_above(s, ratio);
    let least = f32::from_bits(0x0040_0000);
    (s.max32(exponent, s.splat32(0)), s.max(power, s.splat(least)))
}

/// The same by the CPU's rule.
#[inline(always)]
fn scale_cpu<S: Simd>(s: S, kind: ScaleType, ratio: S::F) -> (S::I, S::F) {
    if kind == ScaleType::E4m3 {
        return scale_e4m3(s, ratio);
    }
    let (exponent, power) = power_above(s, ratio);
    let zero = s.equal(ratio, s.splat(0.0));
    let byte = s.select32(zero, s.and(exponent, s.splat32(0xFF)), s.splat32(127));
    (byte, s.select(zero, power, s.splat(1.0)))
}

#[inline(always)]
fn scale_e4m3<S: Simd>(s: S, ratio: S::F) -> (S::I, S::F) {
    let byte = E4M3.encode(s, ratio);
    (byte, E4M3.decode(s, byte))
}

/// Turns magnitudes into scale bytes and what the elements are multiplied with (GPU) or divided
/// by (CPU).
struct Scales<'a, T, const GPU: bool> {
    kind: ScaleType,
    greatest: f32,
    factors: &'a mut [f32; GROUPS],
    bytes: &'a mut [u8; GROUPS],
    element: PhantomData<T>,
}

impl<T: Element, const GPU: bool> Kernel for Scales<'_, T, GPU> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let blocks = self.factors.as_chunks_mut::<BLOCK>().0.iter_mut();
        for (factors, out) in blocks.zip(self.bytes.as_chunks_mut().0) {
            let mut bytes = [s.splat32(0); BLOCK / LANES];
            for (byte, factor) in bytes.iter_mut().zip(factors.as_chunks_mut().0) {
                let ratio = s.div(s.load(factor), s.splat(self.greatest));
                let new;
                if GPU {
                    let value;
                    (*byte, value) = scale_gpu(s, self.kind, ratio);
                    let zero = s.equal(value, s.splat(0.0));
                    new = s.select(zero, s.div(s.splat(1.0), value), s.splat(0.0));
                } else {
                    (*byte, new) = scale_cpu(s, self.kind, T::round(s, ratio));
                }
                s.store(new, factor);
            }
            s.store_block(s.bytes(bytes), out);
        }
    }
}

/// How elements become codes.
trait Rule {
    /// The code of `x` with the factor of its group.
    fn code<S: Simd>(s: S, x: S::F, factor: S::F) -> S::I;
}

/// Puts the sign of `x` above the bits of a code.
#[inline(always)]
fn with_sign<S: Simd>(s: S, small: Small, code: S::I, x: S::F) -> S::I {
    s.or(code, s.shr(sign(s, x), 31 - small.sign_bit()))
}

/// A GPU's codes, of E2M1 or (`WIDE`) E4M3.
struct Gpu<const WIDE: bool>;

impl<const WIDE: bool> Rule for Gpu<WIDE> {
    #[inline(always)]
    fn code<S: Simd>(s: S, x: S::F, factor: S::F) -> S::I {
        let small = if WIDE { E4M3 } else { E2M1 };
        with_sign(s, small, small.encode(s, s.mul(x, factor)), x)
    }
}

/// A CPU's codes of E4M3 from an input of dtype `T`.
struct CpuWide<T>(PhantomData<T>);

impl<T: Element> Rule for CpuWide<T> {
    #[inline(always)]
    fn code<S: Simd>(s: S, x: S::F, factor: S::F) -> S::I {
        with_sign(s, E4M3, E4M3.encode(s, T::round(s, s.div(x, factor))), x)
    }
}

/// A CPU's codes of E2M1 from an input of dtype `T`.
struct CpuNarrow<T>(PhantomData<T>);

/// The values of E2M1 below its greatest.
const VALUES: [f32; 7] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0];

/// Between neighbours of E2M1.
const MIDDLES: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];

impl<T: Element> Rule for CpuNarrow<T> {
    #[inline(always)]
    fn code<S: Simd>(s: S, x: S::F, factor: S::F) -> S::I {
        let a = absolute(s, T::round(s, s.div(x, factor)));
        let zero = s.splat32(0);
        let (mut near, mut far) = (zero, zero);
        let distance = s.sub(a, s.splat(E2M1.max));
        for (middle, value) in MIDDLES.into_iter().zip(VALUES) {
            // A mask is -1. Beyond the greatest value distances fall with k, at times not strictly.
            near = s.sub32(near, s.less(s.splat(middle), a));
            far = s.sub32(far, s.less(distance, s.sub(a, s.splat(value))));
        }
        let code = s.select32(s.less(s.splat(E2M1.max), a), near, far);
        let signed = s.greater32(code, zero);
        s.select32(signed, zero, with_sign(s, E2M1, code, x))
    }
}

/// Codes as bytes, from values and factors.
struct Codes<'a, R> {
    values: &'a [f32],
    groups: Groups,
    factors: &'a [f32; GROUPS],
    out: &'a mut [u8],
    rule: PhantomData<R>,
}

impl<R: Rule> Kernel for Codes<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let blocks = self.values.as_chunks::<BLOCK>().0;
        for (k, (values, out)) in blocks.iter().zip(self.out.as_chunks_mut().0).enumerate() {
            let mut q = [s.splat32(0); BLOCK / LANES];
            for (i, (q, x)) in q.iter_mut().zip(values.as_chunks::<LANES>().0).enumerate() {
                let group = self.groups.of(k * BLOCK + i * LANES);
                *q = R::code(s, s.load(x), s.splat(self.factors[group]));
            }
            s.store_block(s.bytes(q), out);
        }
    }
}

/// Values of scale bytes.
struct ScaleValues<'a> {
    kind: ScaleType,
    bytes: &'a [u8; GROUPS],
    out: &'a mut [f32; GROUPS],
}

impl Kernel for ScaleValues<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let bytes = self.bytes.as_chunks::<LANES>().0.iter();
        for (bytes, out) in bytes.zip(self.out.as_chunks_mut().0) {
            s.store(scale_value(s, self.kind, s.load8(*bytes)), out);
        }
    }
}

/// The value of a scale's byte.
#[inline(always)]
pub(crate) fn scale_value<S: Simd>(s: S, kind: ScaleType, byte: S::I) -> S::F {
    match kind {
        ScaleType::E8m0 => s.float(s.max32(s.shl(byte, 23), s.splat32(0x0040_0000))),
        ScaleType::E4m3 => value_of(s, E4M3, byte),
    }
}

/// Values of codes with sign; E4M3's 127 is NaN.
#[inline(always)]
pub(crate) fn value_of<S: Simd>(s: S, small: Small, code: S::I) -> S::F {
    let magnitude = s.and(code, s.splat32((1 << small.sign_bit()) - 1));
    let value = s.bits(small.decode(s, magnitude));
    let sign = s.shl(s.sub32(code, magnitude), 31 - small.sign_bit());
    let signed = s.or(value, sign);
    if small.sign_bit() == 7 {
        let nan = s.greater32(magnitude, s.splat32(126));
        return s.float(s.select32(nan, signed, s.splat32(NAN)));
    }
    s.float(signed)
}

/// `value of code * scale`, all in `T`.
struct Decode<'a, T, const WIDE: bool> {
    codes: &'a [u8],
    groups: Groups,
    scales: &'a [f32; GROUPS],
    values: &'a mut [f32],
    element: PhantomData<T>,
}

impl<T: Element, const WIDE: bool> Kernel for Decode<'_, T, WIDE> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let small = if WIDE { E4M3 } else { E2M1 };
        let lanes = self.codes.as_chunks::<LANES>().0.iter();
        for (k, (codes, out)) in lanes.zip(self.values.as_chunks_mut().0).enumerate() {
            let scale = T::round(s, s.splat(self.scales[self.groups.of(k * LANES)]));
            let value = s.mul(value_of(s, small, s.load8(*codes)), scale);
            s.store(replace_nan(s, T::round(s, value), NAN), out);
        }
    }
}

/// The element type and scale type of a mode.
pub(crate) fn types(mode: Mode) -> (Small, ScaleType) {
    match mode {
        Mode::Nvfp4 => (E2M1, ScaleType::E4m3),
        Mode::Mxfp8 => (E4M3, ScaleType::E8m0),
        Mode::Mxfp4 | Mode::Affine => (E2M1, ScaleType::E8m0),
    }
}

/// Codes of one run into `scratch.codes`; stores its scales.
pub(crate) fn encode(engine: Engine, task: Task, scratch: &mut Scratch, scales: &mut [u8]) {
    encode_scales(engine, task, scratch, scales);
    match (task.rounding, task.format.mode() == Mode::Mxfp8) {
        (Rounding::Gpu, false) => encode_elements::<Gpu<false>>(engine, task, scratch),
        (Rounding::Gpu, true) => encode_elements::<Gpu<true>>(engine, task, scratch),
        (Rounding::Cpu, false) => with_element!(task.dtype, T => {
            encode_elements::<CpuNarrow<T>>(engine, task, scratch);
        }),
        (Rounding::Cpu, true) => with_element!(task.dtype, T => {
            encode_elements::<CpuWide<T>>(engine, task, scratch);
        }),
    }
}

/// Stores the scales of one run and leaves the factors of its groups in `scratch.scales`.
fn encode_scales(engine: Engine, task: Task, scratch: &mut Scratch, out: &mut [u8]) {
    let (small, kind) = types(task.format.mode());
    let greatest = small.max;
    let factors = &mut scratch.scales;
    let values = &scratch.values[..scratch.len];
    let group_size = task.format.group_size();
    engine.run(Magnitudes { values, group_size, out: factors });
    let bytes = &mut [0; GROUPS];
    with_element!(task.dtype, T => match task.rounding {
        Rounding::Gpu => {
            let element = PhantomData;
            engine.run(Scales::<T, true> { kind, greatest, factors, bytes, element });
        }
        Rounding::Cpu => {
            let element = PhantomData;
            engine.run(Scales::<T, false> { kind, greatest, factors, bytes, element });
        }
    });
    out.copy_from_slice(&bytes[..out.len()]);
}

/// Codes of one run by the factors of its groups.
fn encode_elements<R: Rule>(engine: Engine, task: Task, scratch: &mut Scratch) {
    let padded = scratch.blocks_len();
    engine.run(Codes::<R> {
        values: &scratch.values[..padded],
        groups: Groups::new(task.format.group_size()),
        factors: &scratch.scales,
        out: &mut scratch.codes,
        rule: PhantomData,
    });
}

/// The values of scale bytes.
pub(crate) fn scale_values(engine: Engine, mode: Mode, bytes: &[u8; GROUPS], out: &mut [f32; GROUPS]) {
    let (_, kind) = types(mode);
    engine.run(ScaleValues { kind, bytes, out });
}

/// The nearest codes of whole blocks of values for given scales above zero, by the GPU's rule.
pub(crate) fn nearest(
    engine: Engine,
    format: Format,
    values: &[f32],
    scales: &[f32; GROUPS],
    out: &mut [u8],
) {
    let factors = &scales.map(|scale| 1.0 / scale);
    let groups = Groups::new(format.group_size());
    if format.mode() == Mode::Mxfp8 {
        engine.run(Codes::<Gpu<true>> { values, groups, factors, out, rule: PhantomData });
    } else {
        engine.run(Codes::<Gpu<false>> { values, groups, factors, out, rule: PhantomData });
    }
}

/// What codes stand for, before the scale.
struct Levels<'a, const WIDE: bool> {
    codes: &'a [u8],
    out: &'a mut [f32],
}

impl<const WIDE: bool> Kernel for Levels<'_, WIDE> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let small = if WIDE { E4M3 } else { E2M1 };
        for (codes, out) in self.codes.as_chunks().0.iter().zip(self.out.as_chunks_mut().0) {
            s.store(value_of(s, small, s.load8(*codes)), out);
        }
    }
}

/// The values of codes with their signs, before the scale.
pub(crate) fn levels(engine: Engine, mode: Mode, codes: &[u8], out: &mut [f32]) {
    if mode == Mode::Mxfp8 {
        engine.run(Levels::<true> { codes, out });
    } else {
        engine.run(Levels::<false> { codes, out });
    }
}

/// Values of one run from `scratch.codes` and its scales.
pub(crate) fn decode(engine: Engine, task: Task, scratch: &mut Scratch, stored: &[u8]) {
    scratch.widen_pairs(engine, task, stored, &[]);
    let groups = Groups::new(task.format.group_size());
    let Scratch { len, values, codes, scales, .. } = scratch;
    let (codes, scales) = (&codes[..*len], &*scales);
    with_element!(task.dtype, T => if task.format.mode() == Mode::Mxfp8 {
        engine.run(Decode::<T, true> { codes, groups, scales, values, element: PhantomData });
    } else {
        engine.run(Decode::<T, false> { codes, groups, scales, values, element: PhantomData });
    });
}
