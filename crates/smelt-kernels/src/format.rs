//! The formats that MLX stores: what a group is, and how many bytes it takes.
//!
//! A [`Format`] can only be made by [`Format::new`], which refuses every combination that MLX's
//! loaders refuse, so the kernels and everything above them never meet an impossible width.

use std::fmt;

/// A floating-point type that weights, scales and biases are stored in, little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Float {
    /// bfloat16: the upper half of an f32.
    Bf16,
    /// IEEE binary16.
    F16,
    /// IEEE binary32.
    F32,
}

impl Float {
    /// Bytes that one element takes.
    pub const fn size(self) -> usize {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// How a group of weights is turned into codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Integer codes with a scale and a bias for each group, in the dtype of the input.
    Affine,
    /// E2M1 elements, one E8M0 scale for 32 of them.
    Mxfp4,
    /// E4M3 elements, one E8M0 scale for 32 of them.
    Mxfp8,
    /// E2M1 elements, one E4M3 scale for 16 of them.
    Nvfp4,
}

impl Mode {
    /// Every mode, in the order in which help and tables list them.
    pub const ALL: [Self; 4] = [Self::Affine, Self::Mxfp4, Self::Mxfp8, Self::Nvfp4];

    /// The name that MLX writes into `config.json`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Affine => "affine",
            Self::Mxfp4 => "mxfp4",
            Self::Mxfp8 => "mxfp8",
            Self::Nvfp4 => "nvfp4",
        }
    }

    /// The mode that MLX calls `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|mode| mode.name() == name)
    }

    /// The bits and the group size that MLX takes when none are given.
    pub const fn defaults(self) -> (u8, usize) {
        match self {
            Self::Affine => (4, 64),
            Self::Mxfp4 => (4, 32),
            Self::Mxfp8 => (8, 32),
            Self::Nvfp4 => (4, 16),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// Which of MLX's two backends decides the ties.
///
/// The CPU kernels round halves to even, Metal and CUDA away from zero; the floating-point modes
/// differ in a few more places (see the module of each).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rounding {
    /// What `mx.quantize` gives on a CPU.
    Cpu,
    /// What it gives on Metal and CUDA.
    Gpu,
}

/// A mode with its bits and group size, known to be one that MLX stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Format {
    mode: Mode,
    bits: u8,
    group_size: u16,
}

impl Format {
    /// The format, or `None` if MLX has none such.
    ///
    /// ```
    /// # use smelt_kernels::{Format, Mode};
    /// assert!(Format::new(Mode::Affine, 3, 128).is_some());
    /// assert!(Format::new(Mode::Affine, 7, 64).is_none());
    /// assert!(Format::new(Mode::Mxfp4, 4, 64).is_none());
    /// ```
    pub const fn new(mode: Mode, bits: u8, group_size: usize) -> Option<Self> {
        let known = match mode {
            Mode::Affine => matches!(bits, 2..=6 | 8) && matches!(group_size, 32 | 64 | 128),
            Mode::Mxfp4 => bits == 4 && group_size == 32,
            Mode::Mxfp8 => bits == 8 && group_size == 32,
            Mode::Nvfp4 => bits == 4 && group_size == 16,
        };
        if !known {
            return None;
        }
        Some(Self { mode, bits, group_size: group_size as u16 })
    }

    /// The mode.
    pub const fn mode(self) -> Mode {
        self.mode
    }

    /// Bits of one code.
    pub const fn bits(self) -> u8 {
        self.bits
    }

    /// Elements that share a scale.
    pub const fn group_size(self) -> usize {
        self.group_size as usize
    }

    /// Whether a `biases` tensor is stored beside the scales.
    pub const fn has_biases(self) -> bool {
        matches!(self.mode, Mode::Affine)
    }

    /// Bytes of the packed codes of one group.
    pub const fn code_bytes(self) -> usize {
        self.group_size() * self.bits as usize / 8
    }

    /// Bytes of the scale of one group (and of its bias, if it has one) for an input of `dtype`.
    pub const fn scale_bytes(self, dtype: Float) -> usize {
        match self.mode {
            Mode::Affine => dtype.size(),
            Mode::Mxfp4 | Mode::Mxfp8 | Mode::Nvfp4 => 1,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mode {
            Mode::Affine => write!(out, "{}-bit g{}", self.bits, self.group_size),
            mode => out.write_str(mode.name()),
        }
    }
}
