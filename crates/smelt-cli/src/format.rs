//! Tables and numbers for people.

use std::collections::BTreeMap;

use smelt_core::layout::Role;
use smelt_core::pipeline::Outlier;
use smelt_core::plan::allocate::Allocation;
use smelt_core::plan::{Happens, MTP_FOLDER, Note, Plan, RoleTotals, RuleEffect, Schedule};
use smelt_core::report::REPORT;
use smelt_core::units::bytes;

/// The largest tensors that stay unquantized are worth a look; more than this many are noise.
const LARGEST: usize = 5;

/// Modules of one kind that are named in a line.
const NAMED: usize = 3;

/// Parameters with weights that can't be right, of which each has a line.
const OUTLIERS: usize = 8;

/// Smaller unquantized tensors (norms, biases) are meant to be so.
const WORTH_NAMING: u64 = 1 << 20;

/// A count with three digits: `30.5 B`.
pub(crate) fn count(value: u64) -> String {
    const UNITS: [&str; 4] = ["", " K", " M", " B"];
    let mut scaled = value as f64;
    let mut unit = 0;
    while scaled >= 999.5 && unit + 1 < UNITS.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    let decimals = if unit == 0 || scaled >= 99.95 { 0 } else { 1 + usize::from(scaled < 9.995) };
    format!("{scaled:.decimals$}{}", UNITS[unit])
}

/// What to tell of a plan's notes: modules that stay unquantized for one reason are one line.
pub(crate) fn notes(notes: &[Note]) -> Vec<String> {
    let mut lines = Vec::new();
    let mut rows: BTreeMap<(u64, u64), Vec<&str>> = BTreeMap::new();
    let mut moved: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for note in notes {
        match note {
            Note::NotDivisible { module, row, group_size } => {
                rows.entry((*row, *group_size)).or_default().push(module);
            }
            Note::Moved { module, format, asked } => {
                let what = format!("moved as {format} bit by bit, not quantized as {asked}");
                moved.entry(what).or_default().push(module);
            }
            Note::NoImportance { module } => {
                let what = "weighed by the columns alone: the importance has nothing there";
                moved.entry(what.to_owned()).or_default().push(module);
            }
            Note::NotMoved { module, why } => {
                moved.entry(format!("decoded and quantized again: {why}")).or_default().push(module);
            }
            other => lines.push(other.to_string()),
        }
    }
    lines.extend(rows.into_iter().map(|((row, group_size), modules)| {
        let what = format!("not quantized: rows of {row} do not divide into groups of {group_size}");
        some_are(&modules, &what)
    }));
    lines.extend(moved.into_iter().map(|(what, modules)| some_are(&modules, &what)));
    lines
}

/// What to tell of weights that can't be right: some of them, and how many there are.
pub(crate) fn outliers(outliers: &[Outlier]) -> Vec<String> {
    let mut lines: Vec<String> = outliers.iter().take(OUTLIERS).map(ToString::to_string).collect();
    if let Some(more) = outliers.len().checked_sub(OUTLIERS).filter(|&more| more > 0) {
        lines.push(format!("the weights of {more} more parameters can't be right, see `{REPORT}`"));
    }
    lines
}

/// `a`, `b` and 3 more are this.
fn some_are(modules: &[&str], what: &str) -> String {
    let shown = modules.iter().take(NAMED).map(|module| format!("`{module}`"));
    let mut list = shown.collect::<Vec<_>>().join(", ");
    if modules.len() > NAMED {
        list = format!("{list} and {} more", modules.len() - NAMED);
    }
    let verb = if modules.len() == 1 { "is" } else { "are" };
    format!("{list} {verb} {what}")
}

/// Rows of cells as a table: the first column to the left, the others to the right, the last as
/// it is.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            let cell = match column {
                0 => format!("{cell:width$}"),
                last if last + 1 == columns => format!("  {cell}"),
                _ => format!("  {cell:>width$}"),
            };
            line.push_str(&cell);
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// A plan by role, with totals, what stays large, and what it takes.
pub(crate) fn plan(plan: &Plan, schedule: Schedule, free: Option<u64>) -> String {
    let mut rows =
        vec![["role", "parameters", "bits", "size", "share", "stored as"].map(str::to_owned).to_vec()];
    let totals = &plan.totals;
    let (apart, model): (Vec<_>, Vec<_>) = totals.roles.iter().partition(|(role, _)| **role == Role::Mtp);
    let line = |(role, sums): (&Role, &RoleTotals)| {
        let formats = sums.formats.iter().map(|(name, count)| format!("{count} × {name}"));
        let formats = formats.collect::<Vec<_>>().join(", ");
        row(role.name(), sums.parameters, sums.bytes, totals.tensor_bytes, formats)
    };
    rows.extend(model.into_iter().map(line));
    rows.push(row("total", totals.parameters, totals.tensor_bytes, totals.tensor_bytes, String::new()));
    rows.extend(apart.into_iter().map(line));
    let mut text = table(&rows);
    text.push('\n');
    if !plan.rules.is_empty() {
        text.push_str(&rules(&plan.rules));
        text.push('\n');
    }
    text.push_str(&facts(plan, schedule, free));
    text
}

/// What each rule came to, in the order in which they are applied.
fn rules(effects: &[RuleEffect]) -> String {
    let mut rows = vec![["rule", "modules", "size", "from"].map(str::to_owned).to_vec()];
    for effect in effects {
        let later = effect.matched - effect.modules;
        let count = match (effect.matched, later) {
            (0, _) => "none".to_owned(),
            (_, 0) => effect.modules.to_string(),
            (matched, _) => format!("{} of {matched}", effect.modules),
        };
        let line = effect.line.map(|line| format!(", line {line}")).unwrap_or_default();
        let reason = effect.reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        rows.push(vec![
            effect.rule.clone(),
            count,
            bytes(effect.bytes),
            format!("{}{line}{reason}", effect.source),
        ]);
    }
    table(&rows)
}

fn row(name: &str, parameters: u64, size: u64, total: u64, formats: String) -> Vec<String> {
    let share = if total == 0 { 0.0 } else { 100.0 * size as f64 / total as f64 };
    let bits = if parameters == 0 { 0.0 } else { 8.0 * size as f64 / parameters as f64 };
    vec![
        name.to_owned(),
        count(parameters),
        format!("{bits:.2}"),
        bytes(size),
        format!("{share:.1} %"),
        formats,
    ]
}

fn facts(plan: &Plan, schedule: Schedule, free: Option<u64>) -> String {
    let totals = &plan.totals;
    let mut rows = vec![
        fact("bits per weight", format!("{:.3}", totals.bits_per_weight)),
        fact("codes", format!("by {}", plan.method)),
        fact("files", files(plan)),
        fact("left out", left_out(plan)),
        fact("peak memory", format!("at most {}", bytes(plan.peak_memory(schedule)))),
    ];
    rows.extend(treatments(plan).into_iter().map(|line| fact("source", line)));
    if let Some(allocation) = &plan.allocation {
        rows.insert(1, fact("target", target(allocation)));
    }
    if let Some(coverage) = &plan.importance {
        rows.insert(2, fact("importance", coverage.to_string()));
    }
    let needed = bytes(totals.disk_bytes());
    rows.push(fact(
        "disk",
        free.map_or(needed.clone(), |free| format!("{needed} needed, {} free", bytes(free))),
    ));
    let large = largest_unquantized(plan);
    if !large.is_empty() {
        rows.push(fact("largest unquantized", large.join(", ")));
    }
    table(&rows)
}

/// What was asked for, and how near to the best the choice is.
fn target(allocation: &Allocation) -> String {
    let Allocation { asked, loss, bound, .. } = allocation;
    let above = if *loss > 0.0 { 100.0 * (loss - bound) / loss } else { 0.0 };
    format!("{asked}: predicted loss {loss:.4}, at most {above:.1} % above the least")
}

fn fact(name: &str, value: String) -> Vec<String> {
    vec![name.to_owned(), value]
}

fn files(plan: &Plan) -> String {
    let apart = plan.shards.iter().filter(|shard| shard.name.starts_with(MTP_FOLDER)).count();
    let shards = plan.shards.len() - apart;
    let plural = if shards == 1 { "" } else { "s" };
    let apart = if apart == 0 { String::new() } else { format!(" and {apart} in `{MTP_FOLDER}`") };
    format!(
        "{shards} shard{plural}{apart} of {} in all, {} side files",
        bytes(plan.totals.file_bytes),
        plan.side_files.len()
    )
}

/// What becomes of the codes of the source: a line for each format and reason.
fn treatments(plan: &Plan) -> Vec<String> {
    let mut counts: BTreeMap<(&str, Happens, &str), usize> = BTreeMap::new();
    for treatment in &plan.treatments {
        let key = (&*treatment.source, treatment.transcode, &*treatment.reason);
        *counts.entry(key).or_default() += 1;
    }
    let line = |((source, what, why), count)| format!("{count} × {source}: {what}, {why}");
    counts.into_iter().map(line).collect()
}

/// How many tensors are dropped, by reason.
fn left_out(plan: &Plan) -> String {
    let mut reasons: Vec<(&str, usize)> = Vec::new();
    for dropped in &plan.dropped {
        match reasons.iter_mut().find(|(why, _)| *why == dropped.why) {
            Some((_, count)) => *count += 1,
            None => reasons.push((&dropped.why, 1)),
        }
    }
    if reasons.is_empty() {
        return "no tensor".to_owned();
    }
    reasons.iter().map(|(why, count)| format!("{count} × {why}")).collect::<Vec<_>>().join(", ")
}

fn largest_unquantized(plan: &Plan) -> Vec<String> {
    let worth_naming = |task: &&smelt_core::plan::Task| {
        task.format.is_none() && task.bytes() >= WORTH_NAMING && task.role != Role::Norm
    };
    let mut tasks: Vec<_> = plan.tasks.iter().filter(worth_naming).collect();
    tasks.sort_by_key(|task| std::cmp::Reverse(task.bytes()));
    tasks.iter().take(LARGEST).map(|task| format!("{} ({})", task.name, bytes(task.bytes()))).collect()
}

#[cfg(test)]
mod tests {
    use super::count;

    #[test]
    fn counts_have_three_digits() {
        assert_eq!(
            [7, 999, 1000, 2_830_000, 396_000_000_000].map(count),
            ["7", "999", "1.00 K", "2.83 M", "396 B"]
        );
    }
}
