//! The numbers of an entry: once over all of them while a run is planned, then row after row as they are needed.

use std::io::{self, Read};

use super::ImportanceError;
use super::bytes::Bytes;
use super::entry::{Counts, Entry, Stored, StoredCounts};
use super::npz;
use crate::error::Result;

/// Numbers that are read at once.
const PIECE: u64 = 16 << 10;

/// What takes an entry's rows to mean squares: little enough to be held for all of them.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    /// For each row: how many inputs it is of, 0 where it says nothing.
    pub(super) counts: Vec<f32>,
    /// For each row: what its numbers are to be multiplied by.
    pub(super) factors: Vec<f32>,
}

impl Rows {
    /// Reads all of an entry, of this many rows: whether its numbers can be what they should, and which
    /// rows say something.
    ///
    /// # Errors
    /// Numbers that are negative or not finite, and what can't be read or unpacked.
    pub(super) fn survey(file: &Bytes, entry: &Entry, rows: u64) -> Result<Self> {
        let width = entry.rows * entry.width / rows;
        let (mut counts, mut factors) = (vec![1.0; rows as usize], vec![1.0; rows as usize]);
        match &entry.counts {
            Counts::Unknown => {}
            Counts::Same(calls) => {
                counts.fill(*calls);
                factors.fill(1.0 / calls);
            }
            Counts::Means(stored) => counts = read_counts(file, entry, stored, rows)?,
            Counts::Sums(stored) => {
                counts = read_counts(file, entry, stored, rows)?;
                factors = counts.iter().map(|count| 1.0 / count).collect();
            }
        }
        let mut cursor = Cursor::new(file);
        for (row, count) in counts.iter_mut().enumerate() {
            let found = cursor.look(entry, row as u64 * width, width)?;
            let starved = entry.flat && rows > 1 && width > 1 && found.constant;
            if found.sum == 0.0 || starved {
                *count = 0.0;
            } else if entry.flat && rows > 1 {
                // How many tokens an expert had is not known, so neither is the scale of its numbers.
                factors[row] = (width as f64 / found.sum) as f32;
            }
        }
        Ok(Self { counts, factors })
    }

    /// Whether a row has data.
    pub(super) fn knows(&self, row: usize) -> bool {
        self.counts[row] > 0.0
    }

    pub(super) fn bytes(&self) -> u64 {
        8 * self.counts.len() as u64
    }
}

fn read_counts(file: &Bytes, entry: &Entry, stored: &StoredCounts, rows: u64) -> Result<Vec<f32>> {
    let size = stored.number.size();
    let mut bytes = vec![0; (stored.len * size) as usize];
    Cursor::new(file).read(entry, stored.values, 0, &mut bytes)?;
    let mut counts = Vec::with_capacity(rows as usize);
    for piece in bytes.chunks_exact(size as usize) {
        let value = stored.number.value(piece);
        check(file, entry, value)?;
        counts.push(value as f32);
    }
    if let [one] = counts[..] {
        counts.resize(rows as usize, one);
    }
    Ok(counts)
}

fn check(file: &Bytes, entry: &Entry, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    let (file, entry) = (file.name.clone(), entry.name.clone());
    Err(ImportanceError::Value { file, entry, value }.into())
}

/// What a look at a row finds.
struct Found {
    sum: f64,
    constant: bool,
}

/// Reads numbers at any place; in a deflated entry it goes on from where it was, as far as that is before the place.
pub(super) struct Cursor<'a> {
    file: &'a Bytes,
    open: Option<Open>,
    raw: Vec<u8>,
}

struct Open {
    /// Which numbers: where they begin in the file.
    of: u64,
    /// Bytes of them that have been read.
    at: u64,
    reader: Box<dyn Read + Send>,
}

impl std::fmt::Debug for Cursor<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Cursor").field("file", &self.file).finish_non_exhaustive()
    }
}

impl<'a> Cursor<'a> {
    pub(super) fn new(file: &'a Bytes) -> Self {
        Self { file, open: None, raw: Vec::new() }
    }

    /// Fills a buffer with numbers from a byte of them on.
    fn read(&mut self, entry: &Entry, stored: Stored, from: u64, buf: &mut [u8]) -> Result<()> {
        if !stored.deflated {
            return self.file.read(stored.at + stored.skip + from, buf);
        }
        let unpacked = self.unpack(stored, from, buf);
        Ok(unpacked.map_err(|source| npz::unpack(self.file, &entry.name, source))?)
    }

    fn unpack(&mut self, stored: Stored, from: u64, buf: &mut [u8]) -> io::Result<()> {
        let mut open = match self.open.take() {
            Some(open) if open.of == stored.at && open.at <= from => open,
            _ => {
                let mut reader = npz::open(self.file, stored);
                pass(&mut reader, stored.skip)?;
                Open { of: stored.at, at: 0, reader }
            }
        };
        pass(&mut open.reader, from - open.at)?;
        open.reader.read_exact(buf)?;
        open.at = from + buf.len() as u64;
        self.open = Some(open);
        Ok(())
    }

    /// Appends `count` values of an entry from the value `from` on.
    pub(super) fn values(&mut self, entry: &Entry, from: u64, count: u64, out: &mut Vec<f32>) -> Result<()> {
        let mut raw = std::mem::take(&mut self.raw);
        raw.resize(4 * count as usize, 0);
        self.read(entry, entry.values, 4 * from, &mut raw)?;
        out.extend(raw.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        self.raw = raw;
        Ok(())
    }

    /// Checks values, piece by piece.
    fn look(&mut self, entry: &Entry, from: u64, count: u64) -> Result<Found> {
        let (mut piece, mut sum, mut constant, mut first) = (Vec::new(), 0.0, true, None);
        let mut at = 0;
        while at < count {
            let len = PIECE.min(count - at);
            piece.clear();
            self.values(entry, from + at, len, &mut piece)?;
            for &value in &piece {
                check(self.file, entry, f64::from(value))?;
                sum += f64::from(value);
                constant &= *first.get_or_insert(value) == value;
            }
            at += len;
        }
        Ok(Found { sum, constant })
    }
}

/// Reads past bytes.
fn pass(reader: &mut dyn Read, len: u64) -> io::Result<()> {
    let passed = io::copy(&mut reader.take(len), &mut io::sink())?;
    if passed == len { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}
