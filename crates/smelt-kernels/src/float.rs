//! Small floats: f16, E4M3 and E2M1 as one family, bf16 beside them.
//!
//! A float of the family has a sign, exponent bits with bias `B`, and `M` mantissa bits. With `u`
//! the bits of `a = |x|`, saturated at the greatest value of the type, its code is
//!
//! ```text
//! a >= 2^(1-B):  (u - ((127-B) << 23) + half - 1 + odd) >> (23-M)      normal
//! a <  2^(1-B):  bits(a + 2^(24-M-B)) - bits(2^(24-M-B))               subnormal
//! ```
//!
//! The first line moves the exponent and rounds to nearest even in integers. The second lets the
//! addition round: beside the big number an f32 has exactly the step of the small type's
//! subnormals. Both carry into the next exponent as they should. Decoding is exact.

use std::marker::PhantomData;

use crate::Float;
use crate::arch::{Kernel, LANES, Simd};
use crate::dispatch::Engine;

/// The bits of a positive NaN, which every NaN that a kernel computes becomes: the sign of a
/// computed NaN differs between x86 and Arm.
pub(crate) const NAN: u32 = 0x7FC0_0000;

const SIGN: u32 = 0x8000_0000;

/// A small float without its sign: see the module.
#[derive(Clone, Copy)]
pub(crate) struct Small {
    /// Mantissa bits.
    pub(crate) mantissa: u32,
    /// Bias of the exponent.
    pub(crate) bias: u32,
    /// What greater values are rounded as.
    pub(crate) max: f32,
}

/// Four bits with sign: 0, 0.5, 1, 1.5, 2, 3, 4, 6.
pub(crate) const E2M1: Small = Small { mantissa: 1, bias: 1, max: 6.0 };
/// Eight bits with sign, steps of 2^-9 up to 448.
pub(crate) const E4M3: Small = Small { mantissa: 3, bias: 7, max: 448.0 };
/// IEEE binary16. 2^16 is the first value whose code is that of infinity.
const F16: Small = Small { mantissa: 10, bias: 15, max: 65536.0 };

impl Small {
    /// Where the sign is in a type that uses `mantissa` and exponent bits below it.
    #[inline(always)]
    pub(crate) const fn sign_bit(self) -> u32 {
        // The exponent has one bit more than its bias, 2^k - 1.
        self.mantissa + self.bias.count_ones() + 1
    }

    /// Codes of `|x|` from the bits of `x`, to nearest even; NaN becomes the greatest value.
    #[inline(always)]
    pub(crate) fn encode<S: Simd>(self, s: S, x: S::F) -> S::I {
        let a = s.min(absolute(s, x), s.splat(self.max));
        let u = s.bits(a);
        let shift = 23 - self.mantissa;
        let big = (127 + 24 - self.mantissa - self.bias) << 23;
        let low = s.sub32(s.bits(s.add(a, s.splat(f32::from_bits(big)))), s.splat32(big));
        let odd = s.and(s.shr(u, shift), s.splat32(1));
        let offset = ((1 << (shift - 1)) - 1u32).wrapping_sub((127 - self.bias) << 23);
        let high = s.shr(s.add32(s.add32(u, s.splat32(offset)), odd), shift);
        let normal = s.greater32(u, s.splat32(((128 - self.bias) << 23) - 1));
        s.select32(normal, low, high)
    }

    /// Values of codes without sign; there is no infinity or NaN in this family.
    #[inline(always)]
    pub(crate) fn decode<S: Simd>(self, s: S, code: S::I) -> S::F {
        let step = f32::from_bits((128 - self.mantissa - self.bias) << 23);
        // Not by a shift into the subnormals of f32: some CPUs are slow with those.
        let low = s.mul(s.to_float(code), s.splat(step));
        let moved = s.shl(code, 23 - self.mantissa);
        let high = s.float(s.add32(moved, s.splat32((127 - self.bias) << 23)));
        let normal = s.greater32(code, s.splat32((1 << self.mantissa) - 1));
        s.select(normal, low, high)
    }
}

/// `|x|`, keeping the payload of a NaN.
#[inline(always)]
pub(crate) fn absolute<S: Simd>(s: S, x: S::F) -> S::F {
    s.float(s.and(s.bits(x), s.splat32(!SIGN)))
}

/// The sign bit of `x` alone.
#[inline(always)]
pub(crate) fn sign<S: Simd>(s: S, x: S::F) -> S::I {
    s.and(s.bits(x), s.splat32(SIGN))
}

/// `x`, with `nan` in place of any NaN.
#[inline(always)]
pub(crate) fn replace_nan<S: Simd>(s: S, x: S::F, nan: u32) -> S::F {
    s.select(s.equal(x, x), s.float(s.splat32(nan)), x)
}

/// A dtype of weights, as a type for the kernels.
pub(crate) trait Element {
    /// Bytes of an element.
    const SIZE: usize;
    /// The exact values of eight elements at `from`, which is as long as they are.
    fn load<S: Simd>(s: S, from: &[u8]) -> S::F;
    /// Rounds `a` and stores it to `to`, which is as long as eight elements.
    fn store<S: Simd>(s: S, a: S::F, to: &mut [u8]);
    /// `a` rounded to this type.
    fn round<S: Simd>(s: S, a: S::F) -> S::F;
}

/// bfloat16.
pub(crate) struct Bf16;
/// IEEE binary16.
pub(crate) struct Half;
/// IEEE binary32.
pub(crate) struct Single;

const WHOLE: &str = "kernels cut slices into eight elements";

impl Bf16 {
    /// Nearest even; every NaN becomes 0x7FC0.
    #[inline(always)]
    fn encode<S: Simd>(s: S, a: S::F) -> S::I {
        let u = s.bits(a);
        let odd = s.and(s.shr(u, 16), s.splat32(1));
        let rounded = s.shr(s.add32(s.add32(u, s.splat32(0x7FFF)), odd), 16);
        s.select32(s.equal(a, a), s.splat32(NAN >> 16), rounded)
    }

    #[inline(always)]
    fn decode<S: Simd>(s: S, code: S::I) -> S::F {
        s.float(s.shl(code, 16))
    }
}

impl Half {
    /// Nearest even; a NaN becomes 0x7D00 with its sign.
    #[inline(always)]
    fn encode<S: Simd>(s: S, a: S::F) -> S::I {
        let code = s.select32(s.equal(a, a), s.splat32(0x7D00), F16.encode(s, a));
        s.or(code, s.shr(sign(s, a), 16))
    }

    #[inline(always)]
    pub(crate) fn decode<S: Simd>(s: S, code: S::I) -> S::F {
        let magnitude = s.and(code, s.splat32(0x7FFF));
        let finite = F16.decode(s, magnitude);
        // A signalling NaN becomes quiet, as by the instructions for it.
        let quiet = s.and(s.greater32(magnitude, s.splat32(0x7C00)), s.splat32(0x0040_0000));
        let special = s.or(s.or(s.shl(magnitude, 13), s.splat32(0x7F80_0000)), quiet);
        let is_special = s.greater32(magnitude, s.splat32(0x7BFF));
        let value = s.select32(is_special, s.bits(finite), special);
        let sign = s.shl(s.and(code, s.splat32(0x8000)), 16);
        s.float(s.or(value, sign))
    }
}

impl Element for Bf16 {
    const SIZE: usize = 2;
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[u8]) -> S::F {
        Self::decode(s, s.load16(from.try_into().expect(WHOLE)))
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, a: S::F, to: &mut [u8]) {
        s.store16(Self::encode(s, a), to.try_into().expect(WHOLE));
    }
    #[inline(always)]
    fn round<S: Simd>(s: S, a: S::F) -> S::F {
        Self::decode(s, Self::encode(s, a))
    }
}

impl Element for Half {
    const SIZE: usize = 2;
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[u8]) -> S::F {
        Self::decode(s, s.load16(from.try_into().expect(WHOLE)))
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, a: S::F, to: &mut [u8]) {
        s.store16(Self::encode(s, a), to.try_into().expect(WHOLE));
    }
    #[inline(always)]
    fn round<S: Simd>(s: S, a: S::F) -> S::F {
        Self::decode(s, Self::encode(s, a))
    }
}

impl Element for Single {
    const SIZE: usize = 4;
    #[inline(always)]
    fn load<S: Simd>(s: S, from: &[u8]) -> S::F {
        s.float(s.load32(from.try_into().expect(WHOLE)))
    }
    #[inline(always)]
    fn store<S: Simd>(s: S, a: S::F, to: &mut [u8]) {
        s.store32(s.bits(a), to.try_into().expect(WHOLE));
    }
    #[inline(always)]
    fn round<S: Simd>(_: S, a: S::F) -> S::F {
        a
    }
}

/// Runs `$body` with `$T` as the type of `$dtype`.
macro_rules! with_element {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::Float::Bf16 => {
                type $T = $crate::float::Bf16;
                $body
            }
            $crate::Float::F16 => {
                type $T = $crate::float::Half;
                $body
            }
            $crate::Float::F32 => {
                type $T = $crate::float::Single;
                $body
            }
        }
    };
}
pub(crate) use with_element;

/// Elements to f32.
struct Widen<'a, T> {
    input: &'a [u8],
    out: &'a mut [f32],
    element: PhantomData<T>,
}

impl<T: Element> Kernel for Widen<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (out, tail) = self.out.as_chunks_mut::<LANES>();
        let mut input = self.input.chunks_exact(LANES * T::SIZE);
        for (out, input) in out.iter_mut().zip(&mut input) {
            s.store(T::load(s, input), out);
        }
        let mut whole = [0; 32];
        let mut lanes = [0.0; LANES];
        whole[..input.remainder().len()].copy_from_slice(input.remainder());
        s.store(T::load(s, &whole[..LANES * T::SIZE]), &mut lanes);
        tail.copy_from_slice(&lanes[..tail.len()]);
    }
}

/// f32 to elements.
struct Narrow<'a, T> {
    input: &'a [f32],
    out: &'a mut [u8],
    element: PhantomData<T>,
}

impl<T: Element> Kernel for Narrow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let (input, tail) = self.input.as_chunks::<LANES>();
        let mut out = self.out.chunks_exact_mut(LANES * T::SIZE);
        for (input, out) in input.iter().zip(&mut out) {
            T::store(s, s.load(input), out);
        }
        let mut whole = [0; 32];
        let mut lanes = [0.0; LANES];
        lanes[..tail.len()].copy_from_slice(tail);
        T::store(s, s.load(&lanes), &mut whole[..LANES * T::SIZE]);
        out.into_remainder().copy_from_slice(&whole[..tail.len() * T::SIZE]);
    }
}

/// The values of `input`, exactly; `out` has as many elements.
pub(crate) fn widen(engine: Engine, dtype: Float, input: &[u8], out: &mut [f32]) {
    with_element!(dtype, T => engine.run(Widen::<T> { input, out, element: PhantomData }));
}

/// `input` rounded to `dtype`; `out` has as many elements.
pub(crate) fn narrow(engine: Engine, dtype: Float, input: &[f32], out: &mut [u8]) {
    with_element!(dtype, T => engine.run(Narrow::<T> { input, out, element: PhantomData }));
}

/// Elements that [`convert`] holds as f32 at a time.
const RUN: usize = 2048;

/// Every element of `input` rounded to another dtype.
pub(crate) fn convert(engine: Engine, from: Float, to: Float, input: &[u8], out: &mut [u8]) {
    let mut values = [0.0; RUN];
    let runs = input.chunks(RUN * from.size()).zip(out.chunks_mut(RUN * to.size()));
    for (input, out) in runs {
        let values = &mut values[..input.len() / from.size()];
        widen(engine, from, input, values);
        narrow(engine, to, values, out);
    }
}

/// Whether all exponents of `data` have a bit that is not set.
struct Finite<'a> {
    data: &'a [u8],
    /// Exponents of the elements in 64 bits.
    exponents: u64,
    /// The lowest bit of each of them.
    units: u64,
}

impl Kernel for Finite<'_> {
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> bool {
        // Adding one to an exponent of all ones carries into the sign bit, which was cleared.
        let (blocks, tail) = self.data.as_chunks::<256>();
        for block in blocks {
            let mut seen = [0; 4];
            for words in block.as_chunks::<8>().0.as_chunks::<4>().0 {
                for (seen, word) in seen.iter_mut().zip(words) {
                    *seen |= (u64::from_le_bytes(*word) & self.exponents) + self.units;
                }
            }
            if seen.iter().any(|seen| seen & SIGNS != 0) {
                return false;
            }
        }
        tail.chunks(8).all(|bytes| {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            ((u64::from_le_bytes(word) & self.exponents) + self.units) & SIGNS == 0
        })
    }
}

/// Where four 16-bit numbers have their signs; of two f32, the other bits are never set here.
const SIGNS: u64 = 0x8000_8000_8000_8000;

/// Whether no element is NaN or infinite.
pub(crate) fn all_finite(engine: Engine, dtype: Float, data: &[u8]) -> bool {
    let (exponents, units) = match dtype {
        Float::Bf16 => (0x7F80_7F80_7F80_7F80, 0x0080_0080_0080_0080),
        Float::F16 => (0x7C00_7C00_7C00_7C00, 0x0400_0400_0400_0400),
        Float::F32 => (0x7F80_0000_7F80_0000, 0x0080_0000_0080_0000),
    };
    engine.run(Finite { data, exponents, units })
}
