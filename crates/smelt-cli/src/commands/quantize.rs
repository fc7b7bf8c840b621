//! `smelt quantize`: writes a model.

use std::path::Path;
use std::time::Instant;

use anyhow::anyhow;
use serde_json::json;
use smelt_core::Error;
use smelt_core::pipeline::{Run, check_outside, free_space};
use smelt_core::plan::Plan;
use smelt_core::units::bytes;

use crate::args::QuantizeArgs;
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
    let Planned { checkpoint, plan, schedule } = &planned;
    printer.event("plan", &serde_json::to_value(&plan.totals)?);
    let progress = Progress::new(printer);
    let run = Run {
        plan,
        checkpoint,
        output: &output,
        schedule: *schedule,
        importance: None,
        observer: &progress,
        stop: &stop,
    };
    let result = run.execute();
    progress.clear();
    match result {
        Err(Error::Interrupted) => Err(anyhow!("stopped; nothing is left behind in `{}`", output.display())),
        Err(error) => Err(error.into()),
        Ok(()) => {
            summary(plan, &output, started, printer);
            Ok(())
        }
    }
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
