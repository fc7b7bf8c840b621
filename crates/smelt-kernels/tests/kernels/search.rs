//! The search: never worse than plain rounding, the same everywhere, and near the best there is.

use proptest::collection::vec;
use proptest::prelude::*;
use smelt_kernels::{Effort, Float, Format, Isa, Mode, Rounding};

use crate::naive::{self, Tables};
use crate::seeds::{LEN, Random, blocks};
use crate::{DTYPES, How, Parts, formats, quantize, search};

static TABLES: std::sync::LazyLock<Tables> = std::sync::LazyLock::new(Tables::new);

/// What the elements of a group count, in double.
fn weights(size: usize, importance: Option<&[f32]>) -> Vec<f64> {
    (0..size).map(|k| importance.map_or(1.0, |row| f64::from(row[k]))).collect()
}

/// The exact values of stored groups.
fn decoded(format: Format, dtype: Float, parts: &Parts) -> Vec<f64> {
    let parts = naive::numbers(&TABLES, format, dtype, parts);
    parts.into_iter().map(|(level, scale, bias)| scale * level + bias).collect()
}

/// The weighted error of each group.
fn errors(format: Format, dtype: Float, input: &[u8], importance: Option<&[f32]>, parts: &Parts) -> Vec<f64> {
    let size = format.group_size();
    let values = naive::load(&TABLES, dtype, input);
    let decoded = decoded(format, dtype, parts);
    let groups = values.chunks(size).zip(decoded.chunks(size)).enumerate();
    let error = |(k, (values, decoded)): (usize, (&[f32], &[f64]))| {
        let row = importance.map(|row| &row[k * size % row.len()..][..size]);
        let weights = weights(size, row);
        let squares = values.iter().zip(decoded).map(|(x, y)| (f64::from(*x) - y).powi(2));
        squares.zip(weights).map(|(square, w)| square * w).sum()
    };
    groups.map(error).collect()
}

/// Holds what a search made of a block to what plain rounding makes of it.
fn check(format: Format, how: How, dtype: Float, input: &[u8], made: &Parts) -> Result<(), String> {
    let plain = quantize(Isa::best(), format, Rounding::Gpu, dtype, input);
    let values = naive::load(&TABLES, dtype, input);
    let [a, b] = [made, &plain].map(|parts| errors(format, dtype, input, how.importance, parts));
    for (k, values) in values.chunks(format.group_size()).enumerate() {
        if !values.iter().all(|x| x.is_finite()) {
            let [made, plain] = [made, &plain].map(|parts| parts.group(format, dtype, k));
            if made != plain {
                return Err(format!("group {k} is not finite: {made:?} instead of {plain:?}"));
            }
        } else if a[k] > b[k] * (1.0 + 1e-6) || a[k].is_nan() && !b[k].is_nan() {
            // The kernel's weights are rounded to f32.
            return Err(format!("group {k}: {} is more than {}", a[k], b[k]));
        }
    }
    Ok(())
}

/// An importance for rows of `len` elements: some channels count a thousand times others.
fn importance(len: usize) -> Vec<f32> {
    let mut random = Random(11);
    (0..len).map(|_| naive::power(random.below(11) as i32 - 8) * (1.5 + random.unit())).collect()
}

#[test]
fn hard_groups_are_never_worse_and_everywhere_the_same() {
    // The second of two rows begins within a run.
    let row = importance(LEN / 2 / 64 * 64);
    let longest = importance(LEN);
    for dtype in DTYPES {
        for (name, input) in blocks(&TABLES, dtype) {
            for format in formats() {
                let row = if row.len().is_multiple_of(format.group_size()) { &row } else { &longest };
                for effort in Effort::ALL {
                    for importance in [None, Some(row.as_slice())] {
                        let how = How { effort, importance };
                        let made = search(Isa::best(), format, how, dtype, &input);
                        let case = format!("{name}, {format} {dtype:?} {effort} {}", importance.is_some());
                        check(format, how, dtype, &input, &made).unwrap_or_else(|e| panic!("{case}: {e}"));
                        for isa in Isa::available() {
                            let same = search(isa, format, how, dtype, &input) == made;
                            assert!(same, "{case}: {isa}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn without_weights_no_group_is_worse_by_a_bit() {
    for dtype in DTYPES {
        for (name, input) in blocks(&TABLES, dtype) {
            for format in formats().into_iter().filter(|format| format.bits() > 2) {
                let how = How { effort: Effort::Fast, importance: None };
                let made = search(Isa::best(), format, how, dtype, &input);
                let plain = quantize(Isa::best(), format, Rounding::Gpu, dtype, &input);
                let bytes = format.group_size() * dtype.size();
                for (k, group) in input.chunks(bytes).enumerate() {
                    let error = |parts: &Parts| {
                        let parts = parts.group(format, dtype, k);
                        smelt_kernels::distortion(format, dtype, group, None, parts.stored()).error
                    };
                    let (made, plain) = (error(&made), error(&plain));
                    assert!(
                        made <= plain || plain.is_nan(),
                        "{name}, {format} {dtype:?}, group {k}: {made} > {plain}"
                    );
                }
            }
        }
    }
}

/// Whole groups of one character: close to real weights, wide, narrow, or any bits.
fn groups() -> impl Strategy<Value = (Float, Format, Effort, Vec<u8>)> {
    let case = (0..DTYPES.len(), 0..formats().len(), 0..3usize, 1..20usize, 0..6u32, any::<u64>());
    case.prop_map(|(dtype, format, effort, groups, kind, seed)| {
        let (dtype, format, mut random) = (DTYPES[dtype], formats()[format], Random(seed));
        let (offset, spread) = (random.unit(), naive::power(random.below(40) as i32 - 30));
        let element = |_| match kind {
            0 => (random.unit() + random.unit() + random.unit()) * spread,
            1 => offset + random.unit() * spread,
            2 => random.unit().powi(9) * spread,
            3 => (random.below(5) as f32 - 2.0) * spread,
            4 => {
                if random.below(30) == 0 {
                    offset
                } else {
                    random.unit() * spread
                }
            }
            _ => f32::from_bits(random.bits()),
        };
        let values: Vec<f32> = (0..groups * format.group_size()).map(element).collect();
        (dtype, format, Effort::ALL[effort], naive::store(&TABLES, dtype, &values))
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_group_is_never_worse_and_everywhere_the_same(
        (dtype, format, effort, input) in groups(), weighted in any::<bool>(),
    ) {
        let row = importance(input.len() / dtype.size());
        let how = How { effort, importance: weighted.then_some(row.as_slice()) };
        let made = search(Isa::best(), format, how, dtype, &input);
        let checked = check(format, how, dtype, &input, &made);
        prop_assert!(checked.is_ok(), "{} {:?} {:?}: {:?}", format, dtype, how.effort, checked);
        for isa in Isa::available() {
            prop_assert_eq!(&search(isa, format, how, dtype, &input), &made);
        }
    }

    #[test]
    fn a_searched_block_may_be_cut_anywhere((dtype, format, effort, input) in groups(), rows in 1..4usize) {
        let row = importance(input.len() / dtype.size());
        let input = input.repeat(rows);
        for importance in [None, Some(row.as_slice())] {
            let how = How { effort, importance };
            let whole = search(Isa::best(), format, how, dtype, &input);
            let cut = if importance.is_some() { row.len() } else { format.group_size() } * dtype.size();
            let mut parts = Parts { codes: Vec::new(), scales: Vec::new(), biases: Vec::new() };
            for part in input.chunks(cut) {
                let part = search(Isa::best(), format, how, dtype, part);
                parts.codes.extend(part.codes);
                parts.scales.extend(part.scales);
                parts.biases.extend(part.biases);
            }
            prop_assert_eq!(&whole, &parts);
        }
    }

    #[test]
    fn a_lattice_is_found_exactly(
        bits in prop::sample::select(&[2u8, 3, 4, 5, 6, 8][..]), size in 0..3usize, dtype in 0..DTYPES.len(),
        codes in vec(any::<u8>(), 128), step in 0..1u32 << 15, power in 0..10i32, zero in any::<u8>(),
        most in any::<prop::sample::Index>(), effort in 0..3usize,
    ) {
        let (dtype, format) = (DTYPES[dtype], Format::new(Mode::Affine, bits, 32 << size).unwrap());
        // A few codes only, so that the range shows neither end of the lattice.
        let used = most.index((1 << bits) - 1) as u16 + 2;
        // Products that the dtype holds without rounding.
        let room = match dtype { Float::Bf16 => 256, Float::F16 => 2048, Float::F32 => 1 << 15 } / u32::from(used);
        let step = (1 + step % room) as f32 * naive::power(-power - 8);
        let value = |code: &u8| (f32::from(u16::from(*code) % used) - f32::from(u16::from(zero) % used)) * step;
        let values: Vec<f32> = codes[..32 << size].iter().map(value).collect();
        let input = naive::store(&TABLES, dtype, &values);
        prop_assert_eq!(&naive::load(&TABLES, dtype, &input), &values);
        let how = How { effort: Effort::ALL[effort], importance: None };
        let made = search(Isa::best(), format, how, dtype, &input);
        prop_assert_eq!(errors(format, dtype, &input, None, &made), [0.0], "{} {:?}", format, dtype);
    }
}

/// The least error of a group over a fine grid of windows, each with its nearest codes.
fn exhaustive(group: &[f32], weights: &[f64], levels: f64) -> f64 {
    let values: Vec<f64> = group.iter().map(|x| f64::from(*x)).collect();
    let low = values.iter().copied().fold(f64::INFINITY, f64::min);
    let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let grid = |k: i32| low + (high - low) * f64::from(k) / 100.0;
    let windows = (-10..60).flat_map(|from| (40..=110).map(move |to| (from, to))).filter(|(a, b)| a < b);
    let error = |(from, to)| {
        let (bias, step) = (grid(from), (grid(to) - grid(from)) / levels);
        let square = |x: &f64| (x - bias - ((x - bias) / step).round().clamp(0.0, levels) * step).powi(2);
        values.iter().zip(weights).map(|(x, w)| square(x) * w).sum::<f64>()
    };
    windows.map(error).fold(f64::INFINITY, f64::min)
}

#[test]
fn the_search_comes_near_the_best_of_a_fine_grid() {
    let mut random = Random(5);
    for (bits, size) in [(2, 32), (2, 64), (3, 32), (4, 32)] {
        let format = Format::new(Mode::Affine, bits, size).unwrap();
        let values: Vec<f32> =
            (0..40 * size).map(|_| random.unit() + random.unit() + random.unit()).collect();
        let input = naive::store(&TABLES, Float::F32, &values);
        let levels = f64::from((1u16 << bits) - 1);
        let best = |group: &[f32]| {
            let error = exhaustive(group, &weights(size, None), levels);
            let energy: f64 = group.iter().map(|x| f64::from(*x).powi(2)).sum();
            // Up to 3 bits half of the lost length comes back, for a quarter of the error's square.
            if bits <= 3 { error * (1.0 + error / energy / 4.0) } else { error }
        };
        let best: Vec<f64> = values.chunks(size).map(best).collect();
        for (effort, margin) in [(Effort::Fast, 1.06), (Effort::Default, 1.01), (Effort::Best, 1.002)] {
            let made = search(Isa::best(), format, How { effort, importance: None }, Float::F32, &input);
            let found = errors(format, Float::F32, &input, None, &made);
            let (found, best): (f64, f64) = (found.iter().sum(), best.iter().sum());
            assert!(found <= best * margin, "{format} {effort}: {found}, while a grid has {best}");
        }
    }
}

#[test]
fn distortion_is_what_the_formula_says() {
    let mut random = Random(9);
    let row = importance(LEN / 2);
    for (format, dtype) in formats().into_iter().flat_map(|format| DTYPES.map(|dtype| (format, dtype))) {
        if !row.len().is_multiple_of(format.group_size()) {
            continue;
        }
        let values: Vec<f32> = (0..LEN).map(|_| random.unit() * 0.1).collect();
        let input = naive::store(&TABLES, dtype, &values);
        let values = naive::load(&TABLES, dtype, &input);
        let parts = quantize(Isa::best(), format, Rounding::Cpu, dtype, &input);
        let decoded = decoded(format, dtype, &parts);
        for importance in [None, Some(row.as_slice())] {
            let made = smelt_kernels::distortion(format, dtype, &input, importance, parts.stored());
            for isa in Isa::available() {
                assert_eq!(isa.distortion(format, dtype, &input, importance, parts.stored()), made, "{isa}");
            }
            let weight = |k: usize| importance.map_or(1.0, |row| f64::from(row[k % row.len()]));
            let difference = |k: usize| (f64::from(values[k]) - decoded[k]).abs();
            let error: f64 = (0..LEN).map(|k| weight(k) * difference(k).powi(2)).sum();
            let energy: f64 = (0..LEN).map(|k| weight(k) * f64::from(values[k]).powi(2)).sum();
            assert!((made.error / error - 1.0).abs() < 1e-12, "{format}: {} is not {error}", made.error);
            assert!((made.energy / energy - 1.0).abs() < 1e-12, "{format}: {} is not {energy}", made.energy);
            assert_eq!(made.max, (0..LEN).map(difference).fold(0.0, f64::max) as f32);
        }
    }
}

#[test]
fn an_importance_that_does_not_fit_is_refused() {
    let format = Format::new(Mode::Affine, 4, 32).unwrap();
    let refused = |elements: usize, row: usize| {
        let row = vec![1.0; row];
        let how = How { effort: Effort::Fast, importance: Some(&row) };
        std::panic::catch_unwind(|| search(Isa::best(), format, how, Float::F32, &vec![0; elements * 4]))
            .is_err()
    };
    assert!(!refused(128, 64) && !refused(0, 64));
    assert!(refused(128, 0) && refused(128, 16) && refused(128, 96));
}
