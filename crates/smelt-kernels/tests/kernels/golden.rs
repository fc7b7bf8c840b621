//! What MLX itself stored: on a GPU (an NVIDIA H100) and on an x86-64 CPU.
//!
//! Both files hold tensors named `dtype/case/input` and `dtype/case/format/part`, 16-bit floats as
//! U16 and f32 as U32. `data/make_cpu_rule.py` writes the second.

use safetensors::SafeTensors;
use smelt_kernels::{Float, Format, Isa, Mode, Rounding};

use crate::{DTYPES, Parts, dequantize, formats, quantize};

const GPU: &[u8] = include_bytes!("../data/gpu_rule.safetensors");

fn dtype_name(dtype: Float) -> &'static str {
    match dtype {
        Float::Bf16 => "bf16",
        Float::F16 => "f16",
        Float::F32 => "f32",
    }
}

fn format_name(format: Format) -> String {
    match format.mode() {
        Mode::Affine => format!("affine-b{}-g{}", format.bits(), format.group_size()),
        mode => mode.name().to_owned(),
    }
}

/// Names and dtypes of the cases of a file, in order.
fn cases(file: &SafeTensors<'_>) -> Vec<(String, Float)> {
    let mut cases = Vec::new();
    for dtype in DTYPES {
        let prefix = format!("{}/", dtype_name(dtype));
        let names = file.names().into_iter().filter(|name| name.starts_with(&prefix));
        cases.extend(names.filter_map(|name| Some((name.strip_suffix("/input")?.to_owned(), dtype))));
    }
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    cases
}

fn bytes(file: &SafeTensors<'_>, name: &str) -> Option<Vec<u8>> {
    Some(file.tensor(name).ok()?.data().to_vec())
}

/// The stored parts of a case in a format, if the file has them.
fn parts(file: &SafeTensors<'_>, case: &str, format: Format) -> Option<Parts> {
    let part = |name| bytes(file, &format!("{case}/{}/{name}", format_name(format)));
    Some(Parts {
        codes: part("weight")?,
        scales: part("scales")?,
        biases: part("biases").unwrap_or_default(),
    })
}

/// Clears codes that mean nothing: CUDA divides by a scale of zero.
fn forget_codes_of_zero_scales(format: Format, parts: &mut Parts) {
    if format.mode() == Mode::Nvfp4 {
        let groups = parts.codes.chunks_mut(format.code_bytes());
        for (codes, _) in groups.zip(&parts.scales).filter(|(_, scale)| **scale == 0) {
            codes.fill(0);
        }
    }
}

/// Calls `check` with each stored block and what `isa` makes of its input; returns their number.
fn compare(
    file: &SafeTensors<'_>,
    rounding: Rounding,
    check: impl Fn(&str, Format, Float, Parts, Parts),
) -> usize {
    let mut compared = 0;
    for (case, dtype) in cases(file) {
        let input = bytes(file, &format!("{case}/input")).expect("a case has an input");
        for format in formats() {
            let Some(stored) = parts(file, &case, format) else {
                continue;
            };
            for isa in Isa::available() {
                let made = quantize(isa, format, rounding, dtype, &input);
                check(&format!("{case} {format} {isa}"), format, dtype, made, stored.clone());
                compared += 1;
            }
        }
    }
    compared
}

#[test]
fn gpu_rule_is_what_a_gpu_stored() {
    let file = SafeTensors::deserialize(GPU).unwrap();
    let compared = compare(&file, Rounding::Gpu, |what, format, _, mut made, mut stored| {
        forget_codes_of_zero_scales(format, &mut made);
        forget_codes_of_zero_scales(format, &mut stored);
        assert_eq!(made, stored, "{what}");
    });
    assert!(compared >= 1000 * Isa::available().len(), "only {compared} blocks in the file");
}

const CPU: &[u8] = include_bytes!("../data/cpu_rule.safetensors");

/// f32 NaN have the sign that the CPU gave them; here they have none.
fn drop_sign_of_nan(dtype: Float, data: &mut [u8]) {
    if dtype == Float::F32 {
        for word in data.as_chunks_mut::<4>().0 {
            if f32::from_le_bytes(*word).is_nan() {
                word[3] &= 0x7F;
            }
        }
    }
}

#[test]
fn cpu_rule_is_what_a_cpu_stored() {
    let file = SafeTensors::deserialize(CPU).unwrap();
    let compared = compare(&file, Rounding::Cpu, |what, format, dtype, made, mut stored| {
        if format.mode() == Mode::Affine {
            drop_sign_of_nan(dtype, &mut stored.scales);
        }
        assert_eq!(made, stored, "{what}");
    });
    assert!(compared >= 500 * Isa::available().len(), "only {compared} blocks in the file");
}

#[test]
fn dequantize_is_what_a_cpu_gave() {
    let file = SafeTensors::deserialize(CPU).unwrap();
    let mut compared = 0;
    for (case, dtype) in cases(&file) {
        for format in formats() {
            let name = format!("{case}/{}/dequantized", format_name(format));
            let Some(expected) = bytes(&file, &name) else {
                continue;
            };
            let parts = parts(&file, &case, format).unwrap();
            for isa in Isa::available() {
                assert_eq!(dequantize(isa, format, dtype, &parts), expected, "{name} {isa}");
                compared += 1;
            }
        }
    }
    assert!(compared >= 150 * Isa::available().len(), "only {compared} blocks in the file");
}
