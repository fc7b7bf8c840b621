//! Lists in messages: of problems line by line, of names in a sentence.

use std::fmt;

use crate::layout::Problem;
use crate::pipeline::Change;

/// Differences between two runs; shown up to a dozen.
#[derive(Debug)]
pub struct Changes(pub Vec<Change>);

impl From<Vec<Change>> for Changes {
    fn from(changes: Vec<Change>) -> Self {
        Self(changes)
    }
}

impl fmt::Display for Changes {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(out, &self.0)
    }
}

/// Everything about a checkpoint that does not fit its family; shown up to a dozen.
pub type Problems = Listed<Problem>;

/// A list in a message, shown up to a dozen.
#[derive(Debug)]
pub struct Listed<T>(pub Vec<T>);

impl<T> From<Vec<T>> for Listed<T> {
    fn from(problems: Vec<T>) -> Self {
        Self(problems)
    }
}

/// More than this many problems are counted, not listed: one missing shard makes thousands.
const SHOWN: usize = 12;

impl<T: fmt::Display> fmt::Display for Listed<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(out, &self.0)
    }
}

/// A line for each, as far as they are shown.
fn list(out: &mut fmt::Formatter<'_>, all: &[impl fmt::Display]) -> fmt::Result {
    for one in all.iter().take(SHOWN) {
        write!(out, "\n  {one}")?;
    }
    match all.len().checked_sub(SHOWN) {
        None | Some(0) => Ok(()),
        Some(more) => write!(out, "\n  and {more} more"),
    }
}

/// `a`, `b` and `c`.
pub(super) fn listed(all: &[String], and: &str) -> String {
    let quoted: Vec<String> = all.iter().map(|one| format!("`{one}`")).collect();
    match quoted.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} {and} {last}", rest.join(", ")),
        _ => quoted.concat(),
    }
}
