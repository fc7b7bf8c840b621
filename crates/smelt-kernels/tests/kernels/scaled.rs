//! Codes of other tools' formats against their definitions, every byte of each.

use proptest::prelude::*;
use smelt_kernels::{Code, Float, Isa, Steps, unpack};

/// A small float by its definition, in double.
fn small(byte: u8, exponent_bits: u32, mantissa_bits: u32) -> f64 {
    let bias = (1 << (exponent_bits - 1)) - 1;
    let magnitude = u32::from(byte) & ((1 << (exponent_bits + mantissa_bits)) - 1);
    let negative = u32::from(byte) >> (exponent_bits + mantissa_bits) & 1 == 1;
    let (exponent, mantissa) = ((magnitude >> mantissa_bits) as i32, magnitude & ((1 << mantissa_bits) - 1));
    let fraction = f64::from(mantissa) / f64::from(1 << mantissa_bits);
    let value = match exponent {
        0 => fraction * 2f64.powi(1 - bias),
        _ => (1.0 + fraction) * 2f64.powi(exponent - bias),
    };
    if negative { -value } else { value }
}

fn value(code: Code, byte: u8) -> f64 {
    match code {
        Code::E4m3 if byte & 0x7F == 0x7F => f64::NAN,
        Code::E4m3 => small(byte, 4, 3),
        Code::E5m2 if byte & 0x7F > 0x7C => f64::NAN,
        Code::E5m2 if byte & 0x7F == 0x7C => f64::INFINITY.copysign(if byte > 127 { -1.0 } else { 1.0 }),
        Code::E5m2 => small(byte, 5, 2),
        Code::E2m1 => small(byte & 15, 2, 1),
        Code::Unsigned => f64::from(byte),
        Code::Signed => f64::from(byte as i8),
    }
}

const CODES: [Code; 5] = [Code::E4m3, Code::E5m2, Code::E2m1, Code::Unsigned, Code::Signed];

/// f32 to bf16 by nearest even, in integers.
fn bf16(value: f32) -> u16 {
    if value.is_nan() {
        return 0x7FC0;
    }
    let bits = u64::from(value.to_bits());
    ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16
}

fn decoded(isa: Isa, code: Code, codes: &[u8], steps: Steps<'_>, to: Float) -> Vec<u8> {
    let mut out = vec![0xAA; codes.len() * to.size()];
    isa.scaled(code, codes, steps, to, &mut out);
    out
}

#[test]
fn every_byte_of_every_code() {
    for isa in Isa::available() {
        for code in CODES {
            let limit = if code == Code::E2m1 { 16 } else { 256 };
            let codes: Vec<u8> = (0..limit).map(|byte: u16| byte as u8).collect();
            let scales = [1.0];
            let steps = Steps { scales: &scales, zeros: &[], size: 256, skip: 0 };
            let out = decoded(isa, code, &codes, steps, Float::F32);
            for (byte, bits) in codes.iter().zip(out.as_chunks::<4>().0) {
                let (found, expected) = (f32::from_le_bytes(*bits), value(code, *byte) as f32);
                let same =
                    if expected.is_nan() { found.is_nan() } else { found.to_bits() == expected.to_bits() };
                assert!(same, "{isa} {code:?} {byte:#04x}: {found} is not {expected}");
            }
        }
    }
}

#[test]
fn every_byte_of_packed_codes() {
    let bytes: Vec<u8> = (0..=255).collect();
    for bits in [1u8, 2, 4, 8] {
        let mut codes = vec![0; 256 * 8 / usize::from(bits)];
        unpack(bits, &bytes, &mut codes);
        for (byte, codes) in bytes.iter().zip(codes.chunks(8 / usize::from(bits))) {
            let back = codes.iter().rev().fold(0u32, |back, code| back << bits | u32::from(*code));
            assert_eq!(back, u32::from(*byte));
        }
    }
}

proptest! {
    /// Any groups, any place to begin: what the formula gives, in every instruction set.
    #[test]
    fn rows_follow_the_formula(
        codes in prop::collection::vec(0..16u8, 1..200), pick in 0..5usize, size in 1..70usize,
        skip in 0..70usize, seed in any::<u32>(), with_zeros: bool,
    ) {
        let (code, skip) = (CODES[pick], skip % size);
        let groups = (skip + codes.len()).div_ceil(size);
        let number = |at: usize| (seed.wrapping_mul(2_654_435_761).wrapping_add(at as u32 * 977) >> 8) as f32;
        let scales: Vec<f32> = (0..groups).map(|at| number(at) / 1e7).collect();
        let zeros: Vec<f32> = (0..groups).map(|at| (number(at + 9) % 16.0).floor()).collect();
        let zeros = if with_zeros { &zeros[..] } else { &[] };
        let steps = Steps { scales: &scales, zeros, size, skip };
        let expected: Vec<u8> = codes.iter().enumerate().flat_map(|(at, byte)| {
            let group = (at + skip) / size;
            let zero = zeros.get(group).copied().unwrap_or(0.0);
            bf16((value(code, *byte) as f32 - zero) * scales[group]).to_le_bytes()
        }).collect();
        for isa in Isa::available() {
            prop_assert_eq!(&decoded(isa, code, &codes, steps, Float::Bf16), &expected);
        }
        for to in [Float::F16, Float::F32] {
            let scalar = decoded(Isa::Scalar, code, &codes, steps, to);
            for isa in Isa::available() {
                prop_assert_eq!(&decoded(isa, code, &codes, steps, to), &scalar);
            }
        }
    }
}
