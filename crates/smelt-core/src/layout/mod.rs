//! From the names of a checkpoint to the parameters of a library's model.
//!
//! A [`Layout`] says for every parameter of the target which expression over source tensors it is
//! ([`graph`]), and why every other source tensor is left out. Where it comes from does not matter
//! to anything above: a [`family`] file today, a trace of the real library as well.
//! [`pull`] evaluates any region of a parameter without evaluating the rest.

pub mod catalog;
mod compute;
pub mod cost;
pub mod family;
pub mod graph;
mod op;
mod permute;
pub mod pool;
pub mod pull;
mod regroup;
mod role;
mod spread;

pub use family::{Family, Module, ModuleClass};
pub use graph::{Graph, NodeId};
pub use role::Role;

use family::{TensorError, ValueError};

/// Every parameter of a target model, made of the tensors of one checkpoint.
#[derive(Debug)]
pub struct Layout {
    /// The expressions.
    pub graph: Graph,
    /// The parameters, in the order in which they are written.
    pub outputs: Vec<Output>,
    /// The tensors that are left out.
    pub dropped: Vec<Dropped>,
}

/// A parameter of the target model, before quantization.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its name there.
    pub name: String,
    /// What it is made of.
    pub node: NodeId,
    /// What it is for.
    pub role: Role,
    /// The module whose weight it is, if that can be quantized.
    pub module: Option<Module>,
    /// Whether a change of dtype applies to it.
    pub cast: bool,
}

/// A tensor of the checkpoint that the target model does not have.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Dropped {
    /// Its name.
    pub tensor: String,
    /// The reason that the rule gives.
    pub why: String,
}

/// Something about a checkpoint that does not fit its family.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// A source tensor is not there.
    #[error("`{tensor}` is missing, of which `{output}` is made")]
    Missing {
        /// The parameter.
        output: String,
        /// The source tensor.
        tensor: String,
    },
    /// A parameter has not the shape that the config asks for.
    #[error("`{output}` has shape {found:?}, but config.json asks for {expected:?}")]
    Shape {
        /// The parameter.
        output: String,
        /// Its shape from the checkpoint.
        found: Vec<u64>,
        /// Its shape from the config.
        expected: Vec<u64>,
    },
    /// A parameter can't be made.
    #[error("`{output}`: {error}")]
    Tensor {
        /// The parameter.
        output: String,
        /// Why.
        error: TensorError,
    },
    /// A source tensor that no rule takes.
    #[error("no rule takes `{tensor}`")]
    Unclaimed {
        /// The source tensor.
        tensor: String,
    },
    /// A number or condition of the family has no value here.
    #[error("`{rule}`: {error}")]
    Value {
        /// The rule.
        rule: String,
        /// Why.
        error: ValueError,
    },
}
