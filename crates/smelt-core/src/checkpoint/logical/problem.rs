//! What can be wrong with how weights are stored.

use crate::checkpoint::DType;

/// Stored tensors that do not make up a weight, or a format that smelt does not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageProblem {
    /// A companion is not there.
    #[error("`{tensor}` ({dtype}) has no {wanted}")]
    Missing {
        /// The tensor that needs it.
        tensor: String,
        /// Its dtype.
        dtype: DType,
        /// The names that would do.
        wanted: String,
    },
    /// A companion without the weight that it belongs to.
    #[error("`{tensor}` is there without `{wanted}` in a format that it could belong to")]
    Spare {
        /// The companion.
        tensor: String,
        /// The weight that is missing, or that is no packed one.
        wanted: String,
    },
    /// Two companions where one can be.
    #[error("`{tensor}` has both `{first}` and `{second}`")]
    Twice {
        /// The weight.
        tensor: String,
        /// One companion.
        first: String,
        /// The other.
        second: String,
    },
    /// A companion of a dtype that it can't have.
    #[error("`{companion}` of `{tensor}` has dtype {dtype}, not {wanted}")]
    Dtype {
        /// The weight.
        tensor: String,
        /// The companion.
        companion: String,
        /// Its dtype.
        dtype: DType,
        /// What would do.
        wanted: String,
    },
    /// A companion whose shape does not go with the weight's.
    #[error("`{companion}` has shape {found:?}, but `{tensor}` of shape {shape:?} asks for {wanted}")]
    Shape {
        /// The weight.
        tensor: String,
        /// Its shape as stored.
        shape: Vec<u64>,
        /// The companion.
        companion: String,
        /// Its shape.
        found: Vec<u64>,
        /// What would do.
        wanted: String,
    },
    /// The tensors say something else than the config.
    #[error("`{tensor}` and `{companion}` are {found}, but the quantization config says {declared}")]
    Config {
        /// The weight.
        tensor: String,
        /// Its companion.
        companion: String,
        /// What the tensors are.
        found: String,
        /// What the config says.
        declared: String,
    },
    /// A method that smelt does not know, with weights that need decoding.
    #[error(
        "`{tensor}` is quantized by the method `{method}`, which smelt does not read; it reads {}",
        .known.join(", ")
    )]
    Method {
        /// The first such weight.
        tensor: String,
        /// What the config calls it.
        method: String,
        /// Those that smelt reads.
        known: Vec<String>,
    },
    /// Something that no format smelt reads has.
    #[error("`{tensor}` is {found}, which is no format that smelt reads{declared}")]
    Unknown {
        /// The tensor.
        tensor: String,
        /// What was found.
        found: String,
        /// What the config says of it, with a comma and a blank in front.
        declared: String,
    },
}
