//! What a user should know about a plan: everything that is not exactly as asked, nothing else.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoint, INDEX};

/// Something that is done differently from what was asked, or is worth knowing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Note {
    /// A module stays in its float type because its rows do not divide into groups.
    NotDivisible {
        /// The module.
        module: String,
        /// Elements of a row.
        row: u64,
        /// The group size asked for.
        group_size: u64,
    },
    /// An override that no module matches.
    OverrideUnused {
        /// The override as given.
        text: String,
    },
    /// A module that is stored in the source's format, because that is exact.
    Moved {
        /// The module.
        module: String,
        /// The format.
        format: String,
        /// The format that was asked for.
        asked: String,
    },
    /// A module in a format that MLX has, which is quantized again all the same.
    NotMoved {
        /// The module.
        module: String,
        /// The reason.
        why: String,
    },
    /// A module without weights in the importance that was given.
    NoImportance {
        /// The module.
        module: String,
    },
    /// Experts that the text of the importance never reached.
    ExpertsWithoutData {
        /// How many.
        experts: u64,
        /// In how many modules.
        modules: u64,
    },
    /// A file of the source that is neither read nor copied.
    FileLeftOut {
        /// Its path in the source.
        path: String,
        /// The reason.
        why: String,
    },
}

impl Note {
    /// Whether the result differs from what was asked, which `--strict` does not allow.
    pub const fn is_fallback(&self) -> bool {
        matches!(self, Self::NotDivisible { .. } | Self::OverrideUnused { .. } | Self::NoImportance { .. })
    }
}

impl fmt::Display for Note {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDivisible { module, row, group_size } => write!(
                out,
                "`{module}` is not quantized: its rows of {row} do not divide into groups of {group_size}"
            ),
            Self::OverrideUnused { text } => {
                write!(out, "override `{text}` matches no module that can be quantized")
            }
            Self::Moved { module, format, asked } => {
                write!(out, "`{module}` is moved as {format} bit by bit, not quantized as {asked}")
            }
            Self::NotMoved { module, why } => {
                write!(out, "`{module}` is decoded and quantized again: {why}")
            }
            Self::NoImportance { module } => {
                write!(out, "`{module}` has no importance in the file; its own columns weigh it")
            }
            Self::ExpertsWithoutData { experts, modules } => write!(
                out,
                "{experts} experts in {modules} modules have no data in the importance; they get the mean of their layer"
            ),
            Self::FileLeftOut { path, why } => write!(out, "`{path}` is left out: {why}"),
        }
    }
}

/// A note for each file of the source that does not reach the output. That the index is written anew
/// surprises nobody.
pub(super) fn left_out(checkpoint: &Checkpoint) -> Vec<Note> {
    let files = checkpoint.left_out().iter().filter(|file| file.path != INDEX);
    files.map(|file| Note::FileLeftOut { path: file.path.clone(), why: file.why.to_owned() }).collect()
}
