//! Every instruction set against one slow oracle and against what MLX stored.
//!
//! `naive` computes each format from its formula, one element at a time; `seeds` holds the inputs
//! that are hard; the other modules compare.

mod exhaustive;
mod golden;
mod naive;
mod properties;
mod quality;
mod scaled;
mod search;
mod seeds;
mod weigh;

use smelt_kernels::{Effort, Float, Format, Isa, Mode, Packed, Rounding, Stored};

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

impl Parts {
    fn stored(&self) -> Stored<'_> {
        Stored { codes: &self.codes, scales: &self.scales, biases: &self.biases }
    }

    /// The parts of group `k`.
    fn group(&self, format: Format, dtype: Float, k: usize) -> Self {
        let of = |part: &[u8], size: usize| part.get(k * size..(k + 1) * size).unwrap_or_default().to_vec();
        let scale = format.scale_bytes(dtype);
        Self {
            codes: of(&self.codes, format.code_bytes()),
            scales: of(&self.scales, scale),
            biases: of(&self.biases, scale),
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

/// How to search.
#[derive(Clone, Copy, Debug)]
struct How<'a> {
    effort: Effort,
    importance: Option<&'a [f32]>,
}

/// Quantizes by search with an instruction set.
fn search(isa: Isa, format: Format, how: How, dtype: Float, input: &[u8]) -> Parts {
    let mut parts = Parts::empty(format, dtype, input.len());
    let Parts { codes, scales, biases } = &mut parts;
    let out = Packed { codes, scales, biases };
    isa.search(format, how.effort, Rounding::Gpu, dtype, input, how.importance, out);
    parts
}

/// Decodes with an instruction set.
fn dequantize(isa: Isa, format: Format, dtype: Float, parts: &Parts) -> Vec<u8> {
    let groups = parts.codes.len() / format.code_bytes();
    let mut out = vec![0xA5; groups * format.group_size() * dtype.size()];
    isa.dequantize(format, dtype, &parts.codes, &parts.scales, &parts.biases, &mut out);
    out
}
