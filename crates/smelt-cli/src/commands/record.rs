//! What a finished run leaves for people: the report, and the model card.

use std::fs;
use std::path::Path;

use anyhow::Context as _;
use smelt_core::checkpoint::Checkpoint;
use smelt_core::pipeline::{CARD, Outcome};
use smelt_core::plan::{Plan, is_multimodal};
use smelt_core::report::card::{self, Origin};
use smelt_core::report::{Facts, REPORT, Report, TensorError};

use crate::progress::Progress;
use crate::system;

/// Arguments with a value that decide nothing about the result, or name a place on this machine.
const LEFT_OUT: [&str; 7] =
    ["-o", "--output", "--max-memory", "--threads", "--python", "--measures", "--layout"];

/// Writes report and card of a run, unless the run found everything there.
pub(crate) fn write(
    (plan, checkpoint): (&Plan, &Checkpoint),
    (output, typed): (&Path, &[String]),
    progress: &Progress<'_>,
    (outcome, seconds): (Outcome, f64),
) -> anyhow::Result<()> {
    let (path, card) = (output.join(REPORT), output.join(CARD));
    // Of a finished output what is there may be somebody's work by now.
    let wanted = |path: &Path| outcome == Outcome::Written || !path.exists();
    if !wanted(&path) && !wanted(&card) {
        return Ok(());
    }
    let errors = progress.errors();
    let errors: Vec<Option<TensorError>> =
        (0..plan.tasks.len()).map(|task| errors.get(&task).and_then(TensorError::of)).collect();
    let base = base_model(plan, checkpoint);
    let name = base.rsplit('/').next().unwrap_or(&base);
    let mut report = Report::new(plan, name, command(name, typed), &errors);
    report.run = Facts { seconds, peak_memory: system::peak_memory(), resumed: progress.resumed() };
    let source = source_card(checkpoint);
    let multimodal = is_multimodal(checkpoint) && plan.tasks.iter().any(|task| task.role.is_tower());
    let origin = Origin { card: source.as_deref(), base_model: &base, multimodal };
    if wanted(&card) {
        put(&card, &card::text(&report, origin))?;
    }
    if wanted(&path) { put(&path, &report.to_json()) } else { Ok(()) }
}

/// Writes a file whole or not at all, and never through a link.
fn put(path: &Path, text: &str) -> anyhow::Result<()> {
    let mut temporary = path.to_owned().into_os_string();
    temporary.push(".partial");
    let _ = fs::remove_file(&temporary);
    let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path));
    written.with_context(|| format!("cannot write `{}`", path.display()))
}

/// The command with what is of this machine alone left out, for others to repeat.
fn command(model: &str, typed: &[String]) -> Vec<String> {
    let mut words = vec!["smelt".to_owned(), "quantize".to_owned(), model.to_owned()];
    let mut args = typed.iter().skip(2).cloned().peekable();
    while let Some(arg) = args.next() {
        let name = arg.split('=').next().unwrap_or(&arg);
        if LEFT_OUT.contains(&name) {
            if !arg.contains('=') {
                args.next();
            }
        } else if arg.starts_with("-o") {
            // `-oDIR` in one word.
        } else if let Some((name, value)) = arg.split_once('=').filter(|_| arg.starts_with("--")) {
            words.push(format!("{name}={}", without_folder(value)));
        } else if arg == "--like" {
            words.push(arg);
            words.extend(args.next().map(|model| without_folder(&model)));
        } else if arg.starts_with('-') && arg != "--json" {
            words.push(arg);
            // What follows an option and is none itself is its value, or the model.
            if let Some(value) = args.next_if(|next| !next.starts_with('-') && !Path::new(next).is_dir()) {
                words.push(without_folder(&value));
            }
        }
    }
    words
}

/// A value, of a file its name alone: where it lies here is nobody's business.
fn without_folder(value: &str) -> String {
    let path = Path::new(value);
    let name = path.file_name().filter(|_| path.is_file());
    name.map_or_else(|| value.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The model's name among models: of the cache's folder, of the config, or of the folder.
fn base_model(plan: &Plan, checkpoint: &Checkpoint) -> String {
    let cached = plan.source.split(['/', '\\']).find_map(|part| part.strip_prefix("models--"));
    if let Some((owner, name)) = cached.and_then(|part| part.split_once("--")) {
        return format!("{owner}/{name}");
    }
    let named = checkpoint.config().get("_name_or_path").and_then(|value| value.as_str());
    let is_name = |name: &&str| name.split('/').count() == 2 && !name.starts_with(['/', '.', '~']);
    let folder = || Path::new(&plan.source).canonicalize().ok()?.file_name()?.to_str().map(str::to_owned);
    named.filter(is_name).map(str::to_owned).or_else(folder).unwrap_or_else(|| "model".to_owned())
}

/// The source's model card, as far as it is text.
fn source_card(checkpoint: &Checkpoint) -> Option<String> {
    let file = checkpoint.side_files().iter().find(|file| file.path == CARD)?;
    let mut bytes = vec![0; usize::try_from(file.size).ok()?];
    checkpoint.source().read_at(CARD, 0, &mut bytes).ok()?;
    String::from_utf8(bytes).ok()
}
