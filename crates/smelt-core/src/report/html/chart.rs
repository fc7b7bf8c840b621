//! Charts of bars and points.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Escaped, percent};
use crate::report::{Point, Report, TensorReport};
use crate::units::bytes;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 220.0;

/// Left of and below the drawing, where its numbers are.
const MARGIN: f64 = 48.0;

/// Where the highest word stands: its letters reach up from there, on a phone 20 units.
const TOP: f64 = 20.0;

/// Left of a frontier, where its losses are.
const LEFT: f64 = 84.0;

/// Bars of a histogram.
const BINS: usize = 24;

/// How many tensors have which error, those of a width in its color; errors in logarithm, since each bit
/// halves them.
pub(super) fn histogram(tensors: &[TensorReport]) -> String {
    let errors =
        tensors.iter().filter_map(|tensor| Some((tensor.error?.relative_rmse, tensor.format.as_ref()?)));
    let errors = errors.filter(|(error, _)| *error > 0.0);
    let errors: Vec<(f64, u8)> = errors.map(|(error, format)| (error.ln(), format.0.bits())).collect();
    if errors.len() > 1 { bars_of(&errors) } else { String::new() }
}

/// Bars of logarithms of errors, each of tensors of some bits.
fn bars_of(errors: &[(f64, u8)]) -> String {
    let least = errors.iter().map(|(error, _)| *error).fold(f64::MAX, f64::min);
    let most = errors.iter().map(|(error, _)| *error).fold(f64::MIN, f64::max);
    let span = (most - least).max(1e-3);
    let mut bins: [BTreeMap<u8, usize>; BINS] = Default::default();
    for (error, bits) in errors {
        let bin = (((error - least) / span * BINS as f64) as usize).min(BINS - 1);
        *bins[bin].entry(*bits).or_default() += 1;
    }
    let tallest = bins.iter().map(|bin| bin.values().sum::<usize>()).max().unwrap_or(1).max(1);
    let unit = (HEIGHT - MARGIN - 10.0) / tallest as f64;
    let mut text = open();
    for (index, bin) in bins.iter().enumerate() {
        let around = percent((least + span * (index as f64 + 0.5) / BINS as f64).exp());
        stack(&mut text, index, bin, (unit, &around));
    }
    label(&mut text, MARGIN, "start", &percent(least.exp()));
    label(&mut text, WIDTH - MARGIN, "end", &percent((least + span).exp()));
    word(&mut text, (0.0, TOP), "start", &tallest.to_string());
    close(text, MARGIN, "tensors by relative error, in logarithm; colors are those of the bits above")
}

/// A bar of tensors of several widths, one on the other; `unit` is the height of one tensor.
fn stack(text: &mut String, index: usize, bin: &BTreeMap<u8, usize>, (unit, around): (f64, &str)) {
    let step = (WIDTH - 2.0 * MARGIN) / BINS as f64;
    let (x, mut base) = (MARGIN + step * index as f64, HEIGHT - MARGIN);
    for (bits, &count) in bin {
        let height = unit * count as f64;
        base -= height;
        let _ = writeln!(
            text,
            "<rect class=\"b{bits}\" x=\"{x:.1}\" y=\"{base:.1}\" width=\"{:.1}\" height=\"{height:.1}\">\
             <title>{count} of {bits} bits around {around}</title></rect>",
            step - 2.0,
        );
    }
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
        LEFT + (WIDTH - LEFT - MARGIN) * bytes.saturating_sub(first.bytes) as f64 / span
    };
    let y = |loss: f64| {
        10.0 + (HEIGHT - MARGIN - 20.0) * (high - loss.ln()) / (high - low).max(f64::MIN_POSITIVE)
    };
    let mut text = open();
    let line: Vec<String> =
        points.iter().map(|point| format!("{:.1},{:.1}", x(point.bytes), y(point.loss))).collect();
    let _ = writeln!(text, "<polyline class=\"line\" points=\"{}\"/>", line.join(" "));
    let here = report.totals.tensor_bytes;
    let loss = loss_at(&points, here);
    let _ = writeln!(text, "<circle class=\"here\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"5\"/>", x(here), y(loss));
    word(&mut text, (0.0, TOP), "start", &short(first.loss));
    word(&mut text, (0.0, HEIGHT - MARGIN - 6.0), "start", &short(last.loss));
    label(&mut text, LEFT, "start", &bytes(first.bytes));
    label(&mut text, WIDTH - MARGIN, "end", &bytes(last.bytes));
    let caption = format!(
        "predicted loss against size, in logarithm; the ring is this model: {}, {}",
        bytes(here),
        short(loss)
    );
    close(text, LEFT, &caption)
}

/// The loss at a size, on the line between the points around it.
fn loss_at(points: &[&Point], size: u64) -> f64 {
    let after = points.partition_point(|point| point.bytes <= size).clamp(1, points.len().max(2) - 1);
    let (Some(a), Some(b)) = (points.get(after - 1), points.get(after)) else {
        return points.first().map_or(0.0, |point| point.loss);
    };
    let span = b.bytes.saturating_sub(a.bytes).max(1) as f64;
    let part = (size.saturating_sub(a.bytes) as f64 / span).clamp(0.0, 1.0);
    (a.loss.ln() + part * (b.loss.ln() - a.loss.ln())).exp()
}

/// A loss in a few digits.
fn short(loss: f64) -> String {
    if loss >= 0.01 { format!("{loss:.2}") } else { format!("{loss:.1e}") }
}

fn open() -> String {
    format!("<div class=\"wide\"><svg role=\"img\" class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\">\n")
}

/// With a caption beside the drawing, where it keeps its size on a phone.
fn close(mut text: String, left: f64, caption: &str) -> String {
    let base = HEIGHT - MARGIN;
    let _ = writeln!(
        text,
        "<line class=\"axis\" x1=\"{left}\" y1=\"{base}\" x2=\"{}\" y2=\"{base}\"/>",
        WIDTH - MARGIN
    );
    let _ = writeln!(text, "</svg></div>\n<p class=\"caption\">{caption}</p>");
    text
}

fn label(text: &mut String, x: f64, anchor: &str, words: &str) {
    word(text, (x, HEIGHT - MARGIN + 20.0), anchor, words);
}

fn word(text: &mut String, (x, y): (f64, f64), anchor: &str, words: &str) {
    let words = Escaped(words);
    let _ = writeln!(text, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{words}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_lies_on_the_line_between_points() {
        let points = [(100, 1.0), (200, 0.01), (400, 0.0001)].map(|(bytes, loss)| Point { bytes, loss });
        let points: Vec<&Point> = points.iter().collect();
        for (size, loss) in [(100, 1.0), (150, 0.1), (200, 0.01), (300, 0.001), (400, 0.0001)] {
            assert!((loss_at(&points, size) / loss - 1.0).abs() < 1e-9, "{size}");
        }
        // Beyond the ends it stays at them.
        assert!(
            (loss_at(&points, 50) - 1.0).abs() < 1e-9 && (loss_at(&points, 500) / 0.0001 - 1.0).abs() < 1e-9
        );
        assert!((loss_at(&points[..1], 300) - 1.0).abs() < 1e-9);
    }
}
