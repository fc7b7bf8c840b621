//! The report as a page: one file, no network, no script, light and dark, readable on a phone.
//!
//! Figures are SVG in the text, with the page's own colours, so that they follow the theme; what a
//! colour means is in a legend, and each cell says its value to who points at it or listens.

mod chart;
mod grid;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use super::{Report, TensorReport};
use crate::layout::Role;
use crate::units::bytes;

/// The style sheet.
const STYLE: &str = include_str!("style.css");

/// The tensors with the largest error that are listed.
const WORST: usize = 20;

/// A text with what HTML would read as its own replaced.
#[derive(Clone, Copy, Debug)]
pub(super) struct Escaped<'a>(pub(super) &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for letter in self.0.chars() {
            match letter {
                '<' => out.write_str("&lt;")?,
                '>' => out.write_str("&gt;")?,
                '&' => out.write_str("&amp;")?,
                '"' => out.write_str("&quot;")?,
                other => out.write_char(other)?,
            }
        }
        Ok(())
    }
}

/// The page.
pub fn page(report: &Report) -> String {
    let title = Escaped(&report.model);
    let body = [
        header(report),
        notes(report),
        section("Size by role", &roles(report)),
        section("What each rule did", &rules(report)),
        section("Bits by layer", &grid::bits(&report.tensors)),
        section("Error by layer", &grid::errors(&report.tensors)),
        section("How errors are spread", &chart::histogram(&report.tensors)),
        section("Size against predicted loss", &chart::frontier(report)),
        section("Largest errors", &worst(&report.tensors)),
        section("Left out of the source", &dropped(report)),
        footer(report),
    ]
    .concat();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title} · smelt</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )
}

/// A part of the page, or nothing where there is nothing to show.
fn section(title: &str, content: &str) -> String {
    if content.is_empty() {
        return String::new();
    }
    format!("<section>\n<h2>{title}</h2>\n{content}</section>\n")
}

fn header(report: &Report) -> String {
    let totals = &report.totals;
    let mut text = format!("<header>\n<h1>{}</h1>\n<dl class=\"tiles\">\n", Escaped(&report.model));
    let mut tile = |name: &str, value: String| {
        let _ = writeln!(text, "<div><dt>{name}</dt><dd>{}</dd></div>", Escaped(&value));
    };
    tile("bits per weight", format!("{:.2}", totals.bits_per_weight));
    tile("size", bytes(totals.tensor_bytes));
    tile("of the source's", share(totals.tensor_bytes, totals.source_bytes));
    tile("parameters", count(totals.parameters));
    if let Some(error) = mean_error(&report.tensors) {
        tile("mean relative error", percent(error));
    }
    if let Some(coverage) = &report.importance {
        tile("weighed by importance", format!("{} of {} modules", coverage.weighed, coverage.modules));
    }
    tile("time", duration(report.run.seconds));
    if let Some(peak) = report.run.peak_memory {
        tile("memory", bytes(peak));
    }
    text.push_str("</dl>\n</header>\n");
    text
}

fn notes(report: &Report) -> String {
    let mut items = String::new();
    let outliers = report.outliers.iter().map(ToString::to_string);
    for note in outliers.chain(report.notes.iter().cloned()) {
        let _ = writeln!(items, "<li>{}</li>", with_code(&note));
    }
    let list = if items.is_empty() { items } else { format!("<ul class=\"notes\">\n{items}</ul>\n") };
    section("Different from what was asked, or worth knowing", &list)
}

fn rules(report: &Report) -> String {
    if report.rules.is_empty() {
        return String::new();
    }
    let mut rows = String::new();
    for effect in &report.rules {
        let from =
            effect.line.map_or_else(|| effect.source.to_string(), |line| format!("recipe, line {line}"));
        let _ = writeln!(
            rows,
            "<tr><th>{rule}</th><td>{modules}</td><td>{size}</td><td class=\"text\">{from}</td>\
             <td class=\"text\">{reason}</td></tr>",
            rule = Escaped(&effect.rule),
            modules = effect.modules,
            size = bytes(effect.bytes),
            reason = Escaped(effect.reason.as_deref().unwrap_or_default()),
        );
    }
    table(&["rule", "modules", "size", "from", "why"], &[3, 4], &rows)
}

fn roles(report: &Report) -> String {
    let largest = report.totals.roles.values().map(|role| role.bytes).max().unwrap_or(0);
    let mut rows = String::new();
    for (role, sums) in &report.totals.roles {
        let formats: Vec<String> =
            sums.formats.iter().map(|(name, count)| format!("{count} × {name}")).collect();
        let width = 100.0 * sums.bytes as f64 / largest.max(1) as f64;
        let _ = writeln!(
            rows,
            "<tr><th>{role}</th><td>{size}</td><td>{share}</td><td class=\"bar\"><span style=\"width:{width:.1}%\">\
             </span></td><td>{bits:.2}</td><td class=\"text\">{formats}</td></tr>",
            size = bytes(sums.bytes),
            share = share(sums.bytes, report.totals.tensor_bytes),
            bits = 8.0 * sums.bytes as f64 / sums.parameters.max(1) as f64,
            formats = Escaped(&formats.join(", ")),
        );
    }
    table(&["role", "size", "share", "", "bits per weight", "stored as"], &[5], &rows)
}

fn worst(tensors: &[TensorReport]) -> String {
    let mut measured: Vec<_> =
        tensors.iter().filter_map(|tensor| tensor.error.map(|error| (tensor, error))).collect();
    measured.sort_by(|a, b| b.1.relative_rmse.total_cmp(&a.1.relative_rmse));
    let mut rows = String::new();
    for (tensor, error) in measured.iter().take(WORST) {
        let _ = writeln!(
            rows,
            "<tr><th><code>{}</code></th><td>{}</td><td>{}</td><td>{:.3e}</td></tr>",
            Escaped(&tensor.name),
            Escaped(&tensor.stored),
            percent(error.relative_rmse),
            error.largest,
        );
    }
    if rows.is_empty() {
        return rows;
    }
    table(&["tensor", "stored as", "relative error", "largest difference"], &[], &rows)
}

fn dropped(report: &Report) -> String {
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for dropped in &report.dropped {
        reasons.entry(&dropped.why).or_default().push(&dropped.tensor);
    }
    let mut text = String::new();
    for (why, tensors) in reasons {
        let names: Vec<String> =
            tensors.iter().map(|name| format!("<code>{}</code>", Escaped(name))).collect();
        let _ = writeln!(
            text,
            "<details>\n<summary>{} × {}</summary>\n<p>{}</p>\n</details>",
            tensors.len(),
            Escaped(why),
            names.join(" "),
        );
    }
    text
}

fn footer(report: &Report) -> String {
    let resumed = if report.run.resumed { " The run went on where an earlier one was stopped." } else { "" };
    format!(
        "<footer>\n<p>smelt {} · {}.{resumed}</p>\n<pre>{}</pre>\n</footer>\n",
        Escaped(&report.smelt),
        Escaped(&report.family),
        Escaped(&report.command.join(" ")),
    )
}

/// A table that scrolls sideways where the page is narrow; the columns `words` hold no numbers.
fn table(head: &[&str], words: &[usize], rows: &str) -> String {
    let class = |column| if words.contains(&column) { " class=\"text\"" } else { "" };
    let cell = |(column, name): (usize, &&str)| format!("<th{}>{name}</th>", class(column));
    let head: String = head.iter().enumerate().map(cell).collect();
    format!(
        "<div class=\"wide\">\n<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n"
    )
}

/// Words in which names stand between backticks.
fn with_code(text: &str) -> String {
    let pieces: Vec<&str> = text.split('`').collect();
    if pieces.len().is_multiple_of(2) {
        return Escaped(text).to_string();
    }
    let piece = |(index, piece): (usize, &&str)| match index % 2 {
        0 => Escaped(piece).to_string(),
        _ => format!("<code>{}</code>", Escaped(piece)),
    };
    pieces.iter().enumerate().map(piece).collect()
}

fn mean_error(tensors: &[TensorReport]) -> Option<f64> {
    let errors: Vec<f64> =
        tensors.iter().filter_map(|tensor| tensor.error.map(|error| error.relative_rmse)).collect();
    (!errors.is_empty()).then(|| errors.iter().sum::<f64>() / errors.len() as f64)
}

fn share(part: u64, whole: u64) -> String {
    format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64)
}

/// A share of one in per cent, with digits that tell small ones apart.
fn percent(value: f64) -> String {
    let value = 100.0 * value;
    if value >= 0.1 { format!("{value:.2} %") } else { format!("{value:.4} %") }
}

fn duration(seconds: f64) -> String {
    match seconds {
        short if short < 120.0 => format!("{short:.1} s"),
        medium if medium < 7200.0 => format!("{:.0} min", medium / 60.0),
        long => format!("{:.1} h", long / 3600.0),
    }
}

fn count(value: u64) -> String {
    match value as f64 {
        large if large >= 1e9 => format!("{:.2} B", large / 1e9),
        medium if medium >= 1e6 => format!("{:.2} M", medium / 1e6),
        small => format!("{small}"),
    }
}

/// Whether a role's tensors are worth a row of a figure: the others are small and never quantized.
fn is_shown(tensor: &TensorReport) -> bool {
    !matches!(tensor.role, Role::Norm | Role::Bias) && tensor.shape.len() >= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_name_is_read_as_html() {
        assert_eq!(Escaped("<a & \"b\">").to_string(), "&lt;a &amp; &quot;b&quot;&gt;");
    }

    #[test]
    fn names_in_notes_are_set_as_code() {
        assert_eq!(with_code("`a<b` is left"), "<code>a&lt;b</code> is left");
        assert_eq!(with_code("an odd ` stays"), "an odd ` stays");
    }
}
