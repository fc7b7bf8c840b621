//! The vocabulary of the kernels: eight lanes of 32 bits, and one type for each instruction set.
//!
//! Every kernel is written once, over [`Simd`]. An implementation is a token that exists only on a
//! CPU with its instructions, so holding one is the proof that its methods may run. All methods
//! are `#[inline(always)]`: a kernel becomes vector code because [`Simd::vectorize`] puts it into
//! a function that carries the `#[target_feature]` of the token.
//!
//! The methods are defined to the bit, NaN included, so that the instruction sets cannot differ.
//! There is no fused multiply-add: it would round once where MLX rounds twice.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod scalar;

/// Lanes of a vector.
pub(crate) const LANES: usize = 8;

/// Codes that are packed at once.
pub(crate) const BLOCK: usize = 32;

/// A loop over data, written for any instruction set.
pub(crate) trait Kernel {
    /// What the loop returns.
    type Output;

    /// Runs the loop; implementations are `#[inline(always)]`.
    fn run<S: Simd>(self, s: S) -> Self::Output;
}

/// The operations of one instruction set.
pub(crate) trait Simd: Copy {
    /// Eight f32.
    type F: Copy;
    /// Eight 32-bit integers, or eight masks of all ones or all zeros.
    type I: Copy;
    /// 32 bytes, seen as four 64-bit integers.
    type B: Copy;

    /// Compiles `kernel` for this instruction set and runs it.
    fn vectorize<K: Kernel>(self, kernel: K) -> K::Output;

    /// Loads eight f32.
    fn load(self, from: &[f32; 8]) -> Self::F;
    /// Stores eight f32.
    fn store(self, a: Self::F, to: &mut [f32; 8]);
    /// The same f32 in each lane.
    fn splat(self, a: f32) -> Self::F;
    /// `a + b`.
    fn add(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    fn sub(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    fn mul(self, a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`, correctly rounded.
    fn div(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a < b { a } else { b }`: `b` if either is NaN.
    fn min(self, a: Self::F, b: Self::F) -> Self::F;
    /// `if a > b { a } else { b }`: `b` if either is NaN.
    fn max(self, a: Self::F, b: Self::F) -> Self::F;
    /// Mask of `a < b`, false if either is NaN.
    fn less(self, a: Self::F, b: Self::F) -> Self::I;
    /// Mask of `a == b`, false if either is NaN.
    fn equal(self, a: Self::F, b: Self::F) -> Self::I;
    /// Nearest integer, halves to even.
    fn round_even(self, a: Self::F) -> Self::F;
    /// Nearest integer towards zero.
    fn trunc(self, a: Self::F) -> Self::F;
    /// `b` where `mask` is set, else `a`.
    fn select(self, mask: Self::I, a: Self::F, b: Self::F) -> Self::F;
    /// The least lane; NaN is not allowed.
    fn least(self, a: Self::F) -> f32;
    /// The greatest lane; NaN is not allowed.
    fn greatest(self, a: Self::F) -> f32;

    /// The bits of each lane.
    fn bits(self, a: Self::F) -> Self::I;
    /// The f32 that has these bits.
    fn float(self, a: Self::I) -> Self::F;
    /// Value of a signed integer, which is exact below 2^24.
    fn to_float(self, a: Self::I) -> Self::F;
    /// Nearest integer of `0 <= a <= 255`, halves to even.
    fn code_even(self, a: Self::F) -> Self::I;
    /// Integer part of `0 <= a < 256`.
    fn code_trunc(self, a: Self::F) -> Self::I;

    /// Loads eight 32-bit integers, little endian.
    fn load32(self, from: &[u8; 32]) -> Self::I;
    /// Loads eight 16-bit integers, little endian, and extends them with zeros.
    fn load16(self, from: &[u8; 16]) -> Self::I;
    /// Loads eight bytes and extends them with zeros.
    fn load8(self, from: [u8; 8]) -> Self::I;
    /// Stores eight 32-bit integers, little endian.
    fn store32(self, a: Self::I, to: &mut [u8; 32]);
    /// Stores eight integers below 2^16 as 16 bits each, little endian.
    fn store16(self, a: Self::I, to: &mut [u8; 16]);
    /// Puts 32 integers below 256 into bytes, in order.
    fn bytes(self, a: [Self::I; 4]) -> Self::B;
    /// The same integer in each lane.
    fn splat32(self, a: u32) -> Self::I;
    /// `a & b`.
    fn and(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a | b`.
    fn or(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a + b`, wrapping.
    fn add32(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a - b`, wrapping.
    fn sub32(self, a: Self::I, b: Self::I) -> Self::I;
    /// `a << n`, `n < 32`.
    fn shl(self, a: Self::I, n: u32) -> Self::I;
    /// `a >> n`, `n < 32`, filling with zeros.
    fn shr(self, a: Self::I, n: u32) -> Self::I;
    /// The greater, signed.
    fn max32(self, a: Self::I, b: Self::I) -> Self::I;
    /// Mask of `a > b`, signed.
    fn greater32(self, a: Self::I, b: Self::I) -> Self::I;
    /// `b` where `mask` is set, else `a`.
    fn select32(self, mask: Self::I, a: Self::I, b: Self::I) -> Self::I;
    /// The greatest lane, signed.
    fn greatest32(self, a: Self::I) -> u32;

    /// Loads 32 bytes.
    fn load_block(self, from: &[u8; 32]) -> Self::B;
    /// Stores 32 bytes.
    fn store_block(self, a: Self::B, to: &mut [u8; 32]);
    /// Four 64-bit integers.
    fn block(self, a: [u64; 4]) -> Self::B;
    /// The four 64-bit integers.
    fn words(self, a: Self::B) -> [u64; 4];
    /// `a & mask` in each 64-bit integer.
    fn mask64(self, a: Self::B, mask: u64) -> Self::B;
    /// `a | b`.
    fn or64(self, a: Self::B, b: Self::B) -> Self::B;
    /// `a << n` in each 64-bit integer, `n < 64`.
    fn shl64(self, a: Self::B, n: u32) -> Self::B;
    /// `a >> n` in each 64-bit integer, `n < 64`.
    fn shr64(self, a: Self::B, n: u32) -> Self::B;
}
