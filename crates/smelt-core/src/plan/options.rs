//! What the user asks for.

use smelt_kernels::{Format, Mode, Rounding};

use super::like::Like;
use super::rules::{Override, Rule};
use super::{Method, Mtp, Transcode, Widths};
use crate::checkpoint::DType;

/// Everything that decides the bytes of the result, besides the checkpoint and its family.
#[derive(Clone, Debug)]
pub struct Options {
    /// The format of every module that can be quantized; `None` converts names and layout only.
    pub format: Option<Format>,
    /// Formats of single modules, which go before the format of the run and the family's own.
    pub widths: Widths,
    /// How codes are found.
    pub method: Method,
    /// Which backend's ties are followed.
    pub rounding: Rounding,
    /// The dtype of scales and of what is not quantized; `None` keeps the source's.
    pub dtype: Option<DType>,
    /// The format of towers, which are left as they are without it.
    pub towers: Option<Format>,
    /// What becomes of layers that predict further tokens.
    pub mtp: Mtp,
    /// The model whose formats are copied.
    pub like: Option<Like>,
    /// Rules of a recipe file, in order: the last that finds a module wins, before `like`.
    pub rules: Vec<Rule>,
    /// Formats by module, in order; the last that matches wins, before all rules.
    pub overrides: Vec<Override>,
    /// Whether what can only be done differently from what was asked is an error.
    pub strict: bool,
    /// Whether NaN and infinity are let through.
    pub allow_nonfinite: bool,
    /// What becomes of weights that are stored in a format that MLX has.
    pub transcode: Transcode,
    /// Whether weights that MLX quantized are decoded and quantized again.
    pub allow_requantize: bool,
    /// Bytes of tensors after which a new shard begins.
    pub shard_bytes: u64,
}

/// The size at which mlx-lm begins a new shard.
pub const SHARD_BYTES: u64 = 5 << 30;

impl Default for Options {
    fn default() -> Self {
        Self {
            format: Format::new(Mode::Affine, 4, 64),
            widths: Widths::default(),
            method: Method::default(),
            rounding: Rounding::Gpu,
            dtype: None,
            towers: None,
            mtp: Mtp::Drop,
            like: None,
            rules: Vec::new(),
            overrides: Vec::new(),
            strict: false,
            allow_nonfinite: false,
            transcode: Transcode::Auto,
            allow_requantize: false,
            shard_bytes: SHARD_BYTES,
        }
    }
}

/// Says which formats there are, for a combination that MLX does not store.
pub fn unknown(mode: Mode, bits: u8, group_size: usize) -> String {
    let known = match mode {
        Mode::Affine => "2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128",
        Mode::Mxfp4 => "4 bits in groups of 32",
        Mode::Mxfp8 => "8 bits in groups of 32",
        Mode::Nvfp4 => "4 bits in groups of 16",
    };
    format!("mode {mode} has {known}, not {bits} bits in groups of {group_size}")
}
