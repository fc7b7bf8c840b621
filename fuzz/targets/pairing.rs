//! Stored tensors of any names, dtypes and shapes beside any quantization config: they make up weights or
//! are refused, and what they make up can be read, or says why not.
//!
//! Two bytes are the length of the quantization config, which follows; one is the number of tensors, of
//! which each takes a few more.
#![no_main]

mod stored;

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use smelt_core::checkpoint::logical::Part;
use smelt_core::checkpoint::region::{elements, whole};
use smelt_core::checkpoint::{Checkpoint, TensorId};
use smelt_core::layout::catalog::Catalog;
use smelt_core::layout::pull::Tensors;
use stored::{Bytes, Tensor};

const STEMS: [&str; 3] = ["a.proj", "e.0.up", "e.down_proj"];

const ENDINGS: [&str; 24] = [
    ".weight",
    ".weight_scale_inv",
    ".weight_scale",
    ".weight_scale_2",
    ".scale",
    ".weight_packed",
    ".weight_global_scale",
    ".weight_zero_point",
    ".weight_shape",
    ".weight_g_idx",
    ".qweight",
    ".qzeros",
    ".scales",
    ".biases",
    ".g_idx",
    "_blocks",
    "_scales",
    "_scale_inv",
    "_scale",
    "",
    ".input_scale",
    ".k_scale",
    ".bias",
    ".shard_0.weight",
];

const DTYPES: [&str; 12] =
    ["F8_E4M3", "F8_E5M2", "F8_E8M0", "U8", "I8", "I32", "U32", "I64", "F32", "BF16", "F16", "F4"];

const SIZES: [u64; 12] = [0, 1, 2, 3, 4, 8, 16, 17, 32, 33, 64, 128];

/// Elements of the largest tensor.
const MOST: u64 = 1 << 16;

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes::new(data);
    let length = usize::from(bytes.next()) | usize::from(bytes.next()) << 8;
    let block: Value = serde_json::from_slice(bytes.take(length)).unwrap_or_else(|_| json!({}));
    let mut tensors: Vec<Tensor> = Vec::new();
    for _ in 0..bytes.below(24) {
        let name = format!("{}{}", one(&mut bytes, &STEMS), one(&mut bytes, &ENDINGS));
        let (dtype, rank) = (one(&mut bytes, &DTYPES), bytes.below(5));
        let shape: Vec<u64> = (0..rank).map(|_| one(&mut bytes, &SIZES)).collect();
        let data = bytes.take(4).to_vec();
        let is_new = tensors.iter().all(|tensor| tensor.name != name);
        if is_new && shape.iter().product::<u64>() <= MOST {
            tensors.push(Tensor { name, dtype, shape, data });
        }
    }
    let config = json!({ "model_type": "llama", "quantization_config": block });
    let Some(checkpoint) = stored::checkpoint(&config, &tensors) else { return };
    let _ = (checkpoint.describe_storage(), checkpoint.read_overhead());
    if checkpoint.check_storage().is_ok() {
        read_all(&checkpoint);
    }
});

/// One of some choices.
fn one<T: Copy>(bytes: &mut Bytes<'_>, choices: &[T]) -> T {
    choices[bytes.below(choices.len())]
}

fn read_all(checkpoint: &Checkpoint) {
    for tensor in checkpoint.logical_tensors() {
        let id = Catalog::find(checkpoint, &tensor.name).expect("a listed tensor is found");
        read(checkpoint, id, &tensor.shape, tensor.dtype.bits());
        let Some(native) = tensor.native() else { continue };
        if !matches!(checkpoint.inexact(id), Ok(None)) {
            continue;
        }
        let parts = if native.format.has_biases() { &Part::ALL[..] } else { &Part::ALL[..2] };
        for &part in parts {
            let (shape, dtype) = (native.shape_of(part, &tensor.shape), native.dtype_of(part));
            read(checkpoint, checkpoint.part_id(id, part), &shape, dtype.bits());
        }
    }
}

/// What can't be decoded is an error, never a panic.
fn read(checkpoint: &Checkpoint, id: TensorId, shape: &[u64], bits: u64) {
    let region = whole(shape);
    if bits >= 8 && elements(&region) <= 16 * MOST {
        let mut out = vec![0; (elements(&region) * bits / 8) as usize];
        let _ = checkpoint.read_region(id, &region, &mut out);
    }
}
