//! Lanes as 256-bit vectors of x86-64.

#[cfg_attr(not(test), expect(clippy::wildcard_imports, reason = "intrinsics have a prefix"))]
use std::arch::x86_64::*;
use std::mem::transmute;

use super::{Kernel, Simd};

/// Proof that this CPU has AVX2: only [`Avx2::new`] makes one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2(());

impl Avx2 {
    /// The token, if the CPU has AVX2.
    pub(crate) fn new() -> Option<Self> {
        is_x86_feature_detected!("avx2").then_some(Self(()))
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
        // SAFETY: the intrinsic asks for AVX2 and nothing else, and the token shows it is there.
        unsafe { $intrinsic($($done),*) }
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

impl Simd for Avx2 {
    type F = __m256;
    type I = __m256i;
    type B = __m256i;

    #[inline(always)]
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2")]
        fn inner<K: Kernel>(s: Avx2, kernel: K) -> K::Output {
            kernel.run(s)
        }
        // SAFETY: the token shows that the CPU has AVX2.
        unsafe { inner(self, kernel) }
    }

    #[inline(always)]
    fn load(self, from: &[f32; 8]) -> Self::F {
        cast!([f32; 8] => __m256, *from)
    }
    #[inline(always)]
    fn store(self, a: Self::F, to: &mut [f32; 8]) {
        *to = cast!(__m256 => [f32; 8], a);
    }
    #[inline(always)]
    fn splat(self, a: f32) -> Self::F {
        op!(_mm256_set1_ps, a)
    }
    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm256_add_ps, a, b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm256_sub_ps, a, b)
    }
    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm256_mul_ps, a, b)
    }
    #[inline(always)]
    fn div(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm256_div_ps, a, b)
    }
    #[inline(always)]
    fn min(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm256_min_ps, a, b)
    }
    #[inline(always)]
    fn max(self, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm256_max_ps, a, b)
    }
    #[inline(always)]
    fn less(self, a: Self::F, b: Self::F) -> Self::I {
        self.bits(op!(_mm256_cmp_ps::<_CMP_LT_OQ>, a, b))
    }
    #[inline(always)]
    fn equal(self, a: Self::F, b: Self::F) -> Self::I {
        self.bits(op!(_mm256_cmp_ps::<_CMP_EQ_OQ>, a, b))
    }
    #[inline(always)]
    fn round_even(self, a: Self::F) -> Self::F {
        op!(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>, a)
    }
    #[inline(always)]
    fn trunc(self, a: Self::F) -> Self::F {
        op!(_mm256_round_ps::<{ _MM_FROUND_TO_ZERO | _MM_FROUND_NO_EXC }>, a)
    }
    #[inline(always)]
    fn select(self, mask: Self::I, a: Self::F, b: Self::F) -> Self::F {
        op!(_mm256_blendv_ps, a, b, self.float(mask))
    }
    #[inline(always)]
    fn least(self, a: Self::F) -> f32 {
        let low = op!(_mm256_castps256_ps128, a);
        let x = op!(_mm_min_ps, low, op!(_mm256_extractf128_ps::<1>, a));
        let x = op!(_mm_min_ps, x, op!(_mm_movehl_ps, x, x));
        let x = op!(_mm_min_ss, x, op!(_mm_movehdup_ps, x));
        op!(_mm_cvtss_f32, x)
    }
    #[inline(always)]
    fn greatest(self, a: Self::F) -> f32 {
        let low = op!(_mm256_castps256_ps128, a);
        let x = op!(_mm_max_ps, low, op!(_mm256_extractf128_ps::<1>, a));
        let x = op!(_mm_max_ps, x, op!(_mm_movehl_ps, x, x));
        let x = op!(_mm_max_ss, x, op!(_mm_movehdup_ps, x));
        op!(_mm_cvtss_f32, x)
    }

    #[inline(always)]
    fn bits(self, a: Self::F) -> Self::I {
        op!(_mm256_castps_si256, a)
    }
    #[inline(always)]
    fn float(self, a: Self::I) -> Self::F {
        op!(_mm256_castsi256_ps, a)
    }
    #[inline(always)]
    fn to_float(self, a: Self::I) -> Self::F {
        op!(_mm256_cvtepi32_ps, a)
    }
    #[inline(always)]
    fn code_even(self, a: Self::F) -> Self::I {
        // By the rounding mode of the thread, which Rust requires to be to nearest even.
        op!(_mm256_cvtps_epi32, a)
    }
    #[inline(always)]
    fn code_trunc(self, a: Self::F) -> Self::I {
        op!(_mm256_cvttps_epi32, a)
    }

    #[inline(always)]
    fn load32(self, from: &[u8; 32]) -> Self::I {
        cast!([u8; 32] => __m256i, *from)
    }
    #[inline(always)]
    fn load16(self, from: &[u8; 16]) -> Self::I {
        op!(_mm256_cvtepu16_epi32, cast!([u8; 16] => __m128i, *from))
    }
    #[inline(always)]
    fn load8(self, from: [u8; 8]) -> Self::I {
        let bytes = op!(_mm_cvtsi64_si128, i64::from_le_bytes(from));
        op!(_mm256_cvtepu8_epi32, bytes)
    }
    #[inline(always)]
    fn store32(self, a: Self::I, to: &mut [u8; 32]) {
        *to = cast!(__m256i => [u8; 32], a);
    }
    #[inline(always)]
    fn store16(self, a: Self::I, to: &mut [u8; 16]) {
        // Packing works within halves, so the quarters 0 and 2 hold the result.
        let quarters = op!(_mm256_packus_epi32, a, a);
        let joined = op!(_mm256_permute4x64_epi64::<0b00_00_10_00>, quarters);
        *to = cast!(__m128i => [u8; 16], op!(_mm256_castsi256_si128, joined));
    }
    #[inline(always)]
    fn bytes(self, a: [Self::I; 4]) -> Self::B {
        let [a, b, c, d] = a;
        let words = op!(_mm256_packs_epi32, a, b);
        let bytes = op!(_mm256_packus_epi16, words, op!(_mm256_packs_epi32, c, d));
        // Packing works within halves: they hold the first and last four bytes of each vector.
        let order = op!(_mm256_setr_epi32, 0, 4, 1, 5, 2, 6, 3, 7);
        op!(_mm256_permutevar8x32_epi32, bytes, order)
    }
    #[inline(always)]
    fn splat32(self, a: u32) -> Self::I {
        op!(_mm256_set1_epi32, a as i32)
    }
    #[inline(always)]
    fn and(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm256_and_si256, a, b)
    }
    #[inline(always)]
    fn or(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm256_or_si256, a, b)
    }
    #[inline(always)]
    fn add32(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm256_add_epi32, a, b)
    }
    #[inline(always)]
    fn sub32(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm256_sub_epi32, a, b)
    }
    #[inline(always)]
    fn shl(self, a: Self::I, n: u32) -> Self::I {
        // With a constant `n`, which all kernels have, this becomes the immediate form.
        op!(_mm256_sll_epi32, a, op!(_mm_cvtsi32_si128, n as i32))
    }
    #[inline(always)]
    fn shr(self, a: Self::I, n: u32) -> Self::I {
        op!(_mm256_srl_epi32, a, op!(_mm_cvtsi32_si128, n as i32))
    }
    #[inline(always)]
    fn max32(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm256_max_epi32, a, b)
    }
    #[inline(always)]
    fn greater32(self, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm256_cmpgt_epi32, a, b)
    }
    #[inline(always)]
    fn select32(self, mask: Self::I, a: Self::I, b: Self::I) -> Self::I {
        op!(_mm256_blendv_epi8, a, b, mask)
    }
    #[inline(always)]
    fn greatest32(self, a: Self::I) -> u32 {
        let low = op!(_mm256_castsi256_si128, a);
        let x = op!(_mm_max_epi32, low, op!(_mm256_extracti128_si256::<1>, a));
        let x = op!(_mm_max_epi32, x, op!(_mm_shuffle_epi32::<0b00_00_11_10>, x));
        let x = op!(_mm_max_epi32, x, op!(_mm_shuffle_epi32::<0b00_00_00_01>, x));
        op!(_mm_cvtsi128_si32, x) as u32
    }

    #[inline(always)]
    fn load_block(self, from: &[u8; 32]) -> Self::B {
        self.load32(from)
    }
    #[inline(always)]
    fn store_block(self, a: Self::B, to: &mut [u8; 32]) {
        self.store32(a, to);
    }
    #[inline(always)]
    fn block(self, a: [u64; 4]) -> Self::B {
        cast!([u64; 4] => __m256i, a)
    }
    #[inline(always)]
    fn words(self, a: Self::B) -> [u64; 4] {
        cast!(__m256i => [u64; 4], a)
    }
    #[inline(always)]
    fn mask64(self, a: Self::B, mask: u64) -> Self::B {
        op!(_mm256_and_si256, a, op!(_mm256_set1_epi64x, mask as i64))
    }
    #[inline(always)]
    fn or64(self, a: Self::B, b: Self::B) -> Self::B {
        op!(_mm256_or_si256, a, b)
    }
    #[inline(always)]
    fn shl64(self, a: Self::B, n: u32) -> Self::B {
        op!(_mm256_sll_epi64, a, op!(_mm_cvtsi32_si128, n as i32))
    }
    #[inline(always)]
    fn shr64(self, a: Self::B, n: u32) -> Self::B {
        op!(_mm256_srl_epi64, a, op!(_mm_cvtsi32_si128, n as i32))
    }
}
