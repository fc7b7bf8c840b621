//! All values of 16 bits through every conversion, and all codes through packing.

use smelt_kernels::{Float, Format, Isa, Mode, Rounding};

use crate::naive::{self, Table, Tables};
use crate::{DTYPES, Parts, dequantize, quantize};

/// Every bit pattern of a 16-bit dtype, in order.
fn all_16() -> Vec<u8> {
    (0..=u16::MAX).flat_map(u16::to_le_bytes).collect()
}

/// f32 around every boundary between 16-bit floats: exactly on it, and one step to each side.
fn boundaries_32() -> Vec<u8> {
    let near = |bits: u32| [bits.wrapping_sub(1), bits, bits.wrapping_add(1)];
    let bf16 = (0..=u16::MAX).flat_map(|bits| near(u32::from(bits) << 16 | 0x8000));
    let tables = Tables::new();
    let halves = (0..=u16::MAX).map(|bits| tables.value(Float::F16, u32::from(bits)));
    let f16 = halves.flat_map(|value| near(value.to_bits() | 0x1000));
    // The halves of f16's subnormals.
    let subnormal = (0..2048u16).flat_map(|k| near((f32::from(k) * naive::power(-25)).to_bits()));
    bf16.chain(f16).chain(subnormal).flat_map(u32::to_le_bytes).collect()
}

#[test]
fn every_conversion_is_the_oracle() {
    let tables = Tables::new();
    for from in DTYPES {
        let mut input = if from == Float::F32 { boundaries_32() } else { all_16() };
        // A length that leaves a tail.
        input.extend_from_within(..3 * from.size());
        for to in DTYPES.into_iter().filter(|to| *to != from) {
            let expected = naive::store(&tables, to, &naive::load(&tables, from, &input));
            for isa in Isa::available() {
                let mut out = vec![0xA5; expected.len()];
                isa.convert(from, to, &input, &mut out);
                assert!(out == expected, "{from:?} to {to:?}, {isa}");
            }
        }
    }
}

#[test]
fn sixteen_bits_survive_f32() {
    for dtype in [Float::Bf16, Float::F16] {
        let tables = Tables::new();
        let input = all_16();
        let (mut wide, mut back) = (vec![0; input.len() * 2], vec![0; input.len()]);
        smelt_kernels::convert(dtype, Float::F32, &input, &mut wide);
        smelt_kernels::convert(Float::F32, dtype, &wide, &mut back);
        let values = naive::load(&tables, dtype, &input);
        for (k, value) in values.iter().enumerate().filter(|(_, value)| !value.is_nan()) {
            assert_eq!(input[2 * k..][..2], back[2 * k..][..2], "{dtype:?} {value}");
        }
    }
}

/// Each value of a 16-bit dtype up to `greatest` as an element of groups whose scale is 1, so that
/// its code is its rounding to the small float.
fn codes_of_all(isa: Isa, mode: Mode, dtype: Float, table: &Table) -> Vec<(f32, u16)> {
    let tables = Tables::new();
    let (bits, size) = mode.defaults();
    let format = Format::new(mode, bits, size).expect("defaults are a format");
    let greatest = table.0[table.0.len() - 1];
    let values = naive::load(&tables, dtype, &all_16());
    let values: Vec<f32> = values.into_iter().filter(|x| x.abs() <= greatest).collect();
    let mut elements = Vec::new();
    for chunk in values.chunks(size - 1) {
        elements.push(greatest);
        elements.extend(chunk);
        elements.resize(elements.len().next_multiple_of(size), 0.0);
    }
    let input = naive::store(&tables, dtype, &elements);
    let Parts { codes, scales, .. } = quantize(isa, format, Rounding::Gpu, dtype, &input);
    let one = if mode == Mode::Nvfp4 { 0x38 } else { 127 };
    assert!(scales.iter().all(|scale| *scale == one));
    elements.into_iter().zip(naive::unpack(&codes, bits)).collect()
}

#[test]
fn every_value_becomes_the_nearest_small_float() {
    let tables = Tables::new();
    for isa in Isa::available() {
        for dtype in [Float::Bf16, Float::F16] {
            for mode in [Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4] {
                let (table, sign_bit) = match mode {
                    Mode::Mxfp8 => (&tables.e4m3, 7),
                    _ => (&tables.e2m1, 3),
                };
                for (x, code) in codes_of_all(isa, mode, dtype, table) {
                    let sign = u16::from(x.is_sign_negative()) << sign_bit;
                    assert_eq!(code, table.nearest(x.abs()) | sign, "{x} {mode} {dtype:?} {isa}");
                }
            }
        }
    }
}

#[test]
fn every_width_packs_and_unpacks() {
    for bits in [2, 3, 4, 5, 6, 8] {
        let format = Format::new(Mode::Affine, bits, 32).unwrap();
        let levels = (1u16 << bits) - 1;
        // With a scale of -1 and a bias of `levels`, a value is `levels` minus its code.
        let code = |k: usize| {
            if k.is_multiple_of(32) { 0 } else { (k * 7 + k / 32) as u16 & levels }
        };
        let mut codes: Vec<u16> = (0..32 * 300).map(code).collect();
        codes.chunks_mut(32).for_each(|group| group[31] = levels);
        let values = codes.iter().flat_map(|code| f32::from(levels - code).to_le_bytes());
        let input: Vec<u8> = values.collect();
        for isa in Isa::available() {
            let parts = quantize(isa, format, Rounding::Cpu, Float::F32, &input);
            assert!(parts.codes == naive::pack(&codes, bits), "{bits} bits, {isa}");
            assert!(dequantize(isa, format, Float::F32, &parts) == input, "{bits} bits, {isa}");
        }
    }
}

/// The kernels round halves away from zero by adding the number below a half and truncating.
#[test]
fn truncation_after_almost_half_is_rounding() {
    let check = |x: f32| {
        let almost_half = f32::from_bits(0.5f32.to_bits() - 1);
        assert_eq!(almost_half, 0.499_999_97);
        assert_eq!((x + almost_half.copysign(x)).trunc().to_bits(), x.round().to_bits(), "{x}");
    };
    for bits in (0..0x7F80_0000u32).step_by(251) {
        check(f32::from_bits(bits));
        check(-f32::from_bits(bits));
    }
    for half in (0..1 << 23).step_by(3) {
        let bits = (half as f32 + 0.5).to_bits();
        (bits - 2..=bits + 2).for_each(|bits| check(f32::from_bits(bits)));
    }
}
