//! What a run leaves for people: the report, and the model card.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use smelt_core::checkpoint::Checkpoint;
use smelt_core::pipeline::{CARD, Event, Observer, Papers, REPORT};
use smelt_core::plan::{Plan, is_multimodal};
use smelt_core::report::card::{self, Origin};
use smelt_core::report::{Facts, Report, TensorError};

use crate::progress::Progress;
use crate::system;

/// Arguments with a value that decide nothing about the result, or name a place on this machine.
const LEFT_OUT: [&str; 7] =
    ["-o", "--output", "--max-memory", "--threads", "--python", "--measures", "--layout"];

/// Follows a run to write about it at its end.
pub(crate) struct Recorder<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) checkpoint: &'a Checkpoint,
    /// The command as it was typed.
    pub(crate) typed: &'a [String],
    pub(crate) started: Instant,
    pub(crate) progress: &'a Progress<'a>,
}

impl Observer for Recorder<'_> {
    fn on(&self, event: &Event) {
        self.progress.on(event);
    }

    fn papers(&self) -> Papers {
        let base = base_model(self.plan, self.checkpoint);
        let mut report = self.report(&base);
        let source = source_card(self.checkpoint);
        let sees = is_multimodal(self.checkpoint) && self.plan.tasks.iter().any(|task| task.role.is_tower());
        let origin = Origin { card: source.as_deref(), base_model: &base, multimodal: sees };
        let card = card::text(&report, origin);
        report.vouch_for(&card);
        Papers { card: Some(card), report: Some(report.to_json()) }
    }
}

impl Recorder<'_> {
    fn report(&self, base: &str) -> Report {
        let (plan, progress) = (self.plan, self.progress);
        let errors = progress.errors();
        let errors: Vec<Option<TensorError>> =
            (0..plan.tasks.len()).map(|task| errors.get(&task).and_then(TensorError::of)).collect();
        let name = base.rsplit('/').next().unwrap_or(base);
        let mut report = Report::new(plan, name, command(name, self.typed), &errors);
        report.run = Facts {
            seconds: self.started.elapsed().as_secs_f64(),
            peak_memory: system::peak_memory(),
            resumed: progress.resumed(),
        };
        report.add_weights(&progress.weighed(), &progress.outliers());
        report
    }

    /// Writes what a finished output lacks. What is there may be somebody's work by now.
    pub(crate) fn write_missing(&self, output: &Path) -> anyhow::Result<()> {
        let (card, report) = (output.join(CARD), output.join(REPORT));
        if card.exists() && report.exists() {
            return Ok(());
        }
        let papers = self.papers();
        let texts = [(card, papers.card), (report, papers.report)];
        let missing = texts.into_iter().filter(|(path, _)| !path.exists());
        missing.into_iter().try_for_each(|(path, text)| put(&path, &text.unwrap_or_default()))
    }
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
