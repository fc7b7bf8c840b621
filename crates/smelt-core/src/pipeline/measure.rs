//! Measures how far modules get from their weights in each format: pulls sampled rows, quantizes them as a run
//! would, and adds up the squared differences.
//!
//! A sample is about a million weights of a module, in rows spread evenly over it and, of stacked
//! experts, over the experts. The distance between rows has no factor in common with usual head sizes, so no
//! position within a head is preferred. Samples and the pieces in which they are read depend on the shape alone:
//! threads and memory decide nothing about a result.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use smelt_kernels::{Distortion, Format, all_finite};

use super::encode::{Encoder, Place};
use super::event::Event;
use super::weights::Weights;
use super::{Observer, first_error};
use crate::checkpoint::region::{Axis, Region, elements};
use crate::checkpoint::{Checkpoint, read};
use crate::error::{CheckpointError, Error, PlanError, Result};
use crate::layout::cost;
use crate::layout::pool::Pool;
use crate::layout::pull::Puller;
use crate::plan::measures::Measures;
use crate::plan::{Importance, LOOK, Memory, Plan, Task, weight_bytes};

/// Weights of a module that are looked at.
const SAMPLE: u64 = 1 << 20;

/// Experts that are looked at, about: each costs the rows that tell its columns' weights besides.
const ENTRIES: u64 = 32;

/// Weights that are pulled at once.
const PIECE: u64 = 64 << 10;

/// Columns of a piece of a row that is longer than [`PIECE`]; whole groups of any size.
const COLUMNS: u64 = 64 << 10;

/// Rows lie this far apart at most where that has no factor below 8 in common with sizes of heads.
const FACTORS: [u64; 4] = [2, 3, 5, 7];

/// A module with the formats in which it is to be measured.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its place in the plan's tasks.
    pub task: usize,
    /// The formats, whose groups divide its rows.
    pub formats: Vec<Format>,
}

/// Measures modules of a plan.
#[derive(Clone, Copy)]
pub struct Measuring<'a> {
    /// The plan: its expressions, its method.
    pub plan: &'a Plan,
    /// The checkpoint that it was made for.
    pub checkpoint: &'a Checkpoint,
    /// Weights of input channels.
    pub importance: Option<&'a Importance>,
    /// What may be used.
    pub memory: Memory,
    /// Is told what happens.
    pub observer: &'a dyn Observer,
    /// Stops it when it is set.
    pub stop: &'a std::sync::atomic::AtomicBool,
}

impl std::fmt::Debug for Measuring<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Measuring").field("memory", &self.memory).finish_non_exhaustive()
    }
}

impl Measuring<'_> {
    /// Measures what is wanted and adds it to `measures`.
    ///
    /// # Errors
    /// [`PlanError::Memory`] if a piece does not fit, [`CheckpointError::NonFinite`] for a weight that
    /// is not finite (unless the plan lets it through), what the source reports,
    /// [`Error::Interrupted`].
    pub fn run(&self, wanted: &[Wanted], measures: &mut Measures) -> Result<()> {
        let workers = self.workers(wanted)?;
        self.observer.on(&Event::Measuring { modules: wanted.len() as u64 });
        let (next, errors) = (AtomicUsize::new(0), Mutex::new(vec![Vec::new(); wanted.len()]));
        let work = || self.work(wanted, &next, &errors);
        let results = thread::scope(|scope| {
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            let join = |worker: thread::ScopedJoinHandle<'_, Result<()>>| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            workers.into_iter().map(join).collect()
        });
        first_error(results)?;
        let errors = errors.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (wanted, errors) in wanted.iter().zip(errors) {
            let module = self.plan.tasks[wanted.task].module();
            for (&format, error) in wanted.formats.iter().zip(errors) {
                measures.add(module, format, error);
            }
        }
        Ok(())
    }

    /// Threads that fit into the memory.
    fn workers(&self, wanted: &[Wanted]) -> Result<usize> {
        let overhead = self.plan.overhead() + self.plan.copy_bytes();
        let room = self.memory.limit.saturating_sub(overhead);
        let needs = wanted.iter().map(|wanted| {
            let task = &self.plan.tasks[wanted.task];
            (piece_bytes(self.plan, task) + read::OVERHEAD, task)
        });
        let Some((need, task)) = needs.max_by_key(|(need, _)| *need) else { return Ok(1) };
        let fitting = usize::try_from(room / need).unwrap_or(usize::MAX);
        if fitting == 0 {
            let needed = need + overhead;
            return Err(PlanError::Memory { tensor: task.name.clone(), needed }.into());
        }
        Ok(fitting.min(self.memory.threads.max(1) + 1).min(wanted.len()).max(1))
    }

    fn work(&self, wanted: &[Wanted], next: &AtomicUsize, errors: &Mutex<Vec<Vec<f32>>>) -> Result<()> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(module) = wanted.get(index) else { return Ok(()) };
            let stop = |_: &Error| self.stop.store(true, Ordering::Relaxed);
            let found = self.module(module).inspect_err(stop)?;
            errors.lock().unwrap_or_else(PoisonError::into_inner)[index] = found;
            self.observer.on(&Event::Measured { module: self.plan.tasks[module.task].module().to_owned() });
        }
    }

    /// The relative error of a module in each format.
    fn module(&self, wanted: &Wanted) -> Result<Vec<f32>> {
        let task = &self.plan.tasks[wanted.task];
        let mut sums = vec![Distortion::default(); wanted.formats.len()];
        let (mut buffers, mut weights) = (Buffers::default(), Weights::new(self.plan, self.importance));
        for rows in sample(&task.shape) {
            if self.stop.load(Ordering::Relaxed) {
                return Err(Error::Interrupted);
            }
            self.pull(task, &rows.region, &mut buffers)?;
            let (puller, at) = (Puller::new(&self.plan.graph, self.checkpoint), rows.place());
            let found = weights.of(puller, task, at)?;
            let (channels, place) = found.map_or((None, at), |(channels, place)| (Some(channels), place));
            for (&format, sum) in wanted.formats.iter().zip(&mut sums) {
                let encoder = Encoder::new(self.plan, task, format, channels);
                *sum += buffers.distortion(encoder, place);
            }
        }
        // A module of zeros alone has no error.
        let relative =
            |sum: &Distortion| if sum.energy > 0.0 { (sum.error / sum.energy) as f32 } else { 0.0 };
        Ok(sums.iter().map(relative).collect())
    }

    fn pull(&self, task: &Task, region: &[Axis], buffers: &mut Buffers) -> Result<()> {
        buffers.block.resize((elements(region) * task.dtype.bits() / 8) as usize, 0);
        let puller = Puller::new(&self.plan.graph, self.checkpoint);
        puller.pull(task.node, region, &mut buffers.block, &mut buffers.pool)?;
        let float = task.dtype.float().filter(|_| !self.plan.allow_nonfinite);
        if float.is_none_or(|float| all_finite(float, &buffers.block)) {
            return Ok(());
        }
        Err(CheckpointError::NonFinite { tensor: task.name.clone() }.into())
    }
}

#[derive(Default)]
struct Buffers {
    block: Vec<u8>,
    stored: Vec<u8>,
    pool: Pool,
}

impl Buffers {
    /// The error of the pulled rows in a format. Rows are not neighbours, but as far as weights of channels go
    /// they might be: all are of one entry, and begin at the same column.
    fn distortion(&mut self, encoder: Encoder<'_>, place: Place) -> Distortion {
        let groups = place.len / encoder.format.group_size() as u64;
        self.stored.resize(groups as usize * encoder.group().all(), 0);
        encoder.encode(place, &self.block, &mut self.stored);
        encoder.distortion(place, &self.block, &self.stored)
    }
}

/// Bytes that the largest piece of a task takes: as pulled, as stored, and on the way.
fn piece_bytes(plan: &Plan, task: &Task) -> u64 {
    let size = task.dtype.bits() / 8;
    let held = |region: &Region| {
        // Eight bits and the scales and biases of the smallest groups.
        let stored = elements(region) * (1 + 2 * size / 16);
        let weights = if task.weighed { weight_bytes(task, elements(region)) } else { 0 };
        let scratch = cost::scratch(&plan.graph, task.node, region);
        elements(region) * size + stored + LOOK + weights + scratch
    };
    sample(&task.shape).iter().map(|rows| held(&rows.region)).max().unwrap_or(0)
}

/// Rows of a sample that are pulled together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rows {
    pub(super) region: Region,
    /// The first of their elements.
    pub(super) offset: u64,
}

impl Rows {
    /// Where they would lie if they were neighbours, which is in their entry as well.
    fn place(&self) -> Place {
        Place { offset: self.offset, len: elements(&self.region) }
    }
}

/// The sample of a tensor of this shape, in pieces.
fn sample(shape: &[u64]) -> Vec<Rows> {
    let [outer @ .., rows, columns] = shape else { return Vec::new() };
    let (rows, columns) = (*rows, *columns);
    let entries: u64 = outer.iter().product();
    if entries * rows * columns == 0 {
        return Vec::new();
    }
    let wanted = SAMPLE.div_ceil(columns);
    let entry_step = (entries / wanted.min(ENTRIES)).max(1);
    let chosen = entries.div_ceil(entry_step);
    let row_step = spread(rows, wanted.div_ceil(chosen));
    let mut pieces = Vec::new();
    for index in 0..chosen {
        let entry = index * entry_step;
        // Other rows in each entry.
        let first = (index * 5) % row_step.min(rows);
        let along = Axis { start: first, len: (rows - first).div_ceil(row_step), step: row_step };
        pieces.extend(cut(outer, entry, along, (rows, columns)));
    }
    pieces
}

/// How far apart the chosen of `count` lie if at least `wanted` are to be chosen: 1, or no multiple of a small prime.
pub(super) fn spread(count: u64, wanted: u64) -> u64 {
    let most = (count / wanted.max(1)).max(1);
    let odd = |step: &u64| FACTORS.iter().all(|factor| !step.is_multiple_of(*factor));
    (1..=most).rev().find(odd).unwrap_or(1)
}

/// Cuts rows of an entry into pieces of at most [`PIECE`] elements, or parts of a single row.
pub(super) fn cut(outer: &[u64], entry: u64, along: Axis, (rows, columns): (u64, u64)) -> Vec<Rows> {
    let prefix = positions(outer, entry);
    let together = (PIECE / columns).max(1);
    let mut pieces = Vec::new();
    for start in (0..along.len).step_by(together as usize) {
        let first = along.start + start * along.step;
        let taken = Axis { start: first, len: together.min(along.len - start), step: along.step };
        for column in (0..columns).step_by(COLUMNS as usize) {
            let mut region = prefix.clone();
            region.extend([taken, Axis::range(column, COLUMNS.min(columns - column))]);
            pieces.push(Rows { region, offset: (entry * rows + first) * columns + column });
        }
    }
    pieces
}

/// The position of an entry on the axes before the last two.
fn positions(outer: &[u64], mut entry: u64) -> Region {
    let mut region = Region::new();
    for &size in outer.iter().rev() {
        region.push(Axis::point(entry % size));
        entry /= size;
    }
    region.reverse();
    region
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn count(shape: &[u64]) -> u64 {
        sample(shape).iter().map(|rows| elements(&rows.region)).sum()
    }

    #[test]
    fn small_tensors_are_measured_whole_and_large_ones_in_part() {
        assert_eq!(count(&[512, 1024]), 512 * 1024);
        assert_eq!(count(&[16, 100, 64]), 16 * 100 * 64);
        for shape in
            [&[151_936, 4096][..], &[512, 2048, 4096], &[8, 14_336, 4096], &[4, 128, 96, 512], &[64, 300_000]]
        {
            let taken = count(shape);
            assert!((SAMPLE..2 * SAMPLE).contains(&taken), "{shape:?}: {taken}");
        }
    }

    #[test]
    fn rows_of_a_sample_take_every_place_in_a_head() {
        let rows = sample(&[16_384, 16_384]);
        let mut places: Vec<u64> = rows
            .iter()
            .flat_map(|rows| {
                let along = rows.region[0];
                (0..along.len).map(move |i| (along.start + i * along.step) % 64)
            })
            .collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 64);
    }

    proptest! {
        #[test]
        fn pieces_lie_inside_and_do_not_overlap(
            outer in prop::collection::vec(1..6u64, 0..3), rows in 1..5000u64, groups in 1..2000u64,
        ) {
            let shape: Vec<u64> = outer.iter().copied().chain([rows, groups * 64]).collect();
            let mut starts = std::collections::HashSet::new();
            for piece in sample(&shape) {
                prop_assert!(elements(&piece.region) <= PIECE.max(64));
                let mut offset = 0;
                for (axis, size) in piece.region.iter().zip(&shape) {
                    prop_assert!(axis.start + (axis.len - 1) * axis.step < *size);
                    offset = offset * size + axis.start;
                }
                prop_assert_eq!(offset, piece.offset);
                let row = piece.region[shape.len() - 2];
                for i in 0..row.len {
                    prop_assert!(starts.insert(piece.offset + i * row.step * groups * 64));
                }
            }
        }
    }
}
