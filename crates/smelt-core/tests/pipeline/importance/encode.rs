//! Files of importance, written as their formats say.

use std::collections::HashMap;
use std::io::{Cursor, Write as _};
use std::sync::Arc;

use safetensors::{Dtype, tensor::TensorView};
use smelt_core::Result;
use smelt_core::plan::Statistics;
use smelt_core::source::MemorySource;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// What one module's inputs came to.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) name: String,
    pub(crate) width: usize,
    /// Sums of squares, row after row.
    pub(crate) sums: Vec<f32>,
    /// One for each row, or one.
    pub(crate) counts: Vec<f32>,
}

impl Given {
    /// Of rows whose value at a channel is `sum(row, channel)` over `counts`.
    pub(crate) fn new(name: &str, width: usize, counts: &[f32], sum: impl Fn(usize, usize) -> f32) -> Self {
        let rows = (0..counts.len()).flat_map(|row| (0..width).map(move |channel| (row, channel)));
        let sums = rows.map(|(row, channel)| sum(row, channel)).collect();
        Self { name: name.to_owned(), width, sums, counts: counts.to_vec() }
    }

    pub(crate) fn rows(&self) -> usize {
        self.sums.len() / self.width
    }

    /// The mean squares of a row.
    pub(crate) fn mean(&self, row: usize) -> Vec<f32> {
        let count = self.counts[if self.counts.len() == 1 { 0 } else { row }];
        self.sums[row * self.width..][..self.width].iter().map(|sum| sum / count).collect()
    }
}

pub(crate) fn read(bytes: Vec<u8>) -> Result<Statistics> {
    let size = bytes.len() as u64;
    Statistics::read(Arc::new(MemorySource::new([("given", bytes)])), "given", size)
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// GGUF with the metadata that llama.cpp writes.
pub(crate) struct Gguf {
    pub(crate) version: u32,
    pub(crate) kind: &'static str,
    pub(crate) tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

impl Gguf {
    pub(crate) fn of(all: &[Given]) -> Self {
        let mut tensors = Vec::new();
        for given in all {
            let (width, rows, counts) = (given.width as u64, given.rows() as u64, given.counts.len() as u64);
            let name = |what: &str| format!("{}.weight.{what}", given.name);
            tensors.push((name("counts"), vec![1, counts], 0, floats(&given.counts)));
            tensors.push((name("in_sum"), vec![width, rows], 0, floats(&vec![-1.0; given.sums.len()])));
            tensors.push((name("in_sum2"), vec![width, rows], 0, floats(&given.sums)));
        }
        Self { version: 3, kind: "imatrix", tensors }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let text = |out: &mut Vec<u8>, text: &str| {
            out.extend((text.len() as u64).to_le_bytes());
            out.extend(text.as_bytes());
        };
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend(3u64.to_le_bytes());
        text(&mut out, "general.type");
        out.extend(8u32.to_le_bytes());
        text(&mut out, self.kind);
        text(&mut out, "imatrix.datasets");
        out.extend([9u32.to_le_bytes(), 8u32.to_le_bytes()].concat());
        out.extend(1u64.to_le_bytes());
        text(&mut out, "a text");
        text(&mut out, "imatrix.chunk_count");
        out.extend([4u32.to_le_bytes(), 7u32.to_le_bytes()].concat());
        let mut offset = 0;
        for (name, shape, dtype, data) in &self.tensors {
            text(&mut out, name);
            out.extend((shape.len() as u32).to_le_bytes());
            out.extend(shape.iter().flat_map(|size| size.to_le_bytes()));
            out.extend(dtype.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += data.len().next_multiple_of(32);
        }
        for (_, _, _, data) in &self.tensors {
            out.resize(out.len().next_multiple_of(32), 0);
            out.extend(data);
        }
        out
    }
}

pub(crate) fn gguf(all: &[Given]) -> Vec<u8> {
    Gguf::of(all).bytes()
}

/// The form before GGUF, of so many calls.
pub(crate) fn legacy(all: &[Given], calls: i32) -> Vec<u8> {
    let mut out = (all.len() as i32).to_le_bytes().to_vec();
    for given in all {
        let name = format!("{}.weight", given.name);
        out.extend((name.len() as i32).to_le_bytes());
        out.extend(name.as_bytes());
        out.extend(calls.to_le_bytes());
        out.extend((given.sums.len() as i32).to_le_bytes());
        for row in 0..given.rows() {
            let seen = given.counts[if given.counts.len() == 1 { 0 } else { row }] > 0.0;
            let mean = if seen { given.mean(row) } else { vec![1.0; given.width] };
            out.extend(floats(&mean.iter().map(|mean| mean * calls as f32).collect::<Vec<_>>()));
        }
    }
    out.extend(9i32.to_le_bytes());
    out.extend(4i32.to_le_bytes());
    out.extend(b"text");
    out
}

/// An array as numpy writes it.
pub(crate) fn npy(dtype: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut text = format!("{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({shape}), }}");
    while !(10 + text.len() + 1).is_multiple_of(64) {
        text.push(' ');
    }
    text.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((text.len() as u16).to_le_bytes());
    out.extend(text.as_bytes());
    out.extend(data);
    out
}

pub(crate) fn zip(arrays: &[(String, Vec<u8>)], method: CompressionMethod) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, array) in arrays {
        let options = SimpleFileOptions::default().compression_method(method);
        writer.start_file(format!("{name}.npy"), options).unwrap();
        writer.write_all(array).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

pub(crate) fn arrays(all: &[Given]) -> Vec<(String, Vec<u8>)> {
    let mut arrays = Vec::new();
    for given in all {
        let rows = given.rows();
        let shape = if rows == 1 { format!("{},", given.width) } else { format!("{rows}, {}", given.width) };
        let counts: Vec<u8> = given.counts.iter().flat_map(|count| (*count as i64).to_le_bytes()).collect();
        arrays.push((format!("{}.in_sum2", given.name), npy("<f4", &shape, &floats(&given.sums))));
        let len = format!("{},", given.counts.len());
        arrays.push((format!("{}.counts", given.name), npy("<i8", &len, &counts)));
    }
    arrays
}

pub(crate) fn npz(all: &[Given]) -> Vec<u8> {
    zip(&arrays(all), CompressionMethod::Deflated)
}

pub(crate) fn tensors(tensors: &[(String, Dtype, Vec<usize>, Vec<u8>)]) -> Vec<u8> {
    let views: HashMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|(name, dtype, shape, data)| {
            (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
        })
        .collect();
    safetensors::serialize(views, None).unwrap()
}

/// smelt's own: means and counts.
pub(crate) fn own(all: &[Given]) -> Vec<u8> {
    let mut list = Vec::new();
    for given in all {
        let means: Vec<f32> = (0..given.rows())
            .flat_map(|row| given.mean(row))
            .map(|mean| if mean.is_finite() { mean } else { 0.0 })
            .collect();
        let shape = if given.rows() == 1 { vec![given.width] } else { vec![given.rows(), given.width] };
        list.push((given.name.clone(), Dtype::F32, shape, floats(&means)));
        let counts = (format!("{}.counts", given.name), Dtype::F32, vec![given.counts.len()]);
        list.push((counts.0, counts.1, counts.2, floats(&given.counts)));
    }
    tensors(&list)
}
