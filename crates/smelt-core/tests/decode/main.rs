//! Formats of other tools, decoded: every element of every region against its definition.
//!
//! Each case makes stored tensors with an encoder of its own and says for each element what it
//! stands for, in plain arithmetic on single numbers; nothing of the library's decoders is used.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod cases;
mod exact;
mod moved;
mod refused;

use std::sync::Arc;

use cases::Case;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use smelt_core::checkpoint::region::{Axis, Region, elements, whole};
use smelt_core::checkpoint::{Checkpoint, DType};
use smelt_core::layout::catalog::Catalog;
use smelt_core::layout::pull::Tensors;
use smelt_core::source::MemorySource;

/// A tensor to store.
#[derive(Clone, Debug)]
struct Tensor {
    name: String,
    dtype: &'static str,
    shape: Vec<u64>,
    data: Vec<u8>,
}

fn tensor(name: &str, dtype: &'static str, shape: &[u64], data: Vec<u8>) -> Tensor {
    Tensor { name: name.to_owned(), dtype, shape: shape.to_vec(), data }
}

fn open(config: &Value, tensors: &[Tensor]) -> Checkpoint {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for Tensor { name, dtype, shape, data: bytes } in tensors {
        let begin = data.len();
        data.extend_from_slice(bytes);
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()] });
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string().into_bytes();
    let shard = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    let files = [("config.json", config.to_string().into_bytes()), ("model.safetensors", shard)];
    Checkpoint::open(Arc::new(MemorySource::new(files))).unwrap()
}

/// f32 to bf16 or f16, to nearest even.
fn rounded(dtype: DType, value: f32) -> [u8; 2] {
    match dtype {
        DType::F16 => half::f16::from_f32(value).to_le_bytes(),
        _ => half::bf16::from_f32(value).to_le_bytes(),
    }
}

/// The elements of a region, in order, as places in the tensor.
fn places(shape: &[u64], region: &[Axis]) -> Vec<usize> {
    let mut places = vec![0];
    for (axis, size) in region.iter().zip(shape) {
        let along = |place: &usize| {
            let place = *place;
            (0..axis.len).map(move |at| place * *size as usize + (axis.start + at * axis.step) as usize)
        };
        places = places.iter().flat_map(along).collect();
    }
    places
}

impl Case {
    /// Decodes a region and compares each element.
    fn check(&self, checkpoint: &Checkpoint, region: &[Axis]) {
        let id = Catalog::find(checkpoint, &self.name).unwrap();
        let info = checkpoint.info(id);
        assert_eq!((info.dtype, info.shape), (self.dtype, &self.shape[..]), "{}", self.words);
        let mut out = vec![0xAA; elements(region) as usize * 2];
        checkpoint.read_region(id, region, &mut out).unwrap();
        for (place, found) in places(&self.shape, region).into_iter().zip(out.as_chunks::<2>().0) {
            let expected = rounded(self.dtype, self.values[place]);
            assert_eq!(*found, expected, "{}: element {place} of {:?} in {region:?}", self.words, self.shape);
        }
    }
}

fn axis(size: u64) -> impl Strategy<Value = Axis> {
    (0..size, 1..=3u64).prop_flat_map(move |(start, step)| {
        (1..=(size - start).div_ceil(step)).prop_map(move |len| Axis { start, len, step })
    })
}

fn region_of(shape: Vec<u64>) -> impl Strategy<Value = Region> {
    shape.into_iter().map(axis).collect::<Vec<_>>()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever is asked for, in any format, is what each element stands for.
    #[test]
    fn any_region_of_any_format(
        (case, region) in cases::any_format().prop_flat_map(|case| (Just(case.clone()), region_of(case.shape))),
    ) {
        let checkpoint = open(&case.config, &case.tensors);
        checkpoint.check_storage().unwrap();
        case.check(&checkpoint, &whole(&case.shape));
        case.check(&checkpoint, &region);
        let words: String = checkpoint.formats().into_keys().collect();
        prop_assert!(words.contains(&case.words), "{} is not in {words}", case.words);
        prop_assert_eq!(checkpoint.unused().len(), case.unused);
        prop_assert_eq!(checkpoint.logical_tensors().len(), 1);
    }
}

/// A weight that is larger than a tile, so that tiles meet within it.
#[test]
fn tiles_meet() {
    for case in cases::large() {
        let checkpoint = open(&case.config, &case.tensors);
        checkpoint.check_storage().unwrap();
        case.check(&checkpoint, &whole(&case.shape));
        let inner: Region = case
            .shape
            .iter()
            .map(|&size| {
                if size > 8 { Axis { start: 5, len: (size - 7) / 2, step: 2 } } else { Axis::point(size - 1) }
            })
            .collect();
        case.check(&checkpoint, &inner);
    }
}
