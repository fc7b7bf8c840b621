//! Finished models: sound ones pass, and what is broken in them is found.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod against;
mod apart;
#[path = "../common/mod.rs"]
mod common;
mod corrupt;
mod diff;
mod flips;
#[path = "../common/predicting.rs"]
mod predicting;
mod shards;
mod sound;
mod tools;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use common::Model;
use smelt_core::checkpoint::Checkpoint;
use smelt_core::pipeline::{MANIFEST, Observer, Run, Silent};
use smelt_core::plan::{Memory, Options, Origin, Override, Plan, family_of};
use smelt_core::source::{MemorySource, Source};
use smelt_core::verify::{Check, Finding, Report, Severity, Verify};
use smelt_kernels::{Format, Mode};

/// The files of a model by path.
type Contents = BTreeMap<String, Vec<u8>>;

const MEMORY: Memory = Memory { limit: 1 << 30, threads: 2 };

/// A source checkpoint with the model made of it.
struct Made {
    source: Checkpoint,
    model: Contents,
}

fn open(files: impl IntoIterator<Item = (String, Vec<u8>)>) -> Checkpoint {
    Checkpoint::open(Arc::new(MemorySource::new(files))).unwrap()
}

/// Options in which some modules have a format of their own.
fn mixed() -> Options {
    let overrides = vec![
        Override::parse("down_proj=6:32", None).unwrap(),
        Override::parse("embed_tokens=keep", None).unwrap(),
    ];
    Options { overrides, shard_bytes: 200_000, ..Options::default() }
}

fn in_mode(mode: Mode) -> Options {
    let (bits, group) = mode.defaults();
    Options { format: Format::new(mode, bits, group), ..Options::default() }
}

/// What smelt makes of a manifest's checkpoint.
fn made(name: &str, options: &Options) -> Made {
    let source = open(Model::manifest(name).files());
    let model = quantized(&source, options);
    Made { source, model }
}

fn written(source: &Checkpoint, options: &Options) -> Contents {
    execute(source, &planned(source, options), &Silent)
}

fn planned(source: &Checkpoint, options: &Options) -> Plan {
    let origin = Origin::family(source, family_of(source, None).unwrap(), None).unwrap();
    Plan::new(source, origin, options).unwrap()
}

fn execute(source: &Checkpoint, plan: &Plan, observer: &dyn Observer) -> Contents {
    let (schedule, stop) = (plan.schedule(MEMORY).unwrap(), AtomicBool::new(false));
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let run =
        Run { plan, checkpoint: source, output: &output, schedule, importance: None, observer, stop: &stop };
    run.execute().unwrap();
    contents(&output)
}

/// What smelt writes, without the hashes.
fn quantized(source: &Checkpoint, options: &Options) -> Contents {
    let mut model = written(source, options);
    assert!(model.remove(MANIFEST).is_some());
    model
}

fn contents(folder: &Path) -> Contents {
    let mut found = Contents::new();
    for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            let inside = contents(&path).into_iter();
            found.extend(inside.map(|(inner, bytes)| (format!("{name}/{inner}"), bytes)));
        } else {
            found.insert(name, fs::read(&path).unwrap());
        }
    }
    found
}

fn verify(model: &Contents, against: Option<&Checkpoint>) -> Report {
    verify_with(model, against, MEMORY)
}

fn verify_with(model: &Contents, against: Option<&Checkpoint>, memory: Memory) -> Report {
    let source: Arc<dyn Source> = Arc::new(MemorySource::new(model.clone()));
    let stop = AtomicBool::new(false);
    let verify = Verify {
        source: &source,
        family: None,
        library: None,
        against,
        layout: None,
        memory,
        observer: &Silent,
        stop: &stop,
    };
    verify.run().unwrap()
}

fn errors(report: &Report) -> Vec<&Finding> {
    report.findings.iter().filter(|finding| finding.severity == Severity::Error).collect()
}

/// Whether an error of this check names this.
fn has_error(report: &Report, check: Check, name: &str) -> bool {
    errors(report)
        .iter()
        .any(|finding| finding.check == check && finding.names.iter().any(|known| known == name))
}
