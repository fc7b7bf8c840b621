//! Whole runs: the same bytes however the work is shared out, in files as they were planned, and
//! nothing left of a run that fails.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "../common/mod.rs"]
mod common;
mod failures;
mod faulty;
mod files;
mod importance;
mod mtp;
mod power;
#[path = "../common/predicting.rs"]
mod predicting;
mod resume;
mod rules;
mod same;
mod scribe;
mod weights;
mod widths;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::Model;
use smelt_core::Result;
use smelt_core::checkpoint::Checkpoint;
use smelt_core::pipeline::{Run, Silent};
use smelt_core::plan::{Memory, Options, Origin, Plan, family_of};
use smelt_core::source::{MemorySource, Source};

/// The contents of a folder by path.
type Contents = BTreeMap<String, Vec<u8>>;

/// Plenty, for tests that are about something else.
const PLENTY: Memory = Memory { limit: 1 << 30, threads: 2 };

fn open(model: &Model) -> Checkpoint {
    open_source(MemorySource::new(model.files()))
}

fn open_source(source: impl Source + 'static) -> Checkpoint {
    Checkpoint::open(Arc::new(source)).unwrap()
}

fn plan(checkpoint: &Checkpoint, options: &Options) -> Result<Plan> {
    let origin = Origin::family(checkpoint, family_of(checkpoint, None)?, None)?;
    Plan::new(checkpoint, origin, options)
}

fn execute(plan: &Plan, checkpoint: &Checkpoint, memory: Memory, output: &Path) -> Result<()> {
    let (schedule, stop) = (plan.schedule(memory)?, AtomicBool::new(false));
    let run = Run { plan, checkpoint, output, schedule, importance: None, observer: &Silent, stop: &stop };
    run.execute().map(drop)
}

/// What a run writes.
fn written(plan: &Plan, checkpoint: &Checkpoint, memory: Memory) -> Contents {
    let folder = tempfile::tempdir().unwrap();
    execute(plan, checkpoint, memory, folder.path()).unwrap();
    contents(folder.path())
}

fn contents(folder: &Path) -> Contents {
    let mut found = Contents::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            found
                .extend(contents(&path).into_iter().map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            found.insert(name, fs::read(&path).unwrap());
        }
    }
    found
}
