//! Codes, scales and zero points of any bits in each format: rows that are read by themselves are those
//! of the whole.
#![no_main]

mod stored;

use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use smelt_core::checkpoint::Checkpoint;
use smelt_core::checkpoint::region::{Axis, elements, whole};
use smelt_core::layout::catalog::Catalog;
use smelt_core::layout::pull::Tensors;
use stored::{Bytes, Tensor};

/// Tensors of a format without their data: name, dtype, shape.
type Listed = Vec<(&'static str, &'static str, Vec<u64>)>;

/// A format with its quantization config.
fn format(kind: usize, rows: u64, groups: u64) -> (Value, Listed) {
    let cols = groups * 32;
    let packed = |zeros: bool| {
        let weights = json!({ "num_bits": 4, "group_size": 32, "symmetric": !zeros });
        json!({ "quant_method": "compressed-tensors", "config_groups": { "a": { "weights": weights } } })
    };
    let codes = ("a.weight_packed", "I32", vec![rows, cols / 8]);
    let scales = ("a.weight_scale", "BF16", vec![rows, groups]);
    match kind {
        0 => (
            json!({ "quant_method": "fp8", "weight_block_size": [8, 32] }),
            vec![
                ("a.weight", "F8_E4M3", vec![rows, cols]),
                ("a.weight_scale_inv", "F32", vec![rows.div_ceil(8), groups]),
            ],
        ),
        1 => (
            json!({ "quant_method": "fp8" }),
            vec![("a.weight", "F8_E5M2", vec![rows, cols]), ("a.weight_scale", "F32", vec![rows, 1])],
        ),
        2 => (
            json!({ "quant_method": "mxfp8", "weight_block_size": [1, 32] }),
            vec![("a.weight", "F8_E4M3", vec![rows, cols]), ("a.weight_scale_inv", "U8", vec![rows, groups])],
        ),
        3 => (
            json!({ "quant_method": "mxfp4" }),
            vec![("a_blocks", "U8", vec![2, rows, groups, 16]), ("a_scales", "U8", vec![2, rows, groups])],
        ),
        4 => (
            json!({ "quant_method": "modelopt" }),
            vec![
                ("a.weight", "U8", vec![rows, cols / 2]),
                ("a.weight_scale", "F8_E4M3", vec![rows, groups * 2]),
                ("a.weight_scale_2", "F32", vec![]),
            ],
        ),
        5 => (packed(false), vec![codes, scales]),
        6 => {
            let zeros = ("a.weight_zero_point", "I32", vec![rows.div_ceil(8), groups]);
            (packed(true), vec![codes, scales, zeros])
        }
        7 => (
            json!({ "quant_method": "awq", "bits": 4, "group_size": 32 }),
            vec![
                ("a.qweight", "I32", vec![cols, rows]),
                ("a.qzeros", "I32", vec![groups, rows]),
                ("a.scales", "F16", vec![groups, rows * 8]),
            ],
        ),
        _ => (
            json!({ "quant_method": "gptq", "bits": 4, "group_size": 32 }),
            vec![
                ("a.qweight", "I32", vec![cols / 8, rows * 8]),
                ("a.qzeros", "I32", vec![groups, rows]),
                ("a.scales", "F16", vec![groups, rows * 8]),
            ],
        ),
    }
}

fuzz_target!(|data: &[u8]| {
    let mut bytes = Bytes::new(data);
    let (kind, rows, groups) = (bytes.below(9), 1 + bytes.below(40) as u64, 1 + bytes.below(6) as u64);
    let cut = [0; 3].map(|_| u64::from(bytes.next()));
    let (config, listed) = format(kind, rows, groups);
    let each = data.len() / (listed.len() + 1);
    let make = |(name, dtype, shape): (&str, _, _)| Tensor {
        name: name.to_owned(),
        dtype,
        shape,
        data: bytes.take(each).to_vec(),
    };
    let tensors: Vec<Tensor> = listed.into_iter().map(make).collect();
    let config = json!({ "model_type": "llama", "quantization_config": config });
    let checkpoint = stored::checkpoint(&config, &tensors).expect("the header is sound");
    checkpoint.check_storage().expect("the format is known");
    rows_are_those_of_the_whole(&checkpoint, cut);
});

fn rows_are_those_of_the_whole(checkpoint: &Checkpoint, [start, step, len]: [u64; 3]) {
    let tensor = &checkpoint.logical_tensors()[0];
    let id = Catalog::find(checkpoint, &tensor.name).expect("a listed tensor is found");
    let [.., rows, cols] = *tensor.shape else { return };
    let mut region = whole(&tensor.shape);
    let read = |region: &[Axis]| {
        let mut out = vec![0; elements(region) as usize * 2];
        checkpoint.read_region(id, region, &mut out).map(|()| out)
    };
    // A byte 255 among the scales is refused, and may lie outside the rows.
    let Ok(all) = read(&region) else { return };
    let (start, step) = (start % rows, 1 + step % 3);
    let len = 1 + len % (rows - start).div_ceil(step);
    let at = region.len() - 2;
    region[at] = Axis { start, len, step };
    let some = read(&region).expect("what is read as a whole is read in part");
    let width = cols as usize * 2;
    let matrices = all.chunks_exact(rows as usize * width).zip(some.chunks_exact(len as usize * width));
    for (all, some) in matrices {
        for (index, row) in some.chunks_exact(width).enumerate() {
            let from = (start as usize + index * step as usize) * width;
            assert_eq!(row, &all[from..from + width]);
        }
    }
}
