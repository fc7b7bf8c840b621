//! What is said of a run beside the model: the same after any interruption, and never missing.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use smelt_core::checkpoint::Checkpoint;
use smelt_core::pipeline::{CARD, Event, JOURNAL, Observer, Papers, REPORT, Run};
use smelt_core::plan::{Options, Plan};
use smelt_core::report::TensorError;
use smelt_core::{Error, Result};
use smelt_kernels::{Distortion, Format, Mode};

use crate::common::Model;
use crate::{PLENTY, contents, open, plan};

/// Writes down the errors that it was told, and stops the run after so many blocks.
#[derive(Debug, Default)]
pub(crate) struct Scribe {
    sums: Mutex<BTreeMap<usize, Distortion>>,
    blocks: Mutex<usize>,
    after: usize,
    stop: AtomicBool,
}

impl Observer for Scribe {
    fn on(&self, event: &Event) {
        match event {
            Event::Sampled { task, distortion } => {
                *self.sums.lock().unwrap().entry(*task).or_default() += *distortion;
            }
            Event::Block { .. } => {
                let mut blocks = self.blocks.lock().unwrap();
                *blocks += 1;
                self.stop.store(self.after > 0 && *blocks >= self.after, Ordering::Relaxed);
            }
            _ => {}
        }
    }

    fn papers(&self) -> Papers {
        let mut report = String::new();
        for (task, sums) in &*self.sums.lock().unwrap() {
            writeln!(report, "{task}: {:?}", TensorError::of(sums)).unwrap();
        }
        Papers { card: Some("# A card\n".to_owned()), report: Some(report) }
    }
}

fn run(plan: &Plan, checkpoint: &Checkpoint, output: &Path, after: usize) -> Result<()> {
    let scribe = Scribe { after, ..Scribe::default() };
    let schedule = plan.schedule(PLENTY)?;
    Run { plan, checkpoint, output, schedule, importance: None, observer: &scribe, stop: &scribe.stop }
        .execute()
        .map(drop)
}

fn model() -> (Checkpoint, Plan) {
    let checkpoint = open(&Model::manifest("qwen3_moe"));
    let format = Format::new(Mode::Affine, 4, 64);
    let plan = plan(&checkpoint, &Options { format, shard_bytes: 40_000, ..Options::default() }).unwrap();
    (checkpoint, plan)
}

#[test]
fn a_run_that_goes_on_knows_what_the_earlier_ones_found() {
    let (checkpoint, plan) = model();
    let [whole, stopped] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    run(&plan, &checkpoint, whole.path(), 0).unwrap();
    let mut runs = 1;
    while let Err(error) = run(&plan, &checkpoint, stopped.path(), 9) {
        assert!(matches!(error, Error::Interrupted), "{error}");
        assert!(!stopped.path().join(REPORT).exists() && !stopped.path().join(CARD).exists());
        runs += 1;
    }
    assert!(runs > 4);
    let report = fs::read_to_string(whole.path().join(REPORT)).unwrap();
    let quantized = plan.tasks.iter().filter(|task| task.format.is_some()).count();
    assert_eq!(report.lines().filter(|line| line.contains("Some(")).count(), quantized, "{report}");
    assert!(contents(stopped.path()) == contents(whole.path()));
}

/// The journal's lines with every sample taken out, as a smelt that knew none wrote them.
fn without_samples(journal: &str) -> String {
    let (first, rest) = journal.split_once('\n').unwrap();
    let header: serde_json::Value = serde_json::from_str(first.split_once(' ').unwrap().1).unwrap();
    let run: smelt_core::pipeline::Fingerprint =
        serde_json::from_value(header["fingerprint"].clone()).unwrap();
    let mut text = format!("{first}\n");
    for line in rest.lines() {
        let mut record: serde_json::Value = serde_json::from_str(line.split_once(' ').unwrap().1).unwrap();
        record["done"].as_object_mut().unwrap().remove("sample");
        let record = record.to_string();
        let mut hash = blake3::Hasher::new();
        hash.update(run.digest().as_bytes()).update(record.as_bytes());
        writeln!(text, "{} {record}", &hash.finalize().to_hex()[..16]).unwrap();
    }
    text
}

#[test]
fn a_journal_without_samples_is_read_all_the_same() {
    let (checkpoint, plan) = model();
    let folder = tempfile::tempdir().unwrap();
    run(&plan, &checkpoint, folder.path(), 30).unwrap_err();
    let path = folder.path().join(JOURNAL);
    let journal = fs::read_to_string(&path).unwrap();
    assert!(journal.contains("\"sample\""), "{journal}");
    fs::write(&path, without_samples(&journal)).unwrap();
    let lines = journal.lines().filter(|line| line.contains("\"sample\"")).count();
    run(&plan, &checkpoint, folder.path(), 0).unwrap();
    let report = fs::read_to_string(folder.path().join(REPORT)).unwrap();
    let quantized = plan.tasks.iter().filter(|task| task.format.is_some()).count();
    assert_eq!(report.lines().count(), quantized - lines, "what it has is not done again");
}
