//! The imatrix of llama.cpp in its GGUF form.
//!
//! ```text
//! general.type = "imatrix"
//! NAME.in_sum2   F32 [channels, n]   Σ x² over tokens; n experts, or heads, or 1
//! NAME.counts    F32 [1, n]          tokens that each had; of heads, one for all
//! NAME.in_sum    F32 [channels, n]   Σ x, in newer files; not used
//! ```
//!
//! GGUF names the fastest axis first. `NAME` ends in `.weight`, as in the model's file.

use std::collections::HashMap;

use super::ImportanceError;
use super::bytes::{Bytes, Scanner};
use super::entry::{Counts, Entry, MOST_ENTRIES, Number, Stored, StoredCounts, check_counts, rows_and_width};
use crate::error::Result;

pub(super) const MAGIC: &[u8; 4] = b"GGUF";

const ALIGNMENT: u64 = 32;
const F32: u32 = 0;
const MOST_AXES: u32 = 4;

/// Types of metadata.
const STRING: u32 = 8;
const ARRAY: u32 = 9;
const UINT32: u32 = 4;

/// Arrays of arrays go no deeper.
const DEEPEST: u32 = 3;

/// A tensor as the file describes it.
struct Tensor {
    shape: Vec<u64>,
    dtype: u32,
    offset: u64,
}

/// The entries of such a file.
pub(super) fn index(file: &Bytes) -> Result<Vec<Entry>> {
    let mut scan = file.scan();
    scan.skip(4, "its first bytes")?;
    let version = scan.u32("its version")?;
    if !matches!(version, 2 | 3) {
        return Err(ImportanceError::Version { file: file.name.clone(), version }.into());
    }
    let tensors = scan.u64("its number of tensors")?;
    if tensors > MOST_ENTRIES * 3 {
        return Err(scan.implausible("its number of tensors", tensors).into());
    }
    let alignment = metadata(file, &mut scan)?;
    let mut found = HashMap::new();
    for _ in 0..tensors {
        let (name, tensor) = tensor(&mut scan)?;
        if found.insert(name.clone(), tensor).is_some() {
            return Err(ImportanceError::Twice { file: file.name.clone(), entry: name }.into());
        }
    }
    let start = scan.at.next_multiple_of(alignment);
    let mut names: Vec<&String> = found.keys().collect();
    names.sort_unstable();
    let sums = names.into_iter().filter_map(|name| name.strip_suffix(".in_sum2"));
    sums.map(|name| entry(file, name, &found, start)).collect()
}

/// Reads past the metadata; the alignment of tensors.
fn metadata(file: &Bytes, scan: &mut Scanner<'_>) -> Result<u64> {
    let (mut alignment, mut kind) = (ALIGNMENT, None);
    for _ in 0..scan.u64("its number of keys")? {
        let length = scan.u64("a key")?;
        let key = scan.text(length, "a key")?;
        match (key.as_str(), scan.u32("the type of a value")?) {
            ("general.alignment", UINT32) => alignment = u64::from(scan.u32("its alignment")?),
            ("general.type", STRING) => {
                let length = scan.u64("its type")?;
                kind = Some(scan.text(length, "its type")?);
            }
            (_, of) => skip(scan, of, 0)?,
        }
    }
    if !alignment.is_power_of_two() {
        return Err(scan.implausible("its alignment", alignment).into());
    }
    match kind.as_deref() {
        Some("imatrix") => Ok(alignment),
        kind => {
            let kind = kind.unwrap_or("unknown").to_owned();
            Err(ImportanceError::NotImatrix { file: file.name.clone(), kind }.into())
        }
    }
}

/// Reads past a value of this type.
fn skip(scan: &mut Scanner<'_>, of: u32, depth: u32) -> Result<()> {
    const VALUE: &str = "a value";
    match of {
        STRING => {
            let length = scan.u64(VALUE)?;
            scan.skip(length, VALUE)
        }
        ARRAY if depth < DEEPEST => {
            let (of, length) = (scan.u32(VALUE)?, scan.u64(VALUE)?);
            match size(of) {
                Some(size) => {
                    let bytes = length.checked_mul(size).ok_or_else(|| scan.truncated(VALUE))?;
                    scan.skip(bytes, VALUE)
                }
                None => (0..length).try_for_each(|_| skip(scan, of, depth + 1)),
            }
        }
        of => match size(of) {
            Some(size) => scan.skip(size, VALUE),
            None => Err(scan.implausible("the type of a value", of).into()),
        },
    }
}

/// Bytes of a value of a type that has a size.
fn size(of: u32) -> Option<u64> {
    [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8].get(of as usize).copied().filter(|&size| size > 0)
}

fn tensor(scan: &mut Scanner<'_>) -> Result<(String, Tensor)> {
    const TENSOR: &str = "the description of a tensor";
    let length = scan.u64(TENSOR)?;
    let name = scan.text(length, TENSOR)?;
    let axes = scan.u32(TENSOR)?;
    if axes > MOST_AXES {
        return Err(scan.implausible("a number of axes", axes).into());
    }
    let sizes = (0..axes).map(|_| scan.u64(TENSOR)).collect::<Result<Vec<u64>>>()?;
    // Slowest axis first, without those of one element that stand for no axis.
    let mut shape: Vec<u64> = sizes.into_iter().rev().collect();
    let ones = shape.iter().take_while(|&&size| size == 1).count().min(shape.len().saturating_sub(1));
    shape.drain(..ones);
    let (dtype, offset) = (scan.u32(TENSOR)?, scan.u64(TENSOR)?);
    Ok((name, Tensor { shape, dtype, offset }))
}

fn entry(file: &Bytes, name: &str, tensors: &HashMap<String, Tensor>, start: u64) -> Result<Entry> {
    let sums = &tensors[&format!("{name}.in_sum2")];
    let (rows, width) = rows_and_width(file, name, &sums.shape)?;
    let values = stored(file, name, sums, (start, rows * width))?;
    let without = || ImportanceError::NoCounts { file: file.name.clone(), entry: name.to_owned() };
    let counts = tensors.get(&format!("{name}.counts")).ok_or_else(without)?;
    // `[1, n]` is a column here: n rows of one.
    let len = counts.shape.iter().try_fold(1u64, |all, &size| all.checked_mul(size)).unwrap_or(0);
    check_counts(file, name, len, rows)?;
    let counts = StoredCounts { values: stored(file, name, counts, (start, len))?, len, number: Number::F32 };
    let name = name.strip_suffix(".weight").unwrap_or(name).to_owned();
    Ok(Entry { name, rows, width, values, counts: Counts::Sums(counts), flat: false })
}

fn stored(file: &Bytes, entry: &str, tensor: &Tensor, (start, count): (u64, u64)) -> Result<Stored> {
    if tensor.dtype != F32 {
        let (file, entry, found) = (file.name.clone(), entry.to_owned(), format!("{} of GGUF", tensor.dtype));
        return Err(ImportanceError::Dtype { file, entry, found, wanted: "F32" }.into());
    }
    let at = start.saturating_add(tensor.offset);
    let len = count.saturating_mul(4);
    if !file.holds(at, len) {
        return Err(ImportanceError::Truncated { file: file.name.clone(), what: "a tensor", at }.into());
    }
    Ok(Stored::plain(at, len))
}
