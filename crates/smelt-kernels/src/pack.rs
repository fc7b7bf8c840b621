//! Codes of 2 to 8 bits as one little-endian stream of bits, and back.
//!
//! Eight codes lie in the bytes of a 64-bit integer. Three halvings bring them together, four
//! integers at a time, for any width `b`:
//!
//! ```text
//! bytes   ->  2b bits in each 16:  x & lo  |  (x & hi) >> (8 - b)
//! 16 bits ->  4b bits in each 32:  x & lo  |  (x & hi) >> (16 - 2b)
//! 32 bits ->  8b bits in 64:       x & lo  |  (x & hi) >> (32 - 4b)
//! ```
//!
//! That leaves `b` bytes, so each integer is stored whole and the next one over its empty end:
//! the stream needs [`SLACK`] bytes behind it. Unpacking runs the same steps backwards.

use crate::arch::{BLOCK, Kernel, Simd};
use crate::dispatch::Engine;

/// Bytes behind the packed stream that are written or read with it.
pub(crate) const SLACK: usize = 32;

/// A step of the module's table: fields of `1 << log` bits, each half of which holds
/// `used` bits.
#[inline(always)]
const fn halves(log: u32, used: u32) -> (u64, u64, u32) {
    let half = 1 << (log - 1);
    let mut low = 0;
    let mut at = 0;
    while at < u64::BITS {
        low |= ((1 << used) - 1) << at;
        at += 2 * half;
    }
    (low, low << half, half - used)
}

/// Bytes to `bits` bits, see the module.
struct Pack<'a, const BITS: usize> {
    codes: &'a [u8],
    out: &'a mut [u8],
}

impl<const BITS: usize> Kernel for Pack<'_, BITS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (k, codes) in self.codes.as_chunks::<BLOCK>().0.iter().enumerate() {
            let out = &mut self.out[k * 4 * BITS..][..SLACK];
            let mut x = s.load_block(codes);
            for step in 0..3 {
                let (low, high, by) = halves(4 + step, (BITS as u32) << step);
                x = s.or64(s.mask64(x, low), s.shr64(s.mask64(x, high), by));
            }
            for (i, word) in s.words(x).into_iter().enumerate() {
                out[i * BITS..][..8].copy_from_slice(&word.to_le_bytes());
            }
        }
    }
}

/// `bits` bits to bytes, see the module.
struct Unpack<'a, const BITS: usize> {
    packed: &'a [u8],
    codes: &'a mut [u8],
}

impl<const BITS: usize> Kernel for Unpack<'_, BITS> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (k, codes) in self.codes.as_chunks_mut::<BLOCK>().0.iter_mut().enumerate() {
            let packed = &self.packed[k * 4 * BITS..][..SLACK];
            let mut words = [0; 4];
            for (i, word) in words.iter_mut().enumerate() {
                let bytes = packed[i * BITS..].first_chunk().expect("slack follows the stream");
                *word = u64::from_le_bytes(*bytes);
            }
            let mut x = s.block(words);
            for step in (0..3).rev() {
                let (low, high, by) = halves(4 + step, (BITS as u32) << step);
                x = s.or64(s.mask64(x, low), s.mask64(s.shl64(x, by), high));
            }
            s.store_block(x, codes);
        }
    }
}

/// Runs `$body` with `$BITS` as the constant `$bits`.
macro_rules! with_bits {
    ($bits:expr, $BITS:ident => $body:expr) => {
        match $bits {
            2 => with_bits!(@ 2, $BITS, $body),
            3 => with_bits!(@ 3, $BITS, $body),
            4 => with_bits!(@ 4, $BITS, $body),
            5 => with_bits!(@ 5, $BITS, $body),
            6 => with_bits!(@ 6, $BITS, $body),
            8 => with_bits!(@ 8, $BITS, $body),
            other => unreachable!("no format has {other} bits"),
        }
    };
    (@ $value:literal, $BITS:ident, $body:expr) => {{
        const $BITS: usize = $value;
        $body
    }};
}

/// Packs whole blocks of `codes`; `out` has [`SLACK`] bytes more than the stream.
pub(crate) fn pack(engine: Engine, bits: u8, codes: &[u8], out: &mut [u8]) {
    with_bits!(bits, BITS => engine.run(Pack::<BITS> { codes, out }));
}

/// Unpacks whole blocks of `codes`; `packed` has [`SLACK`] bytes more than the stream.
pub(crate) fn unpack(engine: Engine, bits: u8, packed: &[u8], codes: &mut [u8]) {
    with_bits!(bits, BITS => engine.run(Unpack::<BITS> { packed, codes }));
}
