//! What can be typed about bits: how codes are found, and who gets how many.

use std::path::PathBuf;

use clap::ValueEnum;
use smelt_core::plan::allocate::{BitsError, Level, parse_formats};
use smelt_kernels::{Effort, Format};

use super::size;

/// Help heading.
pub(super) const BITS: &str = "How many bits each module gets";

/// How codes are found, and how bits are given out.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BitsArgs {
    /// How codes are found: `search` looks for the scales of least error, `rtn` rounds between the
    /// extremes, bit for bit as MLX does
    #[arg(help_heading = super::FORMAT, long, value_enum, default_value = "search")]
    pub(crate) method: MethodArg,

    /// How long the search goes on [default: default]
    #[arg(help_heading = super::FORMAT, long, value_enum)]
    pub(crate) effort: Option<EffortArg>,

    /// Weigh errors by the importance of input channels: an imatrix of llama.cpp (GGUF or .dat) or oMLX
    /// (.npz), or mean squares as safetensors (docs/bits.md)
    #[arg(help_heading = super::FORMAT, long, value_name = "FILE")]
    pub(crate) imatrix: Option<PathBuf>,

    /// Give out bits so that all weights take this many on average, those that matter more
    #[arg(help_heading = BITS, long, value_name = "BITS", groups = ["budget", "target-of-bits"], value_parser = bits_per_weight)]
    pub(crate) target_bpw: Option<f64>,

    /// Give out bits so that the files with weights take this much, such as 96GiB or 13607051
    #[arg(help_heading = BITS, long, value_name = "SIZE", groups = ["budget", "target-of-bits"], value_parser = size)]
    pub(crate) target_size: Option<u64>,

    /// Give out bits so that the model runs on a Mac of this memory, such as 64GiB: three quarters of
    /// it, two thirds up to 36 GiB, less the context
    #[arg(help_heading = BITS, long, value_name = "MEMORY", groups = ["budget", "target-of-bits"], value_parser = size)]
    pub(crate) fit: Option<u64>,

    /// Tokens of context that `--fit` leaves room for [default: 16384]
    #[arg(help_heading = BITS, long, value_name = "TOKENS", requires = "fit")]
    pub(crate) context: Option<u64>,

    /// Give out the bits of an oMLX level: oq2, oq2.5, oq2.7, oq3, oq3.5, oq4, oq5, oq6 or oq8; with an
    /// `e` behind it for one with `--imatrix`
    #[arg(help_heading = BITS, long, value_name = "LEVEL", groups = ["budget", "target-of-bits"], value_parser = level)]
    pub(crate) level: Option<Level>,

    /// Formats to choose from, where a runtime has not all or some are slow: BITS/GROUP with commas
    /// between them, such as 4/64,8/64 [default: 2 to 6 and 8 bits in groups of 64 or 128]
    #[arg(help_heading = BITS, long, value_name = "LIST", requires = "target-of-bits", value_parser = formats)]
    pub(crate) formats: Option<FormatList>,

    /// Scores of layers, as oMLX writes them into `oq_sensitivity_map.json`: layers of higher scores get
    /// more bits
    #[arg(help_heading = BITS, long, value_name = "FILE", requires = "target-of-bits")]
    pub(crate) sensitivity_map: Option<PathBuf>,

    /// File of measured errors, which is written, and read for another target [default: the
    /// checkpoint's name with .measures.json, beside the output]
    #[arg(help_heading = BITS, long, value_name = "FILE", requires = "target-of-bits")]
    pub(crate) measures: Option<PathBuf>,
}

/// A list that is one value to clap.
#[derive(Clone, Debug)]
pub(crate) struct FormatList(pub(crate) Vec<Format>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MethodArg {
    /// Scales and biases of least squared error
    Search,
    /// Rounding as MLX does it
    Rtn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum EffortArg {
    /// Most of the gain
    Fast,
    /// Nearly all of it
    Default,
    /// What is left, at a third of the speed
    Best,
}

impl EffortArg {
    pub(crate) fn effort(self) -> Effort {
        match self {
            Self::Fast => Effort::Fast,
            Self::Default => Effort::Default,
            Self::Best => Effort::Best,
        }
    }
}

fn bits_per_weight(text: &str) -> Result<f64, String> {
    let bits = text.parse().ok().filter(|bits: &f64| bits.is_finite() && *bits > 0.0);
    bits.ok_or_else(|| "a number of bits such as 4.6 is needed".to_owned())
}

fn level(text: &str) -> Result<Level, BitsError> {
    text.parse()
}

fn formats(text: &str) -> Result<FormatList, BitsError> {
    parse_formats(text).map(FormatList)
}
