//! Carries a plan out: every file of the output, in bounded memory, from the beginning or from where an
//! earlier run stopped.
//!
//! **What is on the disk, and when.** The journal is there before anything else. Tensors go into shards
//! under temporary names; those that are finished are recorded in the journal once their bytes are
//! flushed. A shard gets its name when all in it is recorded. Index and manifest follow, then
//! config.json, without which no library loads the directory, then the journal goes. So at any moment the
//! directory is either finished, or has a journal that says how to finish it.

mod allocated;
mod claim;
mod columns;
pub mod disk;
mod encode;
mod event;
mod fingerprint;
mod finished;
mod hash;
mod journal;
pub mod manifest;
mod measure;
mod outlier;
mod output;
mod sample;
pub(crate) mod seal;
mod shard;
mod sums;
mod weigh;
mod weights;
mod worker;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::thread;

pub use allocated::{Allocating, Means};
pub use claim::discard;
pub use event::{Event, Observer, Papers, Silent};
pub use fingerprint::{Change, Fingerprint};
pub use journal::JOURNAL;
pub use manifest::{MANIFEST, Manifest, VERSION as MANIFEST_VERSION};
pub use measure::{Measuring, Wanted};
pub use outlier::{Measure, Outlier};
pub use output::free_space;
pub use weigh::Weighed;

use crate::checkpoint::{CONFIG, Checkpoint, INDEX};
use crate::error::{Error, PipelineError, Result};
use crate::plan::{Importance, ImportanceError, MTP_FOLDER, Plan, Schedule, indexes};
use crate::source::Stamp;
use claim::{Claim, claim};
use disk::{Disk, LocalDisk};
use journal::{Header, Journal, Record};
use manifest::Sums;
use outlier::outliers;
use output::OutputDir;
use shard::Shards;
use worker::{Queue, Shared, work};

/// A run: what is carried out, from what, to where.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The checkpoint that it was made for.
    pub checkpoint: &'a Checkpoint,
    /// The output directory: missing, empty, or left unfinished by the same run.
    pub output: &'a Path,
    /// How memory is shared out.
    pub schedule: Schedule,
    /// The weights of input channels that the plan was made with.
    pub importance: Option<&'a Importance>,
    /// Is told what happens.
    pub observer: &'a dyn Observer,
    /// Stops the run when it is set.
    pub stop: &'a AtomicBool,
}

impl fmt::Debug for Run<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Run").field("output", &self.output).finish_non_exhaustive()
    }
}

/// How a run ended that did not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The output is written.
    Written,
    /// It was there already, and is what this run would have written.
    AlreadyFinished,
}

/// The name of the model card, which the result has one of its own of.
pub const CARD: &str = "README.md";

/// The report that a run leaves beside the model.
pub const REPORT: &str = "smelt-report.json";

/// What the source's card is called beside it.
pub const SOURCE_CARD: &str = "README.source.md";

/// What a side file of the source is called in the output.
fn side_name<'a>(plan: &Plan, path: &'a str) -> &'a str {
    let taken = || plan.side_files.iter().any(|file| file.path == SOURCE_CARD);
    match path {
        CARD if taken() => "README.source-2.md",
        CARD => SOURCE_CARD,
        other => other,
    }
}

/// What is written besides tensors and the model's config: indexes, and the config of what lies apart.
fn small_files(plan: &Plan) -> Vec<(String, String)> {
    let indexes = indexes(plan).into_iter().map(|index| (index.name, index.text));
    let apart = plan.mtp.iter().map(|apart| (format!("{MTP_FOLDER}{CONFIG}"), apart.config.clone()));
    indexes.chain(apart).collect()
}

/// Side files are copied in pieces of this size.
const COPY: usize = 1 << 20;

/// Names and hashes of files that hold no tensors.
type Sides = Vec<(String, blake3::Hash)>;

impl Run<'_> {
    /// Writes the output, or what is missing of it.
    ///
    /// # Errors
    /// Whatever goes wrong first. Finished tensors are kept then, which [`Event::Kept`] tells, and the
    /// same run goes on with them; where there are none, nothing of the output is left.
    pub fn execute(&self) -> Result<Outcome> {
        self.execute_on(&LocalDisk)
    }

    /// [`execute`](Self::execute) with everything that is written going through `disk`.
    ///
    /// # Errors
    /// The same.
    pub fn execute_on(&self, disk: &dyn Disk) -> Result<Outcome> {
        let (planned, given) = (self.plan.importance.as_ref(), self.importance);
        if planned.map(|coverage| coverage.digest.as_str()) != given.map(Importance::digest) {
            return Err(ImportanceError::OtherPlan.into());
        }
        let output = OutputDir::open(disk, self.output)?;
        let fingerprint = Fingerprint::of(self.plan, self.checkpoint);
        let header = Header::new(fingerprint, self.writes());
        let (journal, records) = match claim(&output, &header) {
            Ok(Claim::Finished) => return Ok(Outcome::AlreadyFinished),
            Ok(Claim::Open(journal, records)) => (journal, records),
            Err(error) => {
                output.abandon();
                return Err(error);
            }
        };
        match self.write(&output, &journal, &records, &header.fingerprint) {
            Ok(()) => Ok(Outcome::Written),
            Err(Failed { error, recorded: 0 }) => {
                output.abandon();
                Err(error)
            }
            Err(Failed { error, recorded }) => {
                let of = self.plan.tasks.len();
                self.observer.on(&Event::Kept { tensors: recorded, of });
                Err(error)
            }
        }
    }

    /// Every file that the run writes, the last ones first to go when they are cleared away.
    fn writes(&self) -> Vec<String> {
        let shards = self.plan.shards.iter().map(|shard| shard.name.clone());
        let sides = self.plan.side_files.iter().map(|file| side_name(self.plan, &file.path).to_owned());
        let apart = |name: &str| format!("{MTP_FOLDER}{name}");
        let apart = self.plan.mtp.iter().flat_map(|_| [apart(INDEX), apart(CONFIG)]);
        let last = [CARD, REPORT, INDEX, MANIFEST, CONFIG].map(str::to_owned);
        shards.chain(sides).chain(apart).chain(last).collect()
    }

    fn write(
        &self,
        output: &OutputDir<'_>,
        journal: &Journal,
        records: &[Record],
        fingerprint: &Fingerprint,
    ) -> Result<(), Failed> {
        let earlier = records.iter().filter(|record| matches!(record, Record::Done { .. })).count();
        let early = |error| Failed { error, recorded: earlier };
        // A directory with unfinished shards must not load.
        output.remove(&output.at(CONFIG)).and_then(|()| output.settle()).map_err(early)?;
        let shards = Shards::open(self.plan, output, journal, records).map_err(early)?;
        self.tell_samples(&shards, records);
        let made = self.fill(output, &shards);
        let made = made.inspect_err(|_| drop(shards.record()));
        let recorded = shards.recorded();
        let failed = |error| Failed { error, recorded };
        let files = made.map_err(failed)?;
        let tensors = shards.into_sums();
        let sums = Sums { plan: self.plan, fingerprint, tensors: &tensors, files: &files };
        self.complete(output, &sums).map_err(failed)
    }

    /// Side files, tensors and indexes; the hashes of what is no tensor.
    fn fill(&self, output: &OutputDir<'_>, shards: &Shards<'_>) -> Result<Sides> {
        let mut files = vec![(CONFIG.to_owned(), blake3::hash(self.plan.config.as_bytes()))];
        files.extend(self.copy_side_files(output)?);
        self.tell_start(shards);
        shards.publish_complete(self.observer)?;
        self.work(shards)?;
        self.judge(&shards.weighed())?;
        for (name, text) in small_files(self.plan) {
            output.write(&name, text.as_bytes())?;
            files.push((name, blake3::hash(text.as_bytes())));
        }
        Ok(files)
    }

    /// Manifest and config.json; then the directory is finished.
    fn complete(&self, output: &OutputDir<'_>, sums: &Sums<'_>) -> Result<()> {
        sums.write(output)?;
        self.check_source()?;
        self.write_papers(output)?;
        output.settle_all()?;
        output.write_last(CONFIG, self.plan.config.as_bytes())?;
        output.settle()?;
        output.remove(&output.at(JOURNAL))
    }

    /// Tells what the weights amount to, and which of them can't be right; with `--strict` that is an
    /// error, and without config.json nothing loads what was written.
    fn judge(&self, weighed: &[Option<Weighed>]) -> Result<()> {
        let known = weighed.iter().enumerate().filter_map(|(task, weighed)| Some((task, (*weighed)?)));
        known.for_each(|(task, weighed)| self.observer.on(&Event::Weighed { task, weighed }));
        let found = outliers(self.plan, weighed);
        if self.plan.strict && !found.is_empty() {
            return Err(PipelineError::Outliers { outliers: found.into() }.into());
        }
        for outlier in found {
            self.observer.on(&Event::Outlier(outlier));
        }
        Ok(())
    }

    fn write_papers(&self, output: &OutputDir<'_>) -> Result<()> {
        let Papers { card, report } = self.observer.papers();
        let papers = [(CARD, card), (REPORT, report)];
        let mut papers = papers.iter().filter_map(|(name, text)| Some((name, text.as_ref()?)));
        papers.try_for_each(|(name, text)| output.write(name, text.as_bytes()))
    }

    fn tell_start(&self, shards: &Shards<'_>) {
        let bytes = |task: &crate::plan::Task| task.elements() * task.dtype.bits() / 8;
        let all = self.plan.tasks.iter().map(bytes).sum();
        self.observer.on(&Event::Started { bytes: all });
        let done = shards.done();
        let tasks = self.plan.tasks.iter().zip(&done).filter(|(_, done)| **done);
        let bytes: u64 = tasks.map(|(task, _)| bytes(task)).sum();
        if shards.recorded() > 0 {
            self.observer.on(&Event::Resumed { bytes, tensors: shards.recorded(), of: done.len() });
        }
    }

    /// Tells what the earlier run has found out of the tensors that it finished.
    fn tell_samples(&self, shards: &Shards<'_>, records: &[Record]) {
        let done = shards.done();
        for (task, sample) in
            journal::samples(records).into_iter().filter(|(task, _)| done.get(*task) == Some(&true))
        {
            self.observer.on(&Event::Sampled { task, distortion: sample.sums() });
        }
    }

    /// Whether the files that were read are still those that the plan was made from.
    fn check_source(&self) -> Result<()> {
        let now = self.checkpoint.source().stamps()?;
        let now: BTreeMap<String, Stamp> = now
            .into_iter()
            .filter(|file| self.checkpoint.reads(&file.path))
            .map(|file| (file.path, file.stamp))
            .collect();
        let then = self.checkpoint.stamps().map(|file| (file.path.clone(), file.stamp.clone())).collect();
        let changes = fingerprint::files_changed(&then, &now);
        if changes.is_empty() {
            Ok(())
        } else {
            Err(PipelineError::SourceChanged { changes: changes.into() }.into())
        }
    }

    fn copy_side_files(&self, output: &OutputDir<'_>) -> Result<Sides> {
        let (mut piece, mut files) = (vec![0; COPY], Sides::new());
        for file in &self.plan.side_files {
            let name = side_name(self.plan, &file.path);
            let pending = output.begin(name, file.size)?;
            let (mut at, mut hash) = (0, blake3::Hasher::new());
            while at < file.size {
                let piece = &mut piece[..(file.size - at).min(COPY as u64) as usize];
                self.checkpoint.source().read_at(&file.path, at, piece)?;
                pending.write_at(at, piece)?;
                hash.update(piece);
                at += piece.len() as u64;
            }
            output.publish(pending)?;
            files.push((name.to_owned(), hash.finalize()));
        }
        Ok(files)
    }

    fn work(&self, shards: &Shards<'_>) -> Result<()> {
        let queue = Queue::new(self.plan, self.schedule.worker_bytes, shards.done());
        let shared = Shared {
            plan: self.plan,
            checkpoint: self.checkpoint,
            importance: self.importance,
            shards,
            queue: &queue,
            observer: self.observer,
            stop: self.stop,
        };
        let results = thread::scope(|scope| {
            let spawn = |_| scope.spawn(move || work(shared));
            let workers: Vec<_> = (0..self.schedule.workers).map(spawn).collect();
            let join = |worker: thread::ScopedJoinHandle<'_, Result<()>>| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            workers.into_iter().map(join).collect()
        });
        first_error(results)
    }
}

/// An error, with the count of tensors that the journal has.
struct Failed {
    error: Error,
    recorded: usize,
}

/// The error that stopped the run, rather than those of the workers that it stopped.
fn first_error(results: Vec<Result<()>>) -> Result<()> {
    let mut errors: Vec<Error> = results.into_iter().filter_map(Result::err).collect();
    let cause = errors.iter().position(|error| !matches!(error, Error::Interrupted)).unwrap_or(0);
    if errors.is_empty() { Ok(()) } else { Err(errors.swap_remove(cause)) }
}

/// Refuses an output directory that lies inside the source's.
///
/// # Errors
/// [`PipelineError::InsideSource`].
pub fn check_outside(source: &Path, output: &Path) -> Result<()> {
    let inside = match (source.canonicalize(), resolved(output)) {
        (Ok(source), Some(output)) => output.starts_with(source),
        _ => false,
    };
    if inside { Err(PipelineError::InsideSource { path: output.to_owned() }.into()) } else { Ok(()) }
}

/// The path without links and dots, of a directory that need not exist yet.
fn resolved(path: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).ok()?;
    let existing = absolute.ancestors().find(|ancestor| ancestor.exists())?;
    let rest = absolute.strip_prefix(existing).ok()?;
    Some(existing.canonicalize().ok()?.join(rest))
}
