//! Charts of bars and points.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Escaped, percent};
use crate::report::{Point, Report, TensorReport};
use crate::units::bytes;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 220.0;

/// Left of and below the drawing, where its numbers are.
const MARGIN: f64 = 44.0;

/// Bars of a histogram.
const BINS: usize = 24;

/// How many tensors have which error, in a chart for each format.
pub(super) fn histogram(tensors: &[TensorReport]) -> String {
    let mut by_format: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for tensor in tensors {
        if let Some(error) = tensor.error.filter(|error| error.relative_rmse > 0.0) {
            by_format.entry(&tensor.stored).or_default().push(error.relative_rmse);
        }
    }
    let bars = by_format.iter().filter(|(_, errors)| errors.len() > 1);
    let mut text = String::new();
    for (format, errors) in bars {
        let _ = writeln!(text, "<h3>{} ({} tensors)</h3>", Escaped(format), errors.len());
        text.push_str(&bars_of(errors));
    }
    text
}

fn bars_of(errors: &[f64]) -> String {
    let least = errors.iter().copied().fold(f64::MAX, f64::min);
    let most = errors.iter().copied().fold(f64::MIN, f64::max);
    let span = (most - least).max(least * 1e-3);
    let mut bins = [0usize; BINS];
    for error in errors {
        bins[(((error - least) / span * BINS as f64) as usize).min(BINS - 1)] += 1;
    }
    let tallest = bins.iter().copied().max().unwrap_or(1).max(1) as f64;
    let step = (WIDTH - 2.0 * MARGIN) / BINS as f64;
    let mut text = open();
    for (index, &count) in bins.iter().enumerate() {
        let height = (HEIGHT - MARGIN - 10.0) * count as f64 / tallest;
        let _ = writeln!(
            text,
            "<rect class=\"mark\" x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\"><title>{count} around {}</title></rect>",
            MARGIN + step * index as f64,
            HEIGHT - MARGIN - height,
            step - 2.0,
            percent(least + span * (index as f64 + 0.5) / BINS as f64),
        );
    }
    label(&mut text, MARGIN, "start", &percent(least));
    label(&mut text, WIDTH - MARGIN, "end", &percent(least + span));
    label(&mut text, WIDTH / 2.0, "middle", "relative error");
    close(text)
}

/// The sizes that could be had and what each would cost.
pub(super) fn frontier(report: &Report) -> String {
    let points: Vec<&Point> = report.frontier.iter().filter(|point| point.loss > 0.0).collect();
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        return String::new();
    };
    let (low, high) = (last.loss.ln(), first.loss.ln());
    let x = |bytes: u64| {
        let span = (last.bytes - first.bytes).max(1) as f64;
        MARGIN + (WIDTH - 2.0 * MARGIN) * bytes.saturating_sub(first.bytes) as f64 / span
    };
    let y = |loss: f64| {
        10.0 + (HEIGHT - MARGIN - 20.0) * (high - loss.ln()) / (high - low).max(f64::MIN_POSITIVE)
    };
    let mut text = open();
    let line: Vec<String> =
        points.iter().map(|point| format!("{:.1},{:.1}", x(point.bytes), y(point.loss))).collect();
    let _ = writeln!(text, "<polyline class=\"line\" points=\"{}\"/>", line.join(" "));
    let here = report.totals.tensor_bytes;
    if let Some(at) = points.iter().rev().find(|point| point.bytes <= here) {
        let _ = writeln!(
            text,
            "<circle class=\"here\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"5\"><title>this model: {}</title></circle>",
            x(here),
            y(at.loss),
            bytes(here),
        );
    }
    label(&mut text, MARGIN, "start", &bytes(first.bytes));
    label(&mut text, WIDTH - MARGIN, "end", &bytes(last.bytes));
    label(&mut text, WIDTH / 2.0, "middle", "size; loss falls from left to right, in logarithm");
    close(text)
}

fn open() -> String {
    format!("<div class=\"wide\"><svg role=\"img\" class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\">\n")
}

fn close(mut text: String) -> String {
    let base = HEIGHT - MARGIN;
    let _ = writeln!(
        text,
        "<line class=\"axis\" x1=\"{MARGIN}\" y1=\"{base}\" x2=\"{}\" y2=\"{base}\"/>",
        WIDTH - MARGIN
    );
    text.push_str("</svg></div>\n");
    text
}

fn label(text: &mut String, x: f64, anchor: &str, words: &str) {
    let y = HEIGHT - MARGIN + 20.0;
    let _ = writeln!(text, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"{anchor}\">{}</text>", Escaped(words));
}
