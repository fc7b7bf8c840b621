//! Quantization kernels of smelt: MLX's formats, bit for bit, on plain byte slices.
//!
//! Everything here works on little-endian bytes as they lie in a safetensors file: no alignment is
//! asked for, nothing is allocated, and every group is independent of its neighbours, so a caller
//! may cut a tensor wherever a group ends and get the same bytes.
//!
//! The functions of this module use the fastest instruction set of the CPU ([`Isa::best`]);
//! the methods of [`Isa`] are the same with a chosen one. All give the same bits, of input that is
//! not finite too.
//!
//! ```
//! use smelt_kernels::{Float, Format, Mode, Packed, Rounding, quantize};
//!
//! let format = Format::new(Mode::Mxfp8, 8, 32).unwrap();
//! let ones = 1.0f32.to_le_bytes().repeat(32);
//! let (mut codes, mut scales) = ([0; 32], [0; 1]);
//! let out = Packed { codes: &mut codes, scales: &mut scales, biases: &mut [] };
//! quantize(format, Rounding::Gpu, Float::F32, &ones, out);
//! assert_eq!((scales[0], codes[0]), (119, 0x78)); // 2^-8 and 256
//! ```

#![expect(
    clippy::inline_always,
    reason = "kernels only become vector code inside the function with `target_feature`"
)]

mod affine;
mod arch;
mod decode;
mod dispatch;
mod float;
mod format;
mod measure;
mod mx;
mod pack;
mod run;
mod scaled;
mod search;
mod transpose;
mod weigh;

pub use decode::e4m3_to_f32;
pub use dispatch::Isa;
pub use format::{Float, Format, Mode, Rounding};
pub use measure::Distortion;
pub use run::Stored;
pub use search::Effort;
pub use weigh::{Extent, Squares};

use dispatch::Engine;
use run::Task;
use search::Search;

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

/// What a byte of codes means, in the formats of other tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// A float of 4 exponent bits, without infinities; 0x7F and 0xFF are NaN.
    E4m3,
    /// A float of 5 exponent bits, with infinities.
    E5m2,
    /// A float of four bits, in the low half of the byte.
    E2m1,
    /// An integer from 0 to 255.
    Unsigned,
    /// An integer from -128 to 127.
    Signed,
}

/// Scales and zero points along a row of codes.
#[derive(Clone, Copy, Debug)]
pub struct Steps<'a> {
    /// One for each group that the row meets.
    pub scales: &'a [f32],
    /// As many, or none where all are 0.
    pub zeros: &'a [f32],
    /// Elements of a group.
    pub size: usize,
    /// Elements of the first group that come before the row's first; less than `size`.
    pub skip: usize,
}

/// Decodes a row of codes: `(value - zero) * scale` in f32, rounded to `to`. NaN is positive.
///
/// # Panics
///
/// If `out` has not as many elements as there are codes, or the groups are not exactly those that
/// the row meets.
pub fn scaled(code: Code, codes: &[u8], steps: Steps<'_>, to: Float, out: &mut [u8]) {
    Isa::best().scaled(code, codes, steps, to, out);
}

/// Spreads codes of 1, 2, 4 or 8 bits, the lowest bits of a byte first, over a byte each.
///
/// # Panics
///
/// If `codes` has not as many bytes as there are codes, or for another width.
pub fn unpack(bits: u8, packed: &[u8], codes: &mut [u8]) {
    assert!(matches!(bits, 1 | 2 | 4 | 8), "codes of {bits} bits do not fill bytes");
    assert_eq!(packed.len() * 8 / usize::from(bits), codes.len(), "a byte for each code");
    scaled::unpack(bits, packed, codes);
}

/// Quantizes whole groups of `input`, elements of `dtype`.
///
/// Scales and biases of affine formats have the same dtype. A NaN scale, which only groups with a
/// NaN or an infinity can have, is stored as 0x7FC0 (bf16), 0xFD00 (f16) or 0x7FC00000 (f32, where
/// MLX has the sign that the CPU gives a NaN). What else becomes of such groups is said in the
/// documentation of `affine` and `mx` in this crate's sources; callers had better refuse them, see
/// [`all_finite`].
///
/// # Panics
///
/// If `input` does not consist of whole groups or a part of `out` has another length than they
/// take.
pub fn quantize(format: Format, rounding: Rounding, dtype: Float, input: &[u8], out: Packed<'_>) {
    Isa::best().quantize(format, rounding, dtype, input, out);
}

/// Quantizes whole groups of `input` with the least weighted squared error that a search of `effort`
/// finds among scales and biases as they are stored.
///
/// The contract of [`quantize`] holds; loaders see no difference. No group has a greater error than
/// [`quantize`] gives it, in the sum `Σ ω (w - (s q + b))²` of exact arithmetic on the stored numbers;
/// groups that are not finite are stored as [`quantize`] stores them.
///
/// `importance` has one weight for each column of a row, not negative: the mean square of the column's
/// input, up to a factor. The input is whole rows then. `ω` is that weight, or 1 without an importance.
/// A column of no importance has its codes left to chance: give it a little.
///
/// # Panics
///
/// As [`quantize`], and if the importance does not consist of whole groups or the input of whole rows.
pub fn search(
    format: Format,
    effort: Effort,
    rounding: Rounding,
    dtype: Float,
    input: &[u8],
    importance: Option<&[f32]>,
    out: Packed<'_>,
) {
    Isa::best().search(format, effort, rounding, dtype, input, importance, out);
}

/// How far the groups in `stored` are from `input`, of which [`quantize`] or [`search`] made them.
///
/// Elements count `importance` (one weight for each column of a row, not negative; the input is whole rows
/// then), or 1. Decoded values are `scale · code + bias` without rounding. The same block gives the same
/// bits on any CPU; sums over several blocks depend on the cuts in the last bits.
///
/// # Panics
///
/// If `input` does not consist of whole groups, a part of `stored` has another length than they take, or
/// the importance does not consist of whole groups or the input of whole rows.
pub fn distortion(
    format: Format,
    dtype: Float,
    input: &[u8],
    importance: Option<&[f32]>,
    stored: Stored<'_>,
) -> Distortion {
    Isa::best().distortion(format, dtype, input, importance, stored)
}

/// Decodes whole groups into `out`, elements of `dtype`.
///
/// Scales and biases of affine formats are read as `dtype` too; codes, products and sums are each
/// rounded to it, as MLX does on a CPU. A NaN result is positive.
///
/// # Panics
///
/// If `out` does not consist of whole groups or another part has another length than they take.
pub fn dequantize(format: Format, dtype: Float, codes: &[u8], scales: &[u8], biases: &[u8], out: &mut [u8]) {
    Isa::best().dequantize(format, dtype, codes, scales, biases, out);
}

/// Whether no element of `data` is NaN or infinite.
///
/// # Panics
///
/// If `data` does not consist of whole elements.
pub fn all_finite(dtype: Float, data: &[u8]) -> bool {
    Isa::best().all_finite(dtype, data)
}

/// The largest magnitude of a block of weights, and its zeros.
///
/// # Panics
///
/// If `data` does not consist of whole elements.
pub fn extent(dtype: Float, data: &[u8]) -> Extent {
    Isa::best().extent(dtype, data)
}

/// Rounds each element of `input` to another type, to nearest even.
///
/// NaN is treated as MLX does on x86-64: it becomes 0x7FC0 in bf16 and 0x7D00 with its sign in f16;
/// in f32 it keeps its payload, and one from f16 becomes quiet. From a type to itself the bytes are
/// copied.
///
/// # Panics
///
/// If `input` does not consist of whole elements or `out` has no room for exactly as many.
pub fn convert(from: Float, to: Float, input: &[u8], out: &mut [u8]) {
    Isa::best().convert(from, to, input, out);
}

/// Transposes a matrix of `rows` × `cols` elements of `size` bytes each: 1, 2, 4 or 8.
///
/// # Panics
///
/// If `input` and `out` do not both have `rows * cols * size` bytes, or for another `size`.
pub fn transpose(input: &[u8], rows: usize, cols: usize, size: usize, out: &mut [u8]) {
    let bytes = rows.checked_mul(cols).and_then(|n| n.checked_mul(size));
    assert_eq!(Some(input.len()), bytes, "the input is not a matrix of {rows} × {cols}");
    assert_eq!(input.len(), out.len(), "a transposed matrix is as long as the matrix");
    transpose::transpose(input, (rows, cols), size, out);
}

impl Squares {
    /// Adds the squares of a block.
    ///
    /// # Panics
    ///
    /// If `data` does not consist of whole elements.
    pub fn add(&mut self, dtype: Float, data: &[u8]) {
        Isa::best().add_squares(self, dtype, data);
    }
}

impl Isa {
    /// [`quantize`] with this instruction set.
    ///
    /// # Panics
    ///
    /// As [`quantize`], and if this CPU lacks the instructions.
    pub fn quantize(self, format: Format, rounding: Rounding, dtype: Float, input: &[u8], out: Packed<'_>) {
        let parts = Stored { codes: out.codes, scales: out.scales, biases: out.biases };
        check_parts(format, dtype, input.len(), parts);
        run::quantize(self.expect_engine(), Task { format, rounding, dtype }, input, out);
    }

    /// [`search`] with this instruction set.
    ///
    /// # Panics
    ///
    /// As [`search`], and if this CPU lacks the instructions.
    #[expect(clippy::too_many_arguments, reason = "those of `search`")]
    pub fn search(
        self,
        format: Format,
        effort: Effort,
        rounding: Rounding,
        dtype: Float,
        input: &[u8],
        importance: Option<&[f32]>,
        out: Packed<'_>,
    ) {
        let parts = Stored { codes: out.codes, scales: out.scales, biases: out.biases };
        check_parts(format, dtype, input.len(), parts);
        check_importance(format, dtype, input, importance);
        let task = Task { format, rounding, dtype };
        search::search(self.expect_engine(), task, Search { effort, importance }, input, out);
    }

    /// [`distortion`] with this instruction set.
    ///
    /// # Panics
    ///
    /// As [`distortion`], and if this CPU lacks the instructions.
    pub fn distortion(
        self,
        format: Format,
        dtype: Float,
        input: &[u8],
        importance: Option<&[f32]>,
        stored: Stored<'_>,
    ) -> Distortion {
        check_parts(format, dtype, input.len(), stored);
        check_importance(format, dtype, input, importance);
        measure::distortion(self.expect_engine(), (format, dtype), input, importance, stored)
    }

    /// [`dequantize`] with this instruction set.
    ///
    /// # Panics
    ///
    /// As [`dequantize`], and if this CPU lacks the instructions.
    pub fn dequantize(
        self,
        format: Format,
        dtype: Float,
        codes: &[u8],
        scales: &[u8],
        biases: &[u8],
        out: &mut [u8],
    ) {
        let stored = Stored { codes, scales, biases };
        check_parts(format, dtype, out.len(), stored);
        // Decoding knows no ties.
        let task = Task { format, rounding: Rounding::Cpu, dtype };
        run::dequantize(self.expect_engine(), task, stored, out);
    }

    /// [`all_finite`] with this instruction set.
    ///
    /// # Panics
    ///
    /// As [`all_finite`], and if this CPU lacks the instructions.
    pub fn all_finite(self, dtype: Float, data: &[u8]) -> bool {
        check_elements(dtype, data);
        float::all_finite(self.expect_engine(), dtype, data)
    }

    /// [`extent`] with this instruction set.
    ///
    /// # Panics
    ///
    /// As [`extent`], and if this CPU lacks the instructions.
    pub fn extent(self, dtype: Float, data: &[u8]) -> Extent {
        check_elements(dtype, data);
        weigh::extent(self.expect_engine(), dtype, data)
    }

    /// [`Squares::add`] with this instruction set.
    ///
    /// # Panics
    ///
    /// As [`Squares::add`], and if this CPU lacks the instructions.
    pub fn add_squares(self, sum: &mut Squares, dtype: Float, data: &[u8]) {
        check_elements(dtype, data);
        sum.extend(self.expect_engine(), dtype, data);
    }

    /// [`convert`] with this instruction set.
    ///
    /// # Panics
    ///
    /// As [`convert`], and if this CPU lacks the instructions.
    pub fn convert(self, from: Float, to: Float, input: &[u8], out: &mut [u8]) {
        check_elements(from, input);
        check_elements(to, out);
        let (given, asked) = (input.len() / from.size(), out.len() / to.size());
        assert_eq!(given, asked, "conversion keeps the number of elements");
        if from == to {
            out.copy_from_slice(input);
        } else {
            float::convert(self.expect_engine(), from, to, input, out);
        }
    }

    /// [`scaled`](crate::scaled()) with this instruction set.
    ///
    /// # Panics
    ///
    /// As [`scaled`](crate::scaled()), and if this CPU lacks the instructions.
    pub fn scaled(self, code: Code, codes: &[u8], steps: Steps<'_>, to: Float, out: &mut [u8]) {
        assert_eq!(codes.len() * to.size(), out.len(), "as many elements as codes");
        assert!(steps.skip < steps.size, "the first group begins before it ends");
        let groups = (steps.skip + codes.len()).div_ceil(steps.size);
        assert_eq!(steps.scales.len(), groups, "a scale for each group");
        assert!(steps.zeros.is_empty() || steps.zeros.len() == groups, "a zero point for each group");
        scaled::scaled(self.expect_engine(), code, codes, steps, to, out);
    }

    fn expect_engine(self) -> Engine {
        self.engine().unwrap_or_else(|| panic!("this CPU lacks the instruction set `{self}`"))
    }
}

/// Panics unless `data` consists of whole elements.
fn check_elements(dtype: Float, data: &[u8]) {
    let bytes = data.len();
    assert!(bytes.is_multiple_of(dtype.size()), "{bytes} bytes are no whole elements of {dtype:?}");
}

/// Panics unless `dense` bytes of elements are whole groups and the stored parts fit them.
fn check_parts(format: Format, dtype: Float, dense: usize, parts: Stored<'_>) {
    let group = format.group_size() * dtype.size();
    assert!(dense.is_multiple_of(group), "{dense} bytes are no whole groups of {format}");
    let groups = dense / group;
    let scale_bytes = groups * format.scale_bytes(dtype);
    let bias_bytes = if format.has_biases() { scale_bytes } else { 0 };
    assert_eq!(parts.codes.len(), groups * format.code_bytes(), "length of the codes");
    assert_eq!(parts.scales.len(), scale_bytes, "length of the scales");
    assert_eq!(parts.biases.len(), bias_bytes, "length of the biases");
}

/// Panics unless an importance consists of whole groups and `input` of rows as long as it.
fn check_importance(format: Format, dtype: Float, input: &[u8], importance: Option<&[f32]>) {
    let Some(row) = importance else { return };
    let groups = !row.is_empty() && row.len().is_multiple_of(format.group_size());
    assert!(groups, "{} weights are no whole groups of {format}", row.len());
    let elements = input.len() / dtype.size();
    assert!(elements.is_multiple_of(row.len()), "{elements} elements are no rows of {}", row.len());
}
