//! Lanes as plain arrays: the twin that runs everywhere and that every other type must equal.

use std::array::from_fn;

use super::{Kernel, Simd};

/// Plain Rust; the compiler may use whatever the target guarantees.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scalar;

/// A mask of all ones if `set`.
#[inline(always)]
const fn mask(set: bool) -> u32 {
    0u32.wrapping_sub(set as u32)
}

/// A lane of `b` where `mask` is set, else of `a`.
#[inline(always)]
const fn choose(mask: u32, a: u32, b: u32) -> u32 {
    (a & !mask) | (b & mask)
}

/// Lane by lane; a macro since a closure would not be sure to be inlined.
macro_rules! lanes {
    ($i:ident => $lane:expr) => {{
        let mut out = [Default::default(); 8];
        for $i in 0..8 {
            out[$i] = $lane;
        }
        out
    }};
}

impl Simd for Scalar {
    type F = [f32; 8];
    type I = [u32; 8];
    type B = [u64; 4];

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run(self)
    }

    #[inline(always)]
    fn load(self, from: &[f32; 8]) -> Self::F {
        *from
    }
    #[inline(always)]
    fn store(self, a: Self::F, to: &mut [f32; 8]) {
        *to = a;
    }
    #[inline(always)]
    fn splat(self, a: f32) -> Self::F {
        [a; 8]
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(i => a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(i => a[i] - b[i])
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(i => a[i] * b[i])
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(i => a[i] / b[i])
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(i => if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        lanes!(i => if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn less(self, a: Self::F, b: Self::F) -> Self::I {
        lanes!(i => mask(a[i] < b[i]))
    }
    #[inline(always)]
    fn equal(self, a: Self::F, b: Self::F) -> Self::I {
        lanes!(i => mask(a[i] == b[i]))
    }
    #[inline(always)]
    fn round_even(self, a: Self::F) -> Self::F {
        lanes!(i => a[i].round_ties_even())
    }
    #[inline(always)]
    fn trunc(self, a: Self::F) -> Self::F {
        lanes!(i => a[i].trunc())
    }
    #[inline(always)]
    fn select(self, mask: Self::I, a: Self::F, b: Self::F) -> Self::F {
        lanes!(i => f32::from_bits(choose(mask[i], a[i].to_bits(), b[i].to_bits())))
    }
    #[inline(always)]
    fn least(self, a: Self::F) -> f32 {
        a.into_iter().fold(f32::INFINITY, |x, y| if y < x { y } else { x })
    }
    #[inline(always)]
    fn greatest(self, a: Self::F) -> f32 {
        a.into_iter().fold(f32::NEG_INFINITY, |x, y| if y > x { y } else { x })
    }

    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        lanes!(i => a[i].to_bits())
    }
    #[inline(always)]
    fn float(self, a: Self::I) -> Self::F {
        lanes!(i => f32::from_bits(a[i]))
    }
    #[inline(always)]
    fn to_float(self, a: Self::I) -> Self::F {
        lanes!(i => a[i] as i32 as f32)
    }
    #[inline(always)]
    fn code_even(self, a: Self::F) -> Self::I {
        // Beside 2^23 an f32 has no room for a fraction, so the addition itself rounds.
        lanes!(i => (a[i] + 8_388_608.0).to_bits() & 0xFF)
    }
    #[inline(always)]
    fn code_trunc(self, a: Self::F) -> Self::I {
        lanes!(i => a[i] as i32 as u32)
    }

    #[inline(always)]
    fn load32(self, from: &[u8; 32]) -> Self::I {
        from_fn(|i| u32::from_le_bytes([from[4 * i], from[4 * i + 1], from[4 * i + 2], from[4 * i + 3]]))
    }
    #[inline(always)]
    fn load16(self, from: &[u8; 16]) -> Self::I {
        from_fn(|i| u32::from(u16::from_le_bytes([from[2 * i], from[2 * i + 1]])))
    }
    #[inline(always)]
    fn load8(self, from: [u8; 8]) -> Self::I {
        lanes!(i => u32::from(from[i]))
    }
    #[inline(always)]
    fn store32(self, a: Self::I, to: &mut [u8; 32]) {
        for (to, a) in to.as_chunks_mut().0.iter_mut().zip(a) {
            *to = a.to_le_bytes();
        }
    }
    #[inline(always)]
    fn store16(self, a: Self::I, to: &mut [u8; 16]) {
        for (to, a) in to.as_chunks_mut().0.iter_mut().zip(a) {
            *to = (a as u16).to_le_bytes();
        }
    }
    #[inline(always)]
    fn bytes(self, a: [Self::I; 4]) -> Self::B {
        from_fn(|i| u64::from_le_bytes(from_fn(|k| a[i][k] as u8)))
    }
    #[inline(always)]
    fn splat32(self, a: u32) -> Self::I {
        [a; 8]
    }
    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        lanes!(i => a[i] & b[i])
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        lanes!(i => a[i] | b[i])
    }
    #[inline(always)]
    fn add32(self, a: Self::I, b: Self::I) -> Self::I {
        lanes!(i => a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn sub32(self, a: Self::I, b: Self::I) -> Self::I {
        lanes!(i => a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    fn shl(self, a: Self::I, n: u32) -> Self::I {
        lanes!(i => a[i] << n)
    }
    #[inline(always)]
    fn shr(self, a: Self::I, n: u32) -> Self::I {
        lanes!(i => a[i] >> n)
    }
    #[inline(always)]
    fn max32(self, a: Self::I, b: Self::I) -> Self::I {
        lanes!(i => (a[i] as i32).max(b[i] as i32) as u32)
    }
    #[inline(always)]
    fn greater32(self, a: Self::I, b: Self::I) -> Self::I {
        lanes!(i => mask(a[i] as i32 > b[i] as i32))
    }
    #[inline(always)]
    fn select32(self, mask: Self::I, a: Self::I, b: Self::I) -> Self::I {
        lanes!(i => choose(mask[i], a[i], b[i]))
    }
    #[inline(always)]
    fn greatest32(self, a: Self::I) -> u32 {
        a.into_iter().fold(i32::MIN, |x, y| x.max(y as i32)) as u32
    }

    #[inline(always)]
    fn load_block(self, from: &[u8; 32]) -> Self::B {
        let (words, _) = from.as_chunks();
        from_fn(|i| u64::from_le_bytes(words[i]))
    }
    #[inline(always)]
    fn store_block(self, a: Self::B, to: &mut [u8; 32]) {
        for (to, a) in to.as_chunks_mut().0.iter_mut().zip(a) {
            *to = a.to_le_bytes();
        }
    }
    #[inline(always)]
    fn block(self, a: [u64; 4]) -> Self::B {
        a
    }
    #[inline(always)]
    fn words(self, a: Self::B) -> [u64; 4] {
        a
    }
    #[inline(always)]
    fn mask64(self, a: Self::B, mask: u64) -> Self::B {
        a.map(|a| a & mask)
    }
    #[inline(always)]
    fn or64(self, a: Self::B, b: Self::B) -> Self::B {
        from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn shl64(self, a: Self::B, n: u32) -> Self::B {
        a.map(|a| a << n)
    }
    #[inline(always)]
    fn shr64(self, a: Self::B, n: u32) -> Self::B {
        a.map(|a| a >> n)
    }
}
