//! What the values of a model say beside those of its source: the numbers are right, and damage that leaves
//! the files in perfect order is found.

use half::bf16;
use smelt_core::plan::Options;
use smelt_core::verify::{Check, Compared, Report};
use smelt_kernels::{Float, Format, Mode, Packed, Rounding, dequantize, quantize};

use crate::shards::bytes;
use crate::{Contents, Made, has_error, in_mode, made, mixed, verify};

const EXPERTS: &str = "model.layers.1.mlp.switch_mlp";
const NORM: &str = "model.layers.2.input_layernorm.weight";

fn halves(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|&pair| bf16::from_le_bytes(pair).to_f32()).collect()
}

fn stored(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&value| bf16::from_f32(value).to_le_bytes()).collect()
}

fn affine(bits: u8) -> Format {
    Format::new(Mode::Affine, bits, 64).unwrap()
}

fn compared<'a>(report: &'a Report, name: &str) -> &'a Compared {
    report.comparison.as_ref().unwrap().tensors.iter().find(|tensor| tensor.name == name).unwrap()
}

/// The metrics of one tensor, from the definitions and MLX's formula alone.
#[test]
fn the_numbers_are_those_of_the_definitions() {
    let name = "model.layers.0.self_attn.k_proj";
    let mut made = made("llama", &Options::default());
    let (scales, biases) = (
        halves(bytes(&mut made.model, &format!("{name}.scales"))),
        halves(bytes(&mut made.model, &format!("{name}.biases"))),
    );
    let codes = bytes(&mut made.model, &format!("{name}.weight")).to_vec();
    let weight = format!("{name}.weight");
    let id = made.source.find(&weight).unwrap();
    let mut raw = vec![0; made.source.tensor(id).bytes as usize];
    made.source.read(id, 0, &mut raw).unwrap();
    let (mut error, mut energy, mut other, mut dot, mut largest) = (0.0, 0.0, 0.0, 0.0, 0.0f64);
    for (at, x) in halves(&raw).into_iter().enumerate() {
        let code = (codes[at / 2] >> (4 * (at % 2))) & 15;
        let y = f64::from(f32::from(code) * scales[at / 64] + biases[at / 64]);
        let x = f64::from(x);
        error += (x - y) * (x - y);
        energy += x * x;
        other += y * y;
        dot += x * y;
        largest = largest.max((x - y).abs());
    }
    let report = verify(&made.model, Some(&made.source));
    let metrics = compared(&report, &weight).metrics;
    let near = |a: f64, b: f64| assert!((a - b).abs() <= 1e-12 * b.abs(), "{a} and {b}");
    near(metrics.relative_rmse, (error / energy).sqrt());
    near(metrics.sqnr_db.unwrap(), 10.0 * (energy / error).log10());
    near(metrics.cosine, dot / (energy * other).sqrt());
    assert_eq!(metrics.max_error, largest);
}

/// Decodes one expert's matrix of the stacks, changes it, and stores it as smelt would have.
fn rewrite(model: &mut Contents, part: &str, expert: usize, change: impl FnOnce(Vec<f32>) -> Vec<f32>) {
    let (format, name) = (affine(4), format!("{EXPERTS}.{part}"));
    let each = |model: &mut Contents, tensor: &str| {
        let all = bytes(model, tensor);
        let len = all.len() / 4;
        (expert * len, len)
    };
    let names = ["weight", "scales", "biases"].map(|kind| format!("{name}.{kind}"));
    let mut old = names.iter().map(|tensor| {
        let (start, len) = each(model, tensor);
        bytes(model, tensor)[start..start + len].to_vec()
    });
    let (mut codes, mut scales, mut biases) = (old.next().unwrap(), old.next().unwrap(), old.next().unwrap());
    let mut dense = vec![0; codes.len() * 4];
    dequantize(format, Float::Bf16, &codes, &scales, &biases, &mut dense);
    let dense = stored(&change(halves(&dense)));
    let out = Packed { codes: &mut codes, scales: &mut scales, biases: &mut biases };
    quantize(format, Rounding::Gpu, Float::Bf16, &dense, out);
    for (tensor, new) in names.iter().zip([codes, scales, biases]) {
        let (start, len) = each(model, tensor);
        bytes(model, tensor)[start..start + len].copy_from_slice(&new);
    }
}

fn transposed(values: &[f32], rows: usize) -> Vec<f32> {
    let cols = values.len() / rows;
    (0..values.len()).map(|at| values[at % rows * cols + at / rows]).collect()
}

/// Exchanges equally long parts of two tensors.
fn exchange(model: &mut Contents, a: (&str, usize), b: (&str, usize), len: usize) {
    let (first, second) =
        (bytes(model, a.0)[a.1..a.1 + len].to_vec(), bytes(model, b.0)[b.1..b.1 + len].to_vec());
    bytes(model, a.0)[a.1..a.1 + len].copy_from_slice(&second);
    bytes(model, b.0)[b.1..b.1 + len].copy_from_slice(&first);
}

fn scaled(model: &mut Contents, tensor: &str, by: f32) {
    let values: Vec<f32> = halves(bytes(model, tensor)).into_iter().map(|value| value * by).collect();
    bytes(model, tensor).copy_from_slice(&stored(&values));
}

/// Damage of one tensor: what, how, and the parameter that must be named.
type Damage = (&'static str, fn(&mut Contents), &'static str);

const DAMAGES: [Damage; 9] = [
    (
        "norm shifted twice",
        |model| {
            let shifted: Vec<f32> = halves(bytes(model, NORM)).into_iter().map(|value| value + 1.0).collect();
            bytes(model, NORM).copy_from_slice(&stored(&shifted));
        },
        NORM,
    ),
    ("norm in the last place", |model| bytes(model, NORM)[0] ^= 1, NORM),
    (
        "gate and up exchanged",
        |model| {
            for kind in ["weight", "scales", "biases"] {
                let (gate, up) = (format!("{EXPERTS}.gate_proj.{kind}"), format!("{EXPERTS}.up_proj.{kind}"));
                let len = bytes(model, &gate).len();
                exchange(model, (&gate, 0), (&up, 0), len);
            }
        },
        "model.layers.1.mlp.switch_mlp.gate_proj.weight",
    ),
    (
        "half of one expert in the other's place",
        |model| {
            for kind in ["weight", "scales", "biases"] {
                let name = format!("{EXPERTS}.up_proj.{kind}");
                let half = bytes(model, &name).len() / 8;
                exchange(model, (&name, 4 * half), (&name, 5 * half), half);
            }
        },
        "model.layers.1.mlp.switch_mlp.up_proj.weight",
    ),
    (
        "two experts exchanged",
        |model| {
            for kind in ["weight", "scales", "biases"] {
                let name = format!("{EXPERTS}.up_proj.{kind}");
                let each = bytes(model, &name).len() / 4;
                exchange(model, (&name, 0), (&name, 3 * each), each);
            }
        },
        "model.layers.1.mlp.switch_mlp.up_proj.weight",
    ),
    (
        "one expert transposed",
        |model| {
            rewrite(model, "gate_proj", 2, |values| transposed(&values, 64));
        },
        "model.layers.1.mlp.switch_mlp.gate_proj.weight",
    ),
    (
        "one expert negated",
        |model| {
            rewrite(model, "gate_proj", 2, |values| values.into_iter().map(|value| -value).collect());
        },
        "model.layers.1.mlp.switch_mlp.gate_proj.weight",
    ),
    ("scales read as integers", |model| scaled(model, "lm_head.scales", 1e5), "lm_head.weight"),
    (
        "biases of another tensor",
        |model| {
            let len = bytes(model, "lm_head.biases").len();
            bytes(model, "lm_head.biases").copy_within(len / 2.., 0);
        },
        "lm_head.weight",
    ),
];

#[test]
fn silent_damage_is_found() {
    let Made { source, model } = made("qwen3_moe", &Options::default());
    let sound = verify(&model, Some(&source));
    assert!(sound.findings.is_empty(), "{:#?}", sound.findings);
    for (what, damage, name) in DAMAGES {
        let mut broken = model.clone();
        damage(&mut broken);
        let report = verify(&broken, None);
        assert!(report.is_sound(), "{what} leaves the files in order: {:#?}", report.findings);
        let report = verify(&broken, Some(&source));
        assert!(has_error(&report, Check::Source, name), "{what}: {:#?}", report.findings);
        let named: usize = report.findings.iter().map(|finding| finding.names.len()).sum();
        assert!(named <= 2, "{what} names more than it damages: {:#?}", report.findings);
    }
}

#[test]
fn damage_of_floating_point_codes_is_found() {
    for mode in [Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4] {
        let Made { source, mut model } = made("qwen3_moe", &in_mode(mode));
        let each = bytes(&mut model, &format!("{EXPERTS}.up_proj.weight")).len() / 4;
        let name = format!("{EXPERTS}.up_proj.weight");
        exchange(&mut model, (&name, 0), (&name, each), each);
        let report = verify(&model, Some(&source));
        assert!(has_error(&report, Check::Source, &name), "{mode:?}: {:#?}", report.findings);
    }
}

#[test]
fn one_row_of_many_is_named_with_its_place() {
    let Made { source, mut model } = made("qwen3_moe", &Options::default());
    // Row 5 of expert 2: one of 256. Rows of 128 hold 64 bytes of codes.
    let name = format!("{EXPERTS}.up_proj.weight");
    let row = (2 * 64 + 5) * 64;
    bytes(&mut model, &name)[row..row + 64].reverse();
    let report = verify(&model, Some(&source));
    let finding = report.findings.iter().find(|finding| finding.check == Check::Source).unwrap();
    assert!(finding.what.contains("1 of 256 rows") && finding.what.contains("[2, 5]"), "{}", finding.what);
    let worst = compared(&report, &name).worst_row.unwrap();
    assert!(worst.1 == 2 * 64 + 5 && worst.0 > 0.5, "{worst:?}");
}

#[test]
fn a_model_of_another_checkpoint() {
    let Made { source, .. } = made("qwen3_moe", &Options::default());
    let other = made("qwen3_moe_dense_layer", &Options::default()).model;
    let report = verify(&other, Some(&source));
    assert!(report.findings.iter().any(|finding| finding.check == Check::Source), "{:#?}", report.findings);
    assert!(!report.is_sound());
}

#[test]
fn another_dtype_is_the_source_rounded() {
    for dtype in [smelt_core::checkpoint::DType::F16, smelt_core::checkpoint::DType::F32] {
        let made = made("qwen3_moe", &Options { dtype: Some(dtype), ..mixed() });
        let report = verify(&made.model, Some(&made.source));
        assert!(report.findings.is_empty(), "{:#?}", report.findings);
    }
}
