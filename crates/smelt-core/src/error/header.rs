//! What can be wrong with the header of a shard.

/// Why the header of a shard can't be taken at its word, in the order of the checks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// A file too short for the length of its header.
    #[error("`{file}` has {size} bytes, too few for a safetensors file; download it again")]
    Missing {
        /// The shard.
        file: String,
        /// Bytes in the file.
        size: u64,
    },
    /// A text file of Git LFS that stands for the real one.
    #[error("`{file}` is a Git LFS pointer, not the weights; run `git lfs pull` in the checkpoint")]
    LfsPointer {
        /// The shard.
        file: String,
    },
    /// A header length outside what the format allows.
    #[error(
        "`{file}` gives its header {length} bytes, the format allows 2 to {limit}; is it a safetensors file?"
    )]
    Length {
        /// The shard.
        file: String,
        /// Bytes that the file claims.
        length: u64,
        /// Bytes that the format allows.
        limit: u64,
    },
    /// A header longer than the file.
    #[error(
        "`{file}` ends inside its header ({length} bytes of header, {size} in the file); \
         download it again"
    )]
    PastEnd {
        /// The shard.
        file: String,
        /// Bytes of header.
        length: u64,
        /// Bytes in the file.
        size: u64,
    },
    /// A header that is not UTF-8.
    #[error("the header of `{file}` is not valid UTF-8; download it again")]
    Utf8 {
        /// The shard.
        file: String,
        /// Where.
        source: std::str::Utf8Error,
    },
    /// A header that is not the JSON that the format asks for.
    #[error("the header of `{file}` is not that of a safetensors file; download it again")]
    Json {
        /// The shard.
        file: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// One name twice in a header.
    #[error("`{file}` names the tensor `{tensor}` twice")]
    DuplicateName {
        /// The shard.
        file: String,
        /// The name.
        tensor: String,
    },
    /// A dtype that this version does not know.
    #[error("the tensor `{tensor}` in `{file}` has the unknown dtype `{dtype}`; is there a newer smelt?")]
    UnknownDType {
        /// The shard.
        file: String,
        /// The tensor.
        tensor: String,
        /// The dtype as spelled in the file.
        dtype: String,
    },
    /// A shape whose elements or bits do not fit 64 bits.
    #[error(
        "the tensor `{tensor}` in `{file}` has a shape too large to count: {shape:?}; \
         download it again"
    )]
    ShapeOverflow {
        /// The shard.
        file: String,
        /// The tensor.
        tensor: String,
        /// The shape.
        shape: Box<[u64]>,
    },
    /// A tensor of 4-bit or 6-bit elements that ends inside a byte.
    #[error("the tensor `{tensor}` in `{file}` of dtype {dtype} does not fill whole bytes")]
    PartialByte {
        /// The shard.
        file: String,
        /// The tensor.
        tensor: String,
        /// The dtype.
        dtype: &'static str,
    },
    /// Offsets that do not hold what dtype and shape ask for.
    #[error(
        "the tensor `{tensor}` in `{file}` needs {needed} bytes for its dtype and shape, \
         its offsets are {begin} and {end}; download it again"
    )]
    TensorBytes {
        /// The shard.
        file: String,
        /// The tensor.
        tensor: String,
        /// Bytes by dtype and shape.
        needed: u64,
        /// First byte, from the start of the data.
        begin: u64,
        /// Byte after the last.
        end: u64,
    },
    /// Two tensors that share bytes.
    #[error("the tensors `{tensor}` and `{other}` in `{file}` overlap; download it again")]
    Overlap {
        /// The shard.
        file: String,
        /// The one that starts earlier.
        tensor: String,
        /// The one that starts inside it.
        other: String,
    },
    /// A tensor that ends behind the file.
    #[error(
        "`{file}` is cut short: the tensor `{tensor}` ends at byte {end}, the file at {size}; \
         download it again"
    )]
    Truncated {
        /// The shard.
        file: String,
        /// The tensor.
        tensor: String,
        /// Byte of the file after the tensor's last.
        end: u64,
        /// Bytes in the file.
        size: u64,
    },
    /// Bytes that no tensor owns and that are no alignment padding.
    #[error("`{file}` has {bytes} bytes at {offset} that belong to no tensor; download it again")]
    Hole {
        /// The shard.
        file: String,
        /// Where in the file the hole starts.
        offset: u64,
        /// How long it is.
        bytes: u64,
    },
}
