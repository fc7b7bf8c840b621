//! The file of importance as bytes: read at any place, or one after another, always within its bounds.

use std::io::{self, BufRead as _, BufReader, Read, Seek, SeekFrom};
use std::sync::Arc;

use super::ImportanceError;
use crate::error::Result;
use crate::source::Source;

/// Longer names are none.
const NAME: u64 = 64 << 10;

/// What is read at once.
const PIECE: usize = 64 << 10;

/// A file.
#[derive(Clone)]
pub(super) struct Bytes {
    source: Arc<dyn Source>,
    /// Its name in the source, and in messages.
    pub(super) name: String,
    pub(super) size: u64,
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Bytes").field("name", &self.name).field("size", &self.size).finish_non_exhaustive()
    }
}

impl Bytes {
    pub(super) fn new(source: Arc<dyn Source>, name: &str, size: u64) -> Self {
        Self { source, name: name.to_owned(), size }
    }

    /// Fills a buffer that must lie inside the file.
    pub(super) fn read(&self, at: u64, buf: &mut [u8]) -> Result<()> {
        self.source.read_at(&self.name, at, buf)
    }

    /// Whether so many bytes lie there.
    pub(super) fn holds(&self, at: u64, len: u64) -> bool {
        at.checked_add(len).is_some_and(|end| end <= self.size)
    }

    /// The bytes of a part that lies inside the file.
    pub(super) fn section(&self, at: u64, len: u64) -> Section {
        let at = at.min(self.size);
        Section { bytes: self.clone(), start: at, at, end: at.saturating_add(len).min(self.size) }
    }

    /// The file's values from the beginning on.
    pub(super) fn scan(&self) -> Scanner<'_> {
        Scanner { file: self, reader: BufReader::with_capacity(PIECE, self.section(0, self.size)), at: 0 }
    }

    /// A hash of all bytes.
    pub(super) fn digest(&self) -> Result<blake3::Hash> {
        let (mut hasher, mut piece) = (blake3::Hasher::new(), vec![0; PIECE]);
        let mut at = 0;
        while at < self.size {
            let len = (self.size - at).min(PIECE as u64);
            let piece = &mut piece[..len as usize];
            self.read(at, piece)?;
            hasher.update(piece);
            at += len;
        }
        Ok(hasher.finalize())
    }
}

/// A part of the file as a reader.
#[derive(Clone, Debug)]
pub(super) struct Section {
    bytes: Bytes,
    start: u64,
    at: u64,
    end: u64,
}

impl Read for Section {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let len = (self.end - self.at).min(buf.len() as u64) as usize;
        self.bytes.read(self.at, &mut buf[..len]).map_err(io::Error::other)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Seek for Section {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let (from, by) = match to {
            SeekFrom::Start(at) => (self.start, i128::from(at)),
            SeekFrom::End(by) => (self.end, i128::from(by)),
            SeekFrom::Current(by) => (self.at, i128::from(by)),
        };
        let at = i128::from(from) + by;
        if at < i128::from(self.start) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // Behind the end there is nothing to read, as in any file.
        self.at = (at as u64).min(self.end);
        Ok(self.at - self.start)
    }
}

/// Takes one value after another.
#[derive(Debug)]
pub(super) struct Scanner<'a> {
    file: &'a Bytes,
    reader: BufReader<Section>,
    /// Where the next value begins.
    pub(super) at: u64,
}

impl Scanner<'_> {
    pub(super) fn truncated(&self, what: &'static str) -> ImportanceError {
        ImportanceError::Truncated { file: self.file.name.clone(), what, at: self.at }
    }

    pub(super) fn implausible(&self, what: &'static str, found: impl Into<i128>) -> ImportanceError {
        ImportanceError::Implausible { file: self.file.name.clone(), what, found: found.into().to_string() }
    }

    fn take<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N]> {
        if !self.file.holds(self.at, N as u64) {
            return Err(self.truncated(what).into());
        }
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.reader.read_exact(bytes).map_err(|source| self.failed(source))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn failed(&self, source: io::Error) -> ImportanceError {
        ImportanceError::Open { file: self.file.name.clone(), source }
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32> {
        self.take(what).map(u32::from_le_bytes)
    }

    pub(super) fn i32(&mut self, what: &'static str) -> Result<i32> {
        self.take(what).map(i32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64> {
        self.take(what).map(u64::from_le_bytes)
    }

    /// Text of this many bytes.
    pub(super) fn text(&mut self, len: u64, what: &'static str) -> Result<String> {
        if len > NAME {
            return Err(self.implausible("the length of a name", len).into());
        }
        if !self.file.holds(self.at, len) {
            return Err(self.truncated(what).into());
        }
        let (at, mut bytes) = (self.at, vec![0; len as usize]);
        self.fill(&mut bytes)?;
        let name = || ImportanceError::Name { file: self.file.name.clone(), at };
        Ok(String::from_utf8(bytes).map_err(|_| name())?)
    }

    /// Goes on behind this many bytes.
    pub(super) fn skip(&mut self, len: u64, what: &'static str) -> Result<()> {
        if !self.file.holds(self.at, len) {
            return Err(self.truncated(what).into());
        }
        let buffered = self.reader.buffer().len();
        if len <= buffered as u64 {
            self.reader.consume(len as usize);
        } else {
            self.reader.seek(SeekFrom::Start(self.at + len)).map_err(|source| self.failed(source))?;
        }
        self.at += len;
        Ok(())
    }
}
