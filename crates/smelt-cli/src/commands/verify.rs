//! `smelt verify`: whether a finished model is what it should be.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::anyhow;
use serde_json::json;
use smelt_core::Error;
use smelt_core::checkpoint::Checkpoint;
use smelt_core::layout::Layout;
use smelt_core::plan::Origin;
use smelt_core::source::{LocalSource, Source};
use smelt_core::units::bytes;
use smelt_core::verify::{Compared, Comparison, Finding, Report, Severity, Verify};

use crate::args::VerifyArgs;
use crate::commands::{discover, memory, open, read_family, stop_on_interrupt};
use crate::format::table;
use crate::printer::{self, Printer};
use crate::progress::Progress;
use crate::system;

/// Names of one finding that are listed.
const NAMED: usize = 3;

pub(crate) fn run(args: &VerifyArgs, printer: &Printer) -> anyhow::Result<()> {
    let started = Instant::now();
    let source: Arc<dyn Source> = Arc::new(LocalSource::open(&args.model)?);
    let family = args.family.as_deref().map(read_family).transpose()?;
    let against = args.against.as_deref().map(open).transpose()?;
    let layout = against.as_ref().and_then(|source| layout(args, source).transpose()).transpose()?;
    let asked = args.target.map(|library| library.name().to_owned());
    let library = layout.as_ref().map(|(_, library)| library.clone()).or(asked);
    let (stop, progress) = (stop_on_interrupt(), Progress::new(printer));
    let verify = Verify {
        source: &source,
        family: family.as_ref(),
        library: library.as_deref(),
        against: against.as_ref(),
        layout: layout.as_ref().map(|(layout, _)| layout),
        memory: memory(args.resources.max_memory, args.resources.threads),
        observer: &progress,
        stop: &stop,
    };
    let report = verify.run();
    progress.clear();
    let report = match report {
        Err(Error::Interrupted) => return Err(anyhow!("stopped")),
        report => report?,
    };
    if printer.is_json() {
        events(&report, printer)?;
    } else {
        printer::data(&text(&report, args.show));
    }
    let seconds = started.elapsed().as_secs_f64();
    let read = report.bytes + against.as_ref().map_or(0, source_bytes);
    tell(&report, &args.model, (seconds, read), printer)
}

/// The layout that a library gives the source, with the library's name, where one is to be asked.
fn layout(args: &VerifyArgs, source: &Checkpoint) -> anyhow::Result<Option<(Layout, String)>> {
    let trace = match &args.layout {
        Some(path) => discover::read(path)?,
        None if args.discover => discover::trace(source, &args.python, args.target)?,
        None => return Ok(None),
    };
    let library = trace.library.clone();
    Ok(Some((Origin::discovered(source, &trace)?.layout, library)))
}

fn source_bytes(checkpoint: &Checkpoint) -> u64 {
    checkpoint.tensors().iter().map(|tensor| tensor.bytes).sum()
}

/// One event for each finding, each compared tensor and each kind.
fn events(report: &Report, printer: &Printer) -> anyhow::Result<()> {
    for finding in &report.findings {
        printer.event("finding", &serde_json::to_value(finding)?);
    }
    if let Some(comparison) = &report.comparison {
        for tensor in &comparison.tensors {
            printer.event("tensor", &serde_json::to_value(tensor)?);
        }
        for kind in &comparison.kinds {
            printer.event("kind", &serde_json::to_value(kind)?);
        }
    }
    Ok(())
}

/// The verdict, which also is the exit code.
fn tell(report: &Report, model: &Path, (seconds, read): (f64, u64), printer: &Printer) -> anyhow::Result<()> {
    let (errors, warnings) = (report.count(Severity::Error), report.count(Severity::Warning));
    let peak = system::peak_memory();
    printer.event(
        "done",
        &json!({
            "model": model.display().to_string(),
            "sound": report.is_sound(),
            "errors": errors,
            "warnings": warnings,
            "family": report.family,
            "library": report.library,
            "tensors": report.tensors,
            "parameters": report.parameters,
            "quantized": report.quantized,
            "bytes": report.bytes,
            "hashed": report.hashed,
            "compared": report.comparison.as_ref().map(|comparison| comparison.tensors.len()),
            "seconds": seconds,
            "read_bytes": read,
            "peak_memory": peak,
        }),
    );
    let counts = format!("{}, {}", counted(errors, "error"), counted(warnings, "warning"));
    if !report.is_sound() {
        return Err(anyhow!("`{}` is not sound: {counts}", model.display()));
    }
    let memory = peak.map_or_else(String::new, |peak| format!(", peak memory {}", bytes(peak)));
    let rate = read as f64 / 1e9 / seconds;
    printer::done(&format!(
        "`{}` is sound: {}{counts}, {seconds:.1} s, {rate:.2} GB/s{memory}",
        model.display(),
        done(report),
    ));
    Ok(())
}

/// What was looked at, in a few words.
fn done(report: &Report) -> String {
    let mut text = format!("{} in {} tensors", bytes(report.bytes), report.tensors);
    if let Some(library) = &report.library {
        let _ = write!(text, ", names and shapes of {library}");
    }
    let hashes = if report.hashed { ", every byte as it was written" } else { ", no hashes to compare with" };
    text.push_str(hashes);
    if let Some(comparison) = &report.comparison {
        let _ = write!(text, ", {} parameters compared with the source", comparison.tensors.len());
    }
    text.push_str(", ");
    text
}

fn counted(count: usize, what: &str) -> String {
    match count {
        0 => format!("no {what}s"),
        1 => format!("1 {what}"),
        _ => format!("{count} {what}s"),
    }
}

fn text(report: &Report, show: usize) -> String {
    let mut text: String = report.findings.iter().map(finding).collect();
    if let Some(comparison) = &report.comparison {
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&kinds(comparison));
        text.push('\n');
        text.push_str(&worst(comparison, show));
    }
    text
}

fn finding(finding: &Finding) -> String {
    let severity: &str = finding.severity.into();
    let names = finding.names.iter().take(NAMED).map(|name| format!("`{name}`"));
    let mut names = names.collect::<Vec<_>>().join(", ");
    if finding.names.len() > NAMED {
        let _ = write!(names, " and {} more", finding.names.len() - NAMED);
    }
    format!("{severity}: {names}: {}\n  {}\n", finding.what, finding.advice)
}

/// The errors by role and format.
fn kinds(comparison: &Comparison) -> String {
    let mut rows =
        vec![["role", "tensors", "median RMSE", "worst RMSE", "stored as"].map(str::to_owned).to_vec()];
    rows.extend(comparison.kinds.iter().map(|kind| {
        vec![
            kind.role.name().to_owned(),
            kind.count.to_string(),
            relative(kind.median),
            relative(kind.worst),
            kind.format.clone(),
        ]
    }));
    table(&rows)
}

/// The tensors with the largest relative error.
fn worst(comparison: &Comparison, show: usize) -> String {
    let mut tensors: Vec<&Compared> = comparison.tensors.iter().collect();
    tensors.sort_by(|a, b| b.metrics.relative_rmse.total_cmp(&a.metrics.relative_rmse));
    let head = ["worst tensors", "RMSE", "SQNR dB", "cosine", "max error", "worst row", "stored as"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    rows.extend(tensors.into_iter().take(show).map(|tensor| {
        let metrics = &tensor.metrics;
        vec![
            tensor.name.clone(),
            relative(metrics.relative_rmse),
            metrics.sqnr_db.map_or_else(|| "exact".to_owned(), |sqnr| format!("{sqnr:.1}")),
            format!("{:.5}", metrics.cosine),
            format!("{:.3e}", metrics.max_error),
            tensor.worst_row.map_or_else(String::new, |(error, _)| relative(error)),
            tensor.format.clone(),
        ]
    }));
    table(&rows)
}

fn relative(error: f64) -> String {
    if error == 0.0 { "0".to_owned() } else { format!("{error:.4}") }
}
