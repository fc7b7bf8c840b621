//! `smelt families`: the architectures that smelt knows, and what makes them trustworthy.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use smelt_core::LayoutError;
use smelt_core::checkpoint::Checkpoint;
use smelt_core::layout::learn::learn;
use smelt_core::layout::{Family, Layout, differences, family, fingerprint, reload};
use smelt_core::plan::{Origin, family_of};
use smelt_core::source::ManifestSource;

use crate::args::{CheckArgs, FamiliesArgs, FamiliesCommand, LearnArgs};
use crate::commands::{discover, open, read_family};
use crate::format::table;
use crate::printer::{self, Printer};

pub(crate) fn run(args: &FamiliesArgs, printer: &Printer) -> anyhow::Result<()> {
    match &args.command {
        None | Some(FamiliesCommand::List) => list(printer),
        Some(FamiliesCommand::Show { name }) => show(name),
        Some(FamiliesCommand::Check(args)) => check(args, printer),
        Some(FamiliesCommand::Learn(args)) => learn_family(args),
    }
}

fn list(printer: &Printer) -> anyhow::Result<()> {
    if printer.is_json() {
        let list: Vec<_> = family::all()
            .map(|family| {
                json!({
                    "name": family.name,
                    "title": family.title,
                    "model_types": family.model_types,
                    "targets": family.targets,
                })
            })
            .collect();
        printer::data(&format!("{}\n", serde_json::to_string(&list)?));
        return Ok(());
    }
    let mut rows = vec![["family", "targets", "model types", "models"].map(str::to_owned).to_vec()];
    let row = |family: &Family| {
        let (targets, types) = (family.targets.join(", "), family.model_types.join(", "));
        vec![family.name.clone(), targets, types, family.title.clone()]
    };
    rows.extend(family::all().map(row));
    printer::data(&table(&rows));
    Ok(())
}

fn show(name: &str) -> anyhow::Result<()> {
    let text = family::text(name).with_context(|| format!("smelt has no family `{name}`"))?;
    printer::data(text);
    Ok(())
}

/// Drafts a family file and proves it on the checkpoint that it was learnt from.
fn learn_family(args: &LearnArgs) -> anyhow::Result<()> {
    let checkpoint = open_or_manifest(&args.model)?;
    let trace = match &args.layout {
        Some(path) => discover::read(path)?,
        None => discover::trace(&checkpoint, &args.python, args.library)?,
    };
    let layout = Origin::discovered(&checkpoint, &trace)?.layout;
    let text = learn(&layout, checkpoint.config(), &checkpoint, &trace.library);
    match &args.output {
        None => printer::data(&text),
        Some(path) => fs::write(path, &text).with_context(|| format!("cannot write `{}`", path.display()))?,
    }
    let family = Family::parse(&text).context("the draft does not parse; please report this")?;
    let drafted = Origin::family(&checkpoint, &family, Some(&trace.library))?.layout;
    let found = differences(&drafted, &layout);
    if found.is_empty() {
        printer::done(
            "the draft gives this checkpoint the same layout as the library; review the lines marked so",
        );
        return Ok(());
    }
    let shown: Vec<String> = found.iter().take(SHOWN).map(|difference| format!("\n  {difference}")).collect();
    bail!("the draft does not give the same layout in {} places:{}", found.len(), shown.concat())
}

/// More differences than this are counted, not listed.
const SHOWN: usize = 8;

/// Compares what a family makes of each checkpoint with what the library does.
fn check(args: &CheckArgs, printer: &Printer) -> anyhow::Result<()> {
    let own = args.family.as_deref().map(read_family).transpose()?;
    let mut failed = 0;
    for model in &args.models {
        let checked = check_model(model, own.as_ref(), args);
        failed += usize::from(!checked.as_ref().is_ok_and(Checked::is_equal));
        if printer.is_json() {
            printer::data(&format!("{}\n", checked_json(model, &checked)));
        } else {
            tell(model, &checked, args.show);
        }
    }
    if failed > 0 {
        bail!("{failed} of {} checkpoints differ", args.models.len());
    }
    Ok(())
}

/// What a family makes of a checkpoint beside what the library does.
struct Checked {
    family: String,
    library: String,
    fingerprint: String,
    differences: Vec<String>,
}

impl Checked {
    fn is_equal(&self) -> bool {
        self.differences.is_empty()
    }
}

fn check_model(model: &Path, own: Option<&Family>, args: &CheckArgs) -> anyhow::Result<Checked> {
    let checkpoint = open_or_manifest(model)?;
    let family = family_of(&checkpoint, own)?;
    let trace = discover::trace(&checkpoint, &args.python, args.library)?;
    let discovered = Origin::discovered(&checkpoint, &trace)?.layout;
    let written = Origin::family(&checkpoint, family, Some(&trace.library))?.layout;
    let reloaded =
        written.preimage.then(|| reloaded(&checkpoint, &written, &trace.library, args)).transpose()?;
    let found = differences(reloaded.as_ref().unwrap_or(&written), &discovered);
    Ok(Checked {
        family: family.name.clone(),
        library: trace.library,
        fingerprint: fingerprint(&written, &checkpoint),
        differences: found.iter().map(ToString::to_string).collect(),
    })
}

/// What the library makes of what a family stores for it.
fn reloaded(
    checkpoint: &Checkpoint,
    stored: &Layout,
    library: &str,
    args: &CheckArgs,
) -> anyhow::Result<Layout> {
    let request = reload::request(checkpoint, stored, library);
    let trace = discover::ask(&request, &args.python, library).context("what the family stores")?;
    reload::loaded(stored, &trace).map_err(|problems| {
        let problems = problems.into();
        LayoutError::Discovered { library: library.to_owned(), problems }.into()
    })
}

fn checked_json(model: &Path, checked: &anyhow::Result<Checked>) -> Value {
    let model = model.display().to_string();
    match checked {
        Ok(checked) => json!({
            "model": model,
            "family": checked.family,
            "library": checked.library,
            "fingerprint": checked.fingerprint,
            "differences": checked.differences,
        }),
        Err(error) => json!({ "model": model, "error": format!("{error:#}") }),
    }
}

fn tell(model: &Path, checked: &anyhow::Result<Checked>, show: usize) {
    let (verdict, lines) = match checked {
        Ok(checked) if checked.is_equal() => ("equal".to_owned(), &[][..]),
        Ok(checked) => (format!("{} differences", checked.differences.len()), &checked.differences[..]),
        Err(error) => (format!("{error:#}"), &[][..]),
    };
    printer::data(&format!("{}: {verdict}\n", model.display()));
    for line in lines.iter().take(show) {
        printer::data(&format!("  {line}\n"));
    }
}

/// Opens a directory, or a manifest that stands for one.
fn open_or_manifest(model: &Path) -> anyhow::Result<Checkpoint> {
    if model.is_dir() {
        return Ok(open(model)?);
    }
    let name = model.display().to_string();
    let text = fs::read_to_string(model).with_context(|| format!("cannot read `{name}`"))?;
    Ok(Checkpoint::open(Arc::new(ManifestSource::parse(&name, &text)?))?)
}
