//! `smelt report`: draws the report of a finished model as a page.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use smelt_core::report::{Report, html};

use crate::args::ReportArgs;
use crate::printer;

/// The page's name beside the report.
const PAGE: &str = "smelt-report.html";

pub(crate) fn run(args: &ReportArgs) -> anyhow::Result<()> {
    let page = html::page(&Report::read(&args.model)?);
    let path = args.output.clone().unwrap_or_else(|| args.model.join(PAGE));
    if path == Path::new("-") {
        printer::data(&page);
        return Ok(());
    }
    fs::write(&path, page).with_context(|| format!("cannot write `{}`", path.display()))?;
    printer::done(&format!("the page is `{}`", path.display()));
    Ok(())
}
