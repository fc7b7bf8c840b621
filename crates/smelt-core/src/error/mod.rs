//! What can go wrong, one variant for each way, with the names that a user needs to act.
//!
//! Messages start in lower case, quote values in backticks and, where there is one, say the next
//! step. The operating system's and the parser's own words come as [`std::error::Error::source`].
//! Each room has its ways in a file here; [`Error`] is all of them.

mod checkpoint;
mod header;
mod layout;
mod listed;
mod pipeline;
mod plan;
mod source;

use std::io;
use std::path::PathBuf;

pub use checkpoint::CheckpointError;
pub use header::HeaderError;
pub use layout::LayoutError;
pub use listed::{Changes, Listed, Problems};
pub use pipeline::PipelineError;
pub use plan::PlanError;
pub use source::SourceError;

use crate::plan::ImportanceError;
use crate::plan::allocate::BitsError;

/// A result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every error of this crate, in the order of its rooms.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Bytes of a source that can't be had.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The header of a shard that can't be right.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// Files that make no checkpoint, or none that can be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A checkpoint that can't be laid out as a library's model.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A model that can't be made as asked.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A wish about bits that can't be met.
    #[error(transparent)]
    Bits(#[from] BitsError),
    /// A file of importance that can't be used.
    #[error(transparent)]
    Importance(#[from] ImportanceError),
    /// A run that can't begin, or stopped.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// The user stopped the run.
    #[error("stopped before the end")]
    Interrupted,
    /// A folder without a report.
    #[error("there is no report in `{path}`; name a folder that `smelt quantize` wrote")]
    NoReport {
        /// The folder.
        path: PathBuf,
        /// Why the file can't be read.
        source: io::Error,
    },
    /// A report that is none.
    #[error("`{path}` is no report of smelt")]
    Report {
        /// The file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}
