//! Files in memory, for tests.

use std::collections::BTreeMap;

use super::{FileEntry, Source};
use crate::{Result, SourceError};

/// A [`Source`] whose files are byte vectors.
#[derive(Clone, Debug, Default)]
pub struct MemorySource {
    files: BTreeMap<String, Vec<u8>>,
}

impl MemorySource {
    /// A source of these files; of two with the same path the later one counts.
    ///
    /// ```
    /// use smelt_core::source::{MemorySource, Source};
    ///
    /// let source = MemorySource::new([("config.json", "{}")]);
    /// assert_eq!(source.list().unwrap()[0].size, 2);
    /// ```
    pub fn new<P, B>(files: impl IntoIterator<Item = (P, B)>) -> Self
    where
        P: Into<String>,
        B: Into<Vec<u8>>,
    {
        let files = files.into_iter().map(|(path, bytes)| (path.into(), bytes.into()));
        Self { files: files.collect() }
    }
}

impl Source for MemorySource {
    fn location(&self) -> &'static str {
        "memory"
    }

    fn list(&self) -> Result<Vec<FileEntry>> {
        let entry =
            |(path, bytes): (&String, &Vec<u8>)| FileEntry { path: path.clone(), size: bytes.len() as u64 };
        Ok(self.files.iter().map(entry).collect())
    }

    fn read_at(&self, path: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        let bytes = self.files.get(path).ok_or_else(|| SourceError::NoSuchFile {
            location: self.location().to_owned(),
            file: path.to_owned(),
        })?;
        if buf.is_empty() {
            return Ok(());
        }
        let start = usize::try_from(offset).ok();
        let range = start.and_then(|start| Some(start..start.checked_add(buf.len())?));
        let part = range.and_then(|range| bytes.get(range)).ok_or_else(|| SourceError::PastEnd {
            location: self.location().to_owned(),
            file: path.to_owned(),
            size: bytes.len() as u64,
            offset,
            length: buf.len() as u64,
        })?;
        buf.copy_from_slice(part);
        Ok(())
    }
}
