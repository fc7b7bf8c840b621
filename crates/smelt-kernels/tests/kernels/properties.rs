//! Kernels against the oracle: on the seeds, and on what proptest finds.

use proptest::collection::vec;
use proptest::prelude::*;
use smelt_kernels::{Float, Format, Isa, transpose};

use crate::naive::{self, Tables};
use crate::seeds::{LEN, Random, blocks};
use crate::{DTYPES, Parts, ROUNDINGS, dequantize, formats, quantize};

#[test]
fn quantize_is_the_oracle() {
    let tables = Tables::new();
    for dtype in DTYPES {
        for (name, input) in blocks(&tables, dtype) {
            for (format, rounding) in formats().into_iter().flat_map(|f| ROUNDINGS.map(|r| (f, r))) {
                let expected = naive::quantize(&tables, format, rounding, dtype, &input);
                for isa in Isa::available() {
                    let made = quantize(isa, format, rounding, dtype, &input);
                    let differ = first_difference(format, dtype, &made, &expected);
                    assert_eq!(differ, None, "{name}, {format} {rounding:?} {dtype:?} {isa}");
                }
            }
        }
    }
}

/// The first group that differs, with both versions of it.
fn first_difference(format: Format, dtype: Float, a: &Parts, b: &Parts) -> Option<String> {
    let group = |parts: &Parts, k: usize| {
        let of = |part: &[u8], size: usize| part.get(k * size..(k + 1) * size).map(<[u8]>::to_vec);
        let scale = format.scale_bytes(dtype);
        (of(&parts.codes, format.code_bytes()), of(&parts.scales, scale), of(&parts.biases, scale))
    };
    let groups = a.codes.len() / format.code_bytes();
    let k = (0..groups).find(|k| group(a, *k) != group(b, *k))?;
    Some(format!("group {k}: {:x?} instead of {:x?}", group(a, k), group(b, k)))
}

#[test]
fn dequantize_is_the_oracle() {
    let tables = Tables::new();
    let mut random = Random(2);
    for dtype in DTYPES {
        for format in formats() {
            let mut parts = Parts::empty(format, dtype, LEN * dtype.size());
            let all = parts.codes.iter_mut().chain(&mut parts.scales).chain(&mut parts.biases);
            all.for_each(|byte| *byte = random.bits() as u8);
            let expected = naive::dequantize(&tables, format, dtype, &parts);
            for isa in Isa::available() {
                let made = dequantize(isa, format, dtype, &parts);
                assert!(made == expected, "{format} {dtype:?} {isa}");
            }
        }
    }
}

/// A dtype, a format, and whole groups of random bits with equal upper halves, so that the values
/// of a group are often comparable.
fn groups() -> impl Strategy<Value = (Float, Format, Vec<u8>)> {
    let case = (0..DTYPES.len(), 0..formats().len(), 1..4usize, any::<u8>(), any::<bool>());
    case.prop_flat_map(|(dtype, format, groups, top, alike)| {
        let (dtype, format) = (DTYPES[dtype], formats()[format]);
        let bytes = vec(any::<u8>(), groups * format.group_size() * dtype.size());
        bytes.prop_map(move |mut bytes| {
            if alike {
                for element in bytes.chunks_exact_mut(dtype.size()) {
                    let last = &mut element[dtype.size() - 1];
                    *last = (*last & 0x81) | (top & 0x7E);
                }
            }
            (dtype, format, bytes)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_groups_follow_the_oracle((dtype, format, input) in groups()) {
        let tables = &*TABLES;
        for rounding in ROUNDINGS {
            let expected = naive::quantize(tables, format, rounding, dtype, &input);
            let decoded = naive::dequantize(tables, format, dtype, &expected);
            for isa in Isa::available() {
                let made = quantize(isa, format, rounding, dtype, &input);
                prop_assert_eq!(&made, &expected, "{} {:?} {}", format, rounding, isa);
                prop_assert_eq!(&dequantize(isa, format, dtype, &made), &decoded);
            }
        }
    }

    #[test]
    fn a_block_may_be_cut_anywhere((dtype, format, input) in groups()) {
        let group = format.group_size() * dtype.size();
        for rounding in ROUNDINGS {
            let whole = quantize(Isa::best(), format, rounding, dtype, &input);
            let mut parts = Parts { codes: Vec::new(), scales: Vec::new(), biases: Vec::new() };
            for group in input.chunks(group) {
                let part = quantize(Isa::best(), format, rounding, dtype, group);
                parts.codes.extend(part.codes);
                parts.scales.extend(part.scales);
                parts.biases.extend(part.biases);
            }
            prop_assert_eq!(&whole, &parts);
        }
    }

    #[test]
    fn one_special_element_is_found(
        dtype in 0..DTYPES.len(), len in 1..700usize, at in any::<prop::sample::Index>(), bits in any::<u32>(),
    ) {
        let (dtype, at) = (DTYPES[dtype], at.index(len));
        let tables = &*TABLES;
        let mut data = vec![0x2A; len * dtype.size()];
        // The exponent of all ones half of the time.
        let exponent = if bits % 2 == 0 { 0x7F80_0000 } else { 0 };
        let element = match dtype {
            Float::F32 => bits | exponent,
            Float::Bf16 => (bits | exponent) >> 16,
            Float::F16 => (bits | exponent >> 1 | exponent) >> 16,
        };
        let place = at * dtype.size();
        data[place..place + dtype.size()].copy_from_slice(&element.to_le_bytes()[..dtype.size()]);
        let expected = tables.value(dtype, element).is_finite();
        for isa in Isa::available() {
            prop_assert_eq!(isa.all_finite(dtype, &data), expected, "{:?} {:x} {}", dtype, element, isa);
        }
    }

    #[test]
    fn transpose_moves_each_element(rows in 0..150usize, cols in 0..150usize, size in 0..4u32) {
        let size = 1 << size;
        let mut random = Random(3);
        let input: Vec<u8> = (0..rows * cols * size).map(|_| random.bits() as u8).collect();
        let mut out = vec![0; input.len()];
        transpose(&input, rows, cols, size, &mut out);
        for (row, col) in (0..rows).flat_map(|row| (0..cols).map(move |col| (row, col))) {
            let (from, to) = ((row * cols + col) * size, (col * rows + row) * size);
            prop_assert_eq!(&input[from..from + size], &out[to..to + size]);
        }
    }
}

static TABLES: std::sync::LazyLock<Tables> = std::sync::LazyLock::new(Tables::new);

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let refused = |run: fn()| std::panic::catch_unwind(run).is_err();
    assert!(refused(|| {
        smelt_kernels::all_finite(Float::F32, &[0; 6]);
    }));
    assert!(refused(|| smelt_kernels::convert(Float::F32, Float::Bf16, &[0; 8], &mut [0; 8])));
    assert!(refused(|| transpose(&[0; 6], 2, 3, 2, &mut [0; 6])));
    assert!(refused(|| transpose(&[0; 18], 2, 3, 3, &mut [0; 18])));
    for format in formats() {
        let input = vec![0; format.group_size() * 2];
        let parts = quantize(Isa::best(), format, ROUNDINGS[0], Float::Bf16, &input);
        let dequantize_with = |change: fn(&mut Parts)| {
            let mut parts = parts.clone();
            change(&mut parts);
            std::panic::catch_unwind(|| {
                let mut out = input.clone();
                let Parts { codes, scales, biases } = &parts;
                smelt_kernels::dequantize(format, Float::Bf16, codes, scales, biases, &mut out);
            })
        };
        assert!(dequantize_with(|_| ()).is_ok());
        assert!(dequantize_with(|parts| parts.codes.push(0)).is_err());
        assert!(dequantize_with(|parts| parts.scales.push(0)).is_err());
        assert!(dequantize_with(|parts| parts.biases.push(0)).is_err());
    }
}
