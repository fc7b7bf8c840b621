//! The output directory: files that appear whole or not at all.
//!
//! A shard is written under a temporary name, flushed to the disk and only then renamed. Small files
//! are flushed together, at once, because each flush waits for the disk; a run that is taken up writes
//! them again. config.json, without which nothing loads a model, comes after all others are flushed. Links in the directory are never followed: what
//! is written stays inside.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::disk::{Disk, DiskFile, Entry, Open};
use crate::error::{Error, PipelineError, Result};

/// What the name of a file ends in until it is complete.
const TEMPORARY: &str = ".partial";

/// Small files that are flushed at once, at most.
const MOST_UNFLUSHED: usize = 16;

/// A directory that is being filled.
#[derive(Debug)]
pub(super) struct OutputDir<'a> {
    disk: &'a dyn Disk,
    path: PathBuf,
    /// The directory and those above it, as far as they are new: they go too if the run fails.
    created: Vec<PathBuf>,
    names: Mutex<Names>,
    /// Small files that are not flushed yet.
    unflushed: Mutex<Vec<Pending>>,
}

/// What happened to names in the directory.
#[derive(Debug, Default)]
struct Names {
    /// Files and folders of this run, in the order in which they were made.
    made: Vec<PathBuf>,
    /// Directories whose changes may not be on the disk yet.
    unsettled: BTreeSet<PathBuf>,
}

impl<'a> OutputDir<'a> {
    /// Makes the directory, or takes the one that is there.
    pub(super) fn open(disk: &'a dyn Disk, path: &Path) -> Result<Self> {
        let mut new = Self {
            disk,
            path: path.to_owned(),
            created: Vec::new(),
            names: Mutex::default(),
            unflushed: Mutex::default(),
        };
        if disk.is_dir(path) {
            return Ok(new);
        }
        if disk.look(path).map_err(write_error(path))?.is_some() {
            return Err(PipelineError::OutputNotADirectory { path: path.to_owned() }.into());
        }
        let above = path.ancestors().take_while(|above| !above.as_os_str().is_empty() && !disk.is_dir(above));
        let missing: Vec<&Path> = above.collect();
        for folder in missing.into_iter().rev() {
            if let Err(error) = disk.make_dir(folder) {
                new.abandon();
                return Err(write_error(folder)(error));
            }
            new.created.insert(0, folder.to_owned());
            new.lock().unsettled.insert(parent(folder));
        }
        Ok(new)
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The path of a file in the directory.
    pub(super) fn at(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// What stands at a name.
    pub(super) fn look(&self, name: &str) -> Result<Option<Entry>> {
        let path = self.at(name);
        self.disk.look(&path).map_err(write_error(&path))
    }

    /// What stands at the temporary name of a file.
    pub(super) fn look_partial(&self, name: &str) -> Result<Option<Entry>> {
        self.look(&format!("{name}{TEMPORARY}"))
    }

    /// Whether nothing is in the directory but `except`.
    pub(super) fn is_empty_but(&self, except: &str) -> Result<bool> {
        let entries = self.disk.list(&self.path).map_err(write_error(&self.path))?;
        let except = self.at(except);
        Ok(entries.iter().all(|path| *path == except))
    }

    /// Opens the file `name` for this run alone; `None` if another run has it.
    pub(super) fn claim(&self, name: &str) -> Result<Option<Box<dyn DiskFile>>> {
        let path = self.at(name);
        if self.look(name)?.is_some_and(|entry| !matches!(entry, Entry::File { .. })) {
            return Err(PipelineError::NotEmpty { path: self.path.clone() }.into());
        }
        self.disk.claim(&path).map_err(write_error(&path))
    }

    /// Bytes of finished tensors that are recorded together.
    pub(super) fn group_bytes(&self) -> u64 {
        self.disk.group_bytes()
    }

    /// Refuses an output that does not fit on the disk.
    pub(super) fn check_space(&self, needed: u64) -> Result<()> {
        let free = self.disk.free_space(&self.path).map_err(write_error(&self.path))?;
        if free < needed {
            return Err(PipelineError::DiskFull { path: self.path.clone(), needed, free }.into());
        }
        Ok(())
    }

    /// Begins a file of `size` bytes, its place on the disk reserved where the system can do that.
    pub(super) fn begin(&self, name: &str, size: u64) -> Result<Pending> {
        let target = self.at(name);
        self.make_parents(&target)?;
        let temporary = temporary(&target);
        self.remove(&temporary)?;
        let file = self.disk.open(&temporary, Open::New).map_err(write_error(&temporary))?;
        self.note(&temporary);
        file.reserve(size).map_err(write_error(&temporary))?;
        Ok(Pending { file, temporary, target })
    }

    /// Takes up a file that an earlier run began.
    pub(super) fn take_up(&self, name: &str) -> Result<Pending> {
        let target = self.at(name);
        let temporary = temporary(&target);
        let file = self.disk.open(&temporary, Open::Existing).map_err(write_error(&temporary))?;
        Ok(Pending { file, temporary, target })
    }

    /// Opens a complete file, to read it.
    pub(super) fn read(&self, name: &str) -> Result<Box<dyn DiskFile>> {
        let path = self.at(name);
        self.disk.open(&path, Open::Read).map_err(write_error(&path))
    }

    /// Takes a file's name away again, because something in it is missing after all.
    pub(super) fn unpublish(&self, name: &str) -> Result<()> {
        let target = self.at(name);
        self.disk.rename(&target, &temporary(&target)).map_err(write_error(&target))?;
        self.note(&target);
        Ok(())
    }

    /// Gives a small file its name. It is flushed by the next [`settle_all`](Self::settle_all).
    pub(super) fn publish(&self, pending: Pending) -> Result<()> {
        self.rename(&pending)?;
        let mut unflushed = self.unflushed.lock().unwrap_or_else(PoisonError::into_inner);
        unflushed.push(pending);
        // Each holds a handle, of which a process may have few.
        if unflushed.len() < MOST_UNFLUSHED { Ok(()) } else { flush(&std::mem::take(&mut *unflushed)) }
    }

    /// Gives a file its name.
    pub(super) fn rename(&self, pending: &Pending) -> Result<()> {
        let Pending { temporary, target, .. } = pending;
        self.note(target);
        self.disk.rename(temporary, target).map_err(write_error(target))
    }

    /// Writes a small file whole.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let pending = self.begin(name, bytes.len() as u64)?;
        pending.write_at(0, bytes)?;
        self.publish(pending)
    }

    /// Writes the small file that makes the directory whole: flushed before it has its name.
    pub(super) fn write_last(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let pending = self.begin(name, bytes.len() as u64)?;
        pending.write_at(0, bytes)?;
        pending.sync()?;
        self.rename(&pending)
    }

    /// Removes a file under both its names, and the folders above it that are then empty.
    pub(super) fn clear(&self, name: &str) -> Result<()> {
        let target = self.at(name);
        let is_other = |folder: &PathBuf| !matches!(self.disk.look(folder), Ok(None | Some(Entry::Dir)));
        if self.folders(&target).iter().any(is_other) {
            // Behind a link is no place of ours.
            return Ok(());
        }
        self.remove(&temporary(&target))?;
        self.remove(&target)?;
        for folder in self.folders(&target) {
            let _ = self.disk.remove_dir(&folder);
        }
        Ok(())
    }

    /// Removes a file, if there is one.
    pub(super) fn remove(&self, path: &Path) -> Result<()> {
        if matches!(self.disk.look(path).map_err(write_error(path))?, None | Some(Entry::Dir)) {
            return Ok(());
        }
        self.lock().unsettled.insert(parent(path));
        self.disk.remove_file(path).map_err(write_error(path))
    }

    /// Returns when every name that was made, changed or removed is on the disk.
    pub(super) fn settle(&self) -> Result<()> {
        let folders = std::mem::take(&mut self.lock().unsettled);
        for folder in folders {
            self.disk.sync_dir(&folder).map_err(write_error(&folder))?;
        }
        Ok(())
    }

    /// Returns when every small file and every name is on the disk.
    pub(super) fn settle_all(&self) -> Result<()> {
        let files = std::mem::take(&mut *self.unflushed.lock().unwrap_or_else(PoisonError::into_inner));
        flush(&files)?;
        self.settle()
    }

    /// Takes back everything that this run made. What can't be removed stays; the error that led
    /// here matters more.
    pub(super) fn abandon(&self) {
        let made = std::mem::take(&mut self.lock().made);
        for path in made.iter().rev() {
            let dir = matches!(self.disk.look(path), Ok(Some(Entry::Dir)));
            let _ = if dir { self.disk.remove_dir(path) } else { self.disk.remove_file(path) };
        }
        for path in &self.created {
            let _ = self.disk.remove_dir(path);
        }
    }

    fn make_parents(&self, target: &Path) -> Result<()> {
        for folder in self.folders(target).into_iter().rev() {
            match self.disk.look(&folder).map_err(write_error(&folder))? {
                Some(Entry::Dir) => {}
                Some(_) => return Err(write_error(&folder)(io::ErrorKind::NotADirectory.into())),
                None => {
                    self.disk.make_dir(&folder).map_err(write_error(&folder))?;
                    self.note(&folder);
                }
            }
        }
        Ok(())
    }

    /// The folders between a file and the output directory, the innermost first.
    fn folders(&self, target: &Path) -> Vec<PathBuf> {
        let folders = target.ancestors().skip(1).take_while(|folder| *folder != self.path);
        folders.map(Path::to_owned).collect()
    }

    /// Remembers a file or folder that this run has made or changed.
    pub(super) fn note(&self, path: &Path) {
        let mut names = self.lock();
        names.made.push(path.to_owned());
        names.unsettled.insert(parent(path));
    }

    fn lock(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Flushes files all at once: the disk then serves them together.
fn flush(files: &[Pending]) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = files.iter().map(|file| scope.spawn(|| file.sync())).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<()>>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().try_for_each(join)
    })
}

fn temporary(target: &Path) -> PathBuf {
    let mut name = target.to_owned().into_os_string();
    name.push(TEMPORARY);
    PathBuf::from(name)
}

/// The directory in which a path stands.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
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
    file: Box<dyn DiskFile>,
    temporary: PathBuf,
    target: PathBuf,
}

impl Pending {
    /// Writes at a position; any thread may.
    pub(super) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.file.write_at(bytes, offset).map_err(write_error(&self.temporary))
    }

    /// Returns when everything written so far is on the disk.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync().map_err(write_error(&self.temporary))
    }
}

/// Names the path in an error of the operating system.
pub(super) fn write_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Pipeline(PipelineError::Write { path, source })
}
