//! The file of oMLX's oQe levels: arrays of numpy in a zip file, mostly deflated.
//!
//! ```text
//! MODULE.in_sum2   f32 [channels], or [experts or heads, channels]   Σ x² over tokens
//! MODULE.counts    i64 [1], or [experts]                             tokens that each had
//! ```
//!
//! The zip file's directory is read by a crate; the arrays are unpacked here as far as they are needed. An array that
//! is deflated can only be read from its beginning on, which takes some 100 KiB whatever its size.

use std::collections::HashMap;
use std::io::{BufReader, Read};
use std::sync::LazyLock;

use flate2::read::DeflateDecoder;
use regex::Regex;
use zip::{CompressionMethod, ZipArchive};

use super::ImportanceError;
use super::bytes::{Bytes, Section};
use super::entry::{Counts, Entry, MOST_ENTRIES, Number, Stored, StoredCounts, check_counts, rows_and_width};
use crate::error::Result;

pub(super) const MAGIC: &[u8; 4] = b"PK\x03\x04";

/// Bytes of an array's description, at most; numpy itself refuses longer ones.
const DESCRIPTION: u64 = 10_000;

/// What numpy writes of an array of floats or integers.
static ARRAY: LazyLock<Regex> = LazyLock::new(|| {
    let text =
        r"^\{'descr': '([<>|=]?[a-z]\d+)', 'fortran_order': (True|False), 'shape': \(([\d, ]*)\), \}\s*$";
    Regex::new(text).expect("the pattern is sound")
});

/// An array, before it is known what it is for.
struct Array {
    dtype: String,
    shape: Vec<u64>,
    stored: Stored,
}

/// The entries of such a file.
pub(super) fn index(file: &Bytes) -> Result<Vec<Entry>> {
    let zip = |why| ImportanceError::Zip { file: file.name.clone(), source: Box::new(why) };
    let reader = BufReader::new(file.section(0, file.size));
    let mut archive = ZipArchive::new(reader).map_err(zip)?;
    if archive.len() as u64 > MOST_ENTRIES * 2 {
        let (what, found) = ("its number of arrays", archive.len().to_string());
        return Err(ImportanceError::Implausible { file: file.name.clone(), what, found }.into());
    }
    let mut arrays = HashMap::new();
    for index in 0..archive.len() {
        let Some((name, array)) = array(file, &mut archive, index)? else { continue };
        if arrays.insert(name.clone(), array).is_some() {
            return Err(ImportanceError::Twice { file: file.name.clone(), entry: name }.into());
        }
    }
    let mut names: Vec<&String> = arrays.keys().collect();
    names.sort_unstable();
    let sums = names.into_iter().filter_map(|name| name.strip_suffix(".in_sum2"));
    sums.map(|name| entry(file, name, &arrays)).collect()
}

/// The array at a place in the directory, if it is of importance.
fn array(
    file: &Bytes,
    archive: &mut ZipArchive<BufReader<Section>>,
    index: usize,
) -> Result<Option<(String, Array)>> {
    let zip = |why| ImportanceError::Zip { file: file.name.clone(), source: Box::new(why) };
    let inside = archive.by_index_raw(index).map_err(zip)?;
    let name = inside.name().map_err(zip)?.into_owned();
    let Some(name) = name.strip_suffix(".npy") else { return Ok(None) };
    if !name.ends_with(".in_sum2") && !name.ends_with(".counts") {
        return Ok(None);
    }
    let deflated = match inside.compression() {
        CompressionMethod::Deflated if !inside.encrypted() => true,
        CompressionMethod::Stored if !inside.encrypted() => false,
        method => {
            let (file, entry, method) = (file.name.clone(), name.to_owned(), format!("{method:?}"));
            return Err(ImportanceError::Packed { file, entry, method }.into());
        }
    };
    let (at, len, unpacked) = (inside.data_start(), inside.compressed_size(), inside.size());
    let at = at.filter(|&at| file.holds(at, len));
    let cut = || ImportanceError::Truncated { file: file.name.clone(), what: "an array", at: 0 };
    let stored = Stored { at: at.ok_or_else(cut)?, len, deflated, skip: 0 };
    describe(file, name, stored, unpacked).map(|array| Some((name.to_owned(), array)))
}

/// Reads what numpy says of an array in front of it.
fn describe(file: &Bytes, name: &str, mut stored: Stored, unpacked: u64) -> Result<Array> {
    let wrong = |why| ImportanceError::Array { file: file.name.clone(), entry: name.to_owned(), why };
    let text = description(file, &mut stored).map_err(|source| unpack(file, name, source))?;
    let text = text.ok_or_else(|| wrong("it begins with no description"))?;
    let found = ARRAY.captures(&text).ok_or_else(|| wrong("its description is not as usual"))?;
    if &found[2] == "True" && found[3].matches(',').count() > 0 && !found[3].trim_end().ends_with(',') {
        return Err(wrong("its axes are in Fortran's order").into());
    }
    let sizes = found[3].split(',').map(str::trim).filter(|size| !size.is_empty());
    let shape: Option<Vec<u64>> = sizes.map(|size| size.parse().ok()).collect();
    let shape = shape.ok_or_else(|| wrong("its shape can't be counted"))?;
    let size = if found[1].ends_with('8') { 8 } else { 4 };
    let bytes = shape.iter().try_fold(size, |all: u64, &size| all.checked_mul(size));
    if bytes.and_then(|bytes| bytes.checked_add(stored.skip)) != Some(unpacked) {
        return Err(wrong("its size is not that of its shape").into());
    }
    Ok(Array { dtype: found[1].to_owned(), shape, stored })
}

/// The description, and behind it the first number; none if there is no such thing.
fn description(file: &Bytes, stored: &mut Stored) -> std::io::Result<Option<String>> {
    let mut reader = open(file, *stored);
    let mut head = [0; 8];
    reader.read_exact(&mut head)?;
    let (wide, skip) = match head {
        [0x93, b'N', b'U', b'M', b'P', b'Y', 1, _] => (false, 10),
        [0x93, b'N', b'U', b'M', b'P', b'Y', 2 | 3, _] => (true, 12),
        _ => return Ok(None),
    };
    let mut length = [0; 4];
    reader.read_exact(&mut length[..if wide { 4 } else { 2 }])?;
    let length = u64::from(u32::from_le_bytes(length));
    if length > DESCRIPTION {
        return Ok(None);
    }
    let mut text = vec![0; length as usize];
    reader.read_exact(&mut text)?;
    stored.skip = skip + length;
    Ok(String::from_utf8(text).ok())
}

/// Reads stored bytes, unpacked where they are packed.
pub(super) fn open(file: &Bytes, stored: Stored) -> Box<dyn Read + Send> {
    let section = file.section(stored.at, stored.len);
    if stored.deflated { Box::new(DeflateDecoder::new(section)) } else { Box::new(section) }
}

pub(super) fn unpack(file: &Bytes, entry: &str, source: std::io::Error) -> ImportanceError {
    ImportanceError::Unpack { file: file.name.clone(), entry: entry.to_owned(), source }
}

fn entry(file: &Bytes, name: &str, arrays: &HashMap<String, Array>) -> Result<Entry> {
    let dtype = |array: &Array, wanted| {
        let (file, entry, found) = (file.name.clone(), name.to_owned(), array.dtype.clone());
        ImportanceError::Dtype { file, entry, found, wanted }
    };
    let sums = &arrays[&format!("{name}.in_sum2")];
    if sums.dtype != "<f4" {
        return Err(dtype(sums, "<f4").into());
    }
    let (rows, width) = rows_and_width(file, name, &sums.shape)?;
    let without = || ImportanceError::NoCounts { file: file.name.clone(), entry: name.to_owned() };
    let counts = arrays.get(&format!("{name}.counts")).ok_or_else(without)?;
    let number = match counts.dtype.as_str() {
        "<i8" => Number::I64,
        "<f4" => Number::F32,
        _ => return Err(dtype(counts, "<i8").into()),
    };
    let len = counts.shape.iter().product();
    check_counts(file, name, len, rows)?;
    let counts = Counts::Sums(StoredCounts { values: counts.stored, len, number });
    Ok(Entry { name: name.to_owned(), rows, width, values: sums.stored, counts, flat: false })
}
