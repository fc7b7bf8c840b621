//! What can be wrong with a checkpoint: its configuration, index and shards, and how its weights are stored.

use super::Listed;
use crate::checkpoint::StorageProblem;

/// Why the files of a checkpoint make no model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A JSON file that is none.
    #[error("`{file}` is not valid JSON; download it again")]
    Json {
        /// The file.
        file: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A text file that is not UTF-8.
    #[error("`{file}` is not valid UTF-8")]
    Utf8 {
        /// The file.
        file: String,
        /// Where.
        source: std::str::Utf8Error,
    },
    /// A JSON file that holds something else than an object.
    #[error("`{file}` holds no JSON object; download it again")]
    NotAnObject {
        /// The file.
        file: String,
    },
    /// No `config.json`.
    #[error("no `config.json` in `{location}`; name the folder of a Hugging Face checkpoint")]
    NoConfig {
        /// The source.
        location: String,
    },
    /// An index without `weight_map`.
    #[error("`{file}` has no `weight_map`; remove the file if the shards need no index")]
    NoWeightMap {
        /// The index.
        file: String,
    },
    /// One name twice in the index.
    #[error("`{file}` names the tensor `{tensor}` twice")]
    IndexDuplicate {
        /// The index.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// No shard at all.
    #[error("no safetensors file to read in `{location}`{}", other_weights(.other.as_deref()))]
    NoWeights {
        /// The source.
        location: String,
        /// A weight file in another format, if there is one.
        other: Option<String>,
    },
    /// The index names a file that is not there.
    #[error(
        "the index names the shard `{shard}`, which is not in `{location}`; \
         finish the download, or remove the index if it is of other shards"
    )]
    MissingShard {
        /// The source.
        location: String,
        /// The shard.
        shard: String,
    },
    /// The index names a tensor that its shard does not hold.
    #[error(
        "the index says that `{shard}` holds the tensor `{tensor}`, it does not; \
         index and shards are not of the same checkpoint"
    )]
    MissingTensor {
        /// The shard by the index.
        shard: String,
        /// The tensor.
        tensor: String,
    },
    /// A shard holds a tensor that the index does not name.
    #[error(
        "`{shard}` holds the tensor `{tensor}`, which the index does not name; \
         index and shards are not of the same checkpoint"
    )]
    UnindexedTensor {
        /// The shard.
        shard: String,
        /// The tensor.
        tensor: String,
    },
    /// The index names another shard than the one that holds the tensor.
    #[error(
        "the tensor `{tensor}` is in `{shard}`, the index says `{indexed}`; \
         index and shards are not of the same checkpoint"
    )]
    MisplacedTensor {
        /// The shard that holds it.
        shard: String,
        /// The shard by the index.
        indexed: String,
        /// The tensor.
        tensor: String,
    },
    /// One name in two shards.
    #[error("the tensor `{tensor}` is in two shards, `{first}` and `{second}`")]
    TensorTwice {
        /// The tensor.
        tensor: String,
        /// One shard.
        first: String,
        /// The other.
        second: String,
    },
    /// More tensors than an id can number.
    #[error("`{location}` has {count} tensors, more than can be numbered")]
    TooManyTensors {
        /// The source.
        location: String,
        /// How many.
        count: u64,
    },
    /// A read that does not lie inside its tensor.
    #[error("the tensor `{tensor}` in `{shard}` has {bytes} bytes, {length} at {offset} were asked for")]
    OutsideTensor {
        /// The shard.
        shard: String,
        /// The tensor.
        tensor: String,
        /// Bytes of the tensor.
        bytes: u64,
        /// Where the read began, from the tensor's first byte.
        offset: u64,
        /// Bytes asked for.
        length: u64,
    },
    /// Stored tensors that do not make up weights.
    #[error("the weights can't be read as they are stored:{problems}")]
    Storage {
        /// Everything that does not fit.
        problems: Listed<StorageProblem>,
    },
    /// A scale byte that is no number.
    #[error("`{tensor}` holds the byte 255, which is no scale; download it again")]
    NoScale {
        /// The tensor with the scales.
        tensor: String,
    },
    /// A group that is not there.
    #[error("`{tensor}` names group {group}, which `scales` does not have; download it again")]
    GroupOrder {
        /// The tensor with the order.
        tensor: String,
        /// The group.
        group: i32,
    },
    /// A stored shape that is not the tensor's.
    #[error("`{companion}` says {said:?}, but `{tensor}` has shape {shape:?}")]
    SaidShape {
        /// The tensor that holds the shape.
        companion: String,
        /// What it says.
        said: Vec<u64>,
        /// The weight.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// NaN or infinity in a weight.
    #[error("`{tensor}` holds NaN or infinity; `--allow-nonfinite` goes on all the same")]
    NonFinite {
        /// The parameter.
        tensor: String,
    },
}

/// The second half of [`CheckpointError::NoWeights`].
fn other_weights(other: Option<&str>) -> String {
    let unfinished = || "; finish the download".to_owned();
    other.map_or_else(unfinished, |file| {
        format!("; `{file}` is in a format that smelt does not read, get or make the safetensors")
    })
}
