//! `smelt diff`: two models or checkpoints side by side.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::anyhow;
use serde_json::{Value, json};
use smelt_core::Error;
use smelt_core::source::{LocalSource, Source};
use smelt_core::units::bytes;
use smelt_core::verify::diff::{ConfigChange, Diff, Differences, Entry, Side, Status};

use crate::args::DiffArgs;
use crate::commands::{memory, stop_on_interrupt};
use crate::format::table;
use crate::printer::{self, Printer};
use crate::progress::Progress;

/// Longer values of the config are cut.
const VALUE: usize = 40;

pub(crate) fn run(args: &DiffArgs, printer: &Printer) -> anyhow::Result<()> {
    let first: Arc<dyn Source> = Arc::new(LocalSource::open(&args.first)?);
    let second: Arc<dyn Source> = Arc::new(LocalSource::open(&args.second)?);
    let (stop, progress) = (stop_on_interrupt(), Progress::new(printer));
    let diff = Diff {
        first: &first,
        second: &second,
        memory: memory(args.resources.max_memory, args.resources.threads),
        observer: &progress,
        stop: &stop,
    };
    let found = diff.run();
    progress.clear();
    let found = match found {
        Err(Error::Interrupted) => return Err(anyhow!("stopped")),
        found => found?,
    };
    if printer.is_json() {
        events(&found, printer)?;
    } else {
        printer::data(&text(&found, args.show));
    }
    Ok(())
}

fn events(found: &Differences, printer: &Printer) -> anyhow::Result<()> {
    for entry in &found.tensors {
        printer.event("tensor", &serde_json::to_value(entry)?);
    }
    for change in &found.config {
        printer.event("config", &serde_json::to_value(change)?);
    }
    let counts: BTreeMap<&str, usize> =
        STATUSES.iter().map(|&(status, name, _)| (name, found.count(status))).collect();
    printer.event(
        "done",
        &json!({ "equal": found.is_equal(), "tensors": found.tensors.len(), "counts": counts }),
    );
    Ok(())
}

/// Each status by its name in JSON and in words.
const STATUSES: [(Status, &str, &str); 7] = [
    (Status::Equal, "equal", "the same bytes"),
    (Status::SameValues, "same_values", "the same values, stored differently"),
    (Status::Differs, "differs", "other values"),
    (Status::Reshaped, "reshaped", "another shape"),
    (Status::Opaque, "opaque", "other bytes that are no floats"),
    (Status::OnlyFirst, "only_first", "only in the first"),
    (Status::OnlySecond, "only_second", "only in the second"),
];

fn text(found: &Differences, show: usize) -> String {
    let mut text = summary(found);
    if !found.config.is_empty() {
        text.push_str("\nconfig.json\n");
        text.push_str(&table(&found.config.iter().map(change).collect::<Vec<_>>()));
    }
    let mut entries: Vec<&Entry> =
        found.tensors.iter().filter(|entry| entry.status != Status::Equal).collect();
    let error = |entry: &Entry| entry.metrics.map_or(f64::INFINITY, |metrics| metrics.relative_rmse);
    entries.sort_by(|a, b| error(b).total_cmp(&error(a)));
    if found.count(Status::OnlyFirst) > 0 && found.count(Status::OnlySecond) > 0 {
        text.push_str("\nA model has other names than its source: `smelt verify MODEL --against SOURCE` compares those.\n");
    }
    if entries.is_empty() {
        return text;
    }
    let head = ["tensor", "first", "second", "RMSE", "max error", ""].map(str::to_owned).to_vec();
    let rows: Vec<_> =
        std::iter::once(head).chain(entries.iter().take(show).map(|entry| row(entry))).collect();
    text.push('\n');
    text.push_str(&table(&rows));
    if entries.len() > show {
        let _ = writeln!(text, "and {} more: --show lists them", entries.len() - show);
    }
    text
}

/// How many parameters there are of each status, and their bytes on both sides.
fn summary(found: &Differences) -> String {
    let size = |side: &Option<Side>| side.as_ref().map_or(0, |side| side.bytes);
    let row = |name: &str, of: &dyn Fn(&&Entry) -> bool| {
        let (mut count, mut first, mut second) = (0, 0, 0);
        for entry in found.tensors.iter().filter(of) {
            (count, first, second) = (count + 1, first + size(&entry.first), second + size(&entry.second));
        }
        (count > 0).then(|| vec![name.to_owned(), count.to_string(), bytes(first), bytes(second)])
    };
    let mut rows = vec![["parameters", "", "first", "second"].map(str::to_owned).to_vec()];
    rows.extend(
        STATUSES.iter().filter_map(|(status, _, words)| row(words, &|entry| entry.status == *status)),
    );
    rows.extend(row("all", &|_| true));
    table(&rows)
}

fn change(change: &ConfigChange) -> Vec<String> {
    let shown = |value: &Option<Value>| {
        let text = value.as_ref().map_or_else(|| "—".to_owned(), ToString::to_string);
        if text.chars().count() <= VALUE { text } else { text.chars().take(VALUE).chain(['…']).collect() }
    };
    vec![format!("  {}", change.key), shown(&change.first), shown(&change.second)]
}

fn row(entry: &Entry) -> Vec<String> {
    let reshaped = entry.status == Status::Reshaped;
    let side = |side: &Option<Side>| match side {
        None => "—".to_owned(),
        Some(side) if reshaped => format!("{} {:?}", side.format, side.shape),
        Some(side) => side.format.clone(),
    };
    let words =
        STATUSES.iter().find(|(status, ..)| *status == entry.status).map_or("", |(_, _, words)| words);
    let metric = |of: &dyn Fn(&smelt_core::verify::Metrics) -> String| {
        entry.metrics.as_ref().map_or_else(String::new, of)
    };
    vec![
        entry.name.clone(),
        side(&entry.first),
        side(&entry.second),
        metric(&|metrics| format!("{:.4}", metrics.relative_rmse)),
        metric(&|metrics| format!("{:.3e}", metrics.max_error)),
        if entry.status == Status::Differs { String::new() } else { words.to_owned() },
    ]
}
