//! What a run is made of, in a form that can be compared with another run and shown.
//!
//! Everything that decides a byte of the result is in here, readable where a user can have changed it
//! (`bits`, a file's size) and as a digest where nobody could read it (the layout). Two runs with the
//! same fingerprint write the same bytes, so one may go on where the other stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::plan::{Plan, Task};
use crate::source::Stamp;

/// What marks a value that is a digest: shown as different, not as it is.
const DIGEST: &str = "blake3:";

/// What the names of the settings begin with that count formats.
const COUNT: &str = "parameters in ";

/// What decides the bytes of a result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Settings by name.
    pub settings: IndexMap<String, String>,
    /// The files of the source.
    pub source: BTreeMap<String, Stamp>,
}

impl Fingerprint {
    /// The fingerprint of a run.
    pub fn of(plan: &Plan, checkpoint: &Checkpoint) -> Self {
        let files = checkpoint.stamps().map(|file| (file.path.clone(), file.stamp.clone()));
        Self { settings: settings(plan), source: files.collect() }
    }

    /// All of it in 32 bytes.
    pub fn digest(&self) -> blake3::Hash {
        digest(self)
    }

    /// What differs from an earlier fingerprint, without what only follows from another difference.
    pub fn changes_since(&self, earlier: &Self) -> Vec<Change> {
        let mut all = files_changed(&earlier.source, &self.source);
        all.extend(settings_changed(&earlier.settings, &self.settings));
        let least = all.iter().map(Change::depth).min();
        all.retain(|change| Some(change.depth()) == least);
        all
    }
}

/// A difference between two runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A setting, or the size of a file.
    Value {
        /// Its name.
        what: String,
        /// In the earlier run.
        was: String,
        /// In this run.
        is: String,
    },
    /// Something that has no short form.
    Differs {
        /// Its name.
        what: String,
    },
    /// A file of the same size that was written again.
    Modified {
        /// Its path.
        file: String,
    },
}

impl Change {
    /// How far from what a user does: what is asked and the files; the formats that follow from it;
    /// the rest, of which only digests are known.
    fn depth(&self) -> u8 {
        match self {
            Self::Value { what, .. } if what.starts_with(COUNT) => 1,
            Self::Value { .. } | Self::Modified { .. } => 0,
            Self::Differs { .. } => 2,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value { what, was, is } => write!(out, "{what}: {was} → {is}"),
            Self::Differs { what } => write!(out, "{what}: differs"),
            Self::Modified { file } => write!(out, "`{file}`: modified since, of the same size"),
        }
    }
}

/// How the files of a source have changed.
pub(super) fn files_changed(was: &BTreeMap<String, Stamp>, is: &BTreeMap<String, Stamp>) -> Vec<Change> {
    let names: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
    let differing = names.into_iter().filter(|name| was.get(*name) != is.get(*name));
    differing.map(|name| file_changed(name, was.get(name), is.get(name))).collect()
}

fn file_changed(file: &str, was: Option<&Stamp>, is: Option<&Stamp>) -> Change {
    let size = |stamp: Option<&Stamp>| stamp.map(|stamp| stamp.size);
    if size(was) == size(is) {
        return Change::Modified { file: file.to_owned() };
    }
    let exactly = |size: Option<u64>| size.map_or("missing".to_owned(), |size| format!("{size} bytes"));
    Change::Value { what: format!("`{file}`"), was: exactly(size(was)), is: exactly(size(is)) }
}

fn settings_changed(was: &IndexMap<String, String>, is: &IndexMap<String, String>) -> Vec<Change> {
    let gone = was.keys().filter(|name| !is.contains_key(*name));
    let names = is.keys().chain(gone).filter(|name| was.get(*name) != is.get(*name));
    names.map(|name| setting_changed(name, was.get(name), is.get(name))).collect()
}

fn setting_changed(name: &str, was: Option<&String>, is: Option<&String>) -> Change {
    if was.or(is).is_some_and(|value| value.starts_with(DIGEST)) {
        return Change::Differs { what: name.to_owned() };
    }
    let shown = |value: Option<&String>| value.cloned().unwrap_or_else(|| "none".to_owned());
    Change::Value { what: name.to_owned(), was: shown(was), is: shown(is) }
}

/// Settings of a plan. Every field of it is named, so that a new one can't be forgotten here.
fn settings(plan: &Plan) -> IndexMap<String, String> {
    let Plan {
        version,
        smelt,
        family,
        source: _, // A checkpoint may be moved; its files are compared by themselves.
        source_tensors,
        logical_tensors,
        read_overhead: _,
        source_shards,
        graph,
        method,
        rounding,
        allow_nonfinite: _, // Decides whether a run ends, not what it writes.
        strict: _,          // The same.
        format,
        allocation: _, // What it chose is in the tasks.
        importance,
        tasks,
        treatments: _, // Words about the tasks.
        preimage,
        shards,
        dropped: _, // Follows from what is there and what is used.
        rules: _,   // What they decided is in the tasks.
        notes: _,
        config,
        mtp,
        side_files,
        totals: _,
    } = plan;
    let mut all =
        IndexMap::from([("smelt".to_owned(), smelt.clone()), ("family".to_owned(), family.clone())]);
    let mut put = |name: &str, value: String| drop(all.insert(name.to_owned(), value));
    if let Some(spec) = format {
        put("mode", spec.0.mode().name().to_owned());
        put("bits", spec.0.bits().to_string());
        put("group size", spec.0.group_size().to_string());
    } else {
        put("mode", "none".to_owned());
    }
    put("method", method.name().to_owned());
    put("rounding", text(rounding));
    if let Some(coverage) = importance {
        put("importance", format!("of hash {}", &coverage.digest.get(..32).unwrap_or_default()));
    }
    for (format, count) in formats(tasks) {
        put(&format!("{COUNT}{format}"), count.to_string());
    }
    put("tensors of the source", digest_text(&(source_tensors, logical_tensors, source_shards)));
    put("config.json of the result", digest_text(&(config, side_files)));
    if let Some(apart) = mtp {
        put("mtp", "separate".to_owned());
        put("config.json of what is apart", digest_text(apart));
    }
    if *preimage {
        put("files", "for the library's `sanitize`".to_owned());
    }
    put("layout", digest_text(&(version, graph, tasks, shards)));
    all
}

/// How many parameters have each format.
fn formats(tasks: &[Task]) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    for task in tasks {
        let name = task.format.as_ref().map_or_else(|| task.dtype.to_string(), |spec| spec.0.to_string());
        *counts.entry(name).or_default() += 1;
    }
    counts
}

/// A plain value as its JSON has it, without quotes.
fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default().trim_matches('"').to_owned()
}

fn digest_text(value: &impl Serialize) -> String {
    format!("{DIGEST}{}", digest(value))
}

/// The hash of a value's JSON, without the text in memory.
fn digest(value: &impl Serialize) -> blake3::Hash {
    let mut hash = Buffered { hash: blake3::Hasher::new(), held: Vec::with_capacity(HELD) };
    serde_json::to_writer(&mut hash, value).expect("plans serialize, and a hash takes every byte");
    hash.hash.update(&hash.held);
    hash.hash.finalize()
}

/// Bytes that are hashed at once: JSON comes in pieces of one or two.
const HELD: usize = 16 << 10;

struct Buffered {
    hash: blake3::Hasher,
    held: Vec<u8>,
}

impl std::io::Write for Buffered {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.held.len() + bytes.len() > HELD {
            self.hash.update(&self.held);
            self.held.clear();
        }
        if bytes.len() > HELD {
            self.hash.update(bytes);
        } else {
            self.held.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
