//! The output directory: files that appear whole or not at all.
//!
//! A file is written under a temporary name, flushed to the disk and only then renamed. Config and
//! side files come first and the index last, so a directory with an index is complete. A run that
//! fails takes back what it wrote: a directory that only looks like a model must not stay.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fs4::FileExt as _;

use crate::error::{Error, Result};

/// What the name of a file ends in until it is complete.
const TEMPORARY: &str = ".partial";

/// A directory that is being filled.
#[derive(Debug)]
pub(super) struct OutputDir {
    path: PathBuf,
    /// The directory and those above it, as far as they are new: they go too if the run fails.
    created: Vec<PathBuf>,
    /// Files and folders of this run, in the order in which they were made.
    made: Mutex<Vec<PathBuf>>,
}

impl OutputDir {
    /// Makes the directory, or takes an empty one.
    pub(super) fn create(path: &Path) -> Result<Self> {
        if path.exists() && !path.is_dir() {
            return Err(Error::OutputNotADirectory { path: path.to_owned() });
        }
        let above = path.ancestors().take_while(|above| !above.as_os_str().is_empty() && !above.exists());
        let created = above.map(Path::to_owned).collect();
        fs::create_dir_all(path).map_err(write_error(path))?;
        let mut entries = fs::read_dir(path).map_err(write_error(path))?;
        if entries.next().is_some() {
            return Err(Error::NotEmpty { path: path.to_owned() });
        }
        Ok(Self { path: path.to_owned(), created, made: Mutex::default() })
    }

    /// Refuses an output that does not fit on the disk.
    pub(super) fn check_space(&self, needed: u64) -> Result<()> {
        let free = fs4::available_space(&self.path).map_err(write_error(&self.path))?;
        if free < needed {
            return Err(Error::DiskFull { path: self.path.clone(), needed, free });
        }
        Ok(())
    }

    /// Begins a file of `size` bytes, its place on the disk reserved where the system can do that.
    pub(super) fn begin(&self, name: &str, size: u64) -> Result<Pending> {
        let target = self.path.join(name);
        self.make_parents(&target)?;
        let mut temporary = target.clone().into_os_string();
        temporary.push(TEMPORARY);
        let temporary = PathBuf::from(temporary);
        let file = OpenOptions::new().write(true).create_new(true).open(&temporary);
        let file = file.map_err(write_error(&temporary))?;
        self.note(&temporary);
        reserve(&file, size).map_err(write_error(&temporary))?;
        Ok(Pending { file, temporary, target })
    }

    /// Flushes a file and gives it its name.
    pub(super) fn publish(&self, pending: &Pending) -> Result<()> {
        let Pending { file, temporary, target } = pending;
        file.sync_all().map_err(write_error(temporary))?;
        self.note(target);
        fs::rename(temporary, target).map_err(write_error(target))
    }

    /// Writes a small file whole.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let pending = self.begin(name, bytes.len() as u64)?;
        pending.write_at(0, bytes)?;
        self.publish(&pending)
    }

    /// Makes the names of all files durable.
    pub(super) fn sync(&self) -> Result<()> {
        if cfg!(unix) {
            let folder = File::open(&self.path).and_then(|folder| folder.sync_all());
            folder.map_err(write_error(&self.path))?;
        }
        Ok(())
    }

    /// Takes back everything that this run made. What can't be removed stays; the error that led
    /// here matters more.
    pub(super) fn abandon(&self) {
        let made = std::mem::take(&mut *self.lock());
        for path in made.iter().rev() {
            let _ = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
        }
        for path in &self.created {
            let _ = fs::remove_dir(path);
        }
    }

    fn make_parents(&self, target: &Path) -> Result<()> {
        let parents = target.ancestors().skip(1).take_while(|parent| *parent != self.path);
        let missing: Vec<&Path> = parents.filter(|parent| !parent.exists()).collect();
        for parent in missing.into_iter().rev() {
            fs::create_dir(parent).map_err(write_error(parent))?;
            self.note(parent);
        }
        Ok(())
    }

    fn note(&self, path: &Path) {
        self.lock().push(path.to_owned());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Bytes free on the disk on which a directory is, or will be; `None` where the system does not tell.
pub fn free_space(path: &Path) -> Option<u64> {
    let absolute = std::path::absolute(path).ok()?;
    let existing = absolute.ancestors().find(|ancestor| ancestor.exists())?;
    fs4::available_space(existing).ok()
}

/// A file that is not complete.
#[derive(Debug)]
pub(super) struct Pending {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
}

impl Pending {
    /// Writes at a position; any thread may.
    pub(super) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        write_all_at(&self.file, bytes, offset).map_err(write_error(&self.temporary))
    }
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt as _;
    while !bytes.is_empty() {
        let written = file.seek_write(bytes, offset)?;
        bytes = &bytes[written..];
        offset += written as u64;
    }
    Ok(())
}

/// Reserves the blocks of a file, so that a full disk shows now and not after hours. A file system
/// that can't reserve gives the length alone.
fn reserve(file: &File, size: u64) -> io::Result<()> {
    if size == 0 {
        return Ok(());
    }
    match file.allocate(size) {
        Err(error) if error.kind() == io::ErrorKind::StorageFull => Err(error),
        _ => file.set_len(size),
    }
}

/// Names the path in an error of the operating system.
fn write_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Write { path, source }
}
