//! smelt's own file: safetensors with, for each module, the mean squares of its input channels.
//!
//! ```text
//! MODULE           F32 [channels], or [experts, channels]    mean of x² over tokens
//! MODULE.counts    F32 or I64 [1], or [experts]              tokens that each had; may be left out
//! ```
//!
//! `MODULE` is a module's path in the checkpoint or in the MLX model.

use std::collections::HashMap;

use super::ImportanceError;
use super::bytes::Bytes;
use super::entry::{Counts, Entry, Number, Stored, StoredCounts, check_counts, rows_and_width};
use crate::checkpoint::{DType, TensorInfo, parse_header};
use crate::error::Result;

const COUNTS: &str = ".counts";

/// The entries of such a file.
pub(super) fn index(file: &Bytes) -> Result<Vec<Entry>> {
    let header = parse_header(&file.name, file.size, |at, buf| file.read(at, buf))?;
    let tensors: HashMap<&str, &TensorInfo> =
        header.tensors.iter().map(|tensor| (&*tensor.name, tensor)).collect();
    let means = header.tensors.iter().filter(|tensor| !tensor.name.ends_with(COUNTS));
    means.map(|tensor| entry(file, tensor, &tensors)).collect()
}

fn entry(file: &Bytes, means: &TensorInfo, tensors: &HashMap<&str, &TensorInfo>) -> Result<Entry> {
    let name = &*means.name;
    let (rows, width) = rows_and_width(file, name, &means.shape)?;
    if means.dtype != DType::F32 {
        return Err(dtype(file, name, means.dtype, "F32"));
    }
    let counts = match tensors.get(format!("{name}{COUNTS}").as_str()) {
        None => Counts::Unknown,
        Some(counts) => Counts::Means(stored_counts(file, counts, rows)?),
    };
    let values = Stored::plain(means.offset, means.bytes);
    let name = name.strip_suffix(".weight").unwrap_or(name).to_owned();
    Ok(Entry { name, rows, width, values, counts, flat: false })
}

fn stored_counts(file: &Bytes, counts: &TensorInfo, rows: u64) -> Result<StoredCounts> {
    let number = match counts.dtype {
        DType::F32 => Number::F32,
        DType::I64 => Number::I64,
        other => return Err(dtype(file, &counts.name, other, "F32 or I64")),
    };
    let len = counts.bytes / number.size();
    check_counts(file, &counts.name, len, rows)?;
    Ok(StoredCounts { values: Stored::plain(counts.offset, counts.bytes), len, number })
}

fn dtype(file: &Bytes, entry: &str, found: DType, wanted: &'static str) -> crate::Error {
    let (file, entry, found) = (file.name.clone(), entry.to_owned(), found.to_string());
    ImportanceError::Dtype { file, entry, found, wanted }.into()
}
