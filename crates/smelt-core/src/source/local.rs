//! A directory of the local file system.
//!
//! Files are opened for reading only, whatever happens: a tool that opens its source for writing
//! can destroy a cache that other programs share, and fails on a read-only one. Symbolic links are
//! followed, because the cache of the Hugging Face hub is made of them.
//!
//! Reads are positioned (`pread`), so threads share a handle without a lock around the read. The
//! handles themselves are kept in a small cache: a checkpoint may have two hundred shards, and
//! macOS gives a process 256 descriptors.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::stamp::{Stamp, Stamped, decimal};
use super::{FileEntry, Source};
use crate::{Error, Result, SourceError};

/// Handles kept open. Threads in the middle of a read may hold a few more for a moment.
const MAX_HANDLES: usize = 48;

/// A [`Source`] over a local directory.
#[derive(Debug)]
pub struct LocalSource {
    dir: PathBuf,
    location: String,
    handles: Mutex<Handles>,
}

/// An open file with the size that it had when it was opened.
#[derive(Debug)]
struct Handle {
    file: File,
    size: u64,
}

/// Open files, the most recently used last.
#[derive(Debug, Default)]
struct Handles {
    open: Vec<(String, Arc<Handle>)>,
}

impl Handles {
    /// The handle of `path`, which then counts as used.
    fn get(&mut self, path: &str) -> Option<Arc<Handle>> {
        let place = self.open.iter().rposition(|(name, _)| name == path)?;
        self.open[place..].rotate_left(1);
        self.open.last().map(|(_, handle)| Arc::clone(handle))
    }

    /// Keeps `handle`, at the cost of the one that was unused for longest.
    fn put(&mut self, path: &str, handle: &Arc<Handle>) {
        if self.open.len() >= MAX_HANDLES {
            self.open.remove(0);
        }
        self.open.push((path.to_owned(), Arc::clone(handle)));
    }
}

impl LocalSource {
    /// A source over the files of `dir`.
    ///
    /// # Errors
    /// [`SourceError::Directory`] if there is no such directory, [`SourceError::NotADirectory`] for a
    /// file.
    pub fn open(dir: &Path) -> Result<Self> {
        let location = dir.display().to_string();
        match fs::metadata(dir) {
            Err(source) => Err(SourceError::Directory { path: location, source }.into()),
            Ok(found) if !found.is_dir() => Err(SourceError::NotADirectory { path: location }.into()),
            Ok(_) => Ok(Self { dir: dir.to_owned(), location, handles: Mutex::default() }),
        }
    }

    fn no_such_file(&self, path: &str) -> Error {
        Error::Source(SourceError::NoSuchFile { location: self.location.clone(), file: path.to_owned() })
    }

    fn read_error(&self, path: &str, source: io::Error) -> Error {
        let missing = [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory];
        if missing.contains(&source.kind()) {
            return self.no_such_file(path);
        }
        Error::Source(SourceError::Read { location: self.location.clone(), file: path.to_owned(), source })
    }

    /// The handle of `path`, from the cache or opened.
    fn handle(&self, path: &str) -> Result<Arc<Handle>> {
        // A panic elsewhere cannot leave the list half changed, so a poisoned lock is still good.
        let cached = self.handles.lock().unwrap_or_else(PoisonError::into_inner).get(path);
        if let Some(handle) = cached {
            return Ok(handle);
        }
        // Opened outside the lock: on a network disk this takes long enough to stall the others.
        let handle = Arc::new(self.open_file(path)?);
        self.handles.lock().unwrap_or_else(PoisonError::into_inner).put(path, &handle);
        Ok(handle)
    }

    fn open_file(&self, path: &str) -> Result<Handle> {
        if !stays_inside(path) {
            return Err(self.no_such_file(path));
        }
        let full = self.dir.join(path);
        // Asked before opening, because opening a pipe would wait for a writer.
        let found = fs::metadata(&full).map_err(|error| self.read_error(path, error))?;
        if !found.is_file() {
            return Err(self.no_such_file(path));
        }
        let file = File::open(full).map_err(|error| self.read_error(path, error))?;
        Ok(Handle { file, size: found.len() })
    }

    /// Adds the files of the folder `prefix` (empty or ending in `/`) and below to `files`.
    ///
    /// `above` holds the real paths of the folders on the way, so that a link to one of them is
    /// not followed round and round.
    fn walk(&self, prefix: &str, above: &mut Vec<PathBuf>, files: &mut Vec<Stamped>) -> Result<()> {
        let dir = self.dir.join(prefix);
        let failed =
            |source| Error::Source(SourceError::Directory { path: dir.display().to_string(), source });
        let real = fs::canonicalize(&dir).map_err(failed)?;
        if above.contains(&real) {
            return Ok(());
        }
        above.push(real);
        for entry in fs::read_dir(&dir).map_err(failed)? {
            self.visit(prefix, &entry.map_err(failed)?, above, files)?;
        }
        above.pop();
        Ok(())
    }

    fn visit(
        &self,
        prefix: &str,
        entry: &fs::DirEntry,
        above: &mut Vec<PathBuf>,
        files: &mut Vec<Stamped>,
    ) -> Result<()> {
        let name = entry.file_name();
        let name = name.to_str().ok_or_else(|| SourceError::FileName {
            location: self.location.clone(),
            name: name.to_string_lossy().into_owned(),
        })?;
        let path = format!("{prefix}{name}");
        // `metadata` of the path, not of the entry: that one would describe the link itself.
        let found = fs::metadata(entry.path()).map_err(|error| self.read_error(&path, error))?;
        if found.is_file() {
            let modified = found.modified().ok().map(decimal);
            files.push(Stamped { path, stamp: Stamp { size: found.len(), modified } });
        } else if found.is_dir() && !name.starts_with('.') {
            self.walk(&format!("{path}/"), above, files)?;
        }
        Ok(())
    }
}

impl Source for LocalSource {
    fn location(&self) -> &str {
        &self.location
    }

    fn list(&self) -> Result<Vec<FileEntry>> {
        Ok(self.stamps()?.iter().map(Stamped::entry).collect())
    }

    fn stamps(&self) -> Result<Vec<Stamped>> {
        let mut files = Vec::new();
        self.walk("", &mut Vec::new(), &mut files)?;
        files.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(files)
    }

    fn read_at(&self, path: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        let handle = self.handle(path)?;
        if buf.is_empty() {
            return Ok(());
        }
        let past_end = |size, length| {
            Error::Source(SourceError::PastEnd {
                location: self.location.clone(),
                file: path.to_owned(),
                size,
                offset,
                length,
            })
        };
        let length = buf.len() as u64;
        if offset.checked_add(length).is_none_or(|end| end > handle.size) {
            return Err(past_end(handle.size, length));
        }
        read_exact_at(&handle.file, buf, offset).map_err(|error| match error.kind() {
            // The file was cut after it was opened.
            io::ErrorKind::UnexpectedEof => {
                past_end(handle.file.metadata().map_or(0, |found| found.len()), length)
            }
            _ => self.read_error(path, error),
        })
    }
}

/// Whether `path` is relative and names no parent, so that an index cannot point outside.
pub(crate) fn stays_inside(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    !path.is_empty() && parts.all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(unix)]
fn read_exact_at(file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, offset)
}

/// `seek_read` moves the handle's cursor, which nothing here uses, and takes its own offset, so
/// threads may share the handle as on Unix.
#[cfg(windows)]
fn read_exact_at(file: &File, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !buf.is_empty() {
        match file.seek_read(buf, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                buf = &mut buf[count..];
                offset += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
