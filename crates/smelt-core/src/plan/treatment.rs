//! What becomes of the codes of a source, parameter by parameter, and why.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::transcode::Not;
use crate::checkpoint::Checkpoint;
use crate::layout::{Graph, NodeId};

/// What happens to a parameter whose source is stored as codes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Treatment {
    /// The parameter.
    pub name: String,
    /// The storage format of its source, in words.
    pub source: String,
    /// What happens.
    pub transcode: Happens,
    /// Why.
    pub reason: String,
}

/// What happens to codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Happens {
    /// Their bits are moved.
    Moved,
    /// They are decoded and quantized again.
    Requantized,
    /// They are decoded and stored as floats.
    Decoded,
}

impl fmt::Display for Happens {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Moved => "moved bit by bit",
            Self::Requantized => "decoded and quantized again",
            Self::Decoded => "decoded",
        })
    }
}

/// What was found out about the bits of a parameter: moved, or why not.
pub(super) type Verdict = Result<(), Not>;

/// The treatment of a parameter, unless its source holds no codes.
pub(super) fn treatment(
    checkpoint: &Checkpoint,
    graph: &Graph,
    (name, node): (&str, NodeId),
    quantized: bool,
    verdict: Verdict,
) -> Option<Treatment> {
    let formats = graph.sources(node).into_iter().filter_map(|id| checkpoint.logical(id).format());
    let formats: BTreeSet<String> = formats.collect();
    if formats.is_empty() {
        return None;
    }
    let (transcode, reason) = match verdict {
        Ok(()) => (Happens::Moved, "the result's format holds it exactly"),
        Err(_) if !quantized => (Happens::Decoded, "it is not quantized"),
        Err(Not::Native) => (Happens::Requantized, "MLX has no such format"),
        Err(Not::Because(why)) => (Happens::Requantized, why),
    };
    let source = formats.into_iter().collect::<Vec<_>>().join("; ");
    Some(Treatment { name: name.to_owned(), source, transcode, reason: reason.to_owned() })
}
