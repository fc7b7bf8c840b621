//! Runs that fail: each says why, and leaves nothing but what is finished, which does not load.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use smelt_core::pipeline::{JOURNAL, Run, Silent, check_outside};
use smelt_core::plan::{Method, Note, Options, Override};
use smelt_core::source::{FileEntry, MemorySource, Source};
use smelt_core::{CheckpointError, Error, PipelineError, Result, SourceError};

use crate::common::Model;
use crate::{PLENTY, contents, execute, open, open_source, plan};

/// A source whose reads fail after a while.
#[derive(Debug)]
struct Failing {
    inner: MemorySource,
    /// Reads that still succeed once the checkpoint is open; a great many until then.
    left: &'static AtomicI64,
    /// Whether the file seems cut, rather than unreadable.
    cut: bool,
}

impl Source for Failing {
    fn location(&self) -> &str {
        self.inner.location()
    }

    fn list(&self) -> Result<Vec<FileEntry>> {
        self.inner.list()
    }

    fn read_at(&self, path: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        if self.left.fetch_sub(1, Ordering::Relaxed) > 0 {
            return self.inner.read_at(path, offset, buf);
        }
        let (location, file) = (self.location().to_owned(), path.to_owned());
        if self.cut {
            let length = buf.len() as u64;
            return Err(SourceError::PastEnd { location, file, size: offset, offset, length }.into());
        }
        Err(SourceError::Read { location, file, source: std::io::Error::other("the disk is gone") }.into())
    }
}

#[test]
fn a_source_that_fails_in_the_middle_leaves_what_is_finished() {
    let model = Model::manifest("qwen3_moe");
    for (reads, cut) in [(0, false), (1, false), (2, true), (40, true), (80, false)] {
        let left: &'static AtomicI64 = Box::leak(Box::new(AtomicI64::new(i64::MAX)));
        let checkpoint = open_source(Failing { inner: MemorySource::new(model.files()), left, cut });
        // A search reads samples of its own, and how many depends on the workers.
        let plan = plan(&checkpoint, &Options { method: Method::Rtn, ..Options::default() }).unwrap();
        let folder = tempfile::tempdir().unwrap();
        left.store(reads, Ordering::Relaxed);
        let error = execute(&plan, &checkpoint, PLENTY, &folder.path().join("new/deep/out")).unwrap_err();
        // The first read is of the tokenizer, the others are of weights.
        let file = if reads == 0 { "`tokenizer.json`" } else { "`model.safetensors`" };
        assert!(error.to_string().contains(file), "{error}");
        assert_eq!(cut, error.to_string().contains("cut or replaced"), "{error}");
        if reads < 2 {
            let left = fs::read_dir(folder.path()).unwrap().count();
            assert_eq!(left, 0, "where nothing is finished, also the folders above the output go");
            continue;
        }
        let output = folder.path().join("new/deep/out");
        assert!(output.join(JOURNAL).is_file() && !output.join("config.json").exists());
        left.store(i64::MAX, Ordering::Relaxed);
        execute(&plan, &checkpoint, PLENTY, &output).unwrap();
        assert!(contents(&output) == crate::written(&plan, &checkpoint, PLENTY));
    }
}

#[test]
fn a_folder_that_was_there_stays() {
    let left: &'static AtomicI64 = Box::leak(Box::new(AtomicI64::new(i64::MAX)));
    let inner = MemorySource::new(Model::manifest("llama").files());
    let checkpoint = open_source(Failing { inner, left, cut: false });
    let plan = plan(&checkpoint, &Options::default()).unwrap();
    left.store(1, Ordering::Relaxed);
    let folder = tempfile::tempdir().unwrap();
    execute(&plan, &checkpoint, PLENTY, folder.path()).unwrap_err();
    assert!(contents(folder.path()).is_empty() && folder.path().is_dir());
    left.store(i64::MAX, Ordering::Relaxed);
    execute(&plan, &checkpoint, PLENTY, folder.path()).unwrap();
    assert_eq!(contents(folder.path()).len(), 5, "and takes the next run");
}

#[test]
fn a_run_that_is_stopped_before_it_begins_writes_nothing() {
    let checkpoint = open(&Model::manifest("llama"));
    let plan = plan(&checkpoint, &Options::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (schedule, stop) = (plan.schedule(PLENTY).unwrap(), AtomicBool::new(true));
    let output = folder.path();
    let run = Run {
        plan: &plan,
        checkpoint: &checkpoint,
        output,
        schedule,
        importance: None,
        observer: &Silent,
        stop: &stop,
    };
    assert!(matches!(run.execute(), Err(Error::Interrupted)));
    assert!(contents(output).is_empty());
}

/// A model with the bits of one element of a tensor replaced.
fn poisoned(tensor: &str, bits: u16) -> MemorySource {
    let model = Model::manifest("qwen3_moe");
    let clean = open(&model);
    let found = clean.tensor(clean.find(tensor).unwrap());
    let at = (found.offset + found.bytes - 2) as usize;
    let mut files = model.files();
    let shard = &mut files.iter_mut().find(|(name, _)| name == "model.safetensors").unwrap().1;
    shard[at..at + 2].copy_from_slice(&bits.to_le_bytes());
    MemorySource::new(files)
}

#[test]
fn nan_and_infinity_are_named_wherever_they_stand() {
    for (tensor, parameter) in [
        ("model.norm.weight", "model.norm.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("model.layers.2.mlp.experts.3.up_proj.weight", "model.layers.2.mlp.switch_mlp.up_proj.weight"),
    ] {
        for bits in [0x7FC0, 0x7F80, 0xFF80, 0xFFFF] {
            let checkpoint = open_source(poisoned(tensor, bits));
            let folder = tempfile::tempdir().unwrap();
            let checked = plan(&checkpoint, &Options::default()).unwrap();
            let error = execute(&checked, &checkpoint, PLENTY, folder.path()).unwrap_err();
            assert!(
                matches!(&error, Error::Checkpoint(CheckpointError::NonFinite { tensor }) if tensor == parameter),
                "{error}"
            );
            assert!(!folder.path().join("config.json").exists());
            let let_through = Options { allow_nonfinite: true, ..Options::default() };
            let unchecked = plan(&checkpoint, &let_through).unwrap();
            execute(&unchecked, &checkpoint, PLENTY, folder.path()).unwrap();
        }
    }
}

#[test]
fn an_output_with_something_in_it_is_left_alone() {
    let checkpoint = open(&Model::manifest("llama"));
    let plan = plan(&checkpoint, &Options::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("mine"), "mine").unwrap();
    let error = execute(&plan, &checkpoint, PLENTY, folder.path()).unwrap_err();
    assert!(matches!(error, Error::Pipeline(PipelineError::NotEmpty { .. })), "{error}");
    assert_eq!(contents(folder.path()).len(), 1);
    let error = execute(&plan, &checkpoint, PLENTY, &folder.path().join("mine")).unwrap_err();
    assert!(
        matches!(error, Error::Pipeline(PipelineError::OutputNotADirectory { .. })),
        "a file is no directory: {error}"
    );
    assert_eq!(contents(folder.path())["mine"], b"mine");
}

#[test]
fn an_output_inside_the_source_is_refused_under_any_name() {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("source");
    fs::create_dir(&source).unwrap();
    let inside = |output: &Path| {
        matches!(check_outside(&source, output), Err(Error::Pipeline(PipelineError::InsideSource { .. })))
    };
    assert!(inside(&source));
    assert!(inside(&source.join("out")));
    assert!(inside(&source.join("not/there/yet")));
    assert!(inside(&folder.path().join("source/../source/out")));
    assert!(!inside(&folder.path().join("source-4bit")));
    assert!(!inside(folder.path()));
    #[cfg(unix)]
    {
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&source, &link).unwrap();
        assert!(inside(&link.join("out")));
    }
}

#[test]
fn strict_refuses_what_would_be_done_differently() {
    let checkpoint = open(&Model::manifest("llama_odd_width"));
    let notes = plan(&checkpoint, &Options::default()).unwrap().notes;
    assert!(notes.iter().any(|note| matches!(note, Note::NotDivisible { .. })), "{notes:?}");
    let strict = plan(&checkpoint, &Options { strict: true, ..Options::default() }).unwrap_err();
    assert!(strict.to_string().contains("do not divide into groups of 64"), "{strict}");

    let checkpoint = open(&Model::manifest("llama"));
    let overrides = vec![Override::parse("nothing_like_this=8", None).unwrap()];
    let options = Options { overrides, ..Options::default() };
    let notes = plan(&checkpoint, &options).unwrap().notes;
    assert_eq!(notes, [Note::OverrideUnused { text: "nothing_like_this=8".to_owned() }]);
    let strict = plan(&checkpoint, &Options { strict: true, ..options }).unwrap_err();
    assert!(strict.to_string().contains("`nothing_like_this=8`"), "{strict}");
    plan(&checkpoint, &Options { strict: true, ..Options::default() }).unwrap();
}

/// A shard of a petabyte of which only the header is there.
#[derive(Debug)]
struct Huge(MemorySource, u64);

impl Source for Huge {
    fn location(&self) -> &str {
        self.0.location()
    }

    fn list(&self) -> Result<Vec<FileEntry>> {
        let mut files = self.0.list()?;
        files.iter_mut().filter(|file| file.path == "model.safetensors").for_each(|file| file.size = self.1);
        Ok(files)
    }

    fn read_at(&self, path: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.0.read_at(path, offset, buf)
    }
}

#[test]
fn an_output_that_does_not_fit_on_the_disk_is_refused_at_once() {
    let mut model = Model::manifest("llama");
    let rows = 1u64 << 42;
    model.tensors = vec![
        ("model.norm.weight".to_owned(), vec![128]),
        ("model.embed_tokens.weight".to_owned(), vec![rows, 128]),
    ];
    model.config["num_hidden_layers"] = 0.into();
    model.config["tie_word_embeddings"] = true.into();
    model.config["vocab_size"] = rows.into();
    let header = format!(
        r#"{{"model.norm.weight":{{"dtype":"BF16","shape":[128],"data_offsets":[0,256]}},"model.embed_tokens.weight":{{"dtype":"BF16","shape":[{rows},128],"data_offsets":[256,{}]}}}}"#,
        256 + rows * 256
    );
    let shard = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let size = shard.len() as u64 + 256 + rows * 256;
    let files = [("config.json", model.config.to_string().into_bytes()), ("model.safetensors", shard)];
    let checkpoint = open_source(Huge(MemorySource::new(files), size));
    let plan = plan(&checkpoint, &Options::default()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let error = execute(&plan, &checkpoint, PLENTY, &folder.path().join("out")).unwrap_err();
    assert!(matches!(error, Error::Pipeline(PipelineError::DiskFull { .. })), "{error}");
    assert!(error.to_string().contains("288 TiB"), "{error}");
    assert!(contents(folder.path()).is_empty());
}
