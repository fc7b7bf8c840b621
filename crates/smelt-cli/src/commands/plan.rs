//! `smelt plan`: what `quantize` would write.

use smelt_core::pipeline::free_space;

use crate::args::PlanArgs;
use crate::commands::{Planned, default_output, planned, stop_on_interrupt};
use crate::format;
use crate::printer::{self, Printer};

pub(crate) fn run(args: &PlanArgs, printer: &Printer) -> anyhow::Result<()> {
    // The JSON of a plan is one document, so its notes are not told as events.
    let (output, stop) = (default_output(args)?, stop_on_interrupt());
    let Planned { plan, schedule, .. } = planned(args, &output, &Printer::new(false), &stop)?;
    if printer.is_json() {
        printer::data(&format!("{}\n", serde_json::to_string(&plan)?));
    } else {
        let free = args.model.parent().and_then(free_space);
        printer::data(&format::plan(&plan, schedule, free));
    }
    Ok(())
}
