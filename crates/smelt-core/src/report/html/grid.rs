//! Heat maps: a row for each kind of module, a column for each layer.
//!
//! Layers are what the first number in a name counts. Modules of one kind in all layers make a row;
//! parts of a model with numbers of their own (a tower beside a language model) make maps of their own,
//! and what has no layer is listed below as cells with their names.

use std::fmt::Write as _;

use super::{Escaped, is_shown, percent};
use crate::report::TensorReport;

/// Pixels from one cell to the next.
const STEP: usize = 15;

/// Pixels of a cell.
const CELL: usize = 13;

/// Pixels of a letter of a row's name, at most.
const LETTER: usize = 7;

/// Shades for errors, the least first.
const SHADES: usize = 8;

/// What a cell shows.
struct Cell {
    /// The class that gives it its colour.
    class: String,
    /// What it says to who points at it.
    title: String,
}

/// A cell with its place.
struct Placed {
    map: String,
    row: String,
    column: Option<usize>,
    cell: Cell,
}

/// Which bits each module has.
pub(super) fn bits(tensors: &[TensorReport]) -> String {
    let mut seen: Vec<u8> =
        tensors.iter().filter(|tensor| is_shown(tensor)).map(|tensor| tensor.bits).collect();
    seen.sort_unstable();
    seen.dedup();
    let placed = tensors.iter().filter(|tensor| is_shown(tensor)).map(|tensor| {
        let title = format!("{}: {}", tensor.name, tensor.stored);
        placed(&tensor.name, Cell { class: format!("b{}", tensor.bits), title })
    });
    let legend = seen.into_iter().map(|bits| (format!("b{bits}"), format!("{bits} bits")));
    maps(&placed.collect::<Vec<_>>(), &legend.collect::<Vec<_>>())
}

/// How far each module is from its source, in shades between the least and the largest error.
pub(super) fn errors(tensors: &[TensorReport]) -> String {
    let measured = || {
        let shown = tensors.iter().filter(|tensor| is_shown(tensor));
        shown.filter_map(|tensor| tensor.error.map(|error| (tensor, error.relative_rmse)))
    };
    let scale = Scale::of(measured().map(|(_, error)| error));
    let placed = measured().map(|(tensor, error)| {
        let title = format!("{} ({}): {}", tensor.name, tensor.stored, percent(error));
        placed(&tensor.name, Cell { class: format!("e{}", scale.shade(error)), title })
    });
    let placed: Vec<_> = placed.collect();
    if placed.is_empty() {
        return String::new();
    }
    maps(&placed, &scale.legend())
}

/// Shades that are evenly apart in the logarithm: errors of neighbouring widths differ by a factor.
struct Scale {
    least: f64,
    most: f64,
}

impl Scale {
    fn of(errors: impl Iterator<Item = f64>) -> Self {
        let positive = errors.filter(|error| *error > 0.0).map(f64::ln);
        let (least, most) =
            positive.fold((f64::MAX, f64::MIN), |(least, most), error| (least.min(error), most.max(error)));
        Self { least, most }
    }

    fn shade(&self, error: f64) -> usize {
        if error <= 0.0 || self.most <= self.least {
            return 0;
        }
        let place = (error.ln() - self.least) / (self.most - self.least);
        ((place * SHADES as f64) as usize).min(SHADES - 1)
    }

    fn legend(&self) -> Vec<(String, String)> {
        if self.most <= self.least {
            return Vec::new();
        }
        let bound =
            |shade: usize| (self.least + (self.most - self.least) * shade as f64 / SHADES as f64).exp();
        (0..SHADES).map(|shade| (format!("e{shade}"), format!("≥ {}", percent(bound(shade))))).collect()
    }
}

/// A cell by the name of its tensor: what stands before the first number is the map, the number the
/// column, the rest the row.
fn placed(name: &str, cell: Cell) -> Placed {
    let path = name.strip_suffix(".weight").unwrap_or(name);
    let parts: Vec<&str> = path.split('.').collect();
    let number = parts.iter().position(|part| part.parse::<usize>().is_ok());
    match number {
        None => Placed { map: String::new(), row: path.to_owned(), column: None, cell },
        Some(at) => Placed {
            map: parts[..at].join("."),
            row: parts[at + 1..].join("."),
            column: parts[at].parse().ok(),
            cell,
        },
    }
}

fn maps(placed: &[Placed], legend: &[(String, String)]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for cell in placed.iter().filter(|cell| cell.column.is_some()) {
        if !names.contains(&cell.map.as_str()) {
            names.push(&cell.map);
        }
    }
    let mut text = String::new();
    for name in names {
        let _ = writeln!(text, "<h3><code>{}</code></h3>", Escaped(name));
        text.push_str(&map(placed.iter().filter(|cell| cell.map == name && cell.column.is_some())));
    }
    text.push_str(&single(placed));
    text.push_str(&key(legend));
    text
}

/// One map as a drawing that scrolls sideways.
fn map<'a>(cells: impl Iterator<Item = &'a Placed> + Clone) -> String {
    let mut rows: Vec<&str> = Vec::new();
    for cell in cells.clone() {
        if !rows.contains(&cell.row.as_str()) {
            rows.push(&cell.row);
        }
    }
    let columns = cells.clone().filter_map(|cell| cell.column).max().unwrap_or(0) + 1;
    let margin = rows.iter().map(|row| row.chars().count()).max().unwrap_or(0) * LETTER + 8;
    let (width, height) = (margin + columns * STEP, (rows.len() + 1) * STEP);
    let mut text = format!(
        "<div class=\"wide\"><svg role=\"img\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n"
    );
    for (index, row) in rows.iter().enumerate() {
        let y = index * STEP + CELL - 2;
        let _ = writeln!(
            text,
            "<text x=\"{}\" y=\"{y}\" text-anchor=\"end\">{}</text>",
            margin - 6,
            Escaped(row)
        );
    }
    for column in (0..columns).step_by(if columns > 40 { 10 } else { 5 }) {
        let (x, y) = (margin + column * STEP + CELL / 2, height - 3);
        let _ = writeln!(text, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"middle\">{column}</text>");
    }
    for placed in cells {
        let row = rows.iter().position(|row| *row == placed.row).unwrap_or(0);
        let x = margin + placed.column.unwrap_or(0) * STEP;
        let _ = writeln!(
            text,
            "<rect class=\"{}\" x=\"{x}\" y=\"{}\" width=\"{CELL}\" height=\"{CELL}\" rx=\"2\"><title>{}</title></rect>",
            placed.cell.class,
            row * STEP,
            Escaped(&placed.cell.title),
        );
    }
    text.push_str("</svg></div>\n");
    text
}

/// What belongs to no layer.
fn single(placed: &[Placed]) -> String {
    let mut text = String::new();
    for cell in placed.iter().filter(|cell| cell.column.is_none()) {
        let _ = writeln!(text, "<li>{} {}</li>", swatch(&cell.cell.class), Escaped(&cell.cell.title));
    }
    if text.is_empty() { text } else { format!("<ul class=\"key\">\n{text}</ul>\n") }
}

/// What the colours mean.
fn key(legend: &[(String, String)]) -> String {
    let mut items = String::new();
    for (class, words) in legend {
        let _ = writeln!(items, "<li>{} {words}</li>", swatch(class));
    }
    if items.is_empty() { items } else { format!("<ul class=\"key legend\">\n{items}</ul>\n") }
}

fn swatch(class: &str) -> String {
    format!(
        "<svg class=\"swatch\" width=\"{CELL}\" height=\"{CELL}\" aria-hidden=\"true\"><rect class=\"{class}\" \
         width=\"{CELL}\" height=\"{CELL}\" rx=\"2\"/></svg>"
    )
}
