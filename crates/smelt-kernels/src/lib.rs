//! Quantization kernels of smelt: MLX's formats, bit for bit, on plain byte slices.
//!
//! Everything here works on little-endian bytes as they lie in a safetensors file: no alignment is
//! asked for, nothing is allocated per call beyond a fixed scratch, and every group is independent
//! of its neighbours, so a caller may cut a tensor wherever a group ends and get the same bytes.

mod format;

pub use format::{Float, Format, Mode, Rounding};

/// Where the parts of a quantized block go.
#[derive(Debug)]
pub struct Packed<'a> {
    /// Packed codes: [`Format::code_bytes`] a group.
    pub codes: &'a mut [u8],
    /// Scales: [`Format::scale_bytes`] a group.
    pub scales: &'a mut [u8],
    /// Biases, as long as the scales; empty for a format without biases.
    pub biases: &'a mut [u8],
}

/// Quantizes whole groups of `input`.
pub fn quantize(format: Format, rounding: Rounding, dtype: Float, input: &[u8], out: Packed<'_>) {
    let _ = (format, rounding, dtype, input, out);
}

/// Decodes whole groups into `out`, in `dtype`.
pub fn dequantize(format: Format, dtype: Float, codes: &[u8], scales: &[u8], biases: &[u8], out: &mut [u8]) {
    let _ = (format, dtype, codes, scales, biases, out);
}

/// Whether no element of `data` is NaN or infinite.
pub fn all_finite(dtype: Float, data: &[u8]) -> bool {
    let _ = (dtype, data);
    true
}

/// Rounds each element of `input` to another type, to nearest even.
pub fn convert(from: Float, to: Float, input: &[u8], out: &mut [u8]) {
    let _ = (from, to, input, out);
}

/// Transposes a matrix of `rows` × `cols` elements of `size` bytes each.
pub fn transpose(input: &[u8], rows: usize, cols: usize, size: usize, out: &mut [u8]) {
    let _ = (input, rows, cols, size, out);
}
