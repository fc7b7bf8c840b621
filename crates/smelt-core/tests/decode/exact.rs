//! Formats that MLX holds exactly though it stores them otherwise: what the parts stand for.

use proptest::prelude::*;
use smelt_core::checkpoint::logical::{Native, Part};
use smelt_core::checkpoint::region::{Axis, elements, whole};
use smelt_core::checkpoint::{Checkpoint, DType, TensorId};
use smelt_core::layout::catalog::Catalog;
use smelt_core::layout::pull::Tensors;
use smelt_kernels::Mode;

use crate::cases::{self, Case, Draw};
use crate::{open, rounded};

/// The weight of a case, how MLX has it, and whether it has it exactly.
fn native(checkpoint: &Checkpoint, case: &Case) -> Option<(TensorId, Native, bool)> {
    let id = Catalog::find(checkpoint, &case.name).unwrap();
    let native = checkpoint.logical(id).native()?;
    Some((id, native, checkpoint.inexact(id).unwrap().is_none()))
}

fn part(
    checkpoint: &Checkpoint,
    (id, native): (TensorId, Native),
    part: Part,
    rows: Option<Axis>,
) -> Vec<u8> {
    let mut region = whole(&native.shape_of(part, &checkpoint.logical(id).shape));
    let at = region.len() - 2;
    region[at] = rows.unwrap_or(region[at]);
    let size = native.dtype_of(part).bits() / 8;
    let mut out = vec![0xAA; (elements(&region) * size) as usize];
    checkpoint.read_region(checkpoint.part_id(id, part), &region, &mut out).unwrap();
    out
}

fn number(dtype: DType, bytes: [u8; 2]) -> f64 {
    f64::from(match dtype {
        DType::F16 => half::f16::from_le_bytes(bytes).to_f32(),
        _ => half::bf16::from_le_bytes(bytes).to_f32(),
    })
}

/// What the parts stand for, in arithmetic that rounds once, at the end.
fn values(native: Native, [codes, scales, biases]: [&[u8]; 3]) -> Vec<f64> {
    let (bits, group) = (usize::from(native.format.bits()), native.format.group_size());
    let code = |at: usize| codes[at * bits / 8] >> (at * bits % 8) & ((1u16 << bits) - 1) as u8;
    let value = |at: usize| {
        let near = |bytes: &[u8]| number(native.dtype, [bytes[at / group * 2], bytes[at / group * 2 + 1]]);
        match native.format.mode() {
            Mode::Nvfp4 => f64::from(cases::e2m1(code(at)) * cases::e4m3(scales[at / group])),
            _ => f64::from(code(at)) * near(scales) + near(biases),
        }
    };
    (0..codes.len() * 8 / bits).map(value).collect()
}

fn check(case: &Case, rows: Axis) -> bool {
    let checkpoint = open(&case.config, &case.tensors);
    let Some((id, native, true)) = native(&checkpoint, case) else { return false };
    let parts = if native.format.has_biases() { &Part::ALL[..] } else { &Part::ALL[..2] };
    let mut all = parts.iter().map(|&of| part(&checkpoint, (id, native), of, None));
    let [codes, scales, biases] = std::array::from_fn(|_| all.next().unwrap_or_default());
    let found = values(native, [&codes, &scales, &biases]);
    assert_eq!(found.len(), case.values.len());
    for (place, (found, value)) in found.into_iter().zip(&case.values).enumerate() {
        let bits = |value: f32| u16::from_le_bytes(rounded(case.dtype, value));
        let (found, value) = (bits(found as f32), bits(*value));
        // A zero may have lost its sign.
        let same = found == value || (found << 1, value << 1) == (0, 0);
        assert!(same, "{}: element {place} of {:?}", case.words, case.shape);
    }
    for (&of, whole) in parts.iter().zip([&codes, &scales, &biases]) {
        let width = whole.len() / case.shape[0] as usize;
        let expected: Vec<u8> = (0..rows.len)
            .flat_map(|at| &whole[(rows.start + at * rows.step) as usize * width..][..width])
            .copied()
            .collect();
        assert_eq!(
            part(&checkpoint, (id, native), of, Some(rows)),
            expected,
            "{}: {of:?} of {rows:?}",
            case.words
        );
    }
    true
}

const MAKERS: [fn(Draw) -> Case; 3] = [cases::nvfp4, cases::integers, cases::quantized];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Parts stand for the source's values, whatever rows are asked for; or the tensor is not exact.
    #[test]
    fn parts_stand_for_the_same(
        maker in 0..MAKERS.len(), rows in 8..40u64, cols in 2..200u64, pick in 0..64u64, seed: u64,
        start in 0..8u64, step in 1..4u64,
    ) {
        let case = MAKERS[maker](Draw { lead: 1, rows, cols, pick, seed });
        check(&case, Axis { start, len: (case.shape[0] - start).div_ceil(step), step });
    }
}

/// Tiles meet, and the exact ones are found: all but those in groups of 16 or in an order of their own.
#[test]
fn exact_ones_are_found() {
    for (maker, make) in MAKERS.into_iter().enumerate() {
        for pick in 32..48 {
            let case = make(Draw { lead: 1, rows: 600, cols: 720, pick, seed: pick });
            let ordered = case.tensors.iter().any(|tensor| tensor.name.ends_with("g_idx"));
            let small = maker == 1 && pick / 2 % 2 == 1;
            let found = check(&case, Axis::range(100, 301));
            assert_eq!(found, !ordered && !small, "{} {pick} {:?}", case.words, case.shape);
        }
    }
}

#[test]
fn inexact_ones_say_why() {
    let why = |case: &Case| {
        let checkpoint = open(&case.config, &case.tensors);
        let id = Catalog::find(&checkpoint, &case.name).unwrap();
        checkpoint.inexact(id).unwrap().unwrap_or_default()
    };
    let draw = |pick| Draw { lead: 1, rows: 64, cols: 96, pick, seed: 1 };
    assert!(why(&cases::nvfp4(draw(0))).contains("no power of two"));
    assert!(why(&cases::quantized(draw(2))).contains("zero points"));
    assert!(why(&cases::quantized(draw(1))).contains("order"));
    let mut far = cases::nvfp4(draw(32));
    far.tensors[1].data[7] = 1;
    assert!(why(&far).contains("not all of its scales"));
}
