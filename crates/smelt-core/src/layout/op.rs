//! The operations of a layout: about twenty, which is what the sanitizers of the real libraries use.

use serde::{Deserialize, Serialize};

use crate::checkpoint::{DType, TensorId};

/// A node of a [`Graph`](super::Graph).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct NodeId(pub(super) u32);

/// An operation on two tensors of one dtype, the second broadcast to the first.
///
/// Floats are widened to f32, computed once and rounded, integers wrap, as in MLX. Comparisons give
/// BOOL.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BinaryOp {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`, of floats
    Div,
    /// The larger; NaN if either is
    Max,
    /// The smaller; NaN if either is
    Min,
    /// `a << b`, of integers
    Shl,
    /// `a >> b`, of integers
    Shr,
    /// Bits in both, of integers and BOOL
    And,
    /// Bits in either, of integers and BOOL
    Or,
    /// `a == b`
    Equal,
    /// `a != b`
    Unequal,
    /// `a < b`
    Less,
    /// `a <= b`
    LessEqual,
    /// `a > b`
    Greater,
    /// `a >= b`
    GreaterEqual,
}

impl BinaryOp {
    /// Whether the result is BOOL.
    pub const fn compares(self) -> bool {
        matches!(
            self,
            Self::Equal | Self::Unequal | Self::Less | Self::LessEqual | Self::Greater | Self::GreaterEqual
        )
    }

    /// Whether there is such an operation on elements of this dtype.
    pub(super) fn takes(self, dtype: DType) -> bool {
        match self {
            Self::Div => dtype.float().is_some(),
            Self::Shl | Self::Shr => dtype.is_integer(),
            Self::And | Self::Or => dtype.is_integer() || dtype == DType::Bool,
            Self::Equal | Self::Unequal => dtype.is_number() || dtype == DType::Bool,
            _ => dtype.is_number(),
        }
    }
}

/// An operation on each element, in the node's dtype.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnaryOp {
    /// `-a`
    Negative,
    /// `|a|`
    Abs,
    /// `a * a`
    Square,
    /// The next whole number below, of floats
    Floor,
    /// The square root, of floats
    Sqrt,
    /// The logarithm to base 2, of floats; computed in double
    Log2,
    /// The exponential, of floats; computed in double
    Exp,
    /// `1 / (1 + exp(-a))`, of floats; computed in double
    Sigmoid,
}

impl UnaryOp {
    /// Whether MLX defines the last bit of the result.
    pub const fn is_exact(self) -> bool {
        !matches!(self, Self::Log2 | Self::Exp | Self::Sigmoid)
    }

    pub(super) fn takes(self, dtype: DType) -> bool {
        match self {
            Self::Negative | Self::Abs | Self::Square => dtype.is_number(),
            _ => dtype.float().is_some(),
        }
    }
}

/// What several elements are gathered into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReduceOp {
    /// Their sum: of floats in double and rounded once, because MLX defines no order; integers wrap
    Sum,
    /// The square root of the sum of their squares, in double and rounded once
    Norm,
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
    /// Each element as the node's dtype: floats to nearest even, floats to integers towards zero.
    Cast(NodeId),
    /// The same bits as another dtype; where its elements are wider or narrower, the last axis is
    /// shorter or longer.
    Bitcast(NodeId),
    /// Bytes of E4M3 as floats.
    FromFp8(NodeId),
    /// One number, with no axes: the bits of an f64, rounded to the node's dtype.
    Scalar(u64),
    /// A tensor that the layout itself holds.
    Const(#[serde(with = "hex")] Box<[u8]>),
    /// Each element by itself.
    Unary {
        /// The operation.
        op: UnaryOp,
        /// The tensor.
        input: NodeId,
    },
    /// A tensor with axes of one element repeated, and axes added in front, to the node's shape.
    Broadcast(NodeId),
    /// Each element of an axis `count` times in a row.
    Repeat {
        /// The tensor.
        input: NodeId,
        /// The axis.
        axis: usize,
        /// How many times.
        count: u64,
    },
    /// A tensor with a border of one number around it, up to the node's shape.
    Pad {
        /// The tensor.
        input: NodeId,
        /// How many elements come before it, on each axis.
        low: Box<[u64]>,
        /// The number, as in [`Op::Scalar`].
        value: u64,
    },
    /// The elements of an axis at the positions that an integer tensor holds.
    Take {
        /// The tensor.
        input: NodeId,
        /// The axis, whose place the axes of `indices` take.
        axis: usize,
        /// The positions.
        indices: NodeId,
    },
    /// Elements of `yes` where `test` holds, of `no` elsewhere; all of the node's shape.
    Where {
        /// A BOOL tensor.
        test: NodeId,
        /// Taken where it holds.
        yes: NodeId,
        /// Taken elsewhere.
        no: NodeId,
    },
    /// The elements along some axes gathered into one; these axes keep one element.
    Reduce {
        /// The operation.
        op: ReduceOp,
        /// The tensor.
        input: NodeId,
        /// The axes, ascending.
        axes: Box<[usize]>,
    },
    /// The product of two matrices of floats: summed in double and rounded at the end, because MLX defines no
    /// order.
    Matmul {
        /// The left one, m × k.
        left: NodeId,
        /// The right one, k × n.
        right: NodeId,
    },
    /// Arithmetic on two tensors.
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

impl Op {
    /// The nodes that it is computed from, in order.
    pub fn inputs(&self) -> impl Iterator<Item = NodeId> + '_ {
        let (list, single): (&[NodeId], [Option<NodeId>; 3]) = match self {
            Self::Stack { inputs, .. } | Self::Concat { inputs, .. } => (inputs, [None; 3]),
            Self::Source(_) | Self::Scalar(_) | Self::Const(_) => (&[], [None; 3]),
            Self::Slice { input, .. }
            | Self::Transpose { input, .. }
            | Self::Reshape(input)
            | Self::Cast(input)
            | Self::Bitcast(input)
            | Self::FromFp8(input)
            | Self::Unary { input, .. }
            | Self::Broadcast(input)
            | Self::Repeat { input, .. }
            | Self::Pad { input, .. }
            | Self::Reduce { input, .. } => (&[], [Some(*input), None, None]),
            Self::Take { input, indices, .. } => (&[], [Some(*input), Some(*indices), None]),
            Self::Binary { left, right, .. } | Self::Matmul { left, right } => {
                (&[], [Some(*left), Some(*right), None])
            }
            Self::Where { test, yes, no } => (&[], [Some(*test), Some(*yes), Some(*no)]),
        };
        list.iter().copied().chain(single.into_iter().flatten())
    }
}

impl Op {
    /// The operation with every input the same, so that two can be compared without theirs.
    pub(super) fn without_inputs(&self) -> Self {
        let none = NodeId(0);
        let mut op = self.clone();
        match &mut op {
            Self::Stack { inputs, .. } | Self::Concat { inputs, .. } => inputs.fill(none),
            Self::Source(_) | Self::Scalar(_) | Self::Const(_) => {}
            Self::Slice { input, .. }
            | Self::Transpose { input, .. }
            | Self::Reshape(input)
            | Self::Cast(input)
            | Self::Bitcast(input)
            | Self::FromFp8(input)
            | Self::Unary { input, .. }
            | Self::Broadcast(input)
            | Self::Repeat { input, .. }
            | Self::Pad { input, .. }
            | Self::Reduce { input, .. } => *input = none,
            Self::Take { input, indices, .. } => [*input, *indices] = [none; 2],
            Self::Binary { left, right, .. } | Self::Matmul { left, right } => [*left, *right] = [none; 2],
            Self::Where { test, yes, no } => [*test, *yes, *no] = [none; 3],
        }
        op
    }
}

/// Constants in JSON: two hexadecimal digits a byte.
mod hex {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(data: &[u8], out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&data.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}")))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Box<[u8]>, D::Error> {
        let text = String::deserialize(input)?;
        let digits: Option<Vec<u8>> =
            text.chars().map(|digit| digit.to_digit(16).map(|value| value as u8)).collect();
        let digits = digits.filter(|digits| digits.len() % 2 == 0);
        let digits =
            digits.ok_or_else(|| D::Error::custom("a constant is an even number of hexadecimal digits"))?;
        Ok(digits.chunks_exact(2).map(|pair| (pair[0] << 4) | pair[1]).collect())
    }
}
