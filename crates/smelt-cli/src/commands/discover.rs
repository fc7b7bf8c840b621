//! `smelt discover`: the layout that an installed library gives a checkpoint.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, bail};
use serde_json::Value;
use smelt_core::checkpoint::Checkpoint;
use smelt_core::layout::discovered::{PROGRAM, Trace, digest, request};
use smelt_core::plan::is_multimodal;

use crate::args::{DiscoverArgs, LibraryArg};
use crate::commands::open;
use crate::{printer, python as interpreter};

pub(crate) fn run(args: &DiscoverArgs) -> anyhow::Result<()> {
    let checkpoint = open(&args.model)?;
    let trace = trace(&checkpoint, &args.python, args.library)?;
    let text = serde_json::to_string(&trace)?;
    match &args.output {
        None => printer::data(&format!("{text}\n")),
        Some(path) => {
            fs::write(path, text).with_context(|| format!("cannot write `{}`", path.display()))?;
            printer::done(&format!("{} as `{}`", described(&trace), path.display()));
        }
    }
    Ok(())
}

/// Asks the library.
pub(crate) fn trace(
    checkpoint: &Checkpoint,
    python: &Path,
    library: Option<LibraryArg>,
) -> anyhow::Result<Trace> {
    let usual = || if is_multimodal(checkpoint) { LibraryArg::MlxVlm } else { LibraryArg::MlxLm };
    let name = library.unwrap_or_else(usual).name();
    let mut trace = ask(&request(checkpoint, name), python, name)?;
    trace.digest = digest(checkpoint);
    Ok(trace)
}

/// Asks the library of this name a question.
pub(crate) fn ask(request: &Value, python: &Path, name: &str) -> anyhow::Result<Trace> {
    let answer = interpreter::run(python, PROGRAM, request.to_string())?;
    let trace: Trace = serde_json::from_str(&answer).context("the trace can't be read")?;
    if let Some(error) = &trace.error {
        let versions = versions(&trace);
        bail!("{name}{versions} does not load the checkpoint: {}: {}", error.kind, error.message);
    }
    Ok(trace)
}

/// Reads a trace that was stored.
pub(crate) fn read(path: &Path) -> anyhow::Result<Trace> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read `{}`", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("`{}` is not a layout", path.display()))
}

fn described(trace: &Trace) -> String {
    format!("layout by {}{}", trace.library, versions(trace))
}

fn versions(trace: &Trace) -> String {
    let shown =
        trace.versions.iter().filter_map(|(name, version)| Some(format!("{name} {}", version.as_str()?)));
    let list = shown.collect::<Vec<_>>().join(", ");
    if list.is_empty() { list } else { format!(" ({list})") }
}
