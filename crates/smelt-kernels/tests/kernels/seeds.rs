//! Inputs that are hard: one table for every format, rule and instruction set.

use smelt_kernels::Float;

use crate::naive::{Tables, power, store};

/// Elements of a block: a run of the kernels and the least part of another.
pub(crate) const LEN: usize = 2048 + 128;

/// A small generator, so that a failure comes back.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u32 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z >> 32) as u32
    }

    /// Between -1 and 1.
    pub(crate) fn unit(&mut self) -> f32 {
        self.bits() as f32 / (1u64 << 31) as f32 - 1.0
    }

    /// From `0..n`.
    pub(crate) fn below(&mut self, n: u32) -> u32 {
        self.bits() % n
    }
}

/// What an element of a case is, by its index.
type Element = fn(&mut Random, usize) -> f32;

/// Every group of 128 has its own magnitude, from the smallest to the greatest.
fn all_magnitudes(random: &mut Random, k: usize) -> f32 {
    random.unit() * power((k / 128 * 16) as i32 - 149)
}

/// Values with a finite range; infinities arise where a dtype ends below f32.
const FINITE: &[(&str, Element)] = &[
    ("uniform", |random, _| random.unit()),
    ("weights", |random, _| (random.unit() + random.unit() + random.unit()) * 0.02),
    ("zero", |_, _| 0.0),
    ("negative zero", |_, _| -0.0),
    ("zeros of both signs", |random, _| if random.below(2) == 0 { 0.0 } else { -0.0 }),
    ("constant", |_, k| (k / 128) as f32 * 0.37 - 1.1),
    ("positive", |random, _| random.unit() + 1.5),
    ("negative", |random, _| random.unit() - 1.5),
    ("integers", |random, _| random.below(16) as f32 - 8.0),
    ("halves", |random, _| random.below(63) as f32 / 2.0 - 15.5),
    ("quarters", |random, _| random.below(51) as f32 / 4.0 - 6.25),
    ("eighths", |random, _| random.below(97) as f32 / 8.0 - 6.0),
    ("halves of 255", |random, k| if k % 32 == 0 { 255.0 } else { random.below(511) as f32 / 2.0 }),
    ("far from zero", |random, _| 1000.0 + random.unit()),
    ("one outlier", |random, k| if k % 128 == 77 { -3000.0 } else { random.unit() }),
    ("tiny", |random, _| random.unit() * 1e-7),
    ("around the least scale", |random, k| random.unit() * 1e-7 * (k / 32 + 1) as f32),
    ("subnormal in f32", |random, _| random.unit() * 1e-39),
    ("all magnitudes", all_magnitudes),
    ("powers of two", |random, _| power(random.below(40) as i32 - 24)),
    ("three halves of powers", |random, _| power(random.below(40) as i32 - 24) * -1.5),
    ("great for E4M3 scales", |random, k| random.unit() * power(12 + (k / 128) as i32 * 4)),
    ("the end of f16", |random, _| if random.below(2) == 0 { 65504.0 } else { -65504.0 }),
    ("the end of bf16", |random, _| if random.below(2) == 0 { 3.38e38 } else { -3.38e38 }),
];

/// Values that are no numbers.
const SPECIAL: &[(&str, Element)] = &[
    ("some NaN", |random, k| if k % 45 == 3 { f32::NAN } else { random.unit() }),
    ("some negative NaN", |random, k| if k % 45 == 3 { -f32::NAN } else { random.unit() }),
    ("some signalling NaN", |random, k| {
        if k % 45 == 3 { f32::from_bits(0x7F80_0001 | random.bits() << 31) } else { random.unit() }
    }),
    ("all NaN", |random, _| f32::from_bits(0x7FC0_0000 | random.bits())),
    ("some infinity", |random, k| if k % 45 == 3 { f32::INFINITY } else { random.unit() }),
    ("some negative infinity", |random, k| if k % 45 == 3 { f32::NEG_INFINITY } else { random.unit() }),
    ("all infinities", |random, _| if random.below(2) == 0 { f32::INFINITY } else { f32::NEG_INFINITY }),
    ("any bits", |random, _| f32::from_bits(random.bits())),
];

/// Names and bytes of all blocks in `dtype`.
pub(crate) fn blocks(tables: &Tables, dtype: Float) -> Vec<(&'static str, Vec<u8>)> {
    let cases = FINITE.iter().chain(SPECIAL);
    let block = |(name, element): &(&'static str, Element)| {
        let mut random = Random(name.len() as u64);
        let values: Vec<f32> = (0..LEN).map(|k| element(&mut random, k)).collect();
        (*name, store(tables, dtype, &values))
    };
    let mut blocks: Vec<_> = cases.map(block).collect();
    let mut random = Random(1);
    let noise = (0..LEN * dtype.size()).map(|_| random.bits() as u8).collect();
    blocks.push(("any bytes", noise));
    blocks
}
