//! A disk in memory that fails when it is told to, and keeps after a loss of power no more than file
//! systems promise: what was flushed, and of the rest whatever chance leaves, in pieces and in any
//! order.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use smelt_core::pipeline::disk::{Disk, DiskFile, Entry, Open};

use crate::Contents;

/// What happens when the count of operations is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// This operation fails, others do not.
    Once(io::ErrorKind),
    /// This operation fails, and every later one that takes space.
    Full,
    /// The process ends before this operation.
    Killed,
    /// The machine stops before this operation.
    Power,
}

/// The disk.
#[derive(Clone, Debug)]
pub(crate) struct FaultyDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    files: Vec<Inode>,
    /// What is at each path.
    names: BTreeMap<PathBuf, Node>,
    /// What would be there after a loss of power that takes everything not flushed.
    durable: BTreeMap<PathBuf, Node>,
    /// Changes of names that are not flushed, with their directories.
    changes: Vec<(PathBuf, Change)>,
    locked: HashSet<usize>,
    operations: u64,
    fault: Option<(u64, Fault)>,
    off: bool,
    full: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Dir,
    File(usize),
}

#[derive(Clone, Debug)]
enum Change {
    Link(PathBuf, Node),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, Node),
}

#[derive(Clone, Debug, Default)]
struct Inode {
    now: Vec<u8>,
    durable: Vec<u8>,
    writes: Vec<Write>,
}

#[derive(Clone, Debug)]
enum Write {
    Bytes(usize, Vec<u8>),
    Length(usize),
}

impl Write {
    /// Does what was written, or of bytes only the first `most`.
    fn apply(&self, content: &mut Vec<u8>, most: usize) {
        match self {
            Self::Length(length) => content.resize(*length, 0),
            Self::Bytes(at, bytes) => {
                let bytes = &bytes[..bytes.len().min(most)];
                content.resize(content.len().max(at + bytes.len()), 0);
                content[*at..at + bytes.len()].copy_from_slice(bytes);
            }
        }
    }
}

/// Numbers that look like chance.
#[derive(Debug)]
pub(crate) struct Chance(pub(crate) u64);

impl Chance {
    pub(crate) fn below(&mut self, most: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) as usize) % most.max(1)
    }
}

impl FaultyDisk {
    /// A disk with the directory `disk`, that does not fail.
    pub(crate) fn new() -> Self {
        let root = BTreeMap::from([(PathBuf::from("disk"), Node::Dir)]);
        let state = State { names: root.clone(), durable: root, ..State::default() };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Fails at the operation with this number, counted from now.
    pub(crate) fn fail_at(&self, operation: u64, fault: Fault) {
        let mut state = self.lock();
        state.operations = 0;
        state.fault = Some((operation, fault));
    }

    /// Operations since the last fault was set.
    pub(crate) fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Mends everything: the next process finds what a kill or a loss of power left.
    pub(crate) fn restart(&self, fault: Fault, chance: &mut Chance) {
        let mut state = self.lock();
        if fault == Fault::Power {
            state.lose_power(chance);
        }
        (state.off, state.full, state.fault) = (false, false, None);
        state.operations = 0;
        state.locked.clear();
    }

    /// The files in a directory and below.
    pub(crate) fn contents(&self, dir: &str) -> Contents {
        let state = self.lock();
        let inside = state.names.iter().filter_map(|(path, node)| match node {
            Node::File(file) => Some((path.strip_prefix(dir).ok()?, &state.files[*file].now)),
            Node::Dir => None,
        });
        inside.map(|(path, bytes)| (path.to_str().unwrap().to_owned(), bytes.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl State {
    /// Counts an operation, and fails if it is its turn.
    fn step(&mut self, takes_space: bool) -> io::Result<()> {
        if self.off {
            return Err(io::Error::other("the machine is off"));
        }
        if self.full && takes_space {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let now = self.operations;
        self.operations += 1;
        match self.fault {
            Some((at, fault)) if at == now => {
                self.fault = None;
                self.off = matches!(fault, Fault::Killed | Fault::Power);
                self.full = fault == Fault::Full;
                let kind = if let Fault::Once(kind) = fault { kind } else { io::ErrorKind::StorageFull };
                if self.full && !takes_space { Ok(()) } else { Err(kind.into()) }
            }
            _ => Ok(()),
        }
    }

    fn change(&mut self, path: &Path, change: Change) {
        apply(&mut self.names, &change);
        self.changes.push((path.parent().unwrap().to_owned(), change));
    }

    fn lose_power(&mut self, chance: &mut Chance) {
        for (_, change) in std::mem::take(&mut self.changes) {
            if chance.below(2) == 0 {
                apply(&mut self.durable, &change);
            }
        }
        let whole = |path: &Path| {
            path.ancestors().skip(1).all(|p| p == Path::new("") || self.durable.contains_key(p))
        };
        let lost: Vec<PathBuf> = self.durable.keys().filter(|path| !whole(path)).cloned().collect();
        for path in lost {
            self.durable.remove(&path);
        }
        self.names = self.durable.clone();
        for file in &mut self.files {
            for write in std::mem::take(&mut file.writes) {
                let most = if chance.below(2) == 0 { usize::MAX } else { chance.below(40) };
                if chance.below(3) > 0 {
                    write.apply(&mut file.durable, most);
                }
            }
            file.now = file.durable.clone();
        }
    }
}

fn apply(names: &mut BTreeMap<PathBuf, Node>, change: &Change) {
    match change {
        Change::Link(path, node) => drop(names.insert(path.clone(), *node)),
        Change::Unlink(path) => drop(names.remove(path)),
        Change::Rename(from, to, node) => {
            names.remove(from);
            names.insert(to.clone(), *node);
        }
    }
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for FaultyDisk {
    fn look(&self, path: &Path) -> io::Result<Option<Entry>> {
        let state = self.lock();
        Ok(state.names.get(path).map(|node| match node {
            Node::Dir => Entry::Dir,
            Node::File(file) => {
                let len = state.files[*file].now.len() as u64;
                Entry::File { len, allocated: len }
            }
        }))
    }

    fn is_dir(&self, path: &Path) -> bool {
        self.lock().names.get(path) == Some(&Node::Dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        Ok(self.lock().names.keys().filter(|path| path.parent() == Some(dir)).cloned().collect())
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.step(true)?;
        state.change(path, Change::Link(path.to_owned(), Node::Dir));
        Ok(())
    }

    fn open(&self, path: &Path, how: Open) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.lock();
        let file = match (how, state.names.get(path)) {
            (Open::New, None) => {
                state.step(true)?;
                state.files.push(Inode::default());
                let file = state.files.len() - 1;
                state.change(path, Change::Link(path.to_owned(), Node::File(file)));
                file
            }
            (Open::Existing | Open::Read, Some(Node::File(file))) => *file,
            (Open::New, Some(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            _ => return Err(missing()),
        };
        Ok(Box::new(FaultyFile { disk: self.clone(), file, locks: false }))
    }

    fn claim(&self, path: &Path) -> io::Result<Option<Box<dyn DiskFile>>> {
        let how = if self.look(path)?.is_some() { Open::Existing } else { Open::New };
        drop(self.open(path, how)?);
        let mut state = self.lock();
        let Some(Node::File(file)) = state.names.get(path).copied() else { return Err(missing()) };
        if !state.locked.insert(file) {
            return Ok(None);
        }
        Ok(Some(Box::new(FaultyFile { disk: self.clone(), file, locks: true })))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.step(false)?;
        let node = *state.names.get(from).ok_or_else(missing)?;
        state.change(from, Change::Rename(from.to_owned(), to.to_owned(), node));
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.step(false)?;
        state.names.get(path).ok_or_else(missing)?;
        state.change(path, Change::Unlink(path.to_owned()));
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.step(false)?;
        if state.names.keys().any(|inside| inside.parent() == Some(path)) {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        state.change(path, Change::Unlink(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        state.step(false)?;
        let changes = std::mem::take(&mut state.changes);
        for (dir, change) in changes {
            if dir == path { apply(&mut state.durable, &change) } else { state.changes.push((dir, change)) }
        }
        Ok(())
    }

    fn group_bytes(&self) -> u64 {
        // Less than most tensors have: many groups in a small run.
        4000
    }

    fn free_space(&self, _path: &Path) -> io::Result<u64> {
        Ok(1 << 40)
    }
}

#[derive(Debug)]
struct FaultyFile {
    disk: FaultyDisk,
    file: usize,
    locks: bool,
}

impl FaultyFile {
    fn write(&self, write: Write) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.step(true)?;
        let file = &mut state.files[self.file];
        write.apply(&mut file.now, usize::MAX);
        file.writes.push(write);
        Ok(())
    }
}

impl Drop for FaultyFile {
    fn drop(&mut self) {
        if self.locks {
            self.disk.lock().locked.remove(&self.file);
        }
    }
}

impl DiskFile for FaultyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.disk.lock();
        let bytes = state.files[self.file].now.get(offset as usize..offset as usize + buf.len());
        buf.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write(Write::Bytes(offset as usize, bytes.to_vec()))
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.disk.lock().files[self.file].now.len() as u64)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.write(Write::Length(length as usize))
    }

    fn reserve(&self, length: u64) -> io::Result<()> {
        self.write(Write::Length(length as usize))
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        let result = state.step(false);
        if state.off {
            return result;
        }
        let file = &mut state.files[self.file];
        let writes = std::mem::take(&mut file.writes);
        // As on Linux: what could not be flushed is forgotten, and the next flush succeeds.
        result.map(|()| writes.iter().for_each(|write| write.apply(&mut file.durable, usize::MAX)))
    }
}
