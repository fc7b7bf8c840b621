//! `smelt quantize`: writes a model.

use std::path::Path;
use std::time::Instant;

use anyhow::anyhow;
use serde_json::json;
use smelt_core::Error;
use smelt_core::pipeline::{Outcome, Run, check_outside, discard, free_space};
use smelt_core::plan::Plan;
use smelt_core::units::bytes;

use crate::args::QuantizeArgs;
use crate::commands::record::Recorder;
use crate::commands::{Planned, default_output, planned, stop_on_interrupt};
use crate::printer::{self, Printer};
use crate::progress::Progress;
use crate::{format, system};

pub(crate) fn run(args: &QuantizeArgs, printer: &Printer) -> anyhow::Result<()> {
    let started = Instant::now();
    let output = args.output.clone().map_or_else(|| default_output(&args.plan), Ok)?;
    check_outside(&args.plan.model, &output)?;
    let stop = stop_on_interrupt();
    let planned = planned(&args.plan, &output, printer, &stop)?;
    if args.dry_run {
        show(&planned, &output, printer)?;
        return Ok(());
    }
    let Planned { checkpoint, plan, importance, schedule } = &planned;
    printer.event("plan", &serde_json::to_value(&plan.totals)?);
    if args.no_resume {
        discard(&output)?;
    }
    let progress = Progress::new(printer);
    let recorder = Recorder { plan, checkpoint, typed: &args.typed, started, progress: &progress };
    let run = Run {
        plan,
        checkpoint,
        output: &output,
        schedule: *schedule,
        importance: importance.as_ref(),
        observer: &recorder,
        stop: &stop,
    };
    let result = run.execute();
    progress.clear();
    for line in format::outliers(&progress.outliers()) {
        printer::warning(&line);
    }
    match result {
        Ok(Outcome::Written) => summary(plan, &output, started, printer),
        Ok(Outcome::AlreadyFinished) => {
            recorder.write_missing(&output)?;
            already(plan, &output, printer);
        }
        Err(error) => return Err(stopped(error, progress.kept(), &output)),
    }
    Ok(())
}

/// What a run that ended early has to say, besides what ended it.
fn stopped(error: Error, kept: Option<(usize, usize)>, output: &Path) -> anyhow::Error {
    let path = output.display();
    let left = kept.map(|(tensors, of)| format!("{tensors} of {of} tensors are kept in `{path}`"));
    match (error, left) {
        (Error::Interrupted, Some(left)) => anyhow!("stopped; {left}: run the same command again to go on"),
        (Error::Interrupted, None) => anyhow!("stopped; nothing is left behind in `{path}`"),
        (error, Some(left)) => {
            printer::warning(&format!("{left}, from where the next run goes on"));
            error.into()
        }
        (error, None) => error.into(),
    }
}

/// Says that there was nothing to do.
fn already(plan: &Plan, output: &Path, printer: &Printer) {
    let totals = &plan.totals;
    printer.event(
        "done",
        &json!({
            "output": output.display().to_string(),
            "bytes": totals.disk_bytes(),
            "bits_per_weight": totals.bits_per_weight,
            "already_finished": true,
        }),
    );
    printer::done(&format!(
        "`{}` is finished already: {}, {:.3} bits per weight; sizes, headers and small files are as they \
         were written",
        output.display(),
        bytes(totals.tensor_bytes),
        totals.bits_per_weight,
    ));
}

fn show(planned: &Planned, output: &Path, printer: &Printer) -> anyhow::Result<()> {
    if printer.is_json() {
        printer.event("plan", &serde_json::to_value(&planned.plan)?);
    } else {
        printer::data(&format::plan(&planned.plan, planned.schedule, free_space(output)));
    }
    Ok(())
}

fn summary(plan: &Plan, output: &Path, started: Instant, printer: &Printer) {
    let seconds = started.elapsed().as_secs_f64();
    let totals = &plan.totals;
    let rate = totals.source_bytes as f64 / 1e9 / seconds;
    let peak = system::peak_memory();
    printer.event(
        "done",
        &json!({
            "output": output.display().to_string(),
            "already_finished": false,
            "bytes": totals.disk_bytes(),
            "bits_per_weight": totals.bits_per_weight,
            "seconds": seconds,
            "source_bytes": totals.source_bytes,
            "peak_memory": peak,
        }),
    );
    let memory = peak.map_or_else(String::new, |peak| format!(", peak memory {}", bytes(peak)));
    printer::done(&format!(
        "{} → {} in `{}`, {:.3} bits per weight, {seconds:.1} s, {rate:.2} GB/s{memory}",
        bytes(totals.source_bytes),
        bytes(totals.tensor_bytes),
        output.display(),
        totals.bits_per_weight,
    ));
}
