//! Codes of other tools' formats as floats.
//!
//! Formats that MLX does not have differ in where codes and scales lie, not in what they mean:
//!
//! ```text
//! x = T((value of code - zero) * scale)      in f32, rounded once to the dtype T
//! ```
//!
//! The value of a code is that of a small float or an integer; the zero point is 0 for floats. A row
//! is decoded at a time: neighbours of `size` elements share scale and zero point, or, with a
//! size of 1, each element has its own.

use std::marker::PhantomData;

use crate::arch::{Kernel, LANES, Simd};
use crate::dispatch::Engine;
use crate::float::{E2M1, E4M3, Element, Half, NAN, replace_nan, with_element};
use crate::mx::value_of;
use crate::{Code, Float, Steps};

/// Values of codes, eight at a time.
trait Value {
    fn value<S: Simd>(s: S, code: S::I) -> S::F;
}

struct Wide;
struct Wider;
struct Narrow;
struct Unsigned;
struct Signed;

impl Value for Wide {
    #[inline(always)]
    fn value<S: Simd>(s: S, code: S::I) -> S::F {
        value_of(s, E4M3, code)
    }
}

impl Value for Wider {
    /// E5M2 is the upper half of binary16.
    #[inline(always)]
    fn value<S: Simd>(s: S, code: S::I) -> S::F {
        Half::decode(s, s.shl(code, 8))
    }
}

impl Value for Narrow {
    #[inline(always)]
    fn value<S: Simd>(s: S, code: S::I) -> S::F {
        value_of(s, E2M1, code)
    }
}

impl Value for Unsigned {
    #[inline(always)]
    fn value<S: Simd>(s: S, code: S::I) -> S::F {
        s.to_float(code)
    }
}

impl Value for Signed {
    /// The byte 128 and above stands for itself less 256.
    #[inline(always)]
    fn value<S: Simd>(s: S, code: S::I) -> S::F {
        let high = s.and(s.shl(code, 1), s.splat32(256));
        s.to_float(s.sub32(code, high))
    }
}

/// One row: see the module.
struct Scaled<'a, V, T> {
    codes: &'a [u8],
    steps: Steps<'a>,
    out: &'a mut [u8],
    types: PhantomData<(V, T)>,
}

impl<V: Value, T: Element> Kernel for Scaled<'_, V, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Steps { scales, zeros, size, skip } = self.steps;
        if size == 1 {
            each::<V, T, S>(s, self.codes, scales, zeros, self.out);
            return;
        }
        let (mut codes, mut out, mut room) = (self.codes, self.out, size - skip);
        for (group, scale) in scales.iter().enumerate() {
            let (group_codes, rest) = codes.split_at(room.min(codes.len()));
            let (group_out, rest_out) = out.split_at_mut(group_codes.len() * T::SIZE);
            let zero = zeros.get(group).copied().unwrap_or(0.0);
            run_of::<V, T, S>(s, group_codes, (s.splat(*scale), s.splat(zero)), group_out);
            (codes, out, room) = (rest, rest_out, size);
        }
    }
}

#[inline(always)]
fn one<V: Value, T: Element, S: Simd>(s: S, code: S::I, (scale, zero): (S::F, S::F)) -> S::F {
    let value = s.mul(s.sub(V::value(s, code), zero), scale);
    // Rounding to 16 bits settles a NaN by itself.
    if T::SIZE == 4 { replace_nan(s, value, NAN) } else { value }
}

/// Codes that share scale and zero point.
#[inline(always)]
fn run_of<V: Value, T: Element, S: Simd>(s: S, codes: &[u8], step: (S::F, S::F), out: &mut [u8]) {
    let (lanes, tail) = codes.as_chunks::<LANES>();
    let mut out = out.chunks_exact_mut(LANES * T::SIZE);
    for (codes, out) in lanes.iter().zip(&mut out) {
        T::store(s, one::<V, T, S>(s, s.load8(*codes), step), out);
    }
    if !tail.is_empty() {
        let (mut last, mut whole) = ([0; LANES], [0; 4 * LANES]);
        last[..tail.len()].copy_from_slice(tail);
        T::store(s, one::<V, T, S>(s, s.load8(last), step), &mut whole[..LANES * T::SIZE]);
        out.into_remainder().copy_from_slice(&whole[..tail.len() * T::SIZE]);
    }
}

/// Codes with a scale and zero point each.
#[inline(always)]
fn each<V: Value, T: Element, S: Simd>(s: S, codes: &[u8], scales: &[f32], zeros: &[f32], out: &mut [u8]) {
    let parts = codes.chunks(LANES).zip(out.chunks_mut(LANES * T::SIZE));
    for (k, (codes, out)) in parts.enumerate() {
        let (at, len) = (k * LANES, codes.len());
        let (mut lanes, mut scale, mut zero) = ([0; LANES], [0.0; LANES], [0.0; LANES]);
        lanes[..len].copy_from_slice(codes);
        scale[..len].copy_from_slice(&scales[at..at + len]);
        if !zeros.is_empty() {
            zero[..len].copy_from_slice(&zeros[at..at + len]);
        }
        let mut whole = [0; 4 * LANES];
        let value = one::<V, T, S>(s, s.load8(lanes), (s.load(&scale), s.load(&zero)));
        T::store(s, value, &mut whole[..LANES * T::SIZE]);
        out.copy_from_slice(&whole[..len * T::SIZE]);
    }
}

/// Decodes a row; the lengths fit.
pub(crate) fn scaled(engine: Engine, code: Code, codes: &[u8], steps: Steps<'_>, to: Float, out: &mut [u8]) {
    with_element!(to, T => match code {
        Code::E4m3 => engine.run(Scaled::<Wide, T> { codes, steps, out, types: PhantomData }),
        Code::E5m2 => engine.run(Scaled::<Wider, T> { codes, steps, out, types: PhantomData }),
        Code::E2m1 => engine.run(Scaled::<Narrow, T> { codes, steps, out, types: PhantomData }),
        Code::Unsigned => engine.run(Scaled::<Unsigned, T> { codes, steps, out, types: PhantomData }),
        Code::Signed => engine.run(Scaled::<Signed, T> { codes, steps, out, types: PhantomData }),
    });
}

/// Codes of 1, 2, 4 or 8 bits, the lowest bits of a byte first, as bytes.
pub(crate) fn unpack(bits: u8, packed: &[u8], codes: &mut [u8]) {
    match bits {
        8 => codes.copy_from_slice(packed),
        4 => spread::<2>(packed, codes),
        2 => spread::<4>(packed, codes),
        _ => spread::<8>(packed, codes),
    }
}

fn spread<const EACH: usize>(packed: &[u8], codes: &mut [u8]) {
    let bits = 8 / EACH;
    for (byte, codes) in packed.iter().zip(codes.as_chunks_mut::<EACH>().0) {
        for (at, code) in codes.iter_mut().enumerate() {
            *code = (byte >> (at * bits)) & (0xFF >> (8 - bits));
        }
    }
}
