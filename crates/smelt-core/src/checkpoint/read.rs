//! Reads a region of a stored tensor, and hands out regions of logical ones.
//!
//! A region of whole rows is one read into the caller's buffer. A region that is narrower than its
//! rows (the columns of a transposed weight) is many short stretches: neighbours that lie close
//! together are read in one span and picked out, because a read costs more than the bytes between.

use super::region::{Axis, Run, runs};
use super::{Checkpoint, StoredId, TensorId, logical};
use crate::Result;
use crate::layout::pull::Tensors;

/// Bytes between two stretches that are read over rather than skipped.
const GAP: u64 = 4 << 10;

/// The longest span that is read to pick stretches out of.
const SPAN: u64 = 128 << 10;

/// Most stretches of a span: single elements of two bytes would take eight times the span to list.
const STRETCHES: usize = 4 << 10;

/// Bytes that reading a region takes beside its result: the span and the list of its stretches.
pub(crate) const OVERHEAD: u64 = SPAN + 2 * (STRETCHES * size_of::<Run>()) as u64;

impl Tensors for Checkpoint {
    fn read_region(&self, id: TensorId, region: &[Axis], out: &mut [u8]) -> Result<()> {
        match self.part_of(id) {
            (tensor, None) => logical::region(self, tensor, region, out),
            (tensor, Some(part)) => logical::part_region(self, tensor, part, region, out),
        }
    }
}

/// Fills `out` with a region of a stored tensor, which is seen under a shape of elements of `size` bytes:
/// not more of it than the tensor has.
pub(super) fn view(
    checkpoint: &Checkpoint,
    id: StoredId,
    (shape, size): (&[u64], u64),
    region: &[Axis],
    out: &mut [u8],
) -> Result<()> {
    let mut reader = Reader { checkpoint, id, span: Vec::new(), out, filled: 0 };
    let mut pending: Vec<Run> = Vec::new();
    for run in runs(shape, region) {
        let run = Run { start: run.start * size, len: run.len * size };
        let joins = |last: &Run| pending.len() < STRETCHES && joins(pending[0], *last, run);
        if !pending.last().is_none_or(joins) {
            reader.read(&pending)?;
            pending.clear();
        }
        pending.push(run);
    }
    reader.read(&pending)
}

/// Whether a stretch is near enough to the one before it to be read with it.
fn joins(first: Run, last: Run, next: Run) -> bool {
    let end = last.start + last.len;
    next.start >= end && next.start - end <= GAP && next.start + next.len - first.start <= SPAN
}

struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    id: StoredId,
    span: Vec<u8>,
    out: &'a mut [u8],
    filled: usize,
}

impl Reader<'_> {
    /// Reads stretches that lie close together, in one go.
    fn read(&mut self, runs: &[Run]) -> Result<()> {
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else {
            return Ok(());
        };
        if let [only] = runs {
            let place = self.filled..self.filled + only.len as usize;
            self.filled = place.end;
            return self.checkpoint.read(self.id, only.start, &mut self.out[place]);
        }
        self.span.resize((last.start + last.len - first.start) as usize, 0);
        self.checkpoint.read(self.id, first.start, &mut self.span)?;
        for run in runs {
            let from = (run.start - first.start) as usize;
            let len = run.len as usize;
            self.out[self.filled..self.filled + len].copy_from_slice(&self.span[from..from + len]);
            self.filled += len;
        }
        Ok(())
    }
}
