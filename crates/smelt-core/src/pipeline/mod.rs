//! Carries a plan out: every file of the output, in bounded memory, whole or not at all.

mod allocated;
mod columns;
mod encode;
mod event;
mod measure;
mod output;
mod shard;
mod worker;

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::thread;

pub use allocated::{Allocating, Means};
pub use event::{Event, Observer, Silent};
pub use measure::{Measuring, Wanted};

use crate::checkpoint::{CONFIG, Checkpoint, INDEX};
use crate::error::{Error, Result};
use crate::plan::{Importance, Plan, Schedule, index_json};
use output::OutputDir;
pub use output::free_space;
use shard::Shards;
use worker::{Queue, Shared, work};

/// A run: what is carried out, from what, to where.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// The plan.
    pub plan: &'a Plan,
    /// The checkpoint that it was made for.
    pub checkpoint: &'a Checkpoint,
    /// The output directory, missing or empty.
    pub output: &'a Path,
    /// How memory is shared out.
    pub schedule: Schedule,
    /// Weights of input channels, for a method that searches.
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

/// Side files are copied in pieces of this size.
const COPY: usize = 1 << 20;

impl Run<'_> {
    /// Writes the output.
    ///
    /// # Errors
    /// Whatever goes wrong first; nothing of the output is left then.
    pub fn execute(&self) -> Result<()> {
        if let Some(importance) = self.importance {
            importance.check(&self.plan.tasks)?;
        }
        let output = OutputDir::create(self.output)?;
        let result = self.write(&output);
        if result.is_err() {
            output.abandon();
        }
        result
    }

    fn write(&self, output: &OutputDir) -> Result<()> {
        output.check_space(self.plan.totals.disk_bytes())?;
        output.write(CONFIG, self.plan.config.as_bytes())?;
        self.copy_side_files(output)?;
        let shards = Shards::create(self.plan, output)?;
        let bytes = self.plan.tasks.iter().map(|task| task.elements() * task.dtype.bits() / 8).sum();
        self.observer.on(&Event::Started { bytes });
        shards.publish_empty(self.observer)?;
        self.work(&shards)?;
        output.write(INDEX, index_json(self.plan).as_bytes())?;
        output.sync()
    }

    fn copy_side_files(&self, output: &OutputDir) -> Result<()> {
        let mut piece = vec![0; COPY];
        for file in &self.plan.side_files {
            let pending = output.begin(&file.path, file.size)?;
            let mut at = 0;
            while at < file.size {
                let piece = &mut piece[..(file.size - at).min(COPY as u64) as usize];
                self.checkpoint.source().read_at(&file.path, at, piece)?;
                pending.write_at(at, piece)?;
                at += piece.len() as u64;
            }
            output.publish(&pending)?;
        }
        Ok(())
    }

    fn work(&self, shards: &Shards<'_>) -> Result<()> {
        let queue = Queue::new(self.plan, self.schedule.worker_bytes);
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

/// The error that stopped the run, rather than those of the workers that it stopped.
fn first_error(results: Vec<Result<()>>) -> Result<()> {
    let mut errors: Vec<Error> = results.into_iter().filter_map(Result::err).collect();
    let cause = errors.iter().position(|error| !matches!(error, Error::Interrupted)).unwrap_or(0);
    if errors.is_empty() { Ok(()) } else { Err(errors.swap_remove(cause)) }
}

/// Refuses an output directory that lies inside the source's.
///
/// # Errors
/// [`Error::InsideSource`].
pub fn check_outside(source: &Path, output: &Path) -> Result<()> {
    let inside = match (source.canonicalize(), resolved(output)) {
        (Ok(source), Some(output)) => output.starts_with(source),
        _ => false,
    };
    if inside { Err(Error::InsideSource { path: output.to_owned() }) } else { Ok(()) }
}

/// The path without links and dots, of a directory that need not exist yet.
fn resolved(path: &Path) -> Option<PathBuf> {
    let absolute = std::path::absolute(path).ok()?;
    let existing = absolute.ancestors().find(|ancestor| ancestor.exists())?;
    let rest = absolute.strip_prefix(existing).ok()?;
    Some(existing.canonicalize().ok()?.join(rest))
}
