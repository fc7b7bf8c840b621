//! All that a run does to the disk, behind a trait: so that the tests can make any single operation
//! fail, or lose power after it, and see that the run can be taken up again.
//!
//! The contract is what file systems promise and no more. What was written is on the disk after
//! [`DiskFile::sync`]; a name that was made, changed or removed is after [`Disk::sync_dir`] of its
//! directory; until then either may be there or not after a loss of power, in any order.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use fs4::FileExt as _;

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A regular file of so many bytes, which takes so many on the disk.
    File {
        /// Its length.
        len: u64,
        /// Bytes that the disk has set aside for it.
        allocated: u64,
    },
    /// A directory.
    Dir,
    /// A symbolic link or something rarer.
    Other,
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Open {
    /// It must not exist yet.
    New,
    /// It must exist.
    Existing,
    /// It must exist, and is only read.
    Read,
}

/// A disk to write to.
pub trait Disk: Sync + Debug {
    /// What stands at a path, itself and not what it links to; `None` if nothing does.
    ///
    /// # Errors
    /// What the system reports; so for all of them.
    fn look(&self, path: &Path) -> io::Result<Option<Entry>>;

    /// Whether a directory stands at a path, or a link to one.
    fn is_dir(&self, path: &Path) -> bool;

    /// The paths of what is in a directory.
    ///
    /// # Errors
    /// What the system reports.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;

    /// Makes a directory, its parent being there.
    ///
    /// # Errors
    /// What the system reports.
    fn make_dir(&self, path: &Path) -> io::Result<()>;

    /// Opens a file, for reading and writing unless said otherwise.
    ///
    /// # Errors
    /// What the system reports.
    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>>;

    /// Opens or makes a file and locks it for this process, until it is dropped or the process
    /// ends, in whatever way. `None` if another has it.
    ///
    /// # Errors
    /// What the system reports.
    fn claim(&self, path: &Path) -> io::Result<Option<Box<dyn DiskFile>>>;

    /// Gives a file another name, in place of a file that has it.
    ///
    /// # Errors
    /// What the system reports.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file or a link.
    ///
    /// # Errors
    /// What the system reports.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// What the system reports.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Returns when the names in a directory are on the disk.
    ///
    /// # Errors
    /// What the system reports.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Bytes of finished tensors after which they are flushed and recorded. Not too many, because
    /// flushing also brings them to the disk while the processor is busy with others.
    fn group_bytes(&self) -> u64 {
        32 << 20
    }

    /// Bytes that are free where a directory is.
    ///
    /// # Errors
    /// What the system reports.
    fn free_space(&self, path: &Path) -> io::Result<u64>;
}

/// An open file; any number of threads may read and write it at once.
pub trait DiskFile: Send + Sync + Debug {
    /// Fills `buf` with the bytes from `offset` on.
    ///
    /// # Errors
    /// What the system reports, and a file that ends before.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` from `offset` on.
    ///
    /// # Errors
    /// What the system reports.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Length of the file.
    ///
    /// # Errors
    /// What the system reports.
    fn length(&self) -> io::Result<u64>;

    /// Cuts the file, or lengthens it with zeros.
    ///
    /// # Errors
    /// What the system reports.
    fn set_length(&self, length: u64) -> io::Result<()>;

    /// Lengthens the file and reserves its blocks, so that a full disk shows now and not after
    /// hours. A file system that can't reserve gives the length alone.
    ///
    /// # Errors
    /// What the system reports.
    fn reserve(&self, length: u64) -> io::Result<()>;

    /// Returns when the file's bytes are on the disk.
    ///
    /// # Errors
    /// What the system reports.
    fn sync(&self) -> io::Result<()>;
}

/// The disks of the operating system.
#[derive(Clone, Copy, Debug)]
pub struct LocalDisk;

impl Disk for LocalDisk {
    fn look(&self, path: &Path) -> io::Result<Option<Entry>> {
        match fs::symlink_metadata(path) {
            Ok(found) if found.is_file() => {
                Ok(Some(Entry::File { len: found.len(), allocated: allocated(&found) }))
            }
            Ok(found) if found.is_dir() => Ok(Some(Entry::Dir)),
            Ok(_) => Ok(Some(Entry::Other)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn is_dir(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.path())).collect()
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        fs::create_dir(path)
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(how != Open::Read).create_new(how == Open::New);
        Ok(Box::new(options.open(path)?))
    }

    fn claim(&self, path: &Path) -> io::Result<Option<Box<dyn DiskFile>>> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            // Some network disks have no locks; better unguarded than not at all.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(error)) => return Err(error),
        }
        // Whoever had the lock before may have removed the file since it was opened here.
        if still_at(&file, path) { Ok(Some(Box::new(file))) } else { Ok(None) }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        // Elsewhere directories can't be opened, and their changes are written through.
        if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
    }

    fn free_space(&self, path: &Path) -> io::Result<u64> {
        fs4::available_space(path)
    }
}

#[cfg(unix)]
fn allocated(found: &fs::Metadata) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    found.blocks() * 512
}

#[cfg(not(unix))]
fn allocated(found: &fs::Metadata) -> u64 {
    found.len()
}

#[cfg(unix)]
fn still_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let identity = |found: fs::Metadata| (found.dev(), found.ino());
    match (file.metadata(), fs::symlink_metadata(path)) {
        (Ok(opened), Ok(named)) => identity(opened) == identity(named),
        _ => false,
    }
}

#[cfg(not(unix))]
fn still_at(_file: &File, path: &Path) -> bool {
    path.exists()
}

impl DiskFile for File {
    #[cfg(unix)]
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(self, buf, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        use std::os::windows::fs::FileExt as _;
        while !buf.is_empty() {
            let count = self.seek_read(buf, offset)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            buf = &mut buf[count..];
            offset += count as u64;
        }
        Ok(())
    }

    #[cfg(unix)]
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, bytes, offset)
    }

    #[cfg(windows)]
    fn write_at(&self, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
        use std::os::windows::fs::FileExt as _;
        while !bytes.is_empty() {
            let written = self.seek_write(bytes, offset)?;
            bytes = &bytes[written..];
            offset += written as u64;
        }
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }

    fn reserve(&self, length: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        match self.allocate(length) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => Err(error),
            _ => self.set_len(length),
        }
    }

    fn sync(&self) -> io::Result<()> {
        // The length was set before; a changed time of the file is no loss.
        self.sync_data()
    }
}
