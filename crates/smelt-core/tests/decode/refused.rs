//! One corrupt checkpoint for each refusal, and what is said.

use serde_json::{Value, json};
use smelt_core::checkpoint::region::whole;
use smelt_core::layout::catalog::Catalog;
use smelt_core::layout::pull::Tensors;

use crate::{Tensor, open, tensor};

fn empty(name: &str, dtype: &'static str, shape: &[u64]) -> Tensor {
    let bits = smelt_core::checkpoint::DType::from_name(dtype).unwrap().bits();
    tensor(name, dtype, shape, vec![0; (shape.iter().product::<u64>() * bits / 8) as usize])
}

#[expect(clippy::needless_pass_by_value, reason = "a literal at each call")]
fn said(config: Value, tensors: &[Tensor]) -> String {
    open(&json!({ "quantization_config": config }), tensors).check_storage().unwrap_err().to_string()
}

#[track_caller]
fn says(config: Value, tensors: &[Tensor], parts: &[&str]) {
    let said = said(config, tensors);
    for part in parts {
        assert!(said.contains(part), "`{part}` is not in: {said}");
    }
}

#[test]
fn a_scale_that_is_missing() {
    let fp8 = empty("x.weight", "F8_E4M3", &[4, 8]);
    says(
        json!({}),
        std::slice::from_ref(&fp8),
        &["`x.weight` (F8_E4M3) has no scale", "`x.weight_scale_inv`"],
    );
    let nv = [empty("x.weight", "U8", &[4, 8]), empty("x.weight_scale", "F8_E4M3", &[4, 1])];
    says(json!({}), &nv, &["`x.weight`", "no `x.weight_scale_2`"]);
    let divided = [empty("x.weight_packed", "U8", &[4, 8]), empty("x.weight_scale", "F8_E4M3", &[4, 1])];
    says(json!({}), &divided, &["no `x.weight_global_scale`"]);
    says(json!({}), &[empty("e_blocks", "U8", &[1, 2, 3, 16])], &["no `e_scales`"]);
    says(
        json!({}),
        &[empty("x.qweight", "I32", &[8, 4]), empty("x.scales", "F16", &[1, 32])],
        &["no `x.qzeros`"],
    );
}

#[test]
fn a_scale_that_is_spare() {
    let spare = [empty("x.weight", "BF16", &[4, 8]), empty("x.weight_scale_inv", "F32", &[1, 1])];
    says(json!({}), &spare, &["`x.weight_scale_inv` is there without `x.weight`"]);
    says(json!({}), &[empty("x.scale", "F8_E8M0", &[1, 1])], &["`x.scale`", "`x.weight`"]);
    says(json!({}), &[empty("x.qzeros", "I32", &[1, 1])], &["`x.qzeros`", "`x.qweight`"]);
}

#[test]
fn companions_that_contradict() {
    let fp8 = empty("x.weight", "F8_E4M3", &[256, 128]);
    let both =
        [fp8.clone(), empty("x.weight_scale", "F32", &[1]), empty("x.weight_scale_inv", "F32", &[2, 1])];
    says(json!({}), &both, &["both", "`x.weight_scale_inv`", "`x.weight_scale`"]);
    // One for all where the config says blocks; blocks of another size than it says.
    let config = json!({ "quant_method": "fp8", "weight_block_size": [128, 128] });
    let whole = [fp8.clone(), empty("x.weight_scale_inv", "F32", &[])];
    says(
        config.clone(),
        &whole,
        &["`x.weight_scale_inv` has shape []", "[2, 1], as weight_block_size is [128, 128]"],
    );
    let finer = [fp8.clone(), empty("x.weight_scale_inv", "F32", &[4, 2])];
    says(config, &finer, &["`x.weight_scale_inv` has shape [4, 2]"]);
    let integers = [fp8, empty("x.weight_scale_inv", "I32", &[2, 1])];
    says(json!({}), &integers, &["`x.weight_scale_inv` of `x.weight` has dtype I32"]);
    let twice = [
        empty("x.weight", "BF16", &[4, 32]),
        empty("x.weight_packed", "I32", &[4, 4]),
        empty("x.weight_scale", "BF16", &[4, 1]),
    ];
    says(json!({}), &twice, &["`x.weight` has both", "BF16"]);
}

#[test]
fn what_the_config_contradicts() {
    let packed = |zero: bool| {
        let mut tensors =
            vec![empty("x.weight_packed", "I32", &[8, 8]), empty("x.weight_scale", "BF16", &[8, 2])];
        tensors.extend(zero.then(|| empty("x.weight_zero_point", "I32", &[1, 2])));
        tensors
    };
    let config = |group: u64, symmetric: bool| {
        let weights = json!({ "num_bits": 4, "group_size": group, "symmetric": symmetric });
        json!({ "quant_method": "compressed-tensors", "config_groups": { "a": { "weights": weights } } })
    };
    says(config(128, true), &packed(false), &["`x.weight_packed` and `x.weight_scale`", "groups of 128"]);
    says(config(32, false), &packed(false), &["without zero points", "symmetric is false"]);
    says(config(32, true), &packed(true), &["with zero points", "symmetric is true"]);
    let awq = [
        empty("x.qweight", "I32", &[32, 4]),
        empty("x.qzeros", "I32", &[1, 4]),
        empty("x.scales", "F16", &[1, 32]),
    ];
    says(json!({ "quant_method": "gptq", "bits": 4 }), &awq, &["packed as awq packs them", "`gptq`"]);
    says(
        json!({ "quant_method": "awq", "bits": 4, "group_size": 16 }),
        &awq,
        &["in groups of 32", "groups of 16"],
    );
}

#[test]
fn another_float_or_width_than_the_config_says() {
    let fp8 = |dtype| [empty("x.weight", dtype, &[4, 8]), empty("x.weight_scale_inv", "F32", &[])];
    let fmt = |fmt: &str| json!({ "quant_method": "fp8", "fmt": fmt });
    says(fmt("e5m2"), &fp8("F8_E4M3"), &["`x.weight` and `x.weight_scale_inv`", "FP8 E4M3", "`fmt` is e5m2"]);
    says(fmt("float8_e4m3fn"), &fp8("F8_E5M2"), &["FP8 E5M2", "`fmt` is e4m3"]);
    let groups = |weights: Value| json!({ "quant_method": "compressed-tensors", "config_groups": { "a": { "weights": weights } } });
    says(groups(json!({ "num_bits": 4 })), &fp8("F8_E4M3"), &["codes of 8 bits", "says 4 bits"]);
    let fp4 = [empty("x.weight_packed", "U8", &[4, 32]), empty("x.weight_scale", "U8", &[4, 2])];
    says(groups(json!({ "num_bits": 8 })), &fp4, &["`x.weight_packed`", "codes of 4 bits", "says 8 bits"]);
    says(groups(json!({ "num_bits": 4, "group_size": 16 })), &fp4, &["in groups of 32", "groups of 16"]);
    let blocks = groups(json!({ "num_bits": 8, "strategy": "block", "block_structure": [2, 4] }));
    says(blocks, &fp8("F8_E4M3"), &["`x.weight_scale_inv` has shape []", "[2, 2]"]);
}

#[test]
fn an_order_that_is_missing() {
    let gptq = [
        empty("x.qweight", "I32", &[8, 32]),
        empty("x.qzeros", "I32", &[2, 4]),
        empty("x.scales", "F16", &[2, 32]),
    ];
    let config = json!({ "quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": true });
    says(config, &gptq, &["`x.qweight` (I32) has no `x.g_idx`, which `desc_act` asks for"]);
    let packed = [empty("x.weight_packed", "I32", &[8, 8]), empty("x.weight_scale", "BF16", &[8, 2])];
    let weights = json!({ "num_bits": 4, "group_size": 32, "symmetric": true, "actorder": "group" });
    let config =
        json!({ "quant_method": "compressed-tensors", "config_groups": { "a": { "weights": weights } } });
    says(config, &packed, &["`x.weight_packed` (I32) has no `x.weight_g_idx`, which `actorder` asks for"]);
}

#[test]
fn a_method_that_smelt_does_not_know() {
    let fp8 = [empty("x.weight", "F8_E4M3", &[4, 8]), empty("x.weight_scale_inv", "F32", &[])];
    says(
        json!({ "quant_method": "quark" }),
        &fp8,
        &["`x.weight` is quantized by the method `quark`", "awq, "],
    );
    // Of floats it says nothing.
    let plain = [empty("x.weight", "BF16", &[4, 8])];
    open(&json!({ "quantization_config": { "quant_method": "quark" } }), &plain).check_storage().unwrap();
}

#[test]
fn what_no_format_has() {
    let ternary = [empty("x.weight", "U8", &[4, 8]), empty("x.weight_scale", "BF16", &[4])];
    says(
        json!({ "quant_method": "bitnet" }),
        &ternary,
        &["no format that smelt reads", "`bitnet`", "U8 with scales"],
    );
    says(json!({}), &[empty("x.weight", "F8_E4M3FNUZ", &[4, 8])], &["dtype F8_E4M3FNUZ"]);
    let three = [empty("x.weight_packed", "I32", &[8, 8]), empty("x.weight_scale", "BF16", &[8, 1])];
    says(json!({ "quant_method": "gptq", "bits": 3 }), &three, &["packed integers of 3 bits"]);
    let flat = [empty("x.weight_packed", "I32", &[8]), empty("x.weight_scale", "BF16", &[1])];
    says(json!({}), &flat, &["`x.weight_packed` is packed integers without rows"]);
    let nothing = [empty("x.weight", "F8_E4M3", &[0, 8]), empty("x.weight_scale", "F32", &[])];
    says(json!({}), &nothing, &["`x.weight` is without a single weight"]);
    let many = [empty("x.weight_packed", "I32", &[8, 1]), empty("x.weight_scale", "BF16", &[8, 9])];
    says(json!({}), &many, &["`x.weight_scale` has shape [8, 9]", "fewer groups than its 8 columns"]);
    let vast = json!({ "quant_method": "gptq", "group_size": u64::MAX });
    let packed = [empty("x.weight_packed", "I32", &[8, 8]), empty("x.weight_scale", "BF16", &[8, 2])];
    says(vast, &packed, &["`x.weight_packed` and `x.weight_scale`"]);
    let unclear = [empty("x.weight", "F8_E4M3", &[100, 100]), empty("x.weight_scale", "F32", &[7, 3])];
    says(json!({}), &unclear, &["blocks that the config declares"]);
}

/// What only the data shows is refused when it is read.
#[test]
fn data_that_can_t_be() {
    let read = |tensors: &[Tensor], name: &str| {
        let checkpoint = open(&json!({}), tensors);
        checkpoint.check_storage().unwrap();
        let id = Catalog::find(&checkpoint, name).unwrap();
        let shape = checkpoint.info(id).shape.to_vec();
        let mut out = vec![0; shape.iter().product::<u64>() as usize * 2];
        checkpoint.read_region(id, &whole(&shape), &mut out).unwrap_err().to_string()
    };
    let mut scale = empty("x.weight_scale_inv", "U8", &[1, 1]);
    scale.data[0] = 255;
    let said = read(&[empty("x.weight", "F8_E4M3", &[4, 8]), scale], "x.weight");
    assert!(said.contains("`x.weight_scale_inv` holds the byte 255"), "{said}");
    let packed = [empty("x.weight_packed", "I32", &[8, 8]), empty("x.weight_scale", "BF16", &[8, 2])];
    let with = |more: Tensor| [&packed[..], &[more]].concat();
    let said = read(
        &with(tensor("x.weight_shape", "I32", &[2], [8u32, 63].map(u32::to_le_bytes).concat())),
        "x.weight",
    );
    assert!(said.contains("`x.weight_shape` says [8, 63], but `x.weight` has shape [8, 64]"), "{said}");
    let order = tensor("x.weight_g_idx", "I32", &[64], 2u32.to_le_bytes().repeat(64));
    let said = read(&with(order), "x.weight");
    assert!(said.contains("`x.weight_g_idx` names group 2"), "{said}");
}
