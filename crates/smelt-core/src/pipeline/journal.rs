//! The journal of a run: which tensors are finished, so that another run can go on.
//!
//! A text file in the output directory, a line for each record, appended to and never changed. The
//! first line is the [`Header`]: the [`Fingerprint`] of the run and the names of the files that it
//! writes. Then comes a [`Record`] for each finished tensor, written only when the tensor's bytes are
//! known to be on the disk. Each line begins with a hash of itself and the fingerprint: what a loss
//! of power leaves of a line, or another run's line, is not taken for one. The file is also the lock:
//! whoever writes the output holds it, and the operating system lets go of it when a process ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use blake3::Hash;
use serde::{Deserialize, Serialize};
use smelt_kernels::Distortion;

use super::disk::DiskFile;
use super::fingerprint::Fingerprint;
use super::output::write_error;
use super::weigh::Weighed;
use crate::error::Result;

/// Name of the journal in an output directory that is not finished.
pub const JOURNAL: &str = "smelt-journal.partial";

/// The version of the journal. It is part of the first line, so an older journal is refused.
const VERSION: u32 = 1;

/// A longer line is none of ours.
const LONGEST: usize = 64 << 20;

/// Bytes read at once.
const PIECE: usize = 64 << 10;

/// Hexadecimal digits in front of each line.
const CHECK: usize = 16;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    journal: u32,
    /// What the run is made of.
    pub(super) fingerprint: Fingerprint,
    /// The files that it writes, by their paths in the output.
    pub(super) writes: Vec<String>,
}

impl Header {
    pub(super) fn new(fingerprint: Fingerprint, writes: Vec<String>) -> Self {
        Self { journal: VERSION, fingerprint, writes }
    }
}

/// A line behind the first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Record {
    /// A task is finished and its bytes are on the disk.
    Done {
        /// Which, by its place in the plan.
        task: usize,
        /// BLAKE3 of each of its parts.
        parts: Vec<String>,
        /// What its weights amount to.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        weighed: Option<Weighed>,
        /// How far a sample of its weights is from the source, for the report of the run that ends.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sample: Option<Sample>,
    },
    /// A file is begun anew: what was finished in it is not any more.
    Lost {
        /// Which shard.
        shard: u32,
    },
}

/// The sums of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Sample {
    error: f64,
    energy: f64,
    max: f32,
}

impl Sample {
    /// Of sums that are numbers: JSON has no others.
    pub(super) fn of(sums: &Distortion) -> Option<Self> {
        let Distortion { error, energy, max } = *sums;
        let finite = error.is_finite() && energy.is_finite() && max.is_finite();
        finite.then_some(Self { error, energy, max })
    }

    pub(super) fn sums(self) -> Distortion {
        Distortion { error: self.error, energy: self.energy, max: self.max }
    }
}

/// What a journal holds.
#[derive(Debug)]
pub(super) struct Contents {
    pub(super) header: Header,
    pub(super) records: Vec<Record>,
    /// Bytes that are sound; what is behind them is the rest of a line.
    length: u64,
}

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    file: Box<dyn DiskFile>,
    path: PathBuf,
    /// Goes into the check of every line but the first.
    run: Hash,
    end: Mutex<u64>,
}

impl Journal {
    /// Begins a journal in an empty file.
    pub(super) fn begin(file: Box<dyn DiskFile>, path: &Path, header: &Header) -> Result<Self> {
        let run = header.fingerprint.digest();
        let journal = Self { file, path: path.to_owned(), run, end: Mutex::new(0) };
        journal.file.set_length(0).map_err(write_error(path))?;
        let text = serde_json::to_string(header).expect("a header serializes");
        journal.append(&line(&text, None))?;
        Ok(journal)
    }

    /// Goes on behind what `contents` were read from it.
    pub(super) fn resume(file: Box<dyn DiskFile>, path: &Path, contents: &Contents) -> Result<Self> {
        file.set_length(contents.length).map_err(write_error(path))?;
        let run = contents.header.fingerprint.digest();
        Ok(Self { file, path: path.to_owned(), run, end: Mutex::new(contents.length) })
    }

    /// Adds records; when this returns they are on the disk.
    pub(super) fn record(&self, records: &[Record]) -> Result<()> {
        let text = |record| serde_json::to_string(record).expect("a record serializes");
        let lines: String = records.iter().map(|record| line(&text(record), Some(&self.run))).collect();
        self.append(&lines)
    }

    fn append(&self, lines: &str) -> Result<()> {
        let mut end = self.lock();
        let write = self.file.write_at(lines.as_bytes(), *end).and_then(|()| self.file.sync());
        write.map_err(write_error(&self.path))?;
        *end += lines.len() as u64;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, u64> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads a journal as far as it is sound; `None` if not even its first line is.
pub(super) fn read(file: &dyn DiskFile, path: &Path) -> Result<Option<Contents>> {
    let mut lines = Lines { file, size: file.length().map_err(write_error(path))?, at: 0, held: Vec::new() };
    let Some(first) = lines.next(path)? else { return Ok(None) };
    let header = checked(&first, None).and_then(|text| serde_json::from_str::<Header>(text).ok());
    let Some(header) = header.filter(|header| header.journal == VERSION) else { return Ok(None) };
    let run = header.fingerprint.digest();
    let mut contents = Contents { header, records: Vec::new(), length: first.len() as u64 + 1 };
    while let Some(line) = lines.next(path)? {
        let record = checked(&line, Some(&run)).and_then(|text| serde_json::from_str(text).ok());
        let Some(record) = record else { break };
        contents.records.push(record);
        contents.length += line.len() as u64 + 1;
    }
    Ok(Some(contents))
}

/// The samples of tasks by the records that say most lately that these are finished.
pub(super) fn samples(records: &[Record]) -> BTreeMap<usize, Sample> {
    let mut latest = BTreeMap::new();
    for record in records {
        if let Record::Done { task, sample, .. } = record {
            latest.insert(*task, *sample);
        }
    }
    latest.into_iter().filter_map(|(task, sample)| Some((task, sample?))).collect()
}

fn check(text: &str, run: Option<&Hash>) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(run.map_or(&[][..], |run| run.as_bytes())).update(text.as_bytes());
    hash.finalize().to_hex()[..CHECK].to_owned()
}

fn line(text: &str, run: Option<&Hash>) -> String {
    format!("{} {text}\n", check(text, run))
}

/// The text of a line that is as it was written.
fn checked<'a>(line: &'a [u8], run: Option<&Hash>) -> Option<&'a str> {
    let (found, text) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    (found == check(text, run)).then_some(text)
}

/// The lines of a file, read piece by piece.
struct Lines<'a> {
    file: &'a dyn DiskFile,
    size: u64,
    at: u64,
    held: Vec<u8>,
}

impl Lines<'_> {
    /// The next line without its end; `None` for one that has no end.
    fn next(&mut self, path: &Path) -> Result<Option<Vec<u8>>> {
        let mut searched = 0;
        loop {
            let end = self.held[searched..].iter().position(|&byte| byte == b'\n');
            if let Some(end) = end {
                let rest = self.held.split_off(searched + end + 1);
                let mut line = std::mem::replace(&mut self.held, rest);
                line.pop();
                return Ok(Some(line));
            }
            searched = self.held.len();
            let piece = (self.size - self.at).min(PIECE as u64) as usize;
            if piece == 0 || searched > LONGEST {
                return Ok(None);
            }
            self.held.resize(searched + piece, 0);
            self.file.read_at(&mut self.held[searched..], self.at).map_err(write_error(path))?;
            self.at += piece as u64;
        }
    }
}
