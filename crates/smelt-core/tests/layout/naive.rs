//! What each operation means, on whole tensors, one element at a time.
//!
//! Nothing of the code under test is used: elements are raw bits, arithmetic goes through the
//! `half` crate, positions are counted like the digits of an odometer.

use half::{bf16, f16};
use smelt_core::checkpoint::DType;
use smelt_core::checkpoint::region::Axis;
use smelt_core::layout::graph::{BinaryOp, ReduceOp, UnaryOp};

/// A whole tensor: the bits of its elements in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<u64>,
    pub(crate) bits: Vec<u32>,
}

/// Every position of a shape, in row-major order.
pub(crate) fn positions(shape: &[u64]) -> Vec<Vec<u64>> {
    let mut all = vec![Vec::new()];
    for &size in shape {
        all = all.iter().flat_map(|head| (0..size).map(move |at| [&head[..], &[at]].concat())).collect();
    }
    all
}

impl Tensor {
    /// The tensor whose element at each position is `element(position)`.
    pub(crate) fn from_fn(dtype: DType, shape: &[u64], mut element: impl FnMut(&[u64]) -> u32) -> Self {
        let bits = positions(shape).iter().map(|at| element(at)).collect();
        Self { dtype, shape: shape.to_vec(), bits }
    }

    pub(crate) fn at(&self, position: &[u64]) -> u32 {
        let index = position.iter().zip(&self.shape).fold(0, |index, (at, size)| index * size + at);
        self.bits[index as usize]
    }

    pub(crate) fn number(&self, position: &[u64]) -> f32 {
        widen(self.dtype, self.at(position))
    }

    pub(crate) fn region(&self, region: &[Axis]) -> Self {
        let shape: Vec<u64> = region.iter().map(|axis| axis.len).collect();
        Self::from_fn(self.dtype, &shape, |at| {
            let inside: Vec<u64> =
                at.iter().zip(region).map(|(at, axis)| axis.start + at * axis.step).collect();
            self.at(&inside)
        })
    }

    /// The bytes, with every NaN replaced by one: which NaN an operation gives is nobody's promise.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let size = self.dtype.bits() as usize / 8;
        let canonical = |&bits: &u32| if widen(self.dtype, bits).is_nan() { u32::MAX } else { bits };
        self.bits.iter().flat_map(|bits| canonical(bits).to_le_bytes()[..size].to_vec()).collect()
    }

    /// The tensor whose bytes these are.
    pub(crate) fn from_bytes(dtype: DType, shape: &[u64], bytes: &[u8]) -> Self {
        let size = dtype.bits() as usize / 8;
        let element = |chunk: &[u8]| {
            let mut wide = [0; 4];
            wide[..size].copy_from_slice(chunk);
            u32::from_le_bytes(wide)
        };
        Self { dtype, shape: shape.to_vec(), bits: bytes.chunks_exact(size).map(element).collect() }
    }
}

pub(crate) fn widen(dtype: DType, bits: u32) -> f32 {
    match dtype {
        DType::BF16 => bf16::from_bits(bits as u16).to_f32(),
        DType::F16 => f16::from_bits(bits as u16).to_f32(),
        _ => f32::from_bits(bits),
    }
}

pub(crate) fn narrow(dtype: DType, value: f32) -> u32 {
    match dtype {
        DType::BF16 => u32::from(bf16::from_f32(value).to_bits()),
        DType::F16 => u32::from(f16::from_f32(value).to_bits()),
        _ => value.to_bits(),
    }
}

pub(crate) fn stack(axis: usize, parts: &[&Tensor]) -> Tensor {
    let mut shape = parts[0].shape.clone();
    shape.insert(axis, parts.len() as u64);
    Tensor::from_fn(parts[0].dtype, &shape, |at| {
        let mut inside = at.to_vec();
        let which = inside.remove(axis);
        parts[which as usize].at(&inside)
    })
}

pub(crate) fn concat(axis: usize, parts: &[&Tensor]) -> Tensor {
    let mut shape = parts[0].shape.clone();
    shape[axis] = parts.iter().map(|part| part.shape[axis]).sum();
    Tensor::from_fn(parts[0].dtype, &shape, |at| {
        let mut inside = at.to_vec();
        let mut which = 0;
        while inside[axis] >= parts[which].shape[axis] {
            inside[axis] -= parts[which].shape[axis];
            which += 1;
        }
        parts[which].at(&inside)
    })
}

pub(crate) fn slice(input: &Tensor, axis: usize, start: u64, end: u64, step: u64) -> Tensor {
    let kept: Vec<u64> = (start..end).step_by(step as usize).collect();
    let mut shape = input.shape.clone();
    shape[axis] = kept.len() as u64;
    Tensor::from_fn(input.dtype, &shape, |at| {
        let mut inside = at.to_vec();
        inside[axis] = kept[at[axis] as usize];
        input.at(&inside)
    })
}

pub(crate) fn transpose(input: &Tensor, perm: &[usize]) -> Tensor {
    let shape: Vec<u64> = perm.iter().map(|&axis| input.shape[axis]).collect();
    Tensor::from_fn(input.dtype, &shape, |at| {
        let mut inside = vec![0; perm.len()];
        perm.iter().zip(at).for_each(|(&axis, &at)| inside[axis] = at);
        input.at(&inside)
    })
}

pub(crate) fn reshape(input: &Tensor, shape: &[u64]) -> Tensor {
    Tensor { shape: shape.to_vec(), ..input.clone() }
}

pub(crate) fn cast(input: &Tensor, dtype: DType) -> Tensor {
    Tensor::from_fn(dtype, &input.shape, |at| narrow(dtype, input.number(at)))
}

/// Summed in double, in order, and rounded to f32 before the dtype.
pub(crate) fn matmul(left: &Tensor, right: &Tensor) -> Tensor {
    Tensor::from_fn(left.dtype, &[left.shape[0], right.shape[1]], |at| {
        let terms = (0..right.shape[0])
            .map(|k| f64::from(left.number(&[at[0], k])) * f64::from(right.number(&[k, at[1]])));
        narrow(left.dtype, terms.fold(0.0, |sum, term| sum + term) as f32)
    })
}

pub(crate) fn scalar(value: f64, dtype: DType) -> Tensor {
    Tensor { dtype, shape: Vec::new(), bits: vec![narrow(dtype, value as f32)] }
}

pub(crate) fn unary(op: UnaryOp, input: &Tensor) -> Tensor {
    Tensor::from_fn(input.dtype, &input.shape, |at| {
        let a = input.number(at);
        narrow(
            input.dtype,
            match op {
                UnaryOp::Negative => -a,
                UnaryOp::Abs => a.abs(),
                UnaryOp::Square => a * a,
                UnaryOp::Floor => a.floor(),
                UnaryOp::Sqrt => a.sqrt(),
                other => panic!("{other:?} is not exact"),
            },
        )
    })
}

pub(crate) fn pad(input: &Tensor, low: &[u64], high: &[u64], value: f64) -> Tensor {
    let shape: Vec<u64> = (0..low.len()).map(|i| low[i] + input.shape[i] + high[i]).collect();
    let border = narrow(input.dtype, value as f32);
    Tensor::from_fn(input.dtype, &shape, |at| {
        let inside = (0..low.len()).all(|i| low[i] <= at[i] && at[i] < low[i] + input.shape[i]);
        let at: Vec<u64> = at.iter().zip(low).map(|(at, low)| at.wrapping_sub(*low)).collect();
        if inside { input.at(&at) } else { border }
    })
}

pub(crate) fn repeat(input: &Tensor, axis: usize, count: u64) -> Tensor {
    let mut shape = input.shape.clone();
    shape[axis] *= count;
    Tensor::from_fn(input.dtype, &shape, |at| {
        let mut at = at.to_vec();
        at[axis] /= count;
        input.at(&at)
    })
}

pub(crate) fn broadcast(input: &Tensor, shape: &[u64]) -> Tensor {
    Tensor::from_fn(input.dtype, shape, |at| {
        let aligned = &at[shape.len() - input.shape.len()..];
        let at: Vec<u64> =
            aligned.iter().zip(&input.shape).map(|(&at, &size)| if size == 1 { 0 } else { at }).collect();
        input.at(&at)
    })
}

pub(crate) fn take(input: &Tensor, axis: usize, indices: &[Vec<i32>]) -> Tensor {
    let mut shape = input.shape.clone();
    shape.splice(axis..=axis, [indices.len() as u64, indices[0].len() as u64]);
    Tensor::from_fn(input.dtype, &shape, |at| {
        let index = indices[at[axis] as usize][at[axis + 1] as usize];
        let index = if index < 0 { index + input.shape[axis] as i32 } else { index };
        let mut at = at.to_vec();
        at.splice(axis..=axis + 1, [index as u64]);
        input.at(&at)
    })
}

pub(crate) fn bitcast(input: &Tensor, dtype: DType) -> Tensor {
    let size = |dtype: DType| dtype.bits() as usize / 8;
    let raw: Vec<u8> =
        input.bits.iter().flat_map(|bits| bits.to_le_bytes()[..size(input.dtype)].to_vec()).collect();
    let mut shape = input.shape.clone();
    if let Some(last) = shape.last_mut() {
        *last = *last * size(input.dtype) as u64 / size(dtype) as u64;
    }
    Tensor::from_bytes(dtype, &shape, &raw)
}

/// The smaller of two, the first where neither is.
pub(crate) fn smaller(left: &Tensor, right: &Tensor) -> Tensor {
    Tensor::from_fn(left.dtype, &left.shape, |at| {
        if right.number(at) < left.number(at) { right.at(at) } else { left.at(at) }
    })
}

pub(crate) fn reduce(op: ReduceOp, input: &Tensor, axes: &[usize]) -> Tensor {
    let mut shape = input.shape.clone();
    for &axis in axes {
        shape[axis] = 1;
    }
    Tensor::from_fn(input.dtype, &shape, |at| {
        let inside = |position: &&Vec<u64>| (0..at.len()).all(|i| axes.contains(&i) || position[i] == at[i]);
        let all = positions(&input.shape);
        let values = all.iter().filter(inside).map(|position| f64::from(input.number(position)));
        let result = match op {
            ReduceOp::Sum => values.fold(0.0, |sum, value| sum + value),
            ReduceOp::Norm => values.fold(0.0, |sum, value| sum + value * value).sqrt(),
        };
        narrow(input.dtype, result as f32)
    })
}

pub(crate) fn binary(op: BinaryOp, left: &Tensor, right: &Tensor) -> Tensor {
    Tensor::from_fn(left.dtype, &left.shape, |at| {
        let aligned = &at[left.shape.len() - right.shape.len()..];
        let inside: Vec<u64> =
            aligned.iter().zip(&right.shape).map(|(&at, &size)| if size == 1 { 0 } else { at }).collect();
        let (a, b) = (left.number(at), right.number(&inside));
        let value = match op {
            BinaryOp::Add => a + b,
            BinaryOp::Sub => a - b,
            BinaryOp::Mul => a * b,
            BinaryOp::Div => a / b,
            BinaryOp::Max if a.is_nan() || b.is_nan() => f32::NAN,
            BinaryOp::Max => a.max(b),
            other => panic!("{other:?} is tested apart"),
        };
        narrow(left.dtype, value)
    })
}
