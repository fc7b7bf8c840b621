//! Expressions over the tensors of a checkpoint, as a graph in which equal expressions are one.
//!
//! A node knows its shape and dtype when it is made, so a layout that does not fit is refused
//! before anything is read. Constructors bring expressions to one form (transposes compose, a full
//! slice vanishes, a reshape of a reshape is one), so the same layout written in two ways is the
//! same graph.

use indexmap::IndexSet;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{DType, TensorId};

/// A node of a [`Graph`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeId(u32);

/// Arithmetic on two tensors of one dtype, the second broadcast to the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BinaryOp {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`
    Div,
}

/// What a node computes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// A tensor of the checkpoint.
    Source(TensorId),
    /// Tensors of one shape along a new axis.
    Stack {
        /// Where the new axis stands in the result.
        axis: usize,
        /// The tensors, in order.
        inputs: Box<[NodeId]>,
    },
    /// Tensors one after another along an axis that they have.
    Concat {
        /// The axis.
        axis: usize,
        /// The tensors, in order.
        inputs: Box<[NodeId]>,
    },
    /// Every `step`-th element of an axis from `start` on.
    Slice {
        /// The tensor.
        input: NodeId,
        /// The axis.
        axis: usize,
        /// The first element that is kept.
        start: u64,
        /// The distance to the next.
        step: u64,
    },
    /// Axis `i` of the result is axis `perm[i]` of the input.
    Transpose {
        /// The tensor.
        input: NodeId,
        /// The permutation.
        perm: Box<[usize]>,
    },
    /// The same elements in row-major order under another shape.
    Reshape(NodeId),
    /// Each element rounded to the node's dtype, to nearest even.
    Cast(NodeId),
    /// One number, with no axes: the bits of an f64, rounded to the node's dtype.
    Scalar(u64),
    /// Arithmetic in the node's dtype: widen, one operation, round.
    Binary {
        /// The operation.
        op: BinaryOp,
        /// The left operand, of the result's shape.
        left: NodeId,
        /// The right operand, broadcast to it.
        right: NodeId,
    },
}

/// A node: an operation with the shape and dtype of its result.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// The dtype of the result.
    pub dtype: DType,
    /// The shape of the result.
    pub shape: Box<[u64]>,
}

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
    /// Arithmetic or a cast that MLX does not do on this dtype, or smelt can't.
    #[error("no arithmetic on dtype {0}")]
    Dtype(DType),
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

    /// Each element rounded to another dtype.
    ///
    /// # Errors
    /// [`OpError`] if either dtype is not bf16, f16 or f32.
    pub fn cast(&mut self, input: NodeId, dtype: DType) -> Made {
        let node = self.node(input);
        if node.dtype == dtype {
            return Ok(input);
        }
        let shape = node.shape.to_vec();
        for side in [node.dtype, dtype] {
            side.float().ok_or(OpError::Dtype(side))?;
        }
        Ok(self.add(Op::Cast(input), dtype, shape))
    }

    /// One number, rounded to `dtype`.
    pub fn scalar(&mut self, value: f64, dtype: DType) -> NodeId {
        self.add(Op::Scalar(value.to_bits()), dtype, Vec::new())
    }

    /// `left op right`, with `right` broadcast to `left`.
    ///
    /// # Errors
    /// [`OpError`] if the dtypes differ or are not bf16, f16 or f32, or the shapes don't broadcast.
    pub fn binary(&mut self, op: BinaryOp, left: NodeId, right: NodeId) -> Made {
        let (a, b) = (self.node(left), self.node(right));
        if a.dtype != b.dtype || !broadcasts(&b.shape, &a.shape) {
            return Err(OpError::Operands {
                left: a.shape.clone(),
                left_dtype: a.dtype,
                right: b.shape.clone(),
                right_dtype: b.dtype,
            });
        }
        a.dtype.float().ok_or(OpError::Dtype(a.dtype))?;
        let (dtype, shape) = (a.dtype, a.shape.to_vec());
        Ok(self.add(Op::Binary { op, left, right }, dtype, shape))
    }

    /// The tensors of the checkpoint that a node is made of, in order, each as often as it occurs.
    pub fn sources(&self, id: NodeId) -> Vec<TensorId> {
        let mut found = Vec::new();
        self.visit(id, &mut found);
        found
    }

    fn visit(&self, id: NodeId, found: &mut Vec<TensorId>) {
        match &self.node(id).op {
            Op::Source(tensor) => found.push(*tensor),
            Op::Stack { inputs, .. } | Op::Concat { inputs, .. } => {
                inputs.iter().for_each(|&input| self.visit(input, found));
            }
            Op::Slice { input, .. } | Op::Transpose { input, .. } | Op::Reshape(input) | Op::Cast(input) => {
                self.visit(*input, found);
            }
            Op::Scalar(_) => {}
            Op::Binary { left, right, .. } => {
                self.visit(*left, found);
                self.visit(*right, found);
            }
        }
    }
}

fn check_axis(axis: usize, shape: &[u64]) -> Result<(), OpError> {
    if axis < shape.len() { Ok(()) } else { Err(OpError::NoSuchAxis { axis, shape: shape.into() }) }
}

/// Whether a tensor of shape `small` is repeated to fill `large`, aligned at the last axis.
fn broadcasts(small: &[u64], large: &[u64]) -> bool {
    small.len() <= large.len() && small.iter().rev().zip(large.iter().rev()).all(|(&a, &b)| a == b || a == 1)
}
