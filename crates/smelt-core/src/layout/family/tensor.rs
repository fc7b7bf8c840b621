//! Evaluates `from`: the expressions of a family file whose texts are tensors.
//!
//! ```text
//! stack(expert, t)        t for each value of the index, along a new first axis
//! concat(axis, a, b, …)   one after another along an axis
//! slice(t, axis, start, end) or slice(t, axis, start, end, step)
//! transpose(t, 0, 2, 1)   axis i of the result is axis p[i] of t
//! reshape(t, [a, b])      the same elements under another shape
//! cast(t, "f32")          rounded to another dtype: "bf16", "f16" or "f32"
//! t + 1, t - x, t * x, t / x   in the dtype of t
//! ```

use super::syntax::{Expr, Operator};
use super::template::Template;
use super::value::{Env, Value, ValueError};
use crate::checkpoint::DType;
use crate::layout::catalog::Catalog;
use crate::layout::graph::{BinaryOp, Graph, NodeId, OpError};

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
    /// How far each index runs.
    pub(super) ranges: &'a Ranges<'a>,
}

/// How far each index of a family runs on a checkpoint, or why that can't be told.
pub(super) type Ranges<'a> = [Range<'a>];

/// An index and how far it runs.
pub(super) type Range<'a> = (&'a str, Result<u64, ValueError>);

/// How far an index runs.
pub(super) fn range(ranges: &Ranges<'_>, index: &str) -> Result<u64, ValueError> {
    let found = ranges.iter().find(|(name, _)| *name == index).map(|(_, range)| range.clone());
    found.unwrap_or_else(|| Err(ValueError::Place(index.to_owned())))
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
        let info = self.catalog.info(id);
        Ok(self.graph.source(id, info.dtype, info.shape))
    }

    fn call(&mut self, name: &str, args: &[Expr], env: &Env<'_>) -> Made {
        match (name, args) {
            ("stack", [Expr::Name(index), tensor]) => self.stack(index, tensor, env),
            ("concat", [axis, tensors @ ..]) => {
                let axis = env.size(axis)? as usize;
                let parts =
                    tensors.iter().map(|tensor| self.make(tensor, env)).collect::<Result<Vec<_>, _>>()?;
                Ok(self.graph.concat(axis, &parts)?)
            }
            ("slice", [tensor, axis, start, end, rest @ ..]) if rest.len() <= 1 => {
                let tensor = self.make(tensor, env)?;
                let step = rest.first().map_or(Ok(1), |step| env.size(step))?;
                let axis = env.size(axis)? as usize;
                Ok(self.graph.slice(tensor, axis, env.size(start)?, env.size(end)?, step)?)
            }
            ("transpose", [tensor, perm @ ..]) => {
                let tensor = self.make(tensor, env)?;
                let perm = sizes(perm, env)?.into_iter().map(|axis| axis as usize).collect::<Vec<_>>();
                Ok(self.graph.transpose(tensor, &perm)?)
            }
            ("reshape", [tensor, Expr::List(shape)]) => {
                let tensor = self.make(tensor, env)?;
                Ok(self.graph.reshape(tensor, &sizes(shape, env)?)?)
            }
            ("cast", [tensor, dtype]) => {
                let tensor = self.make(tensor, env)?;
                Ok(self.graph.cast(tensor, float_dtype(env.eval(dtype)?)?)?)
            }
            _ => Err(TensorError::NotATensor(format!("{name}(…) with {} arguments", args.len()))),
        }
    }

    fn stack(&mut self, index: &str, tensor: &Expr, env: &Env<'_>) -> Made {
        let range = range(self.ranges, index)?;
        let mut bound = env.bound().to_vec();
        bound.push((index, 0));
        let mut parts = Vec::with_capacity(range as usize);
        for value in 0..range {
            if let Some(last) = bound.last_mut() {
                last.1 = value;
            }
            parts.push(self.make(tensor, &env.with(&bound))?);
        }
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
        let left = self.make(left, env)?;
        let right = match right {
            Expr::Text(_) | Expr::Call(..) => self.make(right, env)?,
            number => {
                let dtype = self.graph.node(left).dtype;
                self.graph.scalar(number_of(&env.eval(number)?)?, dtype)
            }
        };
        Ok(self.graph.binary(op, left, right)?)
    }
}

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
        Expr::List(_) | Expr::Item(..) => "[…]".to_owned(),
        Expr::Text(template) => template.to_string(),
        Expr::Call(name, _) => format!("{name}(…)"),
        Expr::Binary(op, ..) => format!("… {op} …"),
    }
}

fn float_dtype(value: Value) -> Result<DType, TensorError> {
    match value {
        Value::Text(name) => match name.as_str() {
            "bf16" => Ok(DType::BF16),
            "f16" => Ok(DType::F16),
            "f32" => Ok(DType::F32),
            _ => Err(TensorError::NotATensor(format!("cast to `{name}`"))),
        },
        other => Err(TensorError::NotATensor(format!("cast to {other}"))),
    }
}
