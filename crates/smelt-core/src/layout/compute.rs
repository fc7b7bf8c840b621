//! Arithmetic on blocks as MLX does it.
//!
//! Floats are widened to f32, each operation is done once and rounded to the dtype: nothing is
//! fused. Integers wrap. What MLX leaves open (the order of a sum, the last bit of a logarithm) is
//! computed in double and rounded once.

use smelt_kernels::{Float, convert};

use super::graph::{BinaryOp, ReduceOp, UnaryOp};
use crate::checkpoint::DType;

/// Elements that are widened at a time: small enough for the first-level cache.
const CHUNK: usize = 1024;

/// `out = left op right` element by element, both of `dtype` and as many as there are in `out`.
pub(super) fn binary(op: BinaryOp, dtype: DType, left: &[u8], right: &[u8], out: &mut [u8]) {
    let size = size(dtype);
    let pairs = left.chunks(CHUNK * size).zip(right.chunks(CHUNK * size));
    let result = if op.compares() { 1 } else { size };
    for ((left, right), out) in pairs.zip(out.chunks_mut(CHUNK * result)) {
        match dtype.float() {
            Some(float) if op.compares() => compare(op, &widen(float, left), &widen(float, right), out),
            Some(float) => {
                let mut wide = widen(float, left);
                let right = widen(float, right);
                wide.iter_mut().zip(right).for_each(|(a, b)| *a = float_op(op, *a, b));
                narrow(float, &wide, out);
            }
            None => {
                let (left, right) = (integers(dtype, left), integers(dtype, right));
                if op.compares() {
                    compare(op, &left, &right, out);
                } else {
                    let values = left.iter().zip(right).map(|(&a, b)| integer_op(op, dtype, a, b));
                    store_integers(size, values, out);
                }
            }
        }
    }
}

/// Each element of `data` by itself, in place.
pub(super) fn unary(op: UnaryOp, dtype: DType, data: &mut [u8]) {
    let size = size(dtype);
    for chunk in data.chunks_mut(CHUNK * size) {
        if let Some(float) = dtype.float() {
            let mut wide = widen(float, chunk);
            for a in &mut wide {
                *a = float_unary(op, *a);
            }
            narrow(float, &wide, chunk);
        } else {
            let values = integers(dtype, chunk);
            store_integers(size, values.into_iter().map(|a| integer_unary(op, a)), chunk);
        }
    }
}

/// Each element of `data` as another dtype.
pub(super) fn cast(from: DType, to: DType, data: &[u8], out: &mut [u8]) {
    if let (Some(from), Some(to)) = (from.float(), to.float()) {
        return convert(from, to, data, out);
    }
    for (data, out) in data.chunks(CHUNK * size(from)).zip(out.chunks_mut(CHUNK * size(to))) {
        match (from.float(), to.float()) {
            (Some(float), _) => {
                let wide = widen(float, data);
                store_integers(size(to), wide.into_iter().map(|a| to_integer(to, a)), out);
            }
            (None, Some(float)) => {
                let wide: Vec<f32> = integers(from, data).into_iter().map(|a| a as f32).collect();
                narrow(float, &wide, out);
            }
            (None, None) => {
                let values = integers(from, data).into_iter();
                let truth = |a: i128| if to == DType::Bool { i128::from(a != 0) } else { a };
                store_integers(size(to), values.map(truth), out);
            }
        }
    }
}

/// Bytes of E4M3 as floats.
pub(super) fn from_fp8(to: Float, data: &[u8], out: &mut [u8]) {
    for (data, out) in data.chunks(CHUNK).zip(out.chunks_mut(CHUNK * to.size())) {
        let wide: Vec<f32> = data.iter().map(|&byte| smelt_kernels::e4m3_to_f32(byte)).collect();
        narrow(to, &wide, out);
    }
}

/// Elements of `yes` where a byte of `test` is not 0, of `no` elsewhere, into `yes`.
pub(super) fn choose(test: &[u8], yes: &mut [u8], no: &[u8], size: usize) {
    for ((test, yes), no) in test.iter().zip(yes.chunks_exact_mut(size)).zip(no.chunks_exact(size)) {
        if *test == 0 {
            yes.copy_from_slice(no);
        }
    }
}

/// The bytes of one number in a dtype.
pub(super) fn number(dtype: DType, value: f64) -> Vec<u8> {
    let mut out = vec![0; size(dtype)];
    match dtype.float() {
        Some(float) => narrow(float, &[value as f32], &mut out),
        None => store_integers(out.len(), [value as i128], &mut out),
    }
    out
}

/// The integers of a block, for use as positions.
pub(super) fn integers(dtype: DType, data: &[u8]) -> Vec<i128> {
    let signed = matches!(dtype, DType::I8 | DType::I16 | DType::I32 | DType::I64);
    let read = |bytes: &[u8]| {
        let mut wide = [0; 16];
        wide[..bytes.len()].copy_from_slice(bytes);
        let value = i128::from_le_bytes(wide);
        let spare = 128 - 8 * bytes.len();
        if signed { value << spare >> spare } else { value }
    };
    data.chunks_exact(size(dtype)).map(read).collect()
}

/// Gathers some axes of a block into one element each; `lens` are the block's, `axes` ascend.
pub(super) fn reduce(op: ReduceOp, dtype: DType, data: &[u8], lens: &[u64], axes: &[usize], out: &mut [u8]) {
    let small: Vec<u64> =
        lens.iter().enumerate().map(|(axis, &len)| if axes.contains(&axis) { 1 } else { len }).collect();
    let count = small.iter().product::<u64>() as usize;
    let mut walk = super::spread::Walk::new(lens, &small);
    if let Some(float) = dtype.float() {
        let mut sums = vec![0f64; count];
        for value in data.chunks(CHUNK * float.size()).flat_map(|chunk| widen(float, chunk)) {
            let value = f64::from(value);
            sums[walk.next()] += if op == ReduceOp::Norm { value * value } else { value };
        }
        let finish = |sum: f64| if op == ReduceOp::Norm { sum.sqrt() as f32 } else { sum as f32 };
        narrow(float, &sums.into_iter().map(finish).collect::<Vec<_>>(), out);
    } else {
        let mut sums = vec![0i128; count];
        let chunks = data.chunks(CHUNK * size(dtype));
        chunks.flat_map(|chunk| integers(dtype, chunk)).for_each(|value| {
            let sum = &mut sums[walk.next()];
            *sum = sum.wrapping_add(value);
        });
        store_integers(size(dtype), sums, out);
    }
}

fn size(dtype: DType) -> usize {
    dtype.bits() as usize / 8
}

pub(super) fn widen(float: Float, data: &[u8]) -> Vec<f32> {
    let mut wide = vec![0; data.len() / float.size() * 4];
    convert(float, Float::F32, data, &mut wide);
    wide.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

pub(super) fn narrow(float: Float, values: &[f32], out: &mut [u8]) {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    convert(Float::F32, float, &bytes, out);
}

/// Writes the low bytes of each value.
fn store_integers(size: usize, values: impl IntoIterator<Item = i128>, out: &mut [u8]) {
    for (value, out) in values.into_iter().zip(out.chunks_exact_mut(size)) {
        out.copy_from_slice(&value.to_le_bytes()[..size]);
    }
}

fn float_op(op: BinaryOp, a: f32, b: f32) -> f32 {
    match op {
        BinaryOp::Sub => a - b,
        BinaryOp::Mul => a * b,
        BinaryOp::Div => a / b,
        BinaryOp::Max if a.is_nan() || a > b => a,
        BinaryOp::Min if a.is_nan() || a < b => a,
        BinaryOp::Max | BinaryOp::Min => b,
        _ => a + b,
    }
}

fn integer_op(op: BinaryOp, dtype: DType, a: i128, b: i128) -> i128 {
    match op {
        BinaryOp::Sub => a.wrapping_sub(b),
        BinaryOp::Mul => a.wrapping_mul(b),
        BinaryOp::Max => a.max(b),
        BinaryOp::Min => a.min(b),
        BinaryOp::And => a & b,
        BinaryOp::Or => a | b,
        BinaryOp::Shl | BinaryOp::Shr => shift(op, dtype, a, b),
        _ => a.wrapping_add(b),
    }
}

/// A shift by the width or more leaves nothing.
fn shift(op: BinaryOp, dtype: DType, a: i128, b: i128) -> i128 {
    let by = u32::try_from(b).ok().filter(|&by| u64::from(by) < dtype.bits());
    match (op, by) {
        (BinaryOp::Shl, Some(by)) => a << by,
        (_, Some(by)) => a >> by,
        (_, None) => 0,
    }
}

fn compare<T: PartialOrd>(op: BinaryOp, left: &[T], right: &[T], out: &mut [u8]) {
    for ((a, b), out) in left.iter().zip(right).zip(out) {
        *out = u8::from(match op {
            BinaryOp::Equal => a == b,
            BinaryOp::Unequal => a != b,
            BinaryOp::Less => a < b,
            BinaryOp::LessEqual => a <= b,
            BinaryOp::Greater => a > b,
            _ => a >= b,
        });
    }
}

fn float_unary(op: UnaryOp, a: f32) -> f32 {
    let double = f64::from(a);
    match op {
        UnaryOp::Negative => -a,
        UnaryOp::Abs => a.abs(),
        UnaryOp::Square => a * a,
        UnaryOp::Floor => a.floor(),
        UnaryOp::Sqrt => a.sqrt(),
        UnaryOp::Log2 => double.log2() as f32,
        UnaryOp::Exp => double.exp() as f32,
        UnaryOp::Sigmoid => (1.0 / (1.0 + (-double).exp())) as f32,
    }
}

fn integer_unary(op: UnaryOp, a: i128) -> i128 {
    match op {
        UnaryOp::Negative => -a,
        UnaryOp::Abs => a.abs(),
        _ => a.wrapping_mul(a),
    }
}

/// A float as an integer: towards zero, BOOL by whether it is anything but zero.
fn to_integer(dtype: DType, value: f32) -> i128 {
    if dtype == DType::Bool { i128::from(value != 0.0) } else { value as i128 }
}
