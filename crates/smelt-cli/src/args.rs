//! What can be typed. The doc comments are the help texts.

mod bits;
mod rules;

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use smelt_core::units::parse_bytes;
use smelt_kernels::Mode;

pub(crate) use bits::{BitsArgs, EffortArg, FormatList, MethodArg};
pub(crate) use rules::{RecipeArg, RuleArgs};

/// Help headings.
const FORMAT: &str = "How weights are stored";
const LAYOUT: &str = "How names and shapes are mapped";
const RESOURCES: &str = "Resources";

/// Turn a Hugging Face checkpoint into a quantized MLX model, in bounded memory
#[derive(Debug, Parser)]
#[command(name = "smelt", version, max_term_width = 100)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Write a quantized model
    #[command(after_help = "Example: smelt quantize Qwen3-30B-A3B --bits 4 --override 'lm_head=6'")]
    Quantize(QuantizeArgs),
    /// Show what `quantize` would write; only a target of size or bits reads weights
    Plan(PlanArgs),
    /// Say what a checkpoint is, and what would be in the way
    Inspect(InspectArgs),
    /// Check a finished model: as the loaders see it, byte for byte, and against its source
    #[command(after_help = "Example: smelt verify Qwen3-30B-A3B-4bit --against Qwen3-30B-A3B")]
    Verify(VerifyArgs),
    /// Compare two models or checkpoints tensor by tensor
    Diff(DiffArgs),
    /// Draw the report of a finished model as a page
    Report(ReportArgs),
    /// Ask the installed mlx-lm or mlx-vlm how it lays a checkpoint out, without reading a weight
    Discover(DiscoverArgs),
    /// List the model families that smelt knows
    Families(FamiliesArgs),
    /// List mlx-lm's recipes and oMLX's levels with their bits
    Recipes(RecipesArgs),
}

impl Command {
    /// Whether standard output is to carry JSON alone.
    pub(crate) fn wants_json(&self) -> bool {
        match self {
            Self::Quantize(args) => args.plan.json,
            Self::Plan(args) => args.json,
            Self::Inspect(args) => args.json,
            Self::Verify(args) => args.json,
            Self::Diff(args) => args.json,
            Self::Families(args) => args.wants_json(),
            Self::Recipes(args) => args.json,
            Self::Discover(_) | Self::Report(_) => false,
        }
    }
}

/// Where the weights come from and how they are stored.
#[derive(Clone, Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag that can be typed")]
pub(crate) struct PlanArgs {
    /// Directory of the checkpoint: config.json, safetensors shards, tokenizer files
    pub(crate) model: PathBuf,

    /// Bits of a weight: 2, 3, 4, 5, 6 or 8. Four is the usual choice; below, large models suffer
    /// least [default: 4, or what the mode has]
    #[arg(help_heading = FORMAT, long, value_name = "N", conflicts_with = "budget")]
    pub(crate) bits: Option<u8>,

    /// Weights that share a scale: 32, 64 or 128. Smaller is more exact, larger and slower
    /// [default: 64, or what the mode has]
    #[arg(help_heading = FORMAT, long, value_name = "N", conflicts_with_all = ["target_bpw", "target_size", "fit", "level", "like"])]
    pub(crate) group_size: Option<usize>,

    /// How codes become weights: `affine` fits most; the others store what newer hardware
    /// multiplies directly; `none` converts names and layout only [default: affine]
    #[arg(help_heading = FORMAT, long, value_enum, conflicts_with = "budget")]
    pub(crate) mode: Option<ModeArg>,

    /// Whose ties are followed: `gpu` gives the bits that a Mac writes, `cpu` those that MLX
    /// writes on a CPU
    #[arg(help_heading = FORMAT, long, value_enum, default_value = "gpu")]
    pub(crate) rounding: RoundingArg,

    /// Store modules whose path matches REGEX in another format, or as they are with `keep`. Can be
    /// repeated; the last match wins
    #[arg(help_heading = FORMAT, long = "override", value_name = "REGEX=BITS[:GROUP[:MODE]]|keep")]
    pub(crate) overrides: Vec<String>,

    /// Bits of what sees or hears, which is left as it is without this
    #[arg(help_heading = FORMAT, long, value_name = "N")]
    pub(crate) vision_bits: Option<u8>,

    /// Type of scales and of what is not quantized: `keep` leaves the checkpoint's, `f16` suits M1
    /// and M2
    #[arg(help_heading = FORMAT, long, value_enum, default_value = "keep")]
    pub(crate) dtype: DtypeArg,

    #[command(flatten)]
    pub(crate) bits_of: BitsArgs,

    #[command(flatten)]
    pub(crate) rules_of: RuleArgs,

    /// Use this family file instead of the ones inside smelt, for an architecture of your own
    #[arg(help_heading = LAYOUT, long, value_name = "FILE")]
    pub(crate) family: Option<PathBuf>,

    /// Library that is to load the result [default: mlx-vlm for a checkpoint with vision or audio,
    /// mlx-lm for others]
    #[arg(help_heading = LAYOUT, long, value_enum)]
    pub(crate) target: Option<LibraryArg>,

    /// Leave out what sees or hears: the same as `--target mlx-lm`
    #[arg(help_heading = LAYOUT, long, conflicts_with = "target")]
    pub(crate) text_only: bool,

    /// Layers that predict further tokens (MTP): `drop` leaves them out as the libraries do, `separate`
    /// writes them at 8 bits into the folder `mtp`, which the libraries do not load with the model
    #[arg(help_heading = LAYOUT, long, value_enum, default_value = "drop")]
    pub(crate) mtp: MtpArg,

    /// Python that has mlx-lm or mlx-vlm installed, for `--discover`
    #[arg(help_heading = LAYOUT, long, value_name = "PATH", default_value = "python3")]
    pub(crate) python: PathBuf,

    /// Use a layout that `smelt discover` wrote for this checkpoint
    #[arg(help_heading = LAYOUT, long, value_name = "FILE", conflicts_with_all = ["family", "discover"])]
    pub(crate) layout: Option<PathBuf>,

    /// Ask the installed library for the layout, for an architecture that smelt has no family for
    #[arg(help_heading = LAYOUT, long, conflicts_with = "family")]
    pub(crate) discover: bool,

    /// Fail where something could only be done differently from what was asked
    #[arg(long)]
    pub(crate) strict: bool,

    /// Go on when a weight holds NaN or infinity
    #[arg(long)]
    pub(crate) allow_nonfinite: bool,

    /// What becomes of weights in a format that MLX has as well: `auto` moves their bits where as many
    /// are asked for as they have, `never` decodes them and quantizes again
    #[arg(help_heading = FORMAT, long, value_enum, default_value = "auto")]
    pub(crate) transcode: TranscodeArg,

    /// Decode weights that MLX quantized already and quantize them again, which loses more
    #[arg(long)]
    pub(crate) allow_requantize: bool,

    /// Memory for the whole process, such as 64MiB or 4G: more lets more blocks be on their way at
    /// once [default: 1GiB or a quarter of what is free, whichever is less]
    #[arg(help_heading = RESOURCES, long, value_name = "SIZE", value_parser = size)]
    pub(crate) max_memory: Option<u64>,

    /// Threads that compute; the result does not depend on it [default: one for each core]
    #[arg(help_heading = RESOURCES, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,

    /// Write JSON to standard output (docs/json.md describes it)
    #[arg(long)]
    pub(crate) json: bool,
}

/// What becomes of layers that predict further tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MtpArg {
    /// They are left out
    Drop,
    /// They are written beside the model
    Separate,
}

/// Whether bits are moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TranscodeArg {
    /// Where it is exact and no fewer bits are asked for
    Auto,
    /// Not at all
    Never,
}

#[derive(Debug, clap::Args)]
pub(crate) struct QuantizeArgs {
    /// Directory to write: new, empty, or what a run that was stopped has left, which then goes on
    /// [default: the checkpoint's name with -4bit, -mxfp4 and so
    /// on, beside it]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,

    /// Show the plan and stop before anything is written
    #[arg(long)]
    pub(crate) dry_run: bool,

    /// Remove what an unfinished run has left in the directory and begin anew
    #[arg(long)]
    pub(crate) no_resume: bool,

    #[command(flatten)]
    pub(crate) plan: PlanArgs,

    /// The command as it was typed, for the report.
    #[arg(skip)]
    pub(crate) typed: Vec<String>,
}

impl PlanArgs {
    /// The library that is asked for, if one is.
    pub(crate) fn target(&self) -> Option<LibraryArg> {
        if self.text_only { Some(LibraryArg::MlxLm) } else { self.target }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LibraryArg {
    /// Language models
    MlxLm,
    /// Models that see or hear
    MlxVlm,
}

impl LibraryArg {
    /// The name of the package.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::MlxLm => "mlx-lm",
            Self::MlxVlm => "mlx-vlm",
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct RecipesArgs {
    /// Write JSON to standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DiscoverArgs {
    /// Directory of the checkpoint
    pub(crate) model: PathBuf,

    /// Python that has mlx-lm or mlx-vlm installed
    #[arg(long, value_name = "PATH", default_value = "python3")]
    pub(crate) python: PathBuf,

    /// Library to ask [default: mlx-vlm for a checkpoint with vision or audio, mlx-lm for others]
    #[arg(long, value_enum)]
    pub(crate) library: Option<LibraryArg>,

    /// File to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct InspectArgs {
    /// Directory of the checkpoint
    pub(crate) model: PathBuf,

    /// Use this family file instead of the ones inside smelt
    #[arg(long, value_name = "FILE")]
    pub(crate) family: Option<PathBuf>,

    /// Write JSON to standard output (docs/json.md describes it)
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct VerifyArgs {
    /// Directory of the model, written by smelt or by another tool
    pub(crate) model: PathBuf,

    /// Checkpoint that the model was made from: decode every weight and compare
    #[arg(long, value_name = "SOURCE")]
    pub(crate) against: Option<PathBuf>,

    /// Use this family file instead of the ones inside smelt
    #[arg(long, value_name = "FILE")]
    pub(crate) family: Option<PathBuf>,

    /// Library that is to load the model [default: the one whose names it has]
    #[arg(long, value_enum)]
    pub(crate) target: Option<LibraryArg>,

    /// Use a layout that `smelt discover` wrote for the source
    #[arg(long, value_name = "FILE", requires = "against", conflicts_with_all = ["family", "discover"])]
    pub(crate) layout: Option<PathBuf>,

    /// Ask the installed library how the source becomes the model, where smelt has no family
    #[arg(long, requires = "against", conflicts_with = "family")]
    pub(crate) discover: bool,

    /// Python that has mlx-lm or mlx-vlm installed, for `--discover`
    #[arg(long, value_name = "PATH", default_value = "python3")]
    pub(crate) python: PathBuf,

    /// Tensors to list by their error, with `--against`
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub(crate) show: usize,

    #[command(flatten)]
    pub(crate) resources: ResourceArgs,

    /// Write events as JSON to standard output (docs/json.md describes them)
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DiffArgs {
    /// Directory of a model or checkpoint
    pub(crate) first: PathBuf,

    /// Directory of the one to hold against it
    pub(crate) second: PathBuf,

    /// Tensors to list
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) show: usize,

    #[command(flatten)]
    pub(crate) resources: ResourceArgs,

    /// Write events as JSON to standard output (docs/json.md describes them)
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a command that only reads may use.
#[derive(Debug, clap::Args)]
pub(crate) struct ResourceArgs {
    /// Memory for the whole process, such as 64MiB or 4G [default: 1GiB or a quarter of what is free,
    /// whichever is less]
    #[arg(help_heading = RESOURCES, long, value_name = "SIZE", value_parser = size)]
    pub(crate) max_memory: Option<u64>,

    /// Threads; the result does not depend on it [default: one for each core]
    #[arg(help_heading = RESOURCES, long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ReportArgs {
    /// Directory that `quantize` wrote
    pub(crate) model: PathBuf,

    /// File to write, `-` for standard output [default: smelt-report.html in the directory]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct FamiliesArgs {
    #[command(subcommand)]
    pub(crate) command: Option<FamiliesCommand>,

    /// Write JSON to standard output
    #[arg(long)]
    pub(crate) json: bool,
}

impl FamiliesArgs {
    fn wants_json(&self) -> bool {
        match &self.command {
            Some(FamiliesCommand::Check(args)) => args.json,
            _ => self.json,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum FamiliesCommand {
    /// List the families
    List,
    /// Print a family's file
    Show {
        /// Its name
        name: String,
    },
    /// Draft a family file from what the installed library does with a checkpoint, and check the draft
    Learn(LearnArgs),
    /// Compare a family with what the installed library does, on checkpoints or manifests
    Check(CheckArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct LearnArgs {
    /// Directory of a checkpoint, or a manifest
    pub(crate) model: PathBuf,

    /// Layout that `smelt discover` wrote for it; without one, the library is asked
    #[arg(long, value_name = "FILE")]
    pub(crate) layout: Option<PathBuf>,

    /// File to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,

    /// Python that has mlx-lm or mlx-vlm installed
    #[arg(long, value_name = "PATH", default_value = "python3")]
    pub(crate) python: PathBuf,

    /// Library to ask [default: mlx-vlm for a checkpoint with vision or audio, mlx-lm for others]
    #[arg(long, value_enum)]
    pub(crate) library: Option<LibraryArg>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// Directories of checkpoints, or manifests: JSON files with a config and the tensors' shapes
    #[arg(required = true)]
    pub(crate) models: Vec<PathBuf>,

    /// Family file to check instead of the ones inside smelt
    #[arg(long, value_name = "FILE")]
    pub(crate) family: Option<PathBuf>,

    /// Python that has mlx-lm or mlx-vlm installed
    #[arg(long, value_name = "PATH", default_value = "python3")]
    pub(crate) python: PathBuf,

    /// Library to compare with [default: mlx-vlm for a checkpoint with vision or audio, mlx-lm for
    /// others]
    #[arg(long, value_enum)]
    pub(crate) library: Option<LibraryArg>,

    /// Write a line of JSON for each checkpoint
    #[arg(long)]
    pub(crate) json: bool,

    /// Differences to print for each checkpoint
    #[arg(long, value_name = "N", default_value_t = 8)]
    pub(crate) show: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ModeArg {
    /// Integer codes with a scale and a bias for each group
    Affine,
    /// 4-bit floats, groups of 32
    Mxfp4,
    /// 8-bit floats, groups of 32
    Mxfp8,
    /// 4-bit floats, groups of 16
    Nvfp4,
    /// Nothing is quantized
    None,
}

impl ModeArg {
    /// The argument of a mode.
    pub(crate) fn of(mode: Mode) -> Self {
        match mode {
            Mode::Affine => Self::Affine,
            Mode::Mxfp4 => Self::Mxfp4,
            Mode::Mxfp8 => Self::Mxfp8,
            Mode::Nvfp4 => Self::Nvfp4,
        }
    }

    /// The mode; nothing is quantized without one.
    pub(crate) fn mode(self) -> Option<Mode> {
        match self {
            Self::Affine => Some(Mode::Affine),
            Self::Mxfp4 => Some(Mode::Mxfp4),
            Self::Mxfp8 => Some(Mode::Mxfp8),
            Self::Nvfp4 => Some(Mode::Nvfp4),
            Self::None => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoundingArg {
    /// Halves to even
    Cpu,
    /// Halves away from zero
    Gpu,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DtypeArg {
    /// As in the checkpoint
    Keep,
    /// bfloat16
    Bf16,
    /// IEEE half
    F16,
    /// IEEE single
    F32,
}

fn size(text: &str) -> Result<u64, String> {
    parse_bytes(text).ok_or_else(|| "a size such as 64MiB, 1.5G or 4096 is needed".to_owned())
}
