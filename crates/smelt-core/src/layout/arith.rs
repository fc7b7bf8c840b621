//! Arithmetic on blocks as MLX does it: widen to f32, one operation, round to the dtype.

use smelt_kernels::{Float, convert};

use super::graph::BinaryOp;

/// Elements that are widened at a time: small enough for the first-level cache.
const CHUNK: usize = 1024;

/// `out = out op small`, with `small` broadcast from its lengths to those of `out`, aligned at the
/// last axis.
pub(super) fn apply(
    op: BinaryOp,
    dtype: Float,
    out: &mut [u8],
    lens: &[u64],
    small: &[u8],
    small_lens: &[u64],
) {
    let right = widen(dtype, small);
    let mut index = Broadcast::new(lens, small_lens);
    let mut wide = [0; CHUNK * 4];
    for chunk in out.chunks_mut(CHUNK * dtype.size()) {
        let wide = &mut wide[..chunk.len() / dtype.size() * 4];
        convert(dtype, Float::F32, chunk, wide);
        for element in wide.as_chunks_mut::<4>().0 {
            let value = compute(op, f32::from_le_bytes(*element), right[index.next()]);
            *element = value.to_le_bytes();
        }
        convert(Float::F32, dtype, wide, chunk);
    }
}

/// Fills `out` with one number, rounded to `dtype`.
pub(super) fn fill(dtype: Float, value: f64, out: &mut [u8]) {
    let mut element = [0; 4];
    let element = &mut element[..dtype.size()];
    convert(Float::F32, dtype, &(value as f32).to_le_bytes(), element);
    out.chunks_exact_mut(dtype.size()).for_each(|place| place.copy_from_slice(element));
}

fn compute(op: BinaryOp, a: f32, b: f32) -> f32 {
    match op {
        BinaryOp::Add => a + b,
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
    }
}

fn widen(dtype: Float, data: &[u8]) -> Vec<f32> {
    let mut wide = vec![0; data.len() / dtype.size() * 4];
    convert(dtype, Float::F32, data, &mut wide);
    wide.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Walks the elements of a block and tells the matching element of a smaller one.
struct Broadcast {
    lens: Vec<u64>,
    /// Distance in the small block for one step on each axis; 0 where it is repeated.
    strides: Vec<usize>,
    at: Vec<u64>,
    index: usize,
}

impl Broadcast {
    fn new(lens: &[u64], small: &[u64]) -> Self {
        let skip = lens.len() - small.len();
        let mut strides = vec![0; lens.len()];
        let mut stride = 1;
        for axis in (0..small.len()).rev() {
            if small[axis] > 1 {
                strides[skip + axis] = stride;
            }
            stride *= small[axis] as usize;
        }
        Self { lens: lens.to_vec(), strides, at: vec![0; lens.len()], index: 0 }
    }

    fn next(&mut self) -> usize {
        let here = self.index;
        for axis in (0..self.at.len()).rev() {
            self.at[axis] += 1;
            self.index += self.strides[axis];
            if self.at[axis] < self.lens[axis] {
                break;
            }
            self.at[axis] = 0;
            self.index -= self.strides[axis] * self.lens[axis] as usize;
        }
        here
    }
}
