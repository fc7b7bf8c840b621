//! Expressions over the tensors of a checkpoint, as a graph in which equal expressions are one.
//!
//! A node knows its shape and dtype when it is made, so a layout that does not fit is refused
//! before anything is read. Constructors bring expressions to one form (transposes compose, a full
//! slice vanishes, a reshape of a reshape is one), so the same layout written in two ways is the
//! same graph.

use indexmap::IndexSet;
use serde::{Deserialize, Serialize};

pub use super::op::{BinaryOp, Node, NodeId, Op, ReduceOp, UnaryOp};
use crate::checkpoint::{DType, TensorId};

/// Why an expression can't be made of its parts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    /// Stacked or concatenated tensors differ.
    #[error(
        "part {index} has shape {found:?} and dtype {found_dtype} where the first has {expected:?} and {expected_dtype}"
    )]
    PartsDiffer {
        /// Which part.
        index: usize,
        /// Its shape.
        found: Box<[u64]>,
        /// Its dtype.
        found_dtype: DType,
        /// The shape of the first part.
        expected: Box<[u64]>,
        /// The dtype of the first part.
        expected_dtype: DType,
    },
    /// Nothing to stack or concatenate.
    #[error("there is nothing to join")]
    NoParts,
    /// The tensor has no such axis.
    #[error("axis {axis} of a tensor of shape {shape:?}")]
    NoSuchAxis {
        /// The axis asked for.
        axis: usize,
        /// The shape it was asked of.
        shape: Box<[u64]>,
    },
    /// A slice that leaves the tensor.
    #[error("elements {start}..{end} of axis {axis} of a tensor of shape {shape:?}")]
    OutOfRange {
        /// First element.
        start: u64,
        /// One past the last.
        end: u64,
        /// The axis.
        axis: usize,
        /// The tensor's shape.
        shape: Box<[u64]>,
    },
    /// A reshape that changes the number of elements.
    #[error("shape {from:?} does not reshape to {to:?}")]
    Reshape {
        /// The shape that is there.
        from: Box<[u64]>,
        /// The shape asked for.
        to: Box<[u64]>,
    },
    /// Not a permutation of the axes.
    #[error("{perm:?} does not permute the axes of shape {shape:?}")]
    Permutation {
        /// What was given.
        perm: Box<[usize]>,
        /// The tensor's shape.
        shape: Box<[u64]>,
    },
    /// Operands whose shapes don't broadcast or whose dtypes differ.
    #[error("{left:?} ({left_dtype}) and {right:?} ({right_dtype}) do not go together")]
    Operands {
        /// Shape of the left operand.
        left: Box<[u64]>,
        /// Its dtype.
        left_dtype: DType,
        /// Shape of the right operand.
        right: Box<[u64]>,
        /// Its dtype.
        right_dtype: DType,
    },
    /// An operation that MLX does not do on this dtype, or smelt can't.
    #[error("no such operation on dtype {0}")]
    Dtype(DType),
    /// A constant whose bytes are not those of its shape.
    #[error("{bytes} bytes for a constant of shape {shape:?} and dtype {dtype}")]
    Constant {
        /// Bytes given.
        bytes: usize,
        /// The shape.
        shape: Box<[u64]>,
        /// The dtype.
        dtype: DType,
    },
}

type Made = Result<NodeId, OpError>;

/// A set of expressions that share their parts.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Graph {
    nodes: IndexSet<Node>,
}

impl Graph {
    /// The node of this id.
    ///
    /// # Panics
    /// If the id is of another graph.
    pub fn node(&self, id: NodeId) -> &Node {
        self.nodes.get_index(id.0 as usize).expect("the id was made by this graph")
    }

    /// How many different expressions there are.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    fn add(&mut self, op: Op, dtype: DType, shape: Vec<u64>) -> NodeId {
        let (index, _) = self.nodes.insert_full(Node { op, dtype, shape: shape.into() });
        NodeId(u32::try_from(index).expect("fewer than 2^32 expressions"))
    }

    /// A tensor of the checkpoint.
    pub fn source(&mut self, id: TensorId, dtype: DType, shape: &[u64]) -> NodeId {
        self.add(Op::Source(id), dtype, shape.to_vec())
    }

    /// Stacks tensors of one shape and dtype along a new `axis`.
    ///
    /// # Errors
    /// [`OpError`] if there are none, they differ, or the axis lies outside.
    pub fn stack(&mut self, axis: usize, inputs: &[NodeId]) -> Made {
        let first = self.node(*inputs.first().ok_or(OpError::NoParts)?).clone();
        for (index, &input) in inputs.iter().enumerate() {
            self.check_part(index, input, &first, |part| part.shape == first.shape)?;
        }
        let mut shape = first.shape.to_vec();
        if axis > shape.len() {
            return Err(OpError::NoSuchAxis { axis, shape: first.shape });
        }
        shape.insert(axis, inputs.len() as u64);
        Ok(self.add(Op::Stack { axis, inputs: inputs.into() }, first.dtype, shape))
    }

    /// Joins tensors along an `axis` that they have.
    ///
    /// # Errors
    /// [`OpError`] if there are none, they differ on another axis, or the axis lies outside.
    pub fn concat(&mut self, axis: usize, inputs: &[NodeId]) -> Made {
        let first = self.node(*inputs.first().ok_or(OpError::NoParts)?).clone();
        check_axis(axis, &first.shape)?;
        let same = |part: &Node| {
            part.shape.len() == first.shape.len()
                && part.shape.iter().zip(&first.shape).enumerate().all(|(i, (a, b))| i == axis || a == b)
        };
        let mut shape = first.shape.to_vec();
        shape[axis] = 0;
        for (index, &input) in inputs.iter().enumerate() {
            self.check_part(index, input, &first, same)?;
            shape[axis] += self.node(input).shape[axis];
        }
        if let [only] = inputs {
            return Ok(*only);
        }
        Ok(self.add(Op::Concat { axis, inputs: inputs.into() }, first.dtype, shape))
    }

    fn check_part(
        &self,
        index: usize,
        part: NodeId,
        first: &Node,
        same: impl Fn(&Node) -> bool,
    ) -> Result<(), OpError> {
        let part = self.node(part);
        if part.dtype == first.dtype && same(part) {
            return Ok(());
        }
        Err(OpError::PartsDiffer {
            index,
            found: part.shape.clone(),
            found_dtype: part.dtype,
            expected: first.shape.clone(),
            expected_dtype: first.dtype,
        })
    }

    /// The elements `start`, `start + step`, … below `end` of an `axis`.
    ///
    /// # Errors
    /// [`OpError`] if the range is empty or leaves the tensor.
    pub fn slice(&mut self, input: NodeId, axis: usize, start: u64, end: u64, step: u64) -> Made {
        let node = self.node(input).clone();
        check_axis(axis, &node.shape)?;
        if start >= end || end > node.shape[axis] || step == 0 {
            return Err(OpError::OutOfRange { start, end, axis, shape: node.shape });
        }
        let len = (end - start).div_ceil(step);
        if len == node.shape[axis] {
            return Ok(input);
        }
        let (input, start, step) = match node.op {
            Op::Slice { input: inner, axis: same, start: outer, step: stride } if same == axis => {
                (inner, outer + start * stride, step * stride)
            }
            _ => (input, start, step),
        };
        let mut shape = node.shape.to_vec();
        shape[axis] = len;
        Ok(self.add(Op::Slice { input, axis, start, step }, node.dtype, shape))
    }

    /// Permutes the axes: axis `i` of the result is axis `perm[i]` of the input.
    ///
    /// # Errors
    /// [`OpError`] if `perm` is not a permutation of the axes.
    pub fn transpose(&mut self, input: NodeId, perm: &[usize]) -> Made {
        let node = self.node(input).clone();
        let mut sorted = perm.to_vec();
        sorted.sort_unstable();
        if !sorted.into_iter().eq(0..node.shape.len()) {
            return Err(OpError::Permutation { perm: perm.into(), shape: node.shape });
        }
        let shape = perm.iter().map(|&axis| node.shape[axis]).collect();
        let (input, perm) = match &node.op {
            Op::Transpose { input: inner, perm: first } => {
                (*inner, perm.iter().map(|&axis| first[axis]).collect::<Box<[usize]>>())
            }
            _ => (input, perm.into()),
        };
        if perm.iter().copied().eq(0..perm.len()) {
            return Ok(input);
        }
        Ok(self.add(Op::Transpose { input, perm }, node.dtype, shape))
    }

    /// The same elements under another shape.
    ///
    /// # Errors
    /// [`OpError`] if the number of elements differs.
    pub fn reshape(&mut self, input: NodeId, shape: &[u64]) -> Made {
        let node = self.node(input).clone();
        let count = |shape: &[u64]| shape.iter().try_fold(1u64, |total, &size| total.checked_mul(size));
        if count(shape) != count(&node.shape) {
            return Err(OpError::Reshape { from: node.shape, to: shape.into() });
        }
        let input = match node.op {
            Op::Reshape(inner) => inner,
            _ => input,
        };
        if *self.node(input).shape == *shape {
            return Ok(input);
        }
        Ok(self.add(Op::Reshape(input), node.dtype, shape.to_vec()))
    }

    /// Each element as another dtype.
    ///
    /// # Errors
    /// [`OpError`] if either dtype is not a number or BOOL that MLX computes with.
    pub fn cast(&mut self, input: NodeId, dtype: DType) -> Made {
        let node = self.node(input);
        if node.dtype == dtype {
            return Ok(input);
        }
        let shape = node.shape.to_vec();
        for side in [node.dtype, dtype] {
            check(side.is_number() || side == DType::Bool, side)?;
        }
        Ok(self.add(Op::Cast(input), dtype, shape))
    }

    /// The same bits as another dtype.
    ///
    /// # Errors
    /// [`OpError`] if the last axis does not divide into elements of that dtype.
    pub fn bitcast(&mut self, input: NodeId, dtype: DType) -> Made {
        let node = self.node(input).clone();
        if node.dtype == dtype {
            return Ok(input);
        }
        check(whole_bytes(node.dtype), node.dtype)?;
        check(whole_bytes(dtype), dtype)?;
        let mut shape = node.shape.to_vec();
        if node.dtype.bits() != dtype.bits() {
            let last = shape.last_mut().ok_or(OpError::NoSuchAxis { axis: 0, shape: node.shape.clone() })?;
            let bits = *last * node.dtype.bits();
            check(bits.is_multiple_of(dtype.bits()), dtype)?;
            *last = bits / dtype.bits();
        }
        let input = match node.op {
            Op::Bitcast(inner) => inner,
            _ => input,
        };
        if self.node(input).dtype == dtype {
            return Ok(input);
        }
        Ok(self.add(Op::Bitcast(input), dtype, shape))
    }

    /// Bytes of E4M3 as floats of a dtype.
    ///
    /// # Errors
    /// [`OpError`] if the input is not of bytes or the dtype no float.
    pub fn from_fp8(&mut self, input: NodeId, dtype: DType) -> Made {
        let node = self.node(input);
        check(matches!(node.dtype, DType::U8 | DType::F8E4M3), node.dtype)?;
        check(dtype.float().is_some(), dtype)?;
        let shape = node.shape.to_vec();
        Ok(self.add(Op::FromFp8(input), dtype, shape))
    }

    /// One number, rounded to `dtype`.
    pub fn scalar(&mut self, value: f64, dtype: DType) -> NodeId {
        self.add(Op::Scalar(value.to_bits()), dtype, Vec::new())
    }

    /// A tensor that the layout itself holds, row-major and little endian.
    ///
    /// # Errors
    /// [`OpError`] if there are not as many bytes as the shape asks for.
    pub fn constant(&mut self, data: &[u8], dtype: DType, shape: &[u64]) -> Made {
        let elements = shape.iter().try_fold(1u64, |total, &size| total.checked_mul(size));
        let bytes = elements.and_then(|elements| dtype.bytes(elements));
        if bytes != Some(data.len() as u64) || !whole_bytes(dtype) {
            return Err(OpError::Constant { bytes: data.len(), shape: shape.into(), dtype });
        }
        Ok(self.add(Op::Const(data.into()), dtype, shape.to_vec()))
    }

    /// An operation on each element.
    ///
    /// # Errors
    /// [`OpError`] if there is no such operation on the dtype.
    pub fn unary(&mut self, op: UnaryOp, input: NodeId) -> Made {
        let node = self.node(input);
        check(op.takes(node.dtype), node.dtype)?;
        let (dtype, shape) = (node.dtype, node.shape.to_vec());
        Ok(self.add(Op::Unary { op, input }, dtype, shape))
    }

    /// A tensor repeated to a shape, aligned at the last axis.
    ///
    /// # Errors
    /// [`OpError`] if it does not broadcast to that shape.
    pub fn broadcast(&mut self, input: NodeId, shape: &[u64]) -> Made {
        let node = self.node(input);
        if *node.shape == *shape {
            return Ok(input);
        }
        if !broadcasts(&node.shape, shape) {
            return Err(OpError::Reshape { from: node.shape.clone(), to: shape.into() });
        }
        let dtype = node.dtype;
        Ok(self.add(Op::Broadcast(input), dtype, shape.to_vec()))
    }

    /// Each element of an axis `count` times in a row.
    ///
    /// # Errors
    /// [`OpError`] if there is no such axis, or the count is 0.
    pub fn repeat(&mut self, input: NodeId, axis: usize, count: u64) -> Made {
        let node = self.node(input);
        check_axis(axis, &node.shape)?;
        if count == 1 {
            return Ok(input);
        }
        let (dtype, mut shape) = (node.dtype, node.shape.to_vec());
        let size = shape[axis].checked_mul(count).filter(|&size| size > 0);
        shape[axis] = size.ok_or(OpError::NoParts)?;
        Ok(self.add(Op::Repeat { input, axis, count }, dtype, shape))
    }

    /// A border of `value` around a tensor: `low` elements before and `high` behind, on each axis.
    ///
    /// # Errors
    /// [`OpError`] if there is not one number for each axis.
    pub fn pad(&mut self, input: NodeId, low: &[u64], high: &[u64], value: f64) -> Made {
        let node = self.node(input);
        let rank = node.shape.len();
        if low.len() != rank || high.len() != rank {
            return Err(OpError::NoSuchAxis { axis: low.len().max(high.len()), shape: node.shape.clone() });
        }
        check(node.dtype.is_number(), node.dtype)?;
        if low.iter().chain(high).all(|&size| size == 0) {
            return Ok(input);
        }
        let sides = low.iter().zip(high);
        let shape = node.shape.iter().zip(sides).map(|(size, (low, high))| low + size + high).collect();
        let dtype = node.dtype;
        Ok(self.add(Op::Pad { input, low: low.into(), value: value.to_bits() }, dtype, shape))
    }

    /// The elements of an axis at the positions that `indices` holds.
    ///
    /// # Errors
    /// [`OpError`] if there is no such axis, or the positions are no integers.
    pub fn take(&mut self, input: NodeId, axis: usize, indices: NodeId) -> Made {
        let (node, positions) = (self.node(input), self.node(indices));
        check_axis(axis, &node.shape)?;
        check(positions.dtype.is_integer(), positions.dtype)?;
        let (dtype, mut shape) = (node.dtype, node.shape.to_vec());
        shape.splice(axis..=axis, positions.shape.iter().copied());
        Ok(self.add(Op::Take { input, axis, indices }, dtype, shape))
    }

    /// Elements of `yes` where `test` holds, of `no` elsewhere.
    ///
    /// # Errors
    /// [`OpError`] if `test` is not BOOL or the others differ in dtype or shape.
    pub fn choose(&mut self, test: NodeId, yes: NodeId, no: NodeId) -> Made {
        let (condition, a) = (self.node(test), self.node(yes).clone());
        check(condition.dtype == DType::Bool, condition.dtype)?;
        for (index, part) in [test, no].into_iter().enumerate() {
            let part = self.node(part);
            if part.shape != a.shape || (index == 1 && part.dtype != a.dtype) {
                return Err(operands(&a, part));
            }
        }
        Ok(self.add(Op::Where { test, yes, no }, a.dtype, a.shape.to_vec()))
    }

    /// Gathers the elements along some axes; these keep one element.
    ///
    /// # Errors
    /// [`OpError`] if there is no such axis, or no such operation on the dtype.
    pub fn reduce(&mut self, op: ReduceOp, input: NodeId, axes: &[usize]) -> Made {
        let node = self.node(input);
        check(node.dtype.float().is_some() || (op == ReduceOp::Sum && node.dtype.is_integer()), node.dtype)?;
        let mut axes = axes.to_vec();
        axes.sort_unstable();
        axes.dedup();
        let (dtype, mut shape) = (node.dtype, node.shape.to_vec());
        for &axis in &axes {
            check_axis(axis, &shape)?;
            shape[axis] = 1;
        }
        Ok(self.add(Op::Reduce { op, input, axes: axes.into() }, dtype, shape))
    }

    /// `left op right`, with `right` broadcast to `left`.
    ///
    /// # Errors
    /// [`OpError`] if the dtypes differ, the shapes don't broadcast, or there is no such operation
    /// on the dtype.
    pub fn binary(&mut self, op: BinaryOp, left: NodeId, right: NodeId) -> Made {
        let (a, b) = (self.node(left), self.node(right));
        if a.dtype != b.dtype || !broadcasts(&b.shape, &a.shape) {
            return Err(operands(a, b));
        }
        check(op.takes(a.dtype), a.dtype)?;
        let dtype = if op.compares() { DType::Bool } else { a.dtype };
        let shape = a.shape.to_vec();
        Ok(self.add(Op::Binary { op, left, right }, dtype, shape))
    }

    /// The product of two matrices.
    ///
    /// # Errors
    /// [`OpError`] if they are no matrices of one float dtype, or the columns of the left one are not as many as
    /// the rows of the right one.
    pub fn matmul(&mut self, left: NodeId, right: NodeId) -> Made {
        let (a, b) = (self.node(left), self.node(right));
        let (&[rows, inner], &[other, columns]) = (&*a.shape, &*b.shape) else {
            return Err(operands(a, b));
        };
        if a.dtype != b.dtype || inner != other {
            return Err(operands(a, b));
        }
        check(a.dtype.float().is_some(), a.dtype)?;
        let dtype = a.dtype;
        Ok(self.add(Op::Matmul { left, right }, dtype, vec![rows, columns]))
    }

    /// Whether MLX defines every bit of a node; where it does not, smelt computes in double.
    pub fn is_exact(&self, id: NodeId) -> bool {
        let node = self.node(id);
        let own = match &node.op {
            Op::Unary { op, .. } => op.is_exact(),
            Op::Reduce { .. } => node.dtype.float().is_none(),
            Op::Matmul { .. } => false,
            _ => true,
        };
        own && node.op.inputs().all(|input| self.is_exact(input))
    }

    /// The tensors of the checkpoint that a node is made of, in order, each as often as it occurs.
    pub fn sources(&self, id: NodeId) -> Vec<TensorId> {
        let mut found = Vec::new();
        self.visit(id, &mut found);
        found
    }

    fn visit(&self, id: NodeId, found: &mut Vec<TensorId>) {
        let op = &self.node(id).op;
        if let Op::Source(tensor) = op {
            found.push(*tensor);
        }
        op.inputs().for_each(|input| self.visit(input, found));
    }
}

fn operands(a: &Node, b: &Node) -> OpError {
    OpError::Operands {
        left: a.shape.clone(),
        left_dtype: a.dtype,
        right: b.shape.clone(),
        right_dtype: b.dtype,
    }
}

fn check(fine: bool, dtype: DType) -> Result<(), OpError> {
    if fine { Ok(()) } else { Err(OpError::Dtype(dtype)) }
}

fn whole_bytes(dtype: DType) -> bool {
    dtype.bits().is_multiple_of(8)
}

fn check_axis(axis: usize, shape: &[u64]) -> Result<(), OpError> {
    if axis < shape.len() { Ok(()) } else { Err(OpError::NoSuchAxis { axis, shape: shape.into() }) }
}

/// Whether a tensor of shape `small` is repeated to fill `large`, aligned at the last axis.
fn broadcasts(small: &[u64], large: &[u64]) -> bool {
    small.len() <= large.len() && small.iter().rev().zip(large.iter().rev()).all(|(&a, &b)| a == b || a == 1)
}
