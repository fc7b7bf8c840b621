//! `smelt families`: the architectures that smelt knows.

use serde_json::json;
use smelt_core::layout::family;

use crate::args::FamiliesArgs;
use crate::format::table;
use crate::printer::{self, Printer};

pub(crate) fn run(_args: &FamiliesArgs, printer: &Printer) -> anyhow::Result<()> {
    let families = family::all();
    if printer.is_json() {
        let list: Vec<_> = families
            .iter()
            .map(|family| json!({ "name": family.name, "title": family.title, "model_types": family.model_types }))
            .collect();
        printer::data(&format!("{}\n", serde_json::to_string(&list)?));
        return Ok(());
    }
    let mut rows = vec![vec!["family".to_owned(), "model types".to_owned(), "models".to_owned()]];
    let row = |family: &family::Family| {
        vec![family.name.clone(), family.model_types.join(", "), family.title.clone()]
    };
    rows.extend(families.iter().map(row));
    printer::data(&table(&rows));
    Ok(())
}
