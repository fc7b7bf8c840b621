//! Positioned reads of named files: all that the rest of smelt knows of where a checkpoint lies.
//!
//! The trait is small so that an object store or a hub can stand behind it: a list of files with
//! sizes, and reads at an offset into the caller's buffer. Nothing above may assume a local path or
//! a memory map. Maps are left out on purpose: an error of a network or external disk would arrive
//! as a signal that kills the process instead of a [`Result`], and mapped pages count as memory of
//! ours, which a program that promises a bound cannot have.

mod local;
mod manifest;
mod memory;
mod stamp;
pub mod testing;

pub use local::LocalSource;
pub(crate) use local::stays_inside;
pub use manifest::ManifestSource;
pub use memory::MemorySource;
pub use stamp::{Stamp, Stamped};

use crate::{Error, Result, SourceError};

/// A file of a [`Source`].
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct FileEntry {
    /// Path relative to the source, parts separated by `/` on every system.
    pub path: String,
    /// Size in bytes.
    pub size: u64,
}

/// A folder of files that can be read at any offset, by any number of threads.
///
/// [`testing::conformance`] checks an implementation against what is said here.
pub trait Source: Send + Sync + std::fmt::Debug {
    /// Where the files are, in words for messages.
    fn location(&self) -> &str;

    /// Every file, also those in folders below, sorted by path bytewise.
    ///
    /// Folders of tools (their names start with a dot) may be left out.
    ///
    /// # Errors
    /// When a folder cannot be listed.
    fn list(&self) -> Result<Vec<FileEntry>>;

    /// [`list`](Self::list) with what tells whether a file is still the same.
    ///
    /// # Errors
    /// When a folder cannot be listed.
    fn stamps(&self) -> Result<Vec<Stamped>> {
        let stamped = |FileEntry { path, size }| Stamped { path, stamp: Stamp { size, modified: None } };
        Ok(self.list()?.into_iter().map(stamped).collect())
    }

    /// Fills `buf` with the bytes of the file `path` from `offset` on: all of it, or an error.
    ///
    /// Of an empty `buf` only the file is checked, not the offset.
    ///
    /// # Errors
    /// [`SourceError::NoSuchFile`] for a path that [`list`](Self::list) would not give (a folder, a
    /// path that leaves the source), [`SourceError::PastEnd`] for a range that does not lie inside the
    /// file, [`SourceError::Read`] for what the system reports. What `buf` holds then is not defined.
    fn read_at(&self, path: &str, offset: u64, buf: &mut [u8]) -> Result<()>;
}

/// Reads the file `path` as a whole if it is at most `limit` bytes long.
///
/// # Errors
/// Those of [`Source::list`] and [`Source::read_at`], and [`SourceError::TooLarge`].
pub fn read_whole(source: &dyn Source, path: &str, limit: u64) -> Result<Vec<u8>> {
    let files = source.list()?;
    let place = files.binary_search_by(|entry| entry.path.as_str().cmp(path));
    let place = place.map_err(|_| SourceError::NoSuchFile {
        location: source.location().to_owned(),
        file: path.to_owned(),
    })?;
    read_entry(source, &files[place], limit)
}

/// [`read_whole`] for a file that is already listed: no second walk of the folders.
///
/// # Errors
/// Those of [`Source::read_at`], and [`SourceError::TooLarge`].
pub fn read_entry(source: &dyn Source, file: &FileEntry, limit: u64) -> Result<Vec<u8>> {
    let too_large =
        || Error::Source(SourceError::TooLarge { file: file.path.clone(), size: file.size, limit });
    if file.size > limit {
        return Err(too_large());
    }
    let mut bytes = vec![0; usize::try_from(file.size).map_err(|_| too_large())?];
    source.read_at(&file.path, 0, &mut bytes)?;
    Ok(bytes)
}
