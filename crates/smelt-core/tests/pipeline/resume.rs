//! Runs that are run again: going on, other settings, a changed source, a finished or damaged output,
//! somebody else's directory, two at once.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex, mpsc};
use std::time::Duration;

use proptest::prelude::*;
use smelt_core::checkpoint::Checkpoint;
use smelt_core::pipeline::{Event, JOURNAL, MANIFEST, Manifest, Observer, Outcome, Run, Silent, discard};
use smelt_core::plan::{Options, Override, Plan, Schedule};
use smelt_core::source::{LocalSource, MemorySource};
use smelt_core::{Error, PipelineError, Result};
use smelt_kernels::{Format, Mode};
use tempfile::TempDir;

use crate::common::Model;
use crate::{Contents, PLENTY, contents, open, open_source, plan, written};

/// Notes events, and stops the run after so many blocks.
#[derive(Default)]
struct Watch {
    events: Mutex<Vec<Event>>,
    stop: AtomicBool,
    after: usize,
}

impl Observer for Watch {
    fn on(&self, event: &Event) {
        let mut events = self.events.lock().unwrap();
        events.push(event.clone());
        let blocks = events.iter().filter(|event| matches!(event, Event::Block { .. })).count();
        self.stop.store(self.after > 0 && blocks >= self.after, Ordering::Relaxed);
    }
}

impl Watch {
    fn stopping_after(after: usize) -> Self {
        Self { after, ..Self::default() }
    }

    fn run(&self, plan: &Plan, checkpoint: &Checkpoint, output: &Path) -> Result<Outcome> {
        let schedule = Schedule { workers: 2, ..plan.schedule(PLENTY).unwrap() };
        Run { plan, checkpoint, output, schedule, importance: None, observer: self, stop: &self.stop }
            .execute()
    }

    fn find<T>(&self, wanted: impl FnMut(&Event) -> Option<T>) -> Option<T> {
        self.events.lock().unwrap().iter().find_map(wanted)
    }
}

fn again(plan: &Plan, checkpoint: &Checkpoint, output: &Path) -> Result<Outcome> {
    let (schedule, stop) = (plan.schedule(PLENTY)?, AtomicBool::new(false));
    Run { plan, checkpoint, output, schedule, importance: None, observer: &Silent, stop: &stop }.execute()
}

fn bits(bits: u8) -> Options {
    Options { format: Format::new(Mode::Affine, bits, 64), shard_bytes: 40_000, ..Options::default() }
}

/// A checkpoint in memory with its plan.
fn model() -> (Checkpoint, Plan) {
    let checkpoint = open(&Model::manifest("qwen3_moe"));
    let plan = plan(&checkpoint, &bits(4)).unwrap();
    (checkpoint, plan)
}

/// An output of which half is there.
fn stopped(plan: &Plan, checkpoint: &Checkpoint) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let result = Watch::stopping_after(plan.tasks.len() / 2).run(plan, checkpoint, folder.path());
    assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
    folder
}

#[test]
fn a_stopped_run_goes_on() {
    let (checkpoint, plan) = model();
    let expected = written(&plan, &checkpoint, PLENTY);
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path();
    let mut before = 0;
    for _ in 0..100 {
        let watch = Watch::stopping_after(7);
        let result = watch.run(&plan, &checkpoint, output);
        if let Some(found) = watch.find(|event| match event {
            Event::Resumed { tensors, of, .. } => Some((*tensors, *of)),
            _ => None,
        }) {
            assert_eq!(found, (before, plan.tasks.len()), "all that was kept is taken up");
        }
        match result {
            Ok(_) => break,
            Err(error) => assert!(matches!(error, Error::Interrupted), "{error}"),
        }
        assert!(output.join(JOURNAL).is_file() && !output.join("config.json").exists());
        let kept = watch.find(|event| match event {
            Event::Kept { tensors, .. } => Some(*tensors),
            _ => None,
        });
        assert!(kept.unwrap() > before, "{kept:?} tensors after {before}");
        before = kept.unwrap();
    }
    assert!(contents(output) == expected);
}

#[test]
fn threads_and_memory_may_change_between() {
    let (checkpoint, plan) = model();
    let expected = written(&plan, &checkpoint, PLENTY);
    let folder = stopped(&plan, &checkpoint);
    let memory = smelt_core::plan::Memory { limit: 40 << 20, threads: 4 };
    crate::execute(&plan, &checkpoint, memory, folder.path()).unwrap();
    assert!(contents(folder.path()) == expected);
}

fn refusal(plan: &Plan, checkpoint: &Checkpoint, output: &Path) -> String {
    let before = contents(output);
    let error = again(plan, checkpoint, output).unwrap_err();
    assert!(contents(output) == before, "a refusal changes nothing");
    error.to_string().replace(&output.display().to_string(), "out")
}

#[test]
fn other_settings_are_refused_and_shown() {
    let (checkpoint, first) = model();
    let folder = stopped(&first, &checkpoint);
    let output = folder.path();
    let said = refusal(&plan(&checkpoint, &bits(8)).unwrap(), &checkpoint, output);
    assert!(
        said.starts_with("the output directory `out` holds an unfinished run that was made differently:")
    );
    assert!(said.contains("\n  bits: 4 → 8\n") && said.contains("`--no-resume`"), "{said}");
    let rule = Override::parse("down_proj=6", None).unwrap();
    let mixed = plan(&checkpoint, &Options { overrides: vec![rule], ..bits(4) }).unwrap();
    let said = refusal(&mixed, &checkpoint, output);
    assert!(said.contains("\n  parameters in 6-bit g64: none → "), "{said}");
    let said = refusal(
        &plan(&checkpoint, &Options { shard_bytes: 50_000, ..bits(4) }).unwrap(),
        &checkpoint,
        output,
    );
    assert!(said.contains("\n  layout: differs\n"), "{said}");
    again(&first, &checkpoint, output).unwrap();
    let said = refusal(&plan(&checkpoint, &bits(8)).unwrap(), &checkpoint, output);
    assert!(said.starts_with("the output directory `out` holds a finished model that was made differently:"));
    assert!(said.contains("\n  bits: 4 → 8\n") && !said.contains("--no-resume"), "{said}");
}

#[test]
fn what_decides_no_byte_may_change() {
    let (checkpoint, first) = model();
    let folder = stopped(&first, &checkpoint);
    let lenient = plan(&checkpoint, &Options { allow_nonfinite: true, ..bits(4) }).unwrap();
    again(&lenient, &checkpoint, folder.path()).unwrap();
    assert!(contents(folder.path()) == written(&first, &checkpoint, PLENTY));
}

#[test]
fn a_run_with_nothing_finished_is_no_reason_to_refuse() {
    let (checkpoint, first) = model();
    let folder = stopped(&first, &checkpoint);
    let journal = folder.path().join(JOURNAL);
    let text = fs::read_to_string(&journal).unwrap();
    fs::write(&journal, text.lines().next().unwrap().to_owned() + "\n").unwrap();
    let other = plan(&checkpoint, &bits(8)).unwrap();
    again(&other, &checkpoint, folder.path()).unwrap();
    assert!(contents(folder.path()) == written(&other, &checkpoint, PLENTY));
}

/// A checkpoint on the disk.
fn on_disk(folder: &Path) -> Checkpoint {
    for (name, bytes) in Model::manifest("qwen3_moe").files() {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join(name), bytes).unwrap();
    }
    reopened(folder)
}

fn reopened(folder: &Path) -> Checkpoint {
    Checkpoint::open(Arc::new(LocalSource::open(folder).unwrap())).unwrap()
}

/// Changes a file in a way that only its time tells.
fn touch(path: &Path) {
    let file = fs::File::options().write(true).open(path).unwrap();
    let later = file.metadata().unwrap().modified().unwrap() + Duration::from_micros(1);
    file.set_modified(later).unwrap();
}

#[test]
fn a_source_that_changed_between_is_refused_and_named() {
    let place = tempfile::tempdir().unwrap();
    let source = place.path().join("source");
    let checkpoint = on_disk(&source);
    let first = plan(&checkpoint, &bits(4)).unwrap();
    let folder = stopped(&first, &checkpoint);
    touch(&source.join("model.safetensors"));
    let checkpoint = reopened(&source);
    let said = refusal(&plan(&checkpoint, &bits(4)).unwrap(), &checkpoint, folder.path());
    assert!(said.contains("\n  `model.safetensors`: modified since, of the same size\n"), "{said}");
    fs::write(source.join("tokenizer.json"), "{}").unwrap();
    let checkpoint = reopened(&source);
    let said = refusal(&plan(&checkpoint, &bits(4)).unwrap(), &checkpoint, folder.path());
    assert!(said.contains("\n  `tokenizer.json`: 14 bytes → 2 bytes\n"), "{said}");
    // What is not part of the result may come and go.
    discard(folder.path()).unwrap();
    let first = plan(&checkpoint, &bits(4)).unwrap();
    let folder = stopped(&first, &checkpoint);
    fs::write(source.join("pytorch_model.bin"), "other weights").unwrap();
    let checkpoint = reopened(&source);
    again(&plan(&checkpoint, &bits(4)).unwrap(), &checkpoint, folder.path()).unwrap();
}

/// Does something when the first block comes.
struct Meddler<'a> {
    act: &'a (dyn Fn() + Sync),
    done: AtomicBool,
}

impl Observer for Meddler<'_> {
    fn on(&self, event: &Event) {
        if matches!(event, Event::Block { .. }) && !self.done.swap(true, Ordering::Relaxed) {
            (self.act)();
        }
    }
}

fn meddled(plan: &Plan, checkpoint: &Checkpoint, output: &Path, act: &(dyn Fn() + Sync)) -> Result<Outcome> {
    let (schedule, stop) = (plan.schedule(PLENTY).unwrap(), AtomicBool::new(false));
    let observer = &Meddler { act, done: AtomicBool::new(false) };
    Run { plan, checkpoint, output, schedule, importance: None, observer, stop: &stop }.execute()
}

type Meddling = fn(&Path);

#[test]
fn a_source_that_changes_under_the_run_is_not_published() {
    let longer: Meddling = |path| fs::write(path, [fs::read(path).unwrap(), vec![0; 8]].concat()).unwrap();
    let gone: Meddling = |path| fs::remove_file(path).unwrap();
    let meddlings =
        [("model.safetensors", touch as Meddling), ("tokenizer.json", longer), ("config.json", gone)];
    for (file, meddling) in meddlings {
        let place = tempfile::tempdir().unwrap();
        let (source, output) = (place.path().join("source"), place.path().join("out"));
        let checkpoint = on_disk(&source);
        let plan = plan(&checkpoint, &bits(4)).unwrap();
        let error = meddled(&plan, &checkpoint, &output, &|| meddling(&source.join(file))).unwrap_err();
        assert!(matches!(&error, Error::Pipeline(PipelineError::SourceChanged { .. })), "{error}");
        assert!(error.to_string().contains(&format!("`{file}`")), "{error}");
        assert!(!output.join("config.json").exists() && output.join(JOURNAL).exists());
    }
}

#[test]
fn a_source_that_is_cut_under_the_run_is_an_error() {
    let place = tempfile::tempdir().unwrap();
    let (source, output) = (place.path().join("source"), place.path().join("out"));
    let checkpoint = on_disk(&source);
    let plan = plan(&checkpoint, &bits(4)).unwrap();
    let cut = || {
        let file = fs::File::options().write(true).open(source.join("model.safetensors")).unwrap();
        file.set_len(20_000).unwrap();
    };
    let error = meddled(&plan, &checkpoint, &output, &cut).unwrap_err();
    assert!(error.to_string().contains("`model.safetensors`"), "{error}");
    assert!(error.to_string().contains("cut or replaced"), "{error}");
    assert!(!output.join("config.json").exists());
}

#[test]
fn a_finished_output_is_left_as_it_is() {
    let (checkpoint, plan) = model();
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(again(&plan, &checkpoint, folder.path()).unwrap(), Outcome::Written);
    let times = |folder: &Path| -> Vec<_> {
        let entries = fs::read_dir(folder).unwrap().map(Result::unwrap);
        entries.map(|entry| (entry.file_name(), entry.metadata().unwrap().modified().unwrap())).collect()
    };
    let before = times(folder.path());
    assert_eq!(again(&plan, &checkpoint, folder.path()).unwrap(), Outcome::AlreadyFinished);
    assert_eq!(times(folder.path()), before);
    assert!(matches!(discard(folder.path()), Err(Error::Pipeline(PipelineError::Finished { .. }))));
    assert_eq!(times(folder.path()), before);
}

#[test]
fn damage_to_a_finished_output_is_seen() {
    let (checkpoint, plan) = model();
    let flip: fn(&mut Vec<u8>) = |bytes| bytes[9] ^= 1;
    let cut: fn(&mut Vec<u8>) = |bytes| bytes.truncate(bytes.len() - 1);
    let long: fn(&mut Vec<u8>) = |bytes| bytes[7] = 0xFF;
    let shard = plan.shards[1].name.as_str();
    for (file, damage) in [
        (shard, flip),
        (shard, cut),
        (shard, long),
        ("config.json", flip),
        ("model.safetensors.index.json", cut),
        ("tokenizer.json", flip),
        (MANIFEST, |bytes| bytes.truncate(bytes.len() / 2)),
        (MANIFEST, |bytes| bytes.truncate(0)),
        // In the settings, which still are JSON then.
        (MANIFEST, |bytes| bytes[200] ^= 1),
    ] {
        let folder = tempfile::tempdir().unwrap();
        again(&plan, &checkpoint, folder.path()).unwrap();
        let path = folder.path().join(file);
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes);
        fs::write(&path, bytes).unwrap();
        let error = again(&plan, &checkpoint, folder.path()).unwrap_err();
        assert!(
            matches!(&error, Error::Pipeline(PipelineError::Damaged { file: named, .. }) if named == file),
            "{file}: {error}"
        );
        fs::remove_file(&path).unwrap();
        let error = again(&plan, &checkpoint, folder.path()).unwrap_err();
        let named =
            matches!(&error, Error::Pipeline(PipelineError::Damaged { file: named, .. }) if named == file);
        assert!(
            named || file == MANIFEST && matches!(error, Error::Pipeline(PipelineError::NotEmpty { .. })),
            "{file}: {error}"
        );
    }
}

#[test]
fn the_manifest_has_the_hash_of_every_stored_byte() {
    let (checkpoint, plan) = model();
    let folder = stopped(&plan, &checkpoint);
    again(&plan, &checkpoint, folder.path()).unwrap();
    let files = contents(folder.path());
    let manifest = Manifest::read(folder.path()).unwrap().unwrap();
    let hex = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
    let mut tensors = 0;
    for (name, shard) in &manifest.shards {
        let bytes = &files[name];
        let length = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        assert_eq!((shard.bytes, &shard.header), (bytes.len() as u64, &hex(&bytes[..length])), "{name}");
        for (name, tensor) in safetensors::SafeTensors::deserialize(bytes).unwrap().iter() {
            assert_eq!(manifest.tensors[name], hex(tensor.data()), "{name}");
            tensors += 1;
        }
    }
    assert_eq!(manifest.tensors.len(), tensors);
    let others: Vec<_> = files.keys().filter(|name| !manifest.shards.contains_key(*name)).collect();
    assert_eq!(others.len(), manifest.files.len() + 1);
    for name in others.into_iter().filter(|name| *name != MANIFEST) {
        assert_eq!(manifest.files[name], hex(&files[name]), "{name}");
    }
    assert_eq!(manifest.made_of.settings["bits"], "4");
}

#[test]
fn shards_that_are_gone_or_cut_are_written_again() {
    let (checkpoint, plan) = model();
    let expected = written(&plan, &checkpoint, PLENTY);
    let shards = |folder: &Path| {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let mut names: Vec<_> =
            names.filter(|path| path.display().to_string().contains(".safetensors")).collect();
        names.sort();
        names
    };
    for place in 0..shards(stopped(&plan, &checkpoint).path()).len() {
        let folder = stopped(&plan, &checkpoint);
        let path = &shards(folder.path())[place];
        fs::remove_file(path).unwrap();
        // Stopped again at once: what is lost must stay lost.
        let result = Watch::stopping_after(1).run(&plan, &checkpoint, folder.path());
        assert!(matches!(result, Err(Error::Interrupted)), "{result:?}");
        again(&plan, &checkpoint, folder.path()).unwrap();
        assert!(contents(folder.path()) == expected, "without {path:?}");

        let folder = stopped(&plan, &checkpoint);
        let path = &shards(folder.path())[place];
        fs::File::options().write(true).open(path).unwrap().set_len(100).unwrap();
        again(&plan, &checkpoint, folder.path()).unwrap();
        assert!(contents(folder.path()) == expected, "with {path:?} cut");
    }
}

static STOPPED: LazyLock<(Checkpoint, Plan, Contents)> = LazyLock::new(|| {
    let (checkpoint, plan) = model();
    let expected = written(&plan, &checkpoint, PLENTY);
    (checkpoint, plan, expected)
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 25, ..ProptestConfig::default() })]
    #[test]
    fn a_damaged_journal_costs_work_and_nothing_else(
        place in 0.0..1.0f64,
        change in prop_oneof![Just(None), (1..=255u8).prop_map(Some)],
    ) {
        let (checkpoint, plan, expected) = &*STOPPED;
        let folder = stopped(plan, checkpoint);
        let path = folder.path().join(JOURNAL);
        let mut bytes = fs::read(&path).unwrap();
        let first = bytes.iter().position(|&byte| byte == b'\n').unwrap() + 1;
        let at = first + ((bytes.len() - first) as f64 * place) as usize;
        match change {
            Some(flip) => bytes[at] ^= flip,
            None => bytes.truncate(at),
        }
        fs::write(&path, bytes).unwrap();
        again(plan, checkpoint, folder.path()).unwrap();
        prop_assert!(contents(folder.path()) == *expected);
    }
}

#[test]
fn a_journal_that_never_began_is_ours_alone() {
    let (checkpoint, plan) = model();
    for text in ["", "0123456789abcdef {\"journal\":1", "nonsense\n"] {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(JOURNAL), text).unwrap();
        again(&plan, &checkpoint, folder.path()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(JOURNAL), text).unwrap();
        fs::write(folder.path().join("mine"), "mine").unwrap();
        let before = contents(folder.path());
        assert!(matches!(
            again(&plan, &checkpoint, folder.path()),
            Err(Error::Pipeline(PipelineError::NotEmpty { .. }))
        ));
        assert!(matches!(discard(folder.path()), Err(Error::Pipeline(PipelineError::NotEmpty { .. }))));
        assert!(contents(folder.path()) == before);
    }
}

#[test]
fn beginning_anew_takes_away_what_is_ours() {
    let (checkpoint, plan) = model();
    let folder = stopped(&plan, &checkpoint);
    fs::write(folder.path().join("mine"), "mine").unwrap();
    discard(folder.path()).unwrap();
    let left = contents(folder.path());
    assert!(left.keys().eq(["mine"]), "{:?}", left.keys());
    assert!(matches!(discard(folder.path()), Err(Error::Pipeline(PipelineError::NotEmpty { .. }))));
    fs::remove_file(folder.path().join("mine")).unwrap();
    discard(folder.path()).unwrap();
    discard(&folder.path().join("missing")).unwrap();
    again(&plan, &checkpoint, folder.path()).unwrap();
}

/// A journal whose first line names these files, and is sound.
fn journal_of(writes: &[&str]) -> String {
    let header = serde_json::json!({
        "journal": 1,
        "fingerprint": { "settings": {}, "source": {} },
        "writes": writes,
    })
    .to_string();
    format!("{} {header}\n", &blake3::hash(header.as_bytes()).to_hex()[..16])
}

#[test]
fn a_journal_can_not_reach_outside() {
    let place = tempfile::tempdir().unwrap();
    let (output, outside) = (place.path().join("out"), place.path().join("outside"));
    fs::create_dir_all(&output).unwrap();
    fs::create_dir_all(outside.join("inner")).unwrap();
    fs::write(outside.join("file"), "mine").unwrap();
    let absolute = outside.join("file").display().to_string();
    let names = ["../outside/file", &absolute, "link/file", "a/../../outside/file", "../outside/inner"];
    fs::write(output.join(JOURNAL), journal_of(&names)).unwrap();
    #[cfg(unix)]
    std::os::unix::fs::symlink(&outside, output.join("link")).unwrap();
    discard(&output).unwrap();
    assert!(outside.join("file").is_file() && outside.join("inner").is_dir());
}

#[cfg(unix)]
#[test]
fn links_in_the_output_are_not_followed() {
    use std::os::unix::fs::symlink;
    let (checkpoint, plan) = model();
    let expected = written(&plan, &checkpoint, PLENTY);
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().join("target");
    fs::write(&target, "mine").unwrap();
    let last = &plan.shards.last().unwrap().name;
    for name in [&format!("{last}.partial"), &plan.shards[0].name, "tokenizer.json", "config.json"] {
        let folder = stopped(&plan, &checkpoint);
        let path = folder.path().join(name);
        let _ = fs::remove_file(&path);
        symlink(&target, &path).unwrap();
        again(&plan, &checkpoint, folder.path()).unwrap();
        assert_eq!(fs::read(&target).unwrap(), b"mine", "{name}");
        assert!(contents(folder.path()) == expected, "{name}");
    }
    let folder = tempfile::tempdir().unwrap();
    symlink(&target, folder.path().join(JOURNAL)).unwrap();
    again(&plan, &checkpoint, folder.path()).unwrap_err();
    assert_eq!(fs::read(&target).unwrap(), b"mine");
}

/// Waits at the first block until it is told to go on.
struct Waiting {
    begun: mpsc::SyncSender<()>,
    go_on: Mutex<Option<mpsc::Receiver<()>>>,
}

impl Observer for Waiting {
    fn on(&self, event: &Event) {
        if matches!(event, Event::Block { .. })
            && let Some(go_on) = self.go_on.lock().unwrap().take()
        {
            self.begun.send(()).unwrap();
            go_on.recv().unwrap();
        }
    }
}

#[test]
fn two_runs_at_once_are_refused() {
    let (checkpoint, plan) = model();
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path();
    let (begun, has_begun) = mpsc::sync_channel(1);
    let (go, go_on) = mpsc::sync_channel(1);
    std::thread::scope(|scope| {
        let waiting = Waiting { begun, go_on: Mutex::new(Some(go_on)) };
        let (plan, checkpoint) = (&plan, &checkpoint);
        let first = scope.spawn(move || {
            let (schedule, stop) = (plan.schedule(PLENTY).unwrap(), AtomicBool::new(false));
            Run { plan, checkpoint, output, schedule, importance: None, observer: &waiting, stop: &stop }
                .execute()
        });
        has_begun.recv().unwrap();
        let error = again(plan, checkpoint, output).unwrap_err();
        assert!(matches!(error, Error::Pipeline(PipelineError::Busy { .. })), "{error}");
        assert!(matches!(discard(output), Err(Error::Pipeline(PipelineError::Busy { .. }))));
        go.send(()).unwrap();
        first.join().unwrap().unwrap();
    });
    assert_eq!(again(&plan, &checkpoint, output).unwrap(), Outcome::AlreadyFinished);
}

#[test]
fn what_smelt_records_of_a_source_stays_there() {
    let mut files = Model::manifest("llama").files();
    files.extend([MANIFEST, JOURNAL].map(|name| (name.to_owned(), b"old".to_vec())));
    let checkpoint = open_source(MemorySource::new(files));
    let plan = plan(&checkpoint, &Options::default()).unwrap();
    let output: Contents = written(&plan, &checkpoint, PLENTY);
    assert!(output[MANIFEST] != b"old" && !output.contains_key(JOURNAL));
}
