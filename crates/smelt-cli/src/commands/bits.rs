//! From the options about bits to a plan: finds the importance that weighs errors, measures what a target needs, and
//! says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context as _, bail};
use smelt_core::checkpoint::Checkpoint;
use smelt_core::pipeline::{Allocating, Means};
use smelt_core::plan::allocate::{BitsError, Fit, LayerPrior, Request, Target, candidates};
use smelt_core::plan::measures::Measures;
use smelt_core::plan::{Importance, Memory, Method, Options, Origin, Plan, Statistics};
use smelt_core::units::bytes;
use smelt_kernels::{Effort, Format, Mode};

use super::recipe::Wish;
use crate::args::{BitsArgs, EffortArg, MethodArg, PlanArgs};
use crate::printer::{self, Printer};
use crate::progress::Progress;

/// Tokens of context that `--fit` leaves room for.
const CONTEXT: u64 = 16_384;

/// Where planning happens, besides what was asked.
#[derive(Clone, Copy)]
pub(crate) struct Surroundings<'a> {
    pub(crate) printer: &'a Printer,
    pub(crate) memory: Memory,
    /// The directory to write, as far as it is known; measurements lie beside it.
    pub(crate) output: &'a Path,
    pub(crate) stop: &'a AtomicBool,
}

/// Plans a checkpoint, its widths as the options about bits say; with the importance that the run needs then.
pub(crate) fn plan(
    checkpoint: &Checkpoint,
    origin: Origin,
    mut options: Options,
    wish: &Wish,
    around: Surroundings<'_>,
) -> anyhow::Result<(Plan, Option<Importance>)> {
    let args = &wish.args;
    if let Some(recipe) = wish.named() {
        let group_size = args.group_size.unwrap_or(Mode::Affine.defaults().1);
        options.widths = recipe.widths(&origin.layout, group_size).map_err(smelt_core::Error::from)?;
    }
    let request = request(&args.bits_of, checkpoint)?;
    let statistics = args.bits_of.imatrix.as_deref().map(Statistics::open).transpose()?;
    let Some(request) = request else { return plain(checkpoint, origin, &options, statistics) };
    let allocating = Allocating::new(checkpoint, origin, &options, &request, statistics)?;
    let plan = allocated(&allocating, args, around)?;
    Ok((plan, allocating.into_importance()))
}

/// A plan whose widths are given.
fn plain(
    checkpoint: &Checkpoint,
    origin: Origin,
    options: &Options,
    statistics: Option<Statistics>,
) -> anyhow::Result<(Plan, Option<Importance>)> {
    let mut plan = Plan::new(checkpoint, origin, options)?;
    let importance = statistics.map(|all| Importance::new(all, &plan, checkpoint.config())).transpose()?;
    if let Some(importance) = &importance {
        plan.weigh(importance, options.strict)?;
    }
    Ok((plan, importance))
}

/// A plan whose widths are chosen.
fn allocated(allocating: &Allocating<'_>, args: &PlanArgs, around: Surroundings<'_>) -> anyhow::Result<Plan> {
    let file = args.bits_of.measures.clone().map_or_else(|| beside(args, around.output), Ok)?;
    let mut measures = Measures::read(&file, allocating.fingerprint())?;
    let progress = Progress::new(around.printer);
    let means = Means { memory: around.memory, observer: &progress, stop: around.stop };
    let measured = allocating.measure(&mut measures, means);
    progress.clear();
    tell(measured?, &measures, &file);
    Ok(allocating.plan(&measures)?)
}

/// Keeps what was measured, and says what happened.
fn tell(measured: bool, measures: &Measures, file: &Path) {
    let shown = file.display();
    if !measured {
        printer::note(&format!("the errors in `{shown}` are used; no weight is read to choose widths"));
        return;
    }
    match measures.write(file) {
        Ok(()) => printer::note(&format!(
            "measured {} modules on samples of their weights; kept in `{shown}` for other targets",
            measures.len()
        )),
        Err(error) => {
            let why = std::error::Error::source(&error).map_or_else(String::new, |why| format!(": {why}"));
            printer::warning(&format!("{error}{why}; another target will measure again"));
        }
    }
}

/// The file of measurements beside an output: all targets of a checkpoint share it.
fn beside(args: &PlanArgs, output: &Path) -> anyhow::Result<PathBuf> {
    let mut name = super::model_name(&args.model)?;
    name.push(".measures.json");
    Ok(std::path::absolute(output)?.with_file_name(name))
}

/// What is asked of an allocation, if one is.
fn request(args: &BitsArgs, checkpoint: &Checkpoint) -> anyhow::Result<Option<Request>> {
    let (target, asked) = if let Some(bits) = args.target_bpw {
        (Target::BitsPerWeight(bits), format!("{bits} bits per weight"))
    } else if let Some(size) = args.target_size {
        (Target::FileBytes(size), format!("a size of {} ({size} bytes)", bytes(size)))
    } else if let Some(memory) = args.fit {
        let fit = Fit { memory, context: args.context.unwrap_or(CONTEXT) };
        let usable = fit.usable(checkpoint.config()).map_err(smelt_core::Error::from)?;
        let context = bytes(fit.context_bytes(checkpoint.config()));
        printer::note(&format!(
            "{} of {} are for weights, after {context} for {} tokens of context",
            bytes(usable),
            bytes(memory),
            fit.context
        ));
        (Target::AtMost(usable), format!("a model for {} of memory", bytes(memory)))
    } else if let Some(level) = args.level {
        if level.weighted && args.imatrix.is_none() {
            let (level, plain) = (level.to_string(), level.name().to_owned());
            return Err(smelt_core::Error::from(BitsError::NeedsImportance { level, plain }).into());
        }
        if level.is_plain() {
            return Ok(None);
        }
        (
            Target::Level(level.bits_per_weight),
            format!("level {level}, {} bits per weight", level.bits_per_weight),
        )
    } else {
        return Ok(None);
    };
    let formats = args.formats.as_ref().map_or_else(candidates, |list| list.0.clone());
    let layers = args.sensitivity_map.as_deref().map(sensitivity_map).transpose()?;
    Ok(Some(Request { target, asked, formats, layers }))
}

fn sensitivity_map(file: &Path) -> anyhow::Result<LayerPrior> {
    let shown = || format!("cannot read the sensitivity map `{}`", file.display());
    let map = serde_json::from_slice(&fs::read(file).with_context(shown)?).with_context(shown)?;
    LayerPrior::of_map(&map)
        .with_context(|| format!("`{}` is no object of positive scores by layer number", file.display()))
}

/// How codes are found.
pub(crate) fn method(args: &BitsArgs) -> anyhow::Result<Method> {
    match (args.method, args.effort) {
        (MethodArg::Rtn, Some(_)) => bail!("`--effort` is for `--method search`; rounding makes none"),
        (MethodArg::Rtn, None) => Ok(Method::Rtn),
        (MethodArg::Search, effort) => Ok(Method::Search(effort.map_or(Effort::Default, EffortArg::effort))),
    }
}

/// The format of the run that the options about bits imply: a level without mixture is one.
pub(crate) fn format(args: &BitsArgs) -> Option<Format> {
    args.level.filter(smelt_core::plan::allocate::Level::is_plain)?;
    Format::new(Mode::Affine, 8, Mode::Affine.defaults().1)
}

/// What is done to a checkpoint, for the name of its output.
pub(crate) fn suffix(args: &BitsArgs) -> Option<String> {
    let compact = |size: u64| bytes(size).replace(' ', "");
    args.target_bpw
        .map(|bits| format!("{bits}bpw"))
        .or_else(|| args.target_size.map(compact))
        .or_else(|| args.fit.map(|memory| format!("fit-{}", compact(memory))))
        .or_else(|| args.level.map(|level| level.to_string()))
}
