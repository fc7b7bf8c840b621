//! What a block of weights amounts to: its largest magnitude, its zeros, its sum of squares.
//!
//! All three are the same however a tensor is cut and in whatever order its blocks are added. The
//! first two are so by nature. A sum of floats is not, so squares are summed as integers, apart for
//! each exponent `e`, with mantissas `m` of 12 bits:
//!
//! ```text
//! Σ x² = Σ_e 2^(2 (e - 138)) Σ m²        exact for bf16 and f16; f32 loses less than 2^-11 of it
//! ```
//!
//! A sum of 64 bits holds 2^40 squares. Subnormals of f32 and bf16 count as 0.

use crate::Float;
use crate::arch::{Kernel, Simd};
use crate::dispatch::Engine;
use crate::float;

/// The largest magnitude of a block, and how many of its elements are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Extent {
    /// `max |x|`: infinite if an element is, NaN if one is NaN.
    pub largest: f32,
    /// Elements that are 0, of either sign.
    pub zeros: u64,
}

/// Elements that are looked at side by side.
const WIDE: usize = 32;

/// Blocks of [`WIDE`] after which the counts of 16 bits are added up.
const PIECE: usize = WIDE * 60_000;

/// The bits of an element without its sign, which order magnitudes as integers.
trait Bits<const BYTES: usize>: Copy + Ord + Default {
    fn of(bytes: [u8; BYTES]) -> Self;
}

impl Bits<2> for u16 {
    #[inline(always)]
    fn of(bytes: [u8; 2]) -> Self {
        Self::from_le_bytes(bytes) & 0x7FFF
    }
}

impl Bits<4> for u32 {
    #[inline(always)]
    fn of(bytes: [u8; 4]) -> Self {
        Self::from_le_bytes(bytes) & 0x7FFF_FFFF
    }
}

/// The largest magnitude, as bits, and the zeros of elements of `BYTES` bytes.
struct Extremes<'a, const BYTES: usize> {
    data: &'a [[u8; BYTES]],
}

impl<const BYTES: usize> Extremes<'_, BYTES> {
    #[inline(always)]
    fn find<B: Bits<BYTES>>(self) -> (B, u64) {
        let (mut largest, mut zeros) = ([B::default(); WIDE], 0);
        for piece in self.data.chunks(PIECE) {
            let mut counts = [0u16; WIDE];
            let (blocks, rest) = piece.as_chunks::<WIDE>();
            for block in blocks {
                for i in 0..WIDE {
                    let bits = B::of(block[i]);
                    largest[i] = largest[i].max(bits);
                    counts[i] += u16::from(bits == B::default());
                }
            }
            for bytes in rest {
                largest[0] = largest[0].max(B::of(*bytes));
                zeros += u64::from(B::of(*bytes) == B::default());
            }
            zeros += counts.iter().map(|&count| u64::from(count)).sum::<u64>();
        }
        (largest.into_iter().max().unwrap_or_default(), zeros)
    }
}

impl Kernel for Extremes<'_, 2> {
    type Output = (u16, u64);

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> (u16, u64) {
        self.find()
    }
}

impl Kernel for Extremes<'_, 4> {
    type Output = (u32, u64);

    #[inline(always)]
    fn run<S: Simd>(self, _: S) -> (u32, u64) {
        self.find()
    }
}

/// The extent of whole elements.
pub(crate) fn extent(engine: Engine, dtype: Float, data: &[u8]) -> Extent {
    if dtype == Float::F32 {
        let (bits, zeros) = engine.run(Extremes { data: data.as_chunks::<4>().0 });
        return Extent { largest: f32::from_bits(bits), zeros };
    }
    let (bits, zeros) = engine.run(Extremes { data: data.as_chunks::<2>().0 });
    let mut largest = [0.0];
    float::widen(engine, dtype, &bits.to_le_bytes(), &mut largest);
    Extent { largest: largest[0], zeros }
}

/// A sum of squares that does not depend on the order of what is added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Squares {
    /// Squares of mantissas by the exponent of an f32.
    sums: [u64; 256],
    count: u64,
}

impl Default for Squares {
    fn default() -> Self {
        Self { sums: [0; 256], count: 0 }
    }
}

/// Elements that are widened at a time.
const RUN: usize = 2048;

impl Squares {
    /// Adds whole elements.
    pub(crate) fn extend(&mut self, engine: Engine, dtype: Float, data: &[u8]) {
        let mut values = [0.0; RUN];
        for data in data.chunks(RUN * dtype.size()) {
            let values = &mut values[..data.len() / dtype.size()];
            float::widen(engine, dtype, data, values);
            self.count += values.len() as u64;
            for value in values {
                let bits = value.to_bits();
                let exponent = (bits >> 23) as u8;
                let mantissa = u64::from(0x800 | (bits >> 12 & 0x7FF));
                self.sums[usize::from(exponent)] += mantissa * mantissa;
            }
        }
    }

    /// Adds what another has.
    pub fn merge(&mut self, other: &Self) {
        self.sums.iter_mut().zip(other.sums).for_each(|(sum, other)| *sum += other);
        self.count += other.count;
    }

    /// The mean of the squares; 0 of none. It has no meaning if an element is not finite.
    pub fn mean(&self) -> f64 {
        // The exponent 0 is that of zeros and subnormals.
        let sums = self.sums.iter().enumerate().skip(1);
        let total: f64 = sums.map(|(e, &sum)| sum as f64 * 2f64.powi(2 * (e as i32 - 138))).sum();
        if self.count == 0 { 0.0 } else { total / self.count as f64 }
    }
}
