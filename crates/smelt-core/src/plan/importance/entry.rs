//! What a file of importance holds, as an index: where the numbers of each entry lie, not the numbers.

use super::ImportanceError;
use super::bytes::Bytes;
use crate::error::Result;

/// More entries than any model has modules: each costs memory before it is known to be of use.
pub(super) const MOST_ENTRIES: u64 = 1 << 20;

/// Numbers of one name.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Without what tells sums from counts.
    pub(super) name: String,
    /// Experts or heads with numbers of their own, or 1.
    pub(super) rows: u64,
    /// Channels.
    pub(super) width: u64,
    /// `rows × width` F32: mean squares, or sums of squares.
    pub(super) values: Stored,
    /// What they are to be divided by.
    pub(super) counts: Counts,
    /// Whether the file does not tell rows from channels: then `rows` is 1.
    pub(super) flat: bool,
}

/// How many inputs the numbers are of.
#[derive(Clone, Debug)]
pub(super) enum Counts {
    /// The values are means, of unknown many.
    Unknown,
    /// The values are sums of this many.
    Same(f32),
    /// The values are sums over these counts.
    Sums(StoredCounts),
    /// The values are means over these counts.
    Means(StoredCounts),
}

/// Counts in the file: one, or one for each row.
#[derive(Clone, Debug)]
pub(super) struct StoredCounts {
    pub(super) values: Stored,
    pub(super) len: u64,
    pub(super) number: Number,
}

/// Types of counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    F32,
    I64,
}

impl Number {
    pub(super) fn size(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::I64 => 8,
        }
    }

    /// The value of a count.
    pub(super) fn value(self, bytes: &[u8]) -> f64 {
        match self {
            Self::F32 => f64::from(f32::from_le_bytes(array(bytes))),
            Self::I64 => i64::from_le_bytes(array(bytes)) as f64,
        }
    }
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("pieces are cut by the size of a number")
}

/// Where numbers lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stored {
    /// The first byte in the file.
    pub(super) at: u64,
    /// Bytes in the file.
    pub(super) len: u64,
    /// Whether these are deflated.
    pub(super) deflated: bool,
    /// Bytes before the first number, when unpacked.
    pub(super) skip: u64,
}

impl Stored {
    /// Numbers that lie in the file as they are.
    pub(super) fn plain(at: u64, len: u64) -> Self {
        Self { at, len, deflated: false, skip: 0 }
    }
}

/// Whether an entry's counts are one, or one for each row.
pub(super) fn check_counts(file: &Bytes, entry: &str, counts: u64, rows: u64) -> Result<()> {
    if counts == 1 || counts == rows {
        return Ok(());
    }
    let (file, entry) = (file.name.clone(), entry.to_owned());
    Err(ImportanceError::Counts { file, entry, counts, rows }.into())
}

/// Rows and channels of a shape of one or two axes, whose numbers can be counted and are not none.
pub(super) fn rows_and_width(file: &Bytes, entry: &str, shape: &[u64]) -> Result<(u64, u64)> {
    let pair = match *shape {
        [width] => Some((1, width)),
        [rows, width] => Some((rows, width)),
        _ => None,
    };
    let sane = |&(rows, width): &(u64, u64)| {
        rows > 0 && width > 0 && rows.checked_mul(width).is_some_and(|count| count < 1 << 60)
    };
    let refusal = || {
        let (file, entry) = (file.name.clone(), entry.to_owned());
        ImportanceError::Shape { file, entry, shape: shape.to_vec() }
    };
    Ok(pair.filter(sane).ok_or_else(refusal)?)
}
