//! Opening: read the small files, read the headers, then make sure that they agree.

use std::sync::Arc;

use serde_json::Value;

use super::header::{Header, parse_header};
use super::logical::{Declared, pair};
use super::{CONFIG, Checkpoint, Config, INDEX, Index, JsonText, Shard, Storage, StoredTensor};
use super::{classify, files};
use crate::source::{FileEntry, Source, Stamped, read_entry};
use crate::{CheckpointError, Error, Result};

/// Most bytes of a configuration: thousands of per-layer overrides take a few megabytes.
const CONFIG_LIMIT: u64 = 64 << 20;

/// Most bytes of an index: ninety thousand tensors take eleven megabytes.
const INDEX_LIMIT: u64 = 512 << 20;

/// Headers read at once. It bounds the memory (a header may have 100 MB) more than it gives speed.
const HEADER_THREADS: usize = 4;

pub(super) fn open(source: Arc<dyn Source>) -> Result<Checkpoint> {
    let stamps = source.stamps()?;
    let listed: Vec<FileEntry> = stamps.iter().map(Stamped::entry).collect();
    let small = Small { source: &*source, listed: &listed };
    let config = small.read(CONFIG, CONFIG_LIMIT)?;
    let config =
        config.ok_or_else(|| CheckpointError::NoConfig { location: source.location().to_owned() })?;
    let config = Config::parse(CONFIG, &config)?.spelled_out();
    let index = small.read(INDEX, INDEX_LIMIT)?;
    let index = index.map(|bytes| Index::parse(INDEX, &bytes)).transpose()?;
    let modelopt = small.modelopt()?;
    let files = classify(&listed, index.as_ref());
    every_shard(&*source, index.as_ref(), &files.shards)?;
    if files.shards.is_empty() {
        return Err(CheckpointError::NoWeights {
            location: source.location().to_owned(),
            other: files::other_weights(&listed).map(str::to_owned),
        }
        .into());
    }
    let headers = read_headers(&*source, &files.shards)?;
    let tensors = merge(&*source, headers, &files.shards)?;
    if let Some(index) = &index {
        agree(index, &tensors, &files.shards)?;
    }
    let storage = Storage::detect(&config, modelopt.as_ref(), &tensors);
    let pairing = pair(&Declared::of(&config, modelopt.as_ref()), &tensors);
    Ok(Checkpoint { source, config, files, tensors, storage, pairing, stamps })
}

/// The small files of a source.
struct Small<'a> {
    source: &'a dyn Source,
    listed: &'a [FileEntry],
}

impl Small<'_> {
    /// The bytes of a file, or `None` if there is no such file.
    fn read(&self, path: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        let place = self.listed.binary_search_by(|file| file.path.as_str().cmp(path));
        place.ok().map(|place| read_entry(self.source, &self.listed[place], limit)).transpose()
    }

    /// `hf_quant_config.json`. It only serves a description, but a broken one is a broken download.
    fn modelopt(&self) -> Result<Option<Value>> {
        let name = "hf_quant_config.json";
        let bytes = self.read(name, CONFIG_LIMIT)?;
        bytes.map(|bytes| Ok(JsonText::parse(name, &bytes)?.value())).transpose()
    }
}

/// Every file that the index names must be there.
fn every_shard(source: &dyn Source, index: Option<&Index>, shards: &[Shard]) -> Result<()> {
    let named = index.map_or(&[][..], Index::files);
    let present = |name: &String| shards.binary_search_by(|shard| shard.path.cmp(name)).is_ok();
    match named.iter().find(|name| !present(name)) {
        None => Ok(()),
        Some(missing) => Err(CheckpointError::MissingShard {
            location: source.location().to_owned(),
            shard: missing.clone(),
        }
        .into()),
    }
}

/// The headers in the order of the shards; of several errors the first by that order, so that a
/// broken checkpoint gives the same message every time.
fn read_headers(source: &dyn Source, shards: &[Shard]) -> Result<Vec<Header>> {
    let workers = HEADER_THREADS.min(shards.len());
    let read = |first: usize| {
        let mine = shards.iter().enumerate().skip(first).step_by(workers);
        mine.map(|(place, shard)| (place, read_header(source, shard))).collect::<Vec<_>>()
    };
    let mut headers = std::thread::scope(|scope| {
        let read = &read;
        let threads: Vec<_> = (0..workers).map(|first| scope.spawn(move || read(first))).collect();
        let joined = threads.into_iter().map(|thread| thread.join().expect("readers do not panic"));
        joined.flatten().collect::<Vec<_>>()
    });
    headers.sort_unstable_by_key(|(place, _)| *place);
    headers.into_iter().map(|(_, header)| header).collect()
}

fn read_header(source: &dyn Source, shard: &Shard) -> Result<Header> {
    parse_header(&shard.path, shard.size, |offset, buf| source.read_at(&shard.path, offset, buf))
}

/// All tensors sorted by name, each name once.
fn merge(source: &dyn Source, headers: Vec<Header>, shards: &[Shard]) -> Result<Vec<StoredTensor>> {
    let count = headers.iter().map(|header| header.tensors.len()).sum();
    if u32::try_from(count).is_err() {
        let location = source.location().to_owned();
        return Err(CheckpointError::TooManyTensors { location, count: count as u64 }.into());
    }
    let mut tensors = Vec::with_capacity(count);
    for (shard, header) in headers.into_iter().enumerate() {
        tensors.extend(header.tensors.into_iter().map(|info| StoredTensor {
            name: info.name,
            dtype: info.dtype,
            shape: info.shape,
            shard: shard as u32,
            offset: info.offset,
            bytes: info.bytes,
        }));
    }
    tensors.sort_unstable_by(|a, b| (&a.name, a.shard).cmp(&(&b.name, b.shard)));
    match tensors.windows(2).find(|pair| pair[0].name == pair[1].name) {
        None => Ok(tensors),
        Some(pair) => Err(CheckpointError::TensorTwice {
            tensor: pair[0].name.to_string(),
            first: shards[pair[0].shard as usize].path.clone(),
            second: shards[pair[1].shard as usize].path.clone(),
        }
        .into()),
    }
}

/// Index and shards must name the same tensors in the same places: a difference means that one of
/// them is of another checkpoint, and then neither can be trusted. Both are sorted by name.
fn agree(index: &Index, tensors: &[StoredTensor], shards: &[Shard]) -> Result<()> {
    let shard_of = |tensor: &StoredTensor| shards[tensor.shard as usize].path.as_str();
    let mut stored = tensors.iter().peekable();
    for (name, file) in index.entries() {
        let indexed = &index.files()[file];
        match stored.peek() {
            Some(tensor) if *tensor.name < *name => {
                return Err(unindexed(tensor, shard_of(tensor)));
            }
            Some(tensor) if *tensor.name == *name => {
                if shard_of(tensor) != indexed {
                    return Err(CheckpointError::MisplacedTensor {
                        shard: shard_of(tensor).to_owned(),
                        indexed: indexed.clone(),
                        tensor: name.to_owned(),
                    }
                    .into());
                }
                stored.next();
            }
            _ => {
                let (shard, tensor) = (indexed.clone(), name.to_owned());
                return Err(CheckpointError::MissingTensor { shard, tensor }.into());
            }
        }
    }
    stored.next().map_or(Ok(()), |tensor| Err(unindexed(tensor, shard_of(tensor))))
}

fn unindexed(tensor: &StoredTensor, shard: &str) -> Error {
    let (shard, tensor) = (shard.to_owned(), tensor.name.to_string());
    Error::Checkpoint(CheckpointError::UnindexedTensor { shard, tensor })
}
