//! From the names of a checkpoint to the parameters of a library's model.
//!
//! A [`Layout`] says for every parameter of the target which expression over source tensors it is
//! ([`graph`]), and why every other source tensor is left out. Where it comes from does not matter
//! to anything above: a [`family`] file today, a trace of the real library as well.
//! [`pull`] evaluates any region of a parameter without evaluating the rest.

pub mod catalog;
mod compare;
mod compute;
pub mod cost;
pub mod discovered;
pub mod family;
pub mod graph;
pub mod learn;
mod mtp;
mod op;
mod permute;
pub mod pool;
mod product;
pub mod pull;
mod regroup;
pub mod reload;
mod role;
mod spread;

pub use compare::{Difference, differences, fingerprint};
pub use family::Family;
pub use graph::{Graph, NodeId};
pub use mtp::{MtpExperts, MtpRules, looks_like_mtp};
pub use role::Role;

use family::{TensorError, ValueError};

/// Every parameter of a target model, made of the tensors of one checkpoint.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// The expressions.
    pub graph: Graph,
    /// The parameters, in the order in which they are written.
    pub outputs: Vec<Output>,
    /// The tensors that are left out.
    pub dropped: Vec<Dropped>,
    /// Keys of the config (a path joined by dots) that the result changes, with their values.
    pub config: Vec<(String, serde_json::Value)>,
    /// How the tensors among the dropped that predict further tokens are stored if they are wanted.
    pub mtp: MtpRules,
    /// Modules that the library can't run once they are quantized.
    pub faults: Vec<Fault>,
    /// Why the library could not say which parameters a change of dtype leaves, where it was asked and
    /// failed: then the change is made to all of them.
    pub cast_fault: Option<String>,
    /// Whether the outputs are what the library's `sanitize` turns into its parameters, because it would
    /// not leave these as they are when it loads them.
    pub preimage: bool,
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
    /// Modules of one parent and one such group share a format: a runtime fuses them, or derives one
    /// from another.
    pub format_group: Option<String>,
}

impl Output {
    /// The path of the module that the parameter belongs to.
    pub fn module_path(&self) -> &str {
        self.name.strip_suffix(".weight").unwrap_or(&self.name)
    }
}

/// A module that can be quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// Its class in MLX.
    pub class: ModuleClass,
    /// How it is stored unless the user says otherwise.
    pub own: Own,
}

/// How the library stores a module by default, as its `quant_predicate` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Own {
    /// In the format of the run.
    Run,
    /// In a format of its own.
    Format(smelt_kernels::Format),
    /// Not quantized.
    Keep,
}

/// The classes of MLX modules that can be quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
pub enum ModuleClass {
    /// `nn.Linear`: `[out, in]`.
    Linear,
    /// `nn.Embedding`: `[entries, dims]`.
    Embedding,
    /// `SwitchLinear`: `[experts, out, in]`.
    SwitchLinear,
    /// `MultiLinear`: `[heads, out, in]`.
    MultiLinear,
    /// A class of one model alone.
    Other,
}

/// A tensor of the checkpoint that the target model does not have.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Dropped {
    /// Its name.
    pub tensor: String,
    /// The reason that the rule gives.
    pub why: String,
    /// Whether it belongs to a layer that predicts further tokens, which can be written apart.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub mtp: bool,
}

/// A module that the library quantizes by its own rules, and then can't run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Its path.
    pub module: String,
    /// What the library does.
    pub what: String,
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
    /// A name that the model has and what is written apart has too.
    #[error("`{output}` is a parameter of the model and of what predicts further tokens")]
    Twice {
        /// The parameter.
        output: String,
    },
    /// A source tensor that no rule takes.
    #[error("no rule takes `{tensor}`")]
    Unclaimed {
        /// The source tensor.
        tensor: String,
    },
    /// The library refuses the checkpoint, or its trace can't be read.
    #[error("{message}")]
    Library {
        /// What it says.
        message: String,
    },
    /// The library does something to a parameter that smelt does not.
    #[error("`{output}`: {why}")]
    NotComputed {
        /// The parameter.
        output: String,
        /// What smelt does not do.
        why: String,
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
