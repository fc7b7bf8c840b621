//! Evaluates `from`: the expressions of a family file whose texts are tensors.
//!
//! ```text
//! stack(expert, t)        t for each value of the index, along a new first axis
//! stack(a, b, …)          these tensors, along a new first axis
//! concat(axis, a, b, …)   one after another along an axis
//! slice(t, axis, start, end) or slice(t, axis, start, end, step)
//! transpose(t, 0, 2, 1)   axis i of the result is axis p[i] of t
//! reshape(t, [a, b])      the same elements under another shape
//! split(t, axis, n, i)    the i-th of n equal parts along an axis
//! cast(t, "f32")          as another dtype: "bf16", "f16", "f32", "u32" …
//! bitcast(t, "u32")       the same bits as another dtype
//! from_fp8(t, "bf16")     bytes of E4M3 as floats
//! broadcast(t, [a, b])    repeated to a shape
//! repeat(t, axis, n)      each element of an axis n times in a row
//! pad(t, axis, low, high) zeros before and behind, along an axis
//! sum(t, axis), norm(t, axis)   along an axis, which keeps one element
//! matmul(a, b)            the product of two matrices
//! sqrt(t), square(t), negative(t), abs(t), floor(t), exp(t), log2(t), sigmoid(t)   element by element
//! max(t, x), min(t, x), clip(t, low, high)   element by element
//! full([a, b], x, "bf16")     one number everywhere
//! if(condition, a, b)     one of two
//! t + 1, t - x, 1 - t, t * x, t / x   in the dtype of t
//! ```
//!
//! Where an operand is not a tensor, it is a number, which takes the dtype of the other one.

use indexmap::IndexMap;

use super::syntax::{Expr, Operator};
use super::template::Template;
use super::value::{Env, Value, ValueError};
use crate::checkpoint::DType;
use crate::layout::catalog::Catalog;
use crate::layout::discovered::joint_shape;
use crate::layout::graph::{BinaryOp, Graph, NodeId, OpError, ReduceOp, UnaryOp};

/// Why a parameter can't be made.
#[derive(Debug, thiserror::Error)]
pub enum TensorError {
    /// A tensor that it needs is not in the checkpoint.
    #[error("tensor `{0}` is missing")]
    Missing(String),
    /// A number in the expression has no value.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// The parts do not fit.
    #[error(transparent)]
    Op(#[from] OpError),
    /// A tensor that the parts do not fit into.
    #[error("`{name}`: {error}")]
    Part {
        /// The tensor that stands out.
        name: String,
        /// How.
        error: OpError,
    },
    /// An expression that is no tensor.
    #[error("`{0}` is no tensor expression; see the list of functions for `from`")]
    NotATensor(String),
}

type Made = Result<NodeId, TensorError>;

/// Makes nodes from the expressions of a family.
pub(super) struct Maker<'a> {
    pub(super) graph: &'a mut Graph,
    pub(super) catalog: &'a dyn Catalog,
    /// What each index runs over.
    pub(super) indices: &'a IndexMap<String, Expr>,
    /// Is set for every tensor of the checkpoint that a rule asks for, also if it then fails.
    pub(super) claimed: &'a mut [bool],
}

/// The values of an index where others may be bound.
pub(super) fn indices(
    known: &IndexMap<String, Expr>,
    index: &str,
    env: &Env<'_>,
) -> Result<Vec<u64>, ValueError> {
    let expr = known.get(index).ok_or_else(|| ValueError::Place(index.to_owned()))?;
    env.indices(expr)
}

/// Functions of a tensor and more that move its elements, or take some of them.
const MOVES: [&str; 7] = ["slice", "split", "transpose", "reshape", "broadcast", "repeat", "pad"];

/// Functions of a tensor and more that compute.
const COMPUTES: [&str; 7] = ["cast", "bitcast", "from_fp8", "matmul", "clip", "sum", "norm"];

/// A function with another number of arguments than it takes, or none that there is.
fn arguments(name: &str, count: usize) -> TensorError {
    TensorError::NotATensor(format!("{name}(…) with {count} arguments"))
}

impl Maker<'_> {
    /// The node of an expression.
    pub(super) fn make(&mut self, expr: &Expr, env: &Env<'_>) -> Made {
        match expr {
            Expr::Text(template) => self.source(template, env),
            Expr::Call(name, args) => self.call(name, args, env),
            Expr::Binary(op, left, right) => self.binary(*op, left, right, env),
            other => Err(TensorError::NotATensor(kind(other))),
        }
    }

    fn source(&mut self, template: &Template, env: &Env<'_>) -> Made {
        let name = env.fill(template)?;
        let Some(id) = self.catalog.find(&name) else {
            return Err(TensorError::Missing(name));
        };
        self.claimed[id.0 as usize] = true;
        let info = self.catalog.info(id);
        Ok(self.graph.source(id, info.dtype, info.shape))
    }

    fn call(&mut self, name: &str, args: &[Expr], env: &Env<'_>) -> Made {
        match (name, args) {
            ("stack", [Expr::Name(index), tensor]) => self.stack(index, tensor, env),
            ("stack", tensors) => {
                let parts = self.all(tensors, env)?;
                Ok(self.graph.stack(0, &parts)?)
            }
            ("concat", [axis, tensors @ ..]) => {
                let axis = env.size(axis)? as usize;
                let parts = self.all(tensors, env)?;
                Ok(self.graph.concat(axis, &parts)?)
            }
            ("max", [left, right]) => self.operate(BinaryOp::Max, left, right, env),
            ("min", [left, right]) => self.operate(BinaryOp::Min, left, right, env),
            ("full", [Expr::List(shape), value, to]) => self.full(shape, value, to, env),
            ("if", [test, yes, no]) => self.make(if env.truth(test)? { yes } else { no }, env),
            (name, [tensor, rest @ ..]) if !rest.is_empty() && MOVES.contains(&name) => {
                let tensor = self.make(tensor, env)?;
                self.moved(name, tensor, rest, env)
            }
            (name, [tensor, rest @ ..]) if !rest.is_empty() && COMPUTES.contains(&name) => {
                let tensor = self.make(tensor, env)?;
                self.computed(name, tensor, rest, env)
            }
            (_, [tensor]) => {
                let op = unary(name).ok_or_else(|| TensorError::NotATensor(format!("{name}(…)")))?;
                let tensor = self.make(tensor, env)?;
                Ok(self.graph.unary(op, tensor)?)
            }
            _ => Err(arguments(name, args.len())),
        }
    }

    /// The nodes of several expressions.
    fn all(&mut self, tensors: &[Expr], env: &Env<'_>) -> Result<Vec<NodeId>, TensorError> {
        tensors.iter().map(|tensor| self.make(tensor, env)).collect()
    }

    /// What moves the elements of a tensor, or takes some of them.
    fn moved(&mut self, name: &str, tensor: NodeId, args: &[Expr], env: &Env<'_>) -> Made {
        match (name, args) {
            ("slice", [axis, start, end, rest @ ..]) if rest.len() <= 1 => {
                let step = rest.first().map_or(Ok(1), |step| env.size(step))?;
                let axis = env.size(axis)? as usize;
                Ok(self.graph.slice(tensor, axis, env.size(start)?, env.size(end)?, step)?)
            }
            ("split", [axis, count, index]) => {
                let (axis, count, index) = (env.size(axis)? as usize, env.size(count)?, env.size(index)?);
                let size = self.graph.node(tensor).shape.get(axis).copied().unwrap_or(0);
                // Parts that are not equal end beyond the tensor, which is an error.
                let part = size.div_ceil(count.max(1));
                Ok(self.graph.slice(tensor, axis, index * part, (index + 1) * part, 1)?)
            }
            ("transpose", perm) => {
                let perm = sizes(perm, env)?.into_iter().map(|axis| axis as usize).collect::<Vec<_>>();
                Ok(self.graph.transpose(tensor, &perm)?)
            }
            ("reshape", [Expr::List(shape)]) => Ok(self.graph.reshape(tensor, &sizes(shape, env)?)?),
            ("broadcast", [Expr::List(shape)]) => Ok(self.graph.broadcast(tensor, &sizes(shape, env)?)?),
            ("repeat", [axis, count]) => {
                Ok(self.graph.repeat(tensor, env.size(axis)? as usize, env.size(count)?)?)
            }
            ("pad", [axis, low, high]) => {
                let (axis, rank) = (env.size(axis)? as usize, self.graph.node(tensor).shape.len());
                let side =
                    |size: u64| (0..rank).map(|at| if at == axis { size } else { 0 }).collect::<Vec<_>>();
                Ok(self.graph.pad(tensor, &side(env.size(low)?), &side(env.size(high)?), 0.0)?)
            }
            _ => Err(arguments(name, args.len() + 1)),
        }
    }

    /// What makes other numbers of the elements of a tensor.
    fn computed(&mut self, name: &str, tensor: NodeId, args: &[Expr], env: &Env<'_>) -> Made {
        match (name, args) {
            ("cast", [to]) => Ok(self.graph.cast(tensor, dtype(&env.eval(to)?)?)?),
            ("bitcast", [to]) => Ok(self.graph.bitcast(tensor, dtype(&env.eval(to)?)?)?),
            ("from_fp8", [to]) => Ok(self.graph.from_fp8(tensor, dtype(&env.eval(to)?)?)?),
            ("matmul", [right]) => {
                let right = self.make(right, env)?;
                Ok(self.graph.matmul(tensor, right)?)
            }
            ("clip", [low, high]) => {
                let (low, high) = (self.number(low, tensor, env)?, self.number(high, tensor, env)?);
                let raised = self.graph.binary(BinaryOp::Max, tensor, low)?;
                Ok(self.graph.binary(BinaryOp::Min, raised, high)?)
            }
            ("sum" | "norm", [axis]) => {
                let op = if name == "sum" { ReduceOp::Sum } else { ReduceOp::Norm };
                Ok(self.graph.reduce(op, tensor, &[env.size(axis)? as usize])?)
            }
            _ => Err(arguments(name, args.len() + 1)),
        }
    }

    fn stack(&mut self, index: &str, tensor: &Expr, env: &Env<'_>) -> Made {
        let values = indices(self.indices, index, env)?;
        let mut bound = env.bound().to_vec();
        bound.push((index, 0));
        let mut parts = Vec::with_capacity(values.len());
        for value in values {
            if let Some(last) = bound.last_mut() {
                last.1 = value;
            }
            // All of them, also after one that fails: they are not to blame for being unused then.
            parts.push(self.make(tensor, &env.with(&bound)));
        }
        let parts = parts.into_iter().collect::<Result<Vec<_>, _>>()?;
        self.graph.stack(0, &parts).map_err(|error| self.blame(error, &parts))
    }

    /// Names the part that does not fit, where the error tells which one it is.
    fn blame(&self, error: OpError, parts: &[NodeId]) -> TensorError {
        let OpError::PartsDiffer { index, .. } = &error else {
            return TensorError::Op(error);
        };
        match self.graph.sources(parts[*index]).first() {
            Some(&source) => TensorError::Part { name: self.catalog.info(source).name.to_owned(), error },
            None => TensorError::Op(error),
        }
    }

    fn binary(&mut self, op: Operator, left: &Expr, right: &Expr, env: &Env<'_>) -> Made {
        let op = match op {
            Operator::Add => BinaryOp::Add,
            Operator::Subtract => BinaryOp::Sub,
            Operator::Multiply => BinaryOp::Mul,
            Operator::Divide => BinaryOp::Div,
            other => return Err(TensorError::NotATensor(format!("… {other} …"))),
        };
        self.operate(op, left, right, env)
    }

    /// An operation on two tensors, or on a tensor and a number on either side.
    fn operate(&mut self, op: BinaryOp, left: &Expr, right: &Expr, env: &Env<'_>) -> Made {
        let (left, right) = match (is_tensor(left), is_tensor(right)) {
            (false, true) => {
                let right = self.make(right, env)?;
                (self.number(left, right, env)?, right)
            }
            (_, true) => (self.make(left, env)?, self.make(right, env)?),
            (_, false) => {
                let left = self.make(left, env)?;
                (left, self.number(right, left, env)?)
            }
        };
        let shape = joint_shape(&self.graph.node(left).shape, &self.graph.node(right).shape);
        // Shapes that do not go together are named as they stand.
        let left = self.graph.broadcast(left, &shape).unwrap_or(left);
        Ok(self.graph.binary(op, left, right)?)
    }

    /// A number in the dtype of a tensor.
    fn number(&mut self, expr: &Expr, like: NodeId, env: &Env<'_>) -> Made {
        let dtype = self.graph.node(like).dtype;
        Ok(self.graph.scalar(number_of(&env.eval(expr)?)?, dtype))
    }

    /// One number everywhere.
    fn full(&mut self, shape: &[Expr], value: &Expr, to: &Expr, env: &Env<'_>) -> Made {
        let dtype = dtype(&env.eval(to)?)?;
        let number = self.graph.scalar(number_of(&env.eval(value)?)?, dtype);
        Ok(self.graph.broadcast(number, &sizes(shape, env)?)?)
    }
}

/// Whether an expression in `from` stands for a tensor, not for a number.
fn is_tensor(expr: &Expr) -> bool {
    match expr {
        Expr::Text(_) => true,
        Expr::Call(name, args) => match (name.as_str(), &args[..]) {
            ("if", [_, yes, no]) => is_tensor(yes) || is_tensor(no),
            ("max" | "min", [a, b]) => is_tensor(a) || is_tensor(b),
            (name, _) => !NUMBERS.contains(&name),
        },
        Expr::Binary(_, left, right) => is_tensor(left) || is_tensor(right),
        Expr::Negate(inner) => is_tensor(inner),
        _ => false,
    }
}

/// The functions that give numbers, also with the name of a tensor in their brackets.
const NUMBERS: [&str; 6] = ["ndim", "dim", "len", "int", "div", "count"];

fn sizes(exprs: &[Expr], env: &Env<'_>) -> Result<Vec<u64>, ValueError> {
    exprs.iter().map(|expr| env.size(expr)).collect()
}

fn number_of(value: &Value) -> Result<f64, TensorError> {
    match value {
        Value::Int(value) => Ok(*value as f64),
        Value::Float(value) => Ok(*value),
        other => Err(TensorError::NotATensor(other.to_string())),
    }
}

/// An expression in a word or two, for a message.
fn kind(expr: &Expr) -> String {
    match expr {
        Expr::Int(value) => value.to_string(),
        Expr::Float(value) => value.to_string(),
        Expr::Name(name) => name.clone(),
        Expr::Negate(_) => "-…".to_owned(),
        Expr::Not(_) => "not …".to_owned(),
        Expr::List(_) | Expr::Item(..) | Expr::Member(..) => "[…]".to_owned(),
        Expr::Text(template) => template.to_string(),
        Expr::Call(name, _) => format!("{name}(…)"),
        Expr::Binary(op, ..) => format!("… {op} …"),
    }
}

/// A dtype by its name in lower case: `bf16`, `u32`.
fn dtype(value: &Value) -> Result<DType, TensorError> {
    let known = match value {
        Value::Text(name) => DType::from_name(&name.to_uppercase()),
        _ => None,
    };
    known.ok_or_else(|| TensorError::NotATensor(format!("a tensor of dtype {value}")))
}

fn unary(name: &str) -> Option<UnaryOp> {
    Some(match name {
        "negative" => UnaryOp::Negative,
        "abs" => UnaryOp::Abs,
        "floor" => UnaryOp::Floor,
        "exp" => UnaryOp::Exp,
        "log2" => UnaryOp::Log2,
        "square" => UnaryOp::Square,
        "sqrt" => UnaryOp::Sqrt,
        "sigmoid" => UnaryOp::Sigmoid,
        _ => return None,
    })
}
