//! One module for each command, and what they share: opening a checkpoint, making its plan.

pub(crate) mod bits;
pub(crate) mod diff;
pub(crate) mod discover;
pub(crate) mod families;
pub(crate) mod inspect;
pub(crate) mod plan;
pub(crate) mod quantize;
pub(crate) mod recipe;
pub(crate) mod recipes;
pub(crate) mod record;
pub(crate) mod report;
pub(crate) mod verify;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context as _;
use smelt_core::checkpoint::{Checkpoint, DType};
use smelt_core::layout::Family;
use smelt_core::layout::discovered::Trace;
use smelt_core::plan::{
    Importance, Like, Memory, Mtp, Options, Origin, Override, Plan, Schedule, Transcode, check_storable,
    family_of, options,
};
use smelt_core::source::LocalSource;
use smelt_core::{Error, LayoutError, PlanError};
use smelt_kernels::{Format, Mode, Rounding};

use crate::args::{DtypeArg, LibraryArg, ModeArg, MtpArg, PlanArgs, RoundingArg, TranscodeArg};
use crate::printer::{self, Printer};
use crate::{format, system};
use recipe::Wish;

/// The default budget where memory is plentiful.
const DEFAULT_MEMORY: u64 = 1 << 30;

/// The smallest default budget: below, `--max-memory` has to say so.
const LEAST_MEMORY: u64 = 64 << 20;

/// A checkpoint with the plan made for it.
pub(crate) struct Planned {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) plan: Plan,
    /// What the plan's channels are weighed by, if anything.
    pub(crate) importance: Option<Importance>,
    pub(crate) schedule: Schedule,
}

/// Opens a checkpoint and plans what was asked for `output`, telling what will be different.
pub(crate) fn planned(
    args: &PlanArgs,
    output: &Path,
    printer: &Printer,
    stop: &AtomicBool,
) -> anyhow::Result<Planned> {
    let wish = Wish::of(args)?;
    let options = options(&wish)?;
    let checkpoint = open(&args.model)?;
    let around = bits::Surroundings { printer, memory: memory(args.max_memory, args.threads), output, stop };
    let (plan, importance) = bits::plan(&checkpoint, origin(&checkpoint, args)?, options, &wish, around)?;
    for note in &plan.notes {
        printer.event("note", &serde_json::to_value(note)?);
    }
    for line in format::notes(&plan.notes) {
        printer::warning(&line);
    }
    let schedule = plan.schedule(memory(args.max_memory, args.threads))?;
    Ok(Planned { checkpoint, plan, importance, schedule })
}

/// Where the layout comes from: a discovered one, or a family.
fn origin(checkpoint: &Checkpoint, args: &PlanArgs) -> anyhow::Result<Origin> {
    if args.discover {
        return discovered(checkpoint, &discover::trace(checkpoint, &args.python, args.target())?);
    }
    if let Some(path) = &args.layout {
        return discovered(checkpoint, &discover::read(path)?);
    }
    let own = args.family.as_deref().map(read_family).transpose()?;
    let family = family_of(checkpoint, own.as_ref())?;
    Ok(Origin::family(checkpoint, family, args.target().map(LibraryArg::name))?)
}

/// A library's own layout, if what it says can be stored.
fn discovered(checkpoint: &Checkpoint, trace: &Trace) -> anyhow::Result<Origin> {
    check_storable(checkpoint, &trace.library)?;
    Ok(Origin::discovered(checkpoint, trace)?)
}

pub(crate) fn open(model: &Path) -> Result<Checkpoint, Error> {
    Checkpoint::open(Arc::new(LocalSource::open(model)?))
}

/// Reads a family file of the user.
pub(crate) fn read_family(path: &Path) -> Result<Family, Error> {
    let file = path.display().to_string();
    let text =
        fs::read_to_string(path).map_err(|source| LayoutError::FamilyFile { file: file.clone(), source })?;
    Family::parse(&text).map_err(|source| Error::Layout(LayoutError::Family { file, source }))
}

/// The budget of a run.
pub(crate) fn memory(max_memory: Option<u64>, threads: Option<u16>) -> Memory {
    let default = || (system::available_memory() / 4).clamp(LEAST_MEMORY, DEFAULT_MEMORY);
    Memory {
        limit: max_memory.unwrap_or_else(default),
        threads: threads.map_or_else(system::cores, usize::from),
    }
}

/// The checkpoint's name with what is done to it, beside the checkpoint.
pub(crate) fn default_output(args: &PlanArgs) -> anyhow::Result<PathBuf> {
    let mode = || match args.mode.unwrap_or(ModeArg::Affine) {
        ModeArg::Affine => format!("{}bit", args.bits.unwrap_or(4)),
        ModeArg::None => "mlx".to_owned(),
        mode => mode.mode().map_or_else(String::new, |mode| mode.name().to_owned()),
    };
    let mut name = model_name(&args.model)?;
    let rules = recipe::suffix(args);
    let bits = bits::suffix(&args.bits_of).or_else(|| rules.is_none().then(mode));
    for part in rules.into_iter().chain(bits.map(OsString::from)) {
        name.push("-");
        name.push(part);
    }
    Ok(resolved(&args.model)?.with_file_name(name))
}

/// The name of a checkpoint's directory.
fn model_name(model: &Path) -> anyhow::Result<OsString> {
    let model = resolved(model)?;
    let name = model.file_name();
    Ok(name.context("the checkpoint's directory has no name; say where to write with `-o`")?.to_owned())
}

/// `.` and `..` have no name of their own.
fn resolved(model: &Path) -> anyhow::Result<PathBuf> {
    let model = std::path::absolute(model)?;
    Ok(model.canonicalize().unwrap_or(model))
}

/// A flag that Ctrl-C sets.
pub(crate) fn stop_on_interrupt() -> Arc<AtomicBool> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    // Where another program runs smelt and has a handler of its own, that one stays.
    let _ = ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed));
    stop
}

fn options(wish: &Wish) -> anyhow::Result<Options> {
    let args = &wish.args;
    let chosen = wish.like.as_ref().map(Like::common).or_else(|| bits::format(&args.bits_of));
    let format = chosen.map_or_else(|| run_format(args), |format| Ok(Some(format)))?;
    let overrides = args.overrides.iter().map(|text| Override::parse(text, format));
    Ok(Options {
        format,
        method: bits::method(&args.bits_of)?,
        rounding: match args.rounding {
            RoundingArg::Cpu => Rounding::Cpu,
            RoundingArg::Gpu => Rounding::Gpu,
        },
        dtype: match args.dtype {
            DtypeArg::Keep => None,
            DtypeArg::Bf16 => Some(DType::BF16),
            DtypeArg::F16 => Some(DType::F16),
            DtypeArg::F32 => Some(DType::F32),
        },
        towers: args.vision_bits.map(towers).transpose()?,
        mtp: match args.mtp {
            MtpArg::Drop => Mtp::Drop,
            MtpArg::Separate => Mtp::Separate,
        },
        like: wish.like.clone(),
        rules: wish.rules.clone(),
        overrides: overrides.collect::<Result<_, _>>()?,
        strict: args.strict,
        allow_nonfinite: args.allow_nonfinite,
        allow_requantize: args.allow_requantize,
        transcode: match args.transcode {
            TranscodeArg::Auto => Transcode::Auto,
            TranscodeArg::Never => Transcode::Never,
        },
        ..Options::default()
    })
}

/// Towers are stored in affine groups of 64.
fn towers(bits: u8) -> Result<Format, Error> {
    let (mode, group_size) = (Mode::Affine, Mode::Affine.defaults().1);
    let format = Format::new(mode, bits, group_size);
    format.ok_or_else(|| Error::Plan(PlanError::Format { why: options::unknown(mode, bits, group_size) }))
}

/// The format of the run; bits and group size that are not given are the mode's.
fn run_format(args: &PlanArgs) -> Result<Option<Format>, Error> {
    let Some(mode) = args.mode.unwrap_or(ModeArg::Affine).mode() else {
        return Ok(None);
    };
    let (bits, group_size) = mode.defaults();
    let (bits, group_size) = (args.bits.unwrap_or(bits), args.group_size.unwrap_or(group_size));
    let format = Format::new(mode, bits, group_size);
    format
        .map(Some)
        .ok_or_else(|| Error::Plan(PlanError::Format { why: options::unknown(mode, bits, group_size) }))
}
