//! A run that fails at any single operation of the disk, and is then run again, writes the same bytes
//! as one that was left alone; and what it leaves in between never looks whole.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use smelt_core::Result;
use smelt_core::checkpoint::Checkpoint;
use smelt_core::pipeline::{CARD, JOURNAL, Outcome, REPORT, Run};
use smelt_core::plan::{Options, Plan, Schedule};
use smelt_core::source::MemorySource;

use crate::common::Model;
use crate::faulty::{Chance, Fault, FaultyDisk};
use crate::scribe::Scribe;
use crate::{Contents, PLENTY, open_source, plan, written};

/// Where the runs of these tests write.
const OUTPUT: &str = "disk/new/out";

/// What the tests run: a checkpoint and its plan, and what they must give.
struct Small {
    checkpoint: Checkpoint,
    plan: Plan,
    expected: Contents,
    /// Operations of a run without faults.
    operations: u64,
}

/// A small model with side files in folders, and several shards.
static SMALL: LazyLock<Small> = LazyLock::new(|| {
    let (checkpoint, plan) = small();
    let disk = FaultyDisk::new();
    run(&plan, &checkpoint, 1, &disk).unwrap();
    let expected = disk.contents(OUTPUT);
    let mut model = expected.clone();
    assert!(model.remove(CARD).is_some() && model.remove(REPORT).is_some());
    assert!(model == written(&plan, &checkpoint, PLENTY), "the disk in memory is like a real one");
    let operations = disk.operations();
    assert!(operations > 150, "{operations} operations are few");
    Small { checkpoint, plan, expected, operations }
});

fn small() -> (Checkpoint, Plan) {
    let mut model = Model::manifest("qwen3_moe");
    model.tensors.retain(|(name, _)| !name.contains(".layers.") || name.contains(".layers.0."));
    model.config["num_hidden_layers"] = 1.into();
    model.config["vocab_size"] = 16.into();
    for (_, shape) in
        model.tensors.iter_mut().filter(|(name, _)| name.contains("embed") || name.contains("head"))
    {
        shape[0] = 16;
    }
    let mut files = model.files();
    files.push(("extra/deep/notes.txt".to_owned(), b"a note".to_vec()));
    let checkpoint = open_source(MemorySource::new(files));
    let plan = plan(&checkpoint, &Options { shard_bytes: 9000, ..Options::default() }).unwrap();
    assert!(plan.shards.len() > 3);
    (checkpoint, plan)
}

fn run(plan: &Plan, checkpoint: &Checkpoint, workers: usize, disk: &FaultyDisk) -> Result<Outcome> {
    let (output, stop) = (Path::new(OUTPUT), AtomicBool::new(false));
    let schedule = Schedule { workers, ..plan.schedule(PLENTY).unwrap() };
    let observer = &Scribe::default();
    Run { plan, checkpoint, output, schedule, importance: None, observer, stop: &stop }.execute_on(disk)
}

/// What is in the output now is either nothing that loads, or all that is expected.
fn never_looks_whole(disk: &FaultyDisk, expected: &Contents) {
    let mut found = disk.contents(OUTPUT);
    if found.contains_key("config.json") {
        found.remove(JOURNAL);
        assert!(found == *expected, "config.json is there before the rest: {:?}", found.keys());
    }
}

/// Runs until it is done, with these faults on the way.
fn with_faults(faults: &[(u64, Fault)], workers: usize, seed: u64) {
    let Small { checkpoint, plan, expected, .. } = &*SMALL;
    let (disk, mut chance) = (FaultyDisk::new(), Chance(seed));
    for &(at, fault) in faults {
        disk.fail_at(at, fault);
        let result = run(plan, checkpoint, workers, &disk);
        if result.is_ok() {
            assert!(disk.contents(OUTPUT) == *expected, "{faults:?}: done, but not right");
        }
        disk.restart(fault, &mut chance);
        never_looks_whole(&disk, expected);
    }
    run(plan, checkpoint, workers, &disk).unwrap_or_else(|error| panic!("{faults:?}, {seed}: {error:?}"));
    let found = disk.contents(OUTPUT);
    for (name, bytes) in expected {
        assert!(found.get(name) == Some(bytes), "{faults:?}, {seed}: `{name}` differs");
    }
    assert!(found.keys().eq(expected.keys()), "{faults:?}, {seed}: {:?}", found.keys());
    let again = run(plan, checkpoint, workers, &disk);
    assert!(matches!(again, Ok(Outcome::AlreadyFinished)), "{again:?}");
}

#[test]
fn a_fault_at_every_operation() {
    for at in 0..SMALL.operations {
        for fault in
            [Fault::Once(ErrorKind::StorageFull), Fault::Once(ErrorKind::Other), Fault::Full, Fault::Killed]
        {
            with_faults(&[(at, fault)], 1, at);
        }
        for seed in 0..4 {
            with_faults(&[(at, Fault::Power)], 1, at * 4 + seed);
        }
    }
}

fn any_fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        2 => Just(Fault::Once(ErrorKind::Other)),
        1 => Just(Fault::Full),
        2 => Just(Fault::Killed),
        4 => Just(Fault::Power),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn faults_upon_faults(
        faults in prop::collection::vec((0..400u64, any_fault()), 1..6),
        workers in 1..4usize,
        seed in any::<u64>(),
    ) {
        with_faults(&faults, workers, seed);
    }
}

#[test]
fn work_is_kept() {
    let Small { checkpoint, plan, expected, operations } = &*SMALL;
    let mut resumed = u64::MAX;
    for at in (operations / 4..*operations).step_by(7) {
        let (disk, mut chance) = (FaultyDisk::new(), Chance(at));
        disk.fail_at(at, Fault::Power);
        run(plan, checkpoint, 1, &disk).unwrap_err();
        disk.restart(Fault::Power, &mut chance);
        run(plan, checkpoint, 1, &disk).unwrap();
        assert!(disk.contents(OUTPUT) == *expected);
        resumed = resumed.min(disk.operations());
    }
    assert!(resumed < operations / 2, "{resumed} of {operations} operations were left at best");
}
