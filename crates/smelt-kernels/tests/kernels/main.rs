//! Every instruction set against one slow oracle and against what MLX stored.
//!
//! `naive` computes each format from its formula, one element at a time; `seeds` holds the inputs
//! that are hard; the other modules compare.

mod exhaustive;
mod golden;
mod naive;
mod properties;
mod scaled;
mod seeds;

use smelt_kernels::{Float, Format, Isa, Mode, Packed, Rounding};

/// The dtypes of weights.
const DTYPES: [Float; 3] = [Float::Bf16, Float::F16, Float::F32];

/// Both rules.
const ROUNDINGS: [Rounding; 2] = [Rounding::Cpu, Rounding::Gpu];

/// Every format that MLX stores.
fn formats() -> Vec<Format> {
    let mut formats = Vec::new();
    for mode in Mode::ALL {
        for bits in 0..=16 {
            let sizes = [16, 32, 64, 128].into_iter();
            formats.extend(sizes.filter_map(|size| Format::new(mode, bits, size)));
        }
    }
    assert_eq!(formats.len(), 21);
    formats
}

/// The parts of a quantized block.
#[derive(Clone, Debug, PartialEq)]
struct Parts {
    codes: Vec<u8>,
    scales: Vec<u8>,
    biases: Vec<u8>,
}

impl Parts {
    fn empty(format: Format, dtype: Float, input: usize) -> Self {
        let groups = input / dtype.size() / format.group_size();
        let scales = groups * format.scale_bytes(dtype);
        Self {
            // Not zero, so that a byte that is never written shows.
            codes: vec![0xA5; groups * format.code_bytes()],
            scales: vec![0xA5; scales],
            biases: vec![0xA5; if format.has_biases() { scales } else { 0 }],
        }
    }
}

/// Quantizes with an instruction set.
fn quantize(isa: Isa, format: Format, rounding: Rounding, dtype: Float, input: &[u8]) -> Parts {
    let mut parts = Parts::empty(format, dtype, input.len());
    let Parts { codes, scales, biases } = &mut parts;
    isa.quantize(format, rounding, dtype, input, Packed { codes, scales, biases });
    parts
}

/// Decodes with an instruction set.
fn dequantize(isa: Isa, format: Format, dtype: Float, parts: &Parts) -> Vec<u8> {
    let groups = parts.codes.len() / format.code_bytes();
    let mut out = vec![0xA5; groups * format.group_size() * dtype.size()];
    isa.dequantize(format, dtype, &parts.codes, &parts.scales, &parts.biases, &mut out);
    out
}
