//! The imatrix of llama.cpp as it was before GGUF, `.dat`; all numbers are little-endian.
//!
//! ```text
//! i32 entries
//! each:  i32 length, name, i32 calls, i32 n, f32[n]      mean square × calls
//! then, in most files, i32 last chunk, i32 length, name of the text
//! ```
//!
//! Experts lie one after another, and only the model says how many there are. There are no counts: what an expert
//! without inputs has is the same number throughout.

use super::bytes::Bytes;
use super::entry::{Counts, Entry, MOST_ENTRIES, Stored};
use crate::error::Result;

/// The entries of such a file.
pub(super) fn index(file: &Bytes) -> Result<Vec<Entry>> {
    const ENTRY: &str = "an entry";
    let mut scan = file.scan();
    let count = scan.i32("its number of entries")?;
    if count < 1 || count as u64 > MOST_ENTRIES {
        return Err(scan.implausible("its number of entries", count).into());
    }
    let mut entries = Vec::new();
    for _ in 0..count {
        let length = scan.i32(ENTRY)?;
        let length = u64::try_from(length).map_err(|_| scan.implausible("the length of a name", length))?;
        let name = scan.text(length, ENTRY)?;
        let (calls, width) = (scan.i32(ENTRY)?, scan.i32(ENTRY)?);
        if calls < 0 {
            return Err(scan.implausible("a number of calls", calls).into());
        }
        if width < 1 {
            return Err(scan.implausible("a number of channels", width).into());
        }
        let (at, width) = (scan.at, width as u64);
        scan.skip(4 * width, ENTRY)?;
        let name = name.strip_suffix(".weight").unwrap_or(&name).to_owned();
        let values = Stored::plain(at, 4 * width);
        entries.push(Entry { name, rows: 1, width, values, counts: Counts::Same(calls as f32), flat: true });
    }
    Ok(entries)
}

/// Whether a file may be one: it begins with an entry.
pub(super) fn looks_like(file: &Bytes) -> bool {
    let mut scan = file.scan();
    let mut first = || -> Result<(i32, i32)> { Ok((scan.i32("it")?, scan.i32("it")?)) };
    let Ok((count, length)) = first() else { return false };
    let sane = count > 0 && (1..=4096).contains(&length) && file.holds(8, length as u64);
    sane && scan.text(length as u64, "it").is_ok_and(|name| name.chars().all(|c| !c.is_control()))
}
