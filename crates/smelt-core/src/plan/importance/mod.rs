//! How much the inputs of a module matter: a weight for each input channel, the mean square of what passes through it
//! on some text, up to a factor. The error of a weight counts by its channel's.
//!
//! The weights come from a file that another tool or `bench/quality/importance.py` wrote. For a model of hundreds
//! of experts in each layer that is more than a gigabyte, so what is held is an index: which entry of the file is for
//! which module, and a count for each expert. [`Statistics`] is the index of a file, [`Importance`] that of a
//! plan's modules in it, and a [`Reader`] fetches the weights of the experts that a block touches. The whole file is
//! read once before anything is written, so that bad numbers are refused in time.

mod bind;
mod bytes;
mod channels;
mod coverage;
mod entry;
mod error;
mod gguf;
mod inputs;
mod legacy;
mod names;
mod npz;
mod own;
mod read;
mod rows;
mod statistics;

use std::collections::HashMap;

pub use channels::Channels;
pub use coverage::Coverage;
pub use error::ImportanceError;
pub use read::Reader;
pub(crate) use read::block_bytes;
pub use statistics::{Kind, Statistics};

use self::bind::{Bound, Key, Weighing, bind, knows};
use self::bytes::Bytes;
use self::entry::Entry;
use self::rows::Rows;
use super::Plan;
use crate::checkpoint::Config;
use crate::error::Result;

/// What an entry of the index takes, roughly: its name twice, where it lies.
const PER_ENTRY: u64 = 400;

/// The weights of the modules of a plan, in a file.
#[derive(Debug)]
pub struct Importance {
    statistics: Statistics,
    bound: Bound,
}

impl Importance {
    /// Finds the modules of a plan in a file, and reads all that is for them once. Formats decide nothing: it serves
    /// every plan of the same checkpoint and layout.
    ///
    /// # Errors
    /// [`ImportanceError`] if the file is of another model, or has what is no importance.
    pub fn new(statistics: Statistics, plan: &Plan, config: &Config) -> Result<Self> {
        let bound = bind(&statistics, plan, config)?;
        Ok(Self { statistics, bound })
    }

    /// Reads weights.
    pub fn reader(&self) -> Reader<'_> {
        Reader::new(self)
    }

    /// What tells these weights from others: BLAKE3 of the file.
    pub fn digest(&self) -> &str {
        &self.statistics.digest
    }

    /// How many modules have weights.
    pub fn len(&self) -> usize {
        self.bound.modules.len()
    }

    /// Whether no module has.
    pub fn is_empty(&self) -> bool {
        self.bound.modules.is_empty()
    }

    /// Whether a module has weights.
    pub fn knows(&self, module: &str) -> bool {
        self.weighing(module).is_some()
    }

    /// Entries of the file that are for no module.
    pub fn unused(&self) -> &[String] {
        &self.bound.unused
    }

    fn file(&self) -> &Bytes {
        &self.statistics.file
    }

    fn entry(&self, place: u32) -> &Entry {
        &self.statistics.entries[place as usize]
    }

    fn rows(&self) -> &HashMap<Key, Rows> {
        &self.bound.rows
    }

    fn weighing(&self, module: &str) -> Option<&Weighing> {
        self.bound.modules.get(module)
    }

    /// Experts of a module without data.
    fn unseen(&self, module: &str) -> u64 {
        let Some(Weighing { parts, .. }) = self.weighing(module) else { return 0 };
        (0..parts.rows()).filter(|&expert| !knows(self.rows(), parts, expert)).count() as u64
    }

    /// What is known without a plan.
    fn facts(&self) -> Coverage {
        let rows: u64 = self.bound.rows.values().map(Rows::bytes).sum();
        let each = |weighing: &Weighing| 8 * weighing.parts.rows();
        let parts: u64 = self.bound.modules.values().map(each).sum();
        let entries = self.statistics.len() + self.bound.modules.len() + self.bound.unused.len();
        Coverage {
            file: self.statistics.file.name.clone(),
            kind: self.statistics.kind,
            digest: self.statistics.digest.clone(),
            modules: 0,
            weighed: 0,
            experts_without_data: 0,
            unused_entries: self.bound.unused.len() as u64,
            held_bytes: rows + parts + PER_ENTRY * entries as u64,
        }
    }
}
