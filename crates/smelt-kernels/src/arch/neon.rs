//! Lanes as pairs of 128-bit vectors of 64-bit Arm.

#[cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics have a prefix"))]
use std::arch::aarch64::*;
use std::mem::transmute;

use super::{Kernel, Simd};

/// Proof that this CPU has NEON: only [`Neon::new`] makes one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neon(());

impl Neon {
    /// The token, if the CPU has NEON, which all but a few bare-metal ones have.
    pub(crate) fn new() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

/// One intrinsic. Its arguments are evaluated outside of the unsafe block.
macro_rules! op {
    ($intrinsic:expr $(, $argument:expr)*) => {
        op!(@ $intrinsic, ($($argument,)*) -> ())
    };
    (@ $intrinsic:expr, ($argument:expr, $($rest:expr,)*) -> ($($done:ident,)*)) => {
        match $argument { a => op!(@ $intrinsic, ($($rest,)*) -> ($($done,)* a,)) }
    };
    (@ $intrinsic:expr, () -> ($($done:ident,)*)) => {
        // SAFETY: the intrinsic asks for NEON and nothing else, and the token shows it is there.
        unsafe { $intrinsic($($done),*) }
    };
}

/// One intrinsic on both halves.
macro_rules! pair {
    ($intrinsic:expr, $a:expr) => {
        [op!($intrinsic, $a[0]), op!($intrinsic, $a[1])]
    };
    ($intrinsic:expr, $a:expr, $b:expr) => {
        [op!($intrinsic, $a[0], $b[0]), op!($intrinsic, $a[1], $b[1])]
    };
    ($intrinsic:expr, $a:expr, $b:expr, $c:expr) => {
        [op!($intrinsic, $a[0], $b[0], $c[0]), op!($intrinsic, $a[1], $b[1], $c[1])]
    };
}

/// The same bits as another type of the same size.
macro_rules! cast {
    ($from:ty => $to:ty, $value:expr) => {{
        let value: $from = $value;
        // SAFETY: both are plain numbers without padding, valid for any bits.
        unsafe { transmute::<$from, $to>(value) }
    }};
}

impl Simd for Neon {
    type F = [float32x4_t; 2];
    type I = [uint32x4_t; 2];
    type B = [uint64x2_t; 2];

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon")]
        fn inner<K: Kernel>(s: Neon, kernel: K) -> K::Output {
            kernel.run(s)
        }
        // SAFETY: the token shows that the CPU has NEON.
        unsafe { inner(self, kernel) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; 8]) -> Self::F {
        cast!([f32; 8] => [float32x4_t; 2], *from)
    }
    #[inline(always)]
    fn store(self, a: Self::F, to: &mut [f32; 8]) {
        *to = cast!([float32x4_t; 2] => [f32; 8], a);
    }
    #[inline(always)]
    fn splat(self, a: f32) -> Self::F {
        [op!(vdupq_n_f32, a); 2]
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        pair!(vaddq_f32, a, b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        pair!(vsubq_f32, a, b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        pair!(vmulq_f32, a, b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        pair!(vdivq_f32, a, b)
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        // Not the minimum instructions, which treat NaN otherwise.
        self.select(self.less(a, b), b, a)
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        self.select(self.less(b, a), b, a)
    }
    #[inline(always)]
    fn less(self, a: Self::F, b: Self::F) -> Self::I {
        pair!(vcltq_f32, a, b)
    }
    #[inline(always)]
    fn equal(self, a: Self::F, b: Self::F) -> Self::I {
        pair!(vceqq_f32, a, b)
    }
    #[inline(always)]
    fn round_even(self, a: Self::F) -> Self::F {
        pair!(vrndnq_f32, a)
    }
    #[inline(always)]
    fn trunc(self, a: Self::F) -> Self::F {
        pair!(vrndq_f32, a)
    }
    #[inline(always)]
    fn select(self, mask: Self::I, a: Self::F, b: Self::F) -> Self::F {
        pair!(vbslq_f32, mask, b, a)
    }
    #[inline(always)]
    fn least(self, a: Self::F) -> f32 {
        op!(vminvq_f32, op!(vminq_f32, a[0], a[1]))
    }
    #[inline(always)]
    fn greatest(self, a: Self::F) -> f32 {
        op!(vmaxvq_f32, op!(vmaxq_f32, a[0], a[1]))
    }

    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        pair!(vreinterpretq_u32_f32, a)
    }
    #[inline(always)]
    fn float(self, a: Self::I) -> Self::F {
        pair!(vreinterpretq_f32_u32, a)
    }
    #[inline(always)]
    fn to_float(self, a: Self::I) -> Self::F {
        pair!(vcvtq_f32_s32, pair!(vreinterpretq_s32_u32, a))
    }
    #[inline(always)]
    fn code_even(self, a: Self::F) -> Self::I {
        pair!(vcvtnq_u32_f32, a)
    }
    #[inline(always)]
    fn code_trunc(self, a: Self::F) -> Self::I {
        pair!(vcvtq_u32_f32, a)
    }

    #[inline(always)]
    fn load32(self, from: &[u8; 32]) -> Self::I {
        cast!([u8; 32] => [uint32x4_t; 2], *from)
    }
    #[inline(always)]
    fn load16(self, from: &[u8; 16]) -> Self::I {
        let words = cast!([u8; 16] => uint16x8_t, *from);
        [op!(vmovl_u16, op!(vget_low_u16, words)), op!(vmovl_high_u16, words)]
    }
    #[inline(always)]
    fn load8(self, from: [u8; 8]) -> Self::I {
        let words = op!(vmovl_u8, cast!([u8; 8] => uint8x8_t, from));
        [op!(vmovl_u16, op!(vget_low_u16, words)), op!(vmovl_high_u16, words)]
    }
    #[inline(always)]
    fn store32(self, a: Self::I, to: &mut [u8; 32]) {
        *to = cast!([uint32x4_t; 2] => [u8; 32], a);
    }
    #[inline(always)]
    fn store16(self, a: Self::I, to: &mut [u8; 16]) {
        let words = op!(vcombine_u16, op!(vmovn_u32, a[0]), op!(vmovn_u32, a[1]));
        *to = cast!(uint16x8_t => [u8; 16], words);
    }
    #[inline(always)]
    fn bytes(self, a: [Self::I; 4]) -> Self::B {
        let mut eights = [[0; 8]; 4];
        for (bytes, a) in eights.iter_mut().zip(a) {
            let words = op!(vcombine_u16, op!(vmovn_u32, a[0]), op!(vmovn_u32, a[1]));
            *bytes = cast!(uint8x8_t => [u8; 8], op!(vmovn_u16, words));
        }
        cast!([[u8; 8]; 4] => [uint64x2_t; 2], eights)
    }
    #[inline(always)]
    fn splat32(self, a: u32) -> Self::I {
        [op!(vdupq_n_u32, a); 2]
    }
    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        pair!(vandq_u32, a, b)
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        pair!(vorrq_u32, a, b)
    }
    #[inline(always)]
    fn add32(self, a: Self::I, b: Self::I) -> Self::I {
        pair!(vaddq_u32, a, b)
    }
    #[inline(always)]
    fn sub32(self, a: Self::I, b: Self::I) -> Self::I {
        pair!(vsubq_u32, a, b)
    }
    #[inline(always)]
    fn shl(self, a: Self::I, n: u32) -> Self::I {
        let by = [op!(vdupq_n_s32, n as i32); 2];
        pair!(vshlq_u32, a, by)
    }
    #[inline(always)]
    fn shr(self, a: Self::I, n: u32) -> Self::I {
        // There is one shift by a variable: to the left, and back by a negative number.
        let by = [op!(vdupq_n_s32, -(n as i32)); 2];
        pair!(vshlq_u32, a, by)
    }
    #[inline(always)]
    fn max32(self, a: Self::I, b: Self::I) -> Self::I {
        self.select32(self.greater32(a, b), b, a)
    }
    #[inline(always)]
    fn greater32(self, a: Self::I, b: Self::I) -> Self::I {
        let (a, b) = (pair!(vreinterpretq_s32_u32, a), pair!(vreinterpretq_s32_u32, b));
        pair!(vcgtq_s32, a, b)
    }
    #[inline(always)]
    fn select32(self, mask: Self::I, a: Self::I, b: Self::I) -> Self::I {
        pair!(vbslq_u32, mask, b, a)
    }
    #[inline(always)]
    fn greatest32(self, a: Self::I) -> u32 {
        let a = pair!(vreinterpretq_s32_u32, a);
        op!(vmaxvq_s32, op!(vmaxq_s32, a[0], a[1])) as u32
    }

    #[inline(always)]
    fn load_block(self, from: &[u8; 32]) -> Self::B {
        cast!([u8; 32] => [uint64x2_t; 2], *from)
    }
    #[inline(always)]
    fn store_block(self, a: Self::B, to: &mut [u8; 32]) {
        *to = cast!([uint64x2_t; 2] => [u8; 32], a);
    }
    #[inline(always)]
    fn block(self, a: [u64; 4]) -> Self::B {
        cast!([u64; 4] => [uint64x2_t; 2], a)
    }
    #[inline(always)]
    fn words(self, a: Self::B) -> [u64; 4] {
        cast!([uint64x2_t; 2] => [u64; 4], a)
    }
    #[inline(always)]
    fn mask64(self, a: Self::B, mask: u64) -> Self::B {
        let mask = [op!(vdupq_n_u64, mask); 2];
        pair!(vandq_u64, a, mask)
    }
    #[inline(always)]
    fn or64(self, a: Self::B, b: Self::B) -> Self::B {
        pair!(vorrq_u64, a, b)
    }
    #[inline(always)]
    fn shl64(self, a: Self::B, n: u32) -> Self::B {
        let by = [op!(vdupq_n_s64, i64::from(n)); 2];
        pair!(vshlq_u64, a, by)
    }
    #[inline(always)]
    fn shr64(self, a: Self::B, n: u32) -> Self::B {
        let by = [op!(vdupq_n_s64, -i64::from(n)); 2];
        pair!(vshlq_u64, a, by)
    }
}
