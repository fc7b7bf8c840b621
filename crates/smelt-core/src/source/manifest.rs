//! A checkpoint without weights, made from a list of its tensors.
//!
//! A manifest is one JSON file: `{"config": {…}, "files": {file: {tensor: [dtype, shape]}}}`. It is
//! enough to plan, to discover a layout and to check a family; the weights read as zeros. This is
//! how hundreds of architectures fit into a test.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{FileEntry, Source};
use crate::checkpoint::{CONFIG, DType};
use crate::error::{Error, Result};

/// A source whose shards have headers and nothing but zeros behind them.
#[derive(Debug)]
pub struct ManifestSource {
    location: String,
    /// The bytes at the beginning of each file, and its size.
    files: BTreeMap<String, (Vec<u8>, u64)>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Value,
    files: BTreeMap<String, BTreeMap<String, (DType, Vec<u64>)>>,
}

impl ManifestSource {
    /// Parses the text of a manifest; `name` is for messages.
    ///
    /// # Errors
    /// [`Error::Manifest`] if it is none.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let manifest: Manifest =
            serde_json::from_str(text).map_err(|source| Error::Manifest { file: name.to_owned(), source })?;
        let config = manifest.config.to_string().into_bytes();
        let mut files = BTreeMap::from([(CONFIG.to_owned(), (config.clone(), config.len() as u64))]);
        for (file, tensors) in manifest.files {
            files.insert(file, shard(&tensors));
        }
        Ok(Self { location: name.to_owned(), files })
    }
}

/// The header of a shard that holds these tensors, and the size of the file.
fn shard(tensors: &BTreeMap<String, (DType, Vec<u64>)>) -> (Vec<u8>, u64) {
    let mut entries = serde_json::Map::new();
    let mut end = 0;
    for (name, (dtype, shape)) in tensors {
        let elements = shape.iter().fold(1u64, |total, &size| total.saturating_mul(size));
        let start = end;
        end += dtype.bytes(elements).unwrap_or(0);
        let entry = json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": [start, end] });
        entries.insert(name.clone(), entry);
    }
    let text = Value::Object(entries).to_string();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.into_bytes());
    let size = bytes.len() as u64 + end;
    (bytes, size)
}

impl Source for ManifestSource {
    fn location(&self) -> &str {
        &self.location
    }

    fn list(&self) -> Result<Vec<FileEntry>> {
        let files = self.files.iter();
        Ok(files.map(|(path, (_, size))| FileEntry { path: path.clone(), size: *size }).collect())
    }

    fn read_at(&self, path: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        let location = || self.location.clone();
        let (bytes, size) = self
            .files
            .get(path)
            .ok_or_else(|| Error::NoSuchFile { location: location(), file: path.to_owned() })?;
        let length = buf.len() as u64;
        if length > 0 && offset.checked_add(length).is_none_or(|end| end > *size) {
            let file = path.to_owned();
            return Err(Error::PastEnd { location: location(), file, size: *size, offset, length });
        }
        buf.fill(0);
        let known = bytes.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or_default();
        let len = known.len().min(buf.len());
        buf[..len].copy_from_slice(&known[..len]);
        Ok(())
    }
}
