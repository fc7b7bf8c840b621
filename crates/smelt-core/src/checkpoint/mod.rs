//! A checkpoint: the tensors of all shards under one roof, the configuration, and the other files.
//!
//! [`Checkpoint::open`] reads headers only, a few megabytes even of a model of a terabyte, and
//! refuses whatever does not fit together: after it, every tensor is known to lie inside its shard
//! and every shard to be the one that the index means. Tensor data is read later, in the pieces
//! that the caller asks for.

mod config;
mod dtype;
mod files;
mod header;
mod index;
mod json;
pub mod logical;
mod open;
pub(crate) mod read;
pub mod region;
mod spelling;
mod storage;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use config::{CONFIG, Config};
pub use dtype::DType;
pub use files::{Files, classify};
pub use header::{Header, MAX_HEADER, TensorInfo, parse_header};
pub use index::{INDEX, Index};
pub use json::JsonText;
pub use logical::{LogicalTensor, StorageProblem};
pub use storage::Storage;

use logical::{Pairing, Part};

use crate::source::{FileEntry, Source, Stamped};
use crate::{CheckpointError, Result};

/// Place of a tensor in [`Checkpoint::logical_tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TensorId(pub u32);

/// Place of a stored tensor in [`Checkpoint::tensors`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct StoredId(pub u32);

/// A tensor as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// Name.
    pub name: Box<str>,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Box<[u64]>,
    /// Place of its shard in [`Checkpoint::shards`].
    pub shard: u32,
    /// First byte, from the start of the shard.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// A safetensors file that belongs to the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Path inside the source.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
}

/// A file that neither holds the model nor goes along with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Path inside the source.
    pub path: String,
    /// Why.
    pub why: &'static str,
}

/// An opened checkpoint.
#[derive(Debug)]
pub struct Checkpoint {
    source: Arc<dyn Source>,
    config: Config,
    files: Files,
    tensors: Vec<StoredTensor>,
    storage: Storage,
    pairing: Pairing,
    stamps: Vec<Stamped>,
}

impl Checkpoint {
    /// Opens the checkpoint that `source` holds: configuration, index and all headers.
    ///
    /// An index decides which shards count; see [`classify`] for the rule without one.
    ///
    /// # Errors
    /// No or broken `config.json`, no safetensors file, every refusal of [`parse_header`] and
    /// [`Index::parse`], shards and index that name different tensors, one tensor in two shards,
    /// and what the source reports.
    pub fn open(source: Arc<dyn Source>) -> Result<Self> {
        open::open(source)
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The source.
    pub fn source(&self) -> &Arc<dyn Source> {
        &self.source
    }

    /// Sizes and times of the files that the result is made of, before the first of them was
    /// read, sorted by path.
    pub fn stamps(&self) -> impl Iterator<Item = &Stamped> {
        self.stamps.iter().filter(|file| self.reads(&file.path))
    }

    /// Whether the result depends on a file of the source.
    pub fn reads(&self, path: &str) -> bool {
        path == CONFIG
            || path == INDEX
            || files::SOURCE_QUANTIZATION.contains(&path)
            || self.files.shards.binary_search_by(|shard| shard.path.as_str().cmp(path)).is_ok()
            || self.files.side.binary_search_by(|file| file.path.as_str().cmp(path)).is_ok()
    }

    /// Every tensor of every shard, sorted by name bytewise.
    pub fn tensors(&self) -> &[StoredTensor] {
        &self.tensors
    }

    /// The stored tensor of this name.
    pub fn find(&self, name: &str) -> Option<StoredId> {
        find(&self.tensors, name)
    }

    /// What the stored tensors mean, sorted by name bytewise: the same, one for one, where all are plain
    /// or where [`Self::check_storage`] fails.
    pub fn logical_tensors(&self) -> &[LogicalTensor] {
        &self.pairing.logical
    }

    /// The logical tensor of this id.
    ///
    /// # Panics
    /// If the id is of another checkpoint.
    pub fn logical(&self, id: TensorId) -> &LogicalTensor {
        &self.pairing.logical[id.0 as usize]
    }

    /// The id of a part of a native tensor, as a source of expressions: behind those of the logical tensors.
    pub fn part_id(&self, id: TensorId, part: Part) -> TensorId {
        TensorId(self.pairing.logical.len() as u32 + id.0 * Part::ALL.len() as u32 + part as u32)
    }

    /// The logical tensor that an id means, or of which it means a part.
    pub(crate) fn part_of(&self, id: TensorId) -> (&LogicalTensor, Option<Part>) {
        let parts = Part::ALL.len();
        match (id.0 as usize).checked_sub(self.pairing.logical.len()) {
            None => (self.logical(id), None),
            Some(behind) => (&self.pairing.logical[behind / parts], Some(Part::ALL[behind % parts])),
        }
    }

    /// Stored tensors that say nothing of a weight, and why they are left out.
    pub fn unused(&self) -> &[(StoredId, &'static str)] {
        &self.pairing.unused
    }

    /// The storage formats in words, with the number of tensors in each.
    pub fn formats(&self) -> BTreeMap<String, u64> {
        let mut formats = BTreeMap::new();
        for words in self.pairing.logical.iter().filter_map(LogicalTensor::format) {
            *formats.entry(words).or_default() += 1;
        }
        formats
    }

    /// In which form the weights are stored, in words: the formats of the tensors where they are known.
    pub fn describe_storage(&self) -> String {
        let formats = self.formats();
        if formats.is_empty() || matches!(self.storage, Storage::Mlx { .. }) {
            return self.storage.describe();
        }
        let plain = self.pairing.logical.iter().filter(|tensor| tensor.is_plain()).count();
        let listed = formats.iter().map(|(words, count)| format!("{words} ({count} tensors)"));
        format!("{}; {plain} tensors of plain floats", listed.collect::<Vec<_>>().join("; "))
    }

    /// Whether the stored tensors are floats, or make them up.
    ///
    /// # Errors
    /// [`CheckpointError::Storage`] with everything that is missing, spare, contradictory or unknown.
    pub fn check_storage(&self) -> Result<()> {
        match &self.pairing.problems[..] {
            [] => Ok(()),
            problems => Err(CheckpointError::Storage { problems: problems.to_vec().into() }.into()),
        }
    }

    /// Bytes that reading a region takes beside its result, at most.
    pub fn read_overhead(&self) -> u64 {
        read::OVERHEAD + self.pairing.scratch
    }

    /// The stored tensor of this id.
    ///
    /// # Panics
    /// If the id is of another checkpoint.
    pub fn tensor(&self, id: StoredId) -> &StoredTensor {
        &self.tensors[id.0 as usize]
    }

    /// Shards that count, sorted by path.
    pub fn shards(&self) -> &[Shard] {
        &self.files.shards
    }

    /// Files to copy byte for byte, sorted by path. `config.json` is not among them.
    pub fn side_files(&self) -> &[FileEntry] {
        &self.files.side
    }

    /// Files that are not used, sorted by path.
    pub fn left_out(&self) -> &[LeftOut] {
        &self.files.left_out
    }

    /// In which form the weights are stored.
    pub fn storage(&self) -> Storage {
        self.storage.clone()
    }

    /// Fills `buf` with bytes of a tensor from `offset` (within the tensor) on.
    ///
    /// # Errors
    /// [`CheckpointError::OutsideTensor`] if the range leaves the tensor, and those of
    /// [`Source::read_at`].
    ///
    /// # Panics
    /// If the id is of another checkpoint.
    pub fn read(&self, id: StoredId, offset: u64, buf: &mut [u8]) -> Result<()> {
        let tensor = self.tensor(id);
        let shard = &self.files.shards[tensor.shard as usize];
        let length = buf.len() as u64;
        if offset.checked_add(length).is_none_or(|end| end > tensor.bytes) {
            return Err(CheckpointError::OutsideTensor {
                shard: shard.path.clone(),
                tensor: tensor.name.to_string(),
                bytes: tensor.bytes,
                offset,
                length,
            }
            .into());
        }
        self.source.read_at(&shard.path, tensor.offset + offset, buf)
    }
}

/// The tensor of this name among `tensors`, sorted by name.
fn find(tensors: &[StoredTensor], name: &str) -> Option<StoredId> {
    let place = tensors.binary_search_by(|tensor| (*tensor.name).cmp(name)).ok()?;
    Some(StoredId(place as u32))
}
