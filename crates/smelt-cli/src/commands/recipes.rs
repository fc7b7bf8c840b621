//! `smelt recipes`: the recipes of mlx-lm and the levels of oMLX, with what they come to.

use serde_json::json;
use smelt_core::plan::Recipe;
use smelt_core::plan::allocate::Level;

use crate::format;
use crate::printer::{self, Printer};

/// Lists them.
pub(crate) fn run(printer: &Printer) {
    if printer.is_json() {
        printer::data(&format!("{}\n", listed()));
    } else {
        printer::data(&format::table(&rows()));
    }
}

fn rows() -> Vec<Vec<String>> {
    let mut rows = vec![["option", "bits", "who gets them"].map(str::to_owned).to_vec()];
    rows.extend(Recipe::ALL.into_iter().map(|recipe| {
        let (low, high) = recipe.bits();
        let who = "the high width for the head, and for values and down projections of some layers";
        vec![format!("--recipe {}", recipe.name()), format!("{low} and {high}"), who.to_owned()]
    }));
    rows.extend(Level::all().map(|level| {
        let (bits, who) = if level.is_plain() {
            ("8".to_owned(), "every module")
        } else {
            (format!("{:.2} on average", level.bits_per_weight), "the least predicted loss")
        };
        vec![format!("--level {}", level.name()), bits, who.to_owned()]
    }));
    rows
}

fn listed() -> serde_json::Value {
    let recipe = |recipe: Recipe| json!({ "name": recipe.name(), "bits": recipe.bits() });
    let level = |level: Level| json!({ "name": level.name(), "bits_per_weight": level.bits_per_weight });
    json!({
        "recipes": Recipe::ALL.map(recipe),
        "levels": Level::all().map(level).collect::<Vec<_>>(),
    })
}
