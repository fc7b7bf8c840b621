//! What can't be planned as asked.

use std::io;

use crate::checkpoint::DType;
use crate::layout::graph::OpError;
use crate::units;

/// Why a checkpoint can't be quantized as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// Weights that MLX quantized already.
    #[error(
        "the weights are {storage}; quantizing them again loses more: take the original checkpoint, or give \
         `--allow-requantize`"
    )]
    Requantize {
        /// How they are stored.
        storage: String,
    },
    /// A format that MLX does not store.
    #[error("{why}")]
    Format {
        /// Which there are.
        why: String,
    },
    /// An override that can't be understood.
    #[error("override `{text}`: {why}")]
    Override {
        /// As given.
        text: String,
        /// What is wrong.
        why: String,
    },
    /// A fall-back that `--strict` does not allow.
    #[error("{note}; without `--strict` this is allowed")]
    Strict {
        /// What would be done.
        note: String,
    },
    /// A dtype that can't be changed as asked.
    #[error("the dtype of `{tensor}` can't be changed: {error}")]
    Dtype {
        /// The parameter.
        tensor: String,
        /// Why.
        error: OpError,
    },
    /// A weight to quantize that is not a float.
    #[error(
        "`{tensor}` has dtype {dtype}; only BF16, F16 and F32 can be quantized: leave it with `--override '^{module}$=keep'`"
    )]
    NotFloat {
        /// The parameter.
        tensor: String,
        /// The path of its module, as a pattern.
        module: String,
        /// Its dtype.
        dtype: DType,
    },
    /// A parameter whose size does not fit 64 bits.
    #[error("`{tensor}` is too large to count")]
    TensorSize {
        /// The parameter.
        tensor: String,
    },
    /// A plan that was made for another checkpoint.
    #[error("the plan was made for another checkpoint: tensor `{tensor}` differs")]
    OtherSource {
        /// The first tensor that differs.
        tensor: String,
    },
    /// A budget in which the work does not fit.
    #[error("`{tensor}` needs at least {} of memory; give `--max-memory` as much", whole_mebibytes(*.needed))]
    Memory {
        /// The parameter with the largest smallest block.
        tensor: String,
        /// The budget that would do, in bytes.
        needed: u64,
    },
    /// A recipe file that can't be read.
    #[error("cannot read the recipe `{file}`")]
    RecipeFile {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
}

/// A size for people to type: rounded up, so that it is enough.
fn whole_mebibytes(bytes: u64) -> String {
    units::bytes(bytes.next_multiple_of(1 << 20))
}
