//! What blocks of weights amount to, against sums over single elements.

use proptest::collection::vec;
use proptest::prelude::*;
use smelt_kernels::{Extent, Float, Isa, Squares};

use crate::DTYPES;
use crate::naive::Tables;

static TABLES: std::sync::LazyLock<Tables> = std::sync::LazyLock::new(Tables::new);

fn bytes(dtype: Float, elements: &[u32]) -> Vec<u8> {
    let size = dtype.size();
    elements.iter().flat_map(|bits| bits.to_le_bytes()[4 - size..].to_vec()).collect()
}

fn values(dtype: Float, data: &[u8]) -> Vec<f32> {
    let bits = |bytes: &[u8]| bytes.iter().rev().fold(0, |bits, byte| bits << 8 | u32::from(*byte));
    data.chunks_exact(dtype.size()).map(|bytes| TABLES.value(dtype, bits(bytes))).collect()
}

/// Bits of elements of which some are zero and some are not finite.
fn element() -> impl Strategy<Value = u32> {
    prop_oneof![
        12 => any::<u32>(),
        2 => Just(0),
        2 => Just(0x8000_0000),
        1 => Just(0x7F80_0000),
        1 => Just(0x7FC0_0001),
    ]
}

proptest! {
    #[test]
    fn extents_are_those_of_the_elements(dtype in 0..DTYPES.len(), elements in vec(element(), 0..300)) {
        let dtype = DTYPES[dtype];
        let data = bytes(dtype, &elements);
        let values = values(dtype, &data);
        let larger = |a: f32, b: &f32| if b.abs() > a || b.is_nan() { b.abs() } else { a };
        let largest = values.iter().fold(0.0, larger);
        let zeros = values.iter().filter(|value| **value == 0.0).count() as u64;
        for isa in Isa::available() {
            let found = isa.extent(dtype, &data);
            prop_assert_eq!(found.zeros, zeros);
            prop_assert!(found.largest == largest || largest.is_nan() && found.largest.is_nan(), "{}", isa);
        }
    }

    /// However the elements are cut and mixed.
    #[test]
    fn squares_do_not_depend_on_order(
        dtype in 0..DTYPES.len(), elements in vec(0x2000_0000u32..0x4800_0000, 1..300), cut in any::<prop::sample::Index>(),
    ) {
        let dtype = DTYPES[dtype];
        let data = bytes(dtype, &elements);
        let (mut whole, mut parts) = (Squares::default(), [Squares::default(), Squares::default()]);
        whole.add(dtype, &data);
        let (first, second) = data.split_at(cut.index(elements.len()) * dtype.size());
        for (isa, (sum, part)) in Isa::available().into_iter().cycle().zip(parts.iter_mut().zip([first, second])) {
            isa.add_squares(sum, dtype, part);
        }
        let [first, mut second] = parts;
        second.merge(&first);
        prop_assert_eq!(&second, &whole);
        let values = values(dtype, &data);
        let mean = values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>() / values.len() as f64;
        let bound = if dtype == Float::F32 { 1e-3 } else { 1e-12 };
        prop_assert!((whole.mean() - mean).abs() <= bound * mean, "{} and {}", whole.mean(), mean);
    }
}

/// More zeros than a count of 16 bits holds.
#[test]
fn many_zeros() {
    let data = vec![0; 2 * 32 * 140_000];
    for isa in Isa::available() {
        assert_eq!(isa.extent(Float::Bf16, &data), Extent { largest: 0.0, zeros: 32 * 140_000 });
    }
    assert_eq!(Squares::default().mean().to_bits(), 0.0f64.to_bits());
}
