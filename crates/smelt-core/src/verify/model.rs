//! A finished model as it lies on the disk, whatever is wrong with it.
//!
//! [`Checkpoint::open`](crate::checkpoint::Checkpoint::open) refuses at the first thing that does not fit;
//! here everything that does not fit is noted and the rest is looked at all the same. Files count as the
//! loaders count them: mlx-lm takes every `model*.safetensors` and never looks at the index, mlx-vlm takes
//! what the index names. A file that only one of them sees is an error.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::de::IgnoredAny;

use super::finding::{Check, Findings};
use crate::Result;
use crate::checkpoint::{CONFIG, Config, INDEX, Index, Shard, StoredTensor, parse_header};
use crate::source::{FileEntry, Source, read_entry};

/// Most bytes of a small file that is read as a whole.
pub(super) const SMALL: u64 = 512 << 20;

const AGAIN: &str = "write or download the model again";

/// A model on the disk.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) source: Arc<dyn Source>,
    /// Every file, sorted by path.
    pub(super) files: Vec<FileEntry>,
    pub(super) config: Option<Config>,
    /// Files of tensors whose header is sound.
    pub(super) shards: Vec<Shard>,
    /// For each of them the bytes before the tensors.
    pub(super) headers: Vec<u64>,
    /// Every tensor, sorted by name.
    pub(super) tensors: Vec<StoredTensor>,
    /// Whether every file of tensors could be read, so that what is missing is really missing.
    pub(super) complete: bool,
}

impl Model {
    /// Looks at a model, noting what is wrong.
    ///
    /// # Errors
    /// Only what keeps the folder from being listed.
    pub(super) fn look(source: Arc<dyn Source>, findings: &mut Findings) -> Result<Self> {
        let files = source.list()?;
        let model = Self {
            source,
            files,
            config: None,
            shards: Vec::new(),
            headers: Vec::new(),
            tensors: Vec::new(),
            complete: true,
        };
        let mut looking = Looking { model, findings };
        looking.config();
        let index = looking.index();
        looking.shards(index.as_ref());
        looking.tensors();
        if let Some(index) = &index {
            looking.compare(index);
        }
        Ok(looking.model)
    }

    /// The file of this path.
    pub(super) fn file(&self, path: &str) -> Option<&FileEntry> {
        let place = self.files.binary_search_by(|file| file.path.as_str().cmp(path));
        place.ok().map(|place| &self.files[place])
    }

    /// The bytes of a small file, if it is there.
    pub(super) fn read_file(&self, path: &str) -> Option<Result<Vec<u8>>> {
        self.file(path).map(|file| read_entry(&*self.source, file, SMALL))
    }

    /// The tensor of this name.
    pub(super) fn find(&self, name: &str) -> Option<&StoredTensor> {
        let place = self.tensors.binary_search_by(|tensor| (*tensor.name).cmp(name));
        place.ok().map(|place| &self.tensors[place])
    }

    /// Bytes before the tensors of a file whose header is sound.
    pub(super) fn header_bytes(&self, path: &str) -> Option<u64> {
        let place = self.shards.iter().position(|shard| shard.path == path);
        place.map(|place| self.headers[place])
    }

    /// Fills `buf` with bytes of a tensor from `offset` on.
    pub(super) fn read(&self, tensor: &StoredTensor, offset: u64, buf: &mut [u8]) -> Result<()> {
        let shard = &self.shards[tensor.shard as usize];
        self.source.read_at(&shard.path, tensor.offset + offset, buf)
    }

    /// Bytes of all tensors.
    pub(super) fn bytes(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.bytes).sum()
    }
}

struct Looking<'a> {
    model: Model,
    findings: &'a mut Findings,
}

impl Looking<'_> {
    fn config(&mut self) {
        match self.model.read_file(CONFIG) {
            None => self.findings.error(Check::Config, CONFIG, "the file is missing", AGAIN),
            Some(bytes) => match bytes.and_then(|bytes| Config::parse(CONFIG, &bytes)) {
                Ok(config) => self.model.config = Some(config),
                Err(error) => self.findings.error(Check::Config, CONFIG, in_full(&error), AGAIN),
            },
        }
    }

    fn index(&mut self) -> Option<Index> {
        match self.model.read_file(INDEX)?.and_then(|bytes| Index::parse(INDEX, &bytes)) {
            Ok(index) => Some(index),
            Err(error) => {
                self.findings.error(Check::Index, INDEX, in_full(&error), AGAIN);
                None
            }
        }
    }

    /// Reads the headers of what either loader takes.
    fn shards(&mut self, index: Option<&Index>) {
        let named: BTreeSet<&str> =
            index.map(|index| index.files().iter().map(String::as_str).collect()).unwrap_or_default();
        let taken: BTreeSet<String> = self.globbed();
        for missing in &named {
            if self.model.file(missing).is_some() {
                continue;
            }
            self.model.complete = false;
            let what = "the index names this file, and it is not there";
            self.findings.error(Check::Shards, missing, what, AGAIN);
        }
        if index.is_some() {
            for spare in taken.iter().filter(|name| !named.contains(name.as_str())) {
                let what = "mlx-lm loads this file although the index does not name it";
                self.findings.error(Check::Leftovers, spare, what, "remove it if it is of another model");
            }
        }
        let there =
            named.iter().filter(|name| self.model.file(name).is_some()).map(|name| (*name).to_owned());
        let all: BTreeSet<String> = there.chain(taken).collect();
        if all.is_empty() {
            self.findings.error(Check::Shards, "*.safetensors", "there are no files of tensors", AGAIN);
        }
        for path in &all {
            self.header(path);
        }
    }

    /// Names of the files that mlx-lm loads; mlx-vlm, without an index, any `*.safetensors`.
    fn globbed(&self) -> BTreeSet<String> {
        let top = self.model.files.iter().map(|file| &file.path).filter(|path| !path.contains('/'));
        let top = top.filter(|path| path.ends_with(".safetensors") && !path.starts_with('.'));
        let (model, other): (BTreeSet<_>, BTreeSet<_>) =
            top.cloned().partition(|path| path.starts_with("model"));
        if model.is_empty() { other } else { model }
    }

    fn header(&mut self, path: &str) {
        let Some(size) = self.model.file(path).map(|file| file.size) else { return };
        let source = Arc::clone(&self.model.source);
        let header = parse_header(path, size, |offset, buf| source.read_at(path, offset, buf));
        let header = match header {
            Ok(header) => header,
            Err(error) => {
                self.model.complete = false;
                self.findings.error(Check::Shards, path, in_full(&error), AGAIN);
                return;
            }
        };
        let shard = self.model.shards.len() as u32;
        self.model.shards.push(Shard { path: path.to_owned(), size });
        self.model.headers.push(header.data_start);
        self.model.tensors.extend(header.tensors.into_iter().map(|info| StoredTensor {
            name: info.name,
            dtype: info.dtype,
            shape: info.shape,
            shard,
            offset: info.offset,
            bytes: info.bytes,
        }));
    }

    /// Sorts the tensors; of two with one name the first stays.
    fn tensors(&mut self) {
        self.model.tensors.sort_unstable_by(|a, b| (&a.name, a.shard).cmp(&(&b.name, b.shard)));
        let findings = &mut *self.findings;
        self.model.tensors.dedup_by(|second, first| {
            let twice = second.name == first.name;
            if twice {
                let advice = "remove the file that is of another model";
                findings.error(Check::Shards, &first.name, "the tensor is in two files", advice);
            }
            twice
        });
    }

    /// Index against shards.
    fn compare(&mut self, index: &Index) {
        let indexed: BTreeMap<&str, usize> = index.entries().collect();
        let advice = "write the index again: it is of another model, or was changed";
        for (name, &file) in &indexed {
            match self.model.find(name) {
                None if self.model.complete => {
                    let what = "the index names this tensor, and no file holds it";
                    self.findings.error(Check::Index, name, what, advice);
                }
                None => {}
                Some(tensor) => {
                    let (holds, says) =
                        (&self.model.shards[tensor.shard as usize].path, &index.files()[file]);
                    if holds != says {
                        let what = format!("`{holds}` holds this tensor, the index says `{says}`");
                        self.findings.error(Check::Index, name, what, advice);
                    }
                }
            }
        }
        for tensor in &self.model.tensors {
            if !indexed.contains_key(&*tensor.name) {
                self.findings.error(Check::Index, &tensor.name, "the index lacks this tensor", advice);
            }
        }
        self.total_size();
    }

    /// The size in the index, which download tools show and check.
    fn total_size(&mut self) {
        let Some(Ok(bytes)) = self.model.read_file(INDEX) else { return };
        let text: Result<Head, _> = serde_json::from_slice(&bytes);
        let says = text.ok().and_then(|head| head.metadata).and_then(|metadata| metadata.total_size);
        let holds = self.model.bytes();
        if self.model.complete && says.is_some_and(|says| says != holds as f64) {
            let what =
                format!("`metadata.total_size` is {}, the tensors have {holds} bytes", says.unwrap_or(0.0));
            self.findings.warning(Check::Index, INDEX, what, "write the index again");
        }
    }
}

/// The beginning of an index.
#[derive(serde::Deserialize)]
struct Head {
    metadata: Option<Metadata>,
    #[serde(rename = "weight_map")]
    _map: IgnoredAny,
}

#[derive(serde::Deserialize)]
struct Metadata {
    /// Some writers have a float here.
    total_size: Option<f64>,
}

/// An error with its causes, in one line.
pub(super) fn in_full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}
