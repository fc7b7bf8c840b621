//! How a run keeps within a budget of memory.
//!
//! Each worker has an equal share, and every block is cut so that all that it needs at once — the
//! block as pulled, the intermediate results of its expression, its codes, scales and biases — fits
//! into the share. Nothing else grows with the model but the plan itself.

use super::blocks::{Block, Cut};
use super::importance::block_bytes as weight_bytes;
use super::{Plan, Task};
use crate::error::{PlanError, Result};
use crate::layout::{Graph, cost};

/// What a run may use.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Bytes for the whole process.
    pub limit: u64,
    /// Threads that compute.
    pub threads: usize,
}

/// How the budget is shared out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Threads that each read, transform, quantize and write a block at a time.
    pub workers: usize,
    /// Bytes that each of them may hold.
    pub worker_bytes: u64,
}

/// Set aside for the program, its stacks and what the allocator wastes.
const RESERVE: u64 = 24 << 20;

/// What a node, task or source tensor of the plan takes, roughly: names, shapes, tables.
const PER_ENTRY: u64 = 300;

/// A block of this many bytes is read at the speed of any disk; a larger one only takes memory.
const LARGEST_BLOCK: u64 = 4 << 20;

/// Blocks of a task that are asked one by one what they cost.
const MOST_ASKED: u64 = 256;

/// What it takes to weigh the columns of a matrix by a look at some of its rows.
pub(crate) const LOOK: u64 = 768 << 10;

/// Workers beyond the threads that compute, so that some wait for the disk meanwhile.
const WAITING: usize = 1;

impl Plan {
    /// Shares out a budget.
    ///
    /// # Errors
    /// [`PlanError::Memory`] if not even one worker can do its smallest block.
    pub fn schedule(&self, memory: Memory) -> Result<Schedule> {
        let room = memory.limit.saturating_sub(self.overhead());
        let (least, task) = self.least();
        let most = memory.threads.max(1) + WAITING;
        let workers = most.min(usize::try_from(room / (least + self.read_overhead)).unwrap_or(most));
        match (workers, task) {
            (0, Some(task)) => {
                let needed = least + self.read_overhead + self.overhead();
                Err(PlanError::Memory { tensor: task.name.clone(), needed }.into())
            }
            (workers, _) => {
                let workers = workers.max(1);
                Ok(Schedule {
                    workers,
                    worker_bytes: (room / workers as u64).saturating_sub(self.read_overhead),
                })
            }
        }
    }

    /// Bytes that a run takes at its peak, at most.
    pub fn peak_memory(&self, schedule: Schedule) -> u64 {
        let largest = self.tasks.iter().map(|task| {
            let cut = cut(&self.graph, task, schedule.worker_bytes);
            working_set(&self.graph, task, &cut)
        });
        self.overhead() + schedule.workers as u64 * (largest.max().unwrap_or(0) + self.read_overhead)
    }

    /// Bytes that the run takes besides its blocks.
    pub(crate) fn overhead(&self) -> u64 {
        let entries = self.graph.len() + self.tasks.len() * 3 + self.source_tensors.len() * 2;
        let entries = entries + self.logical_tensors.len() * 4 + self.treatments.len();
        let importance = self.importance.as_ref().map_or(0, |coverage| coverage.held_bytes);
        RESERVE + entries as u64 * PER_ENTRY + importance
    }

    /// Bytes that a second copy of the expressions and the parameters takes, as long as widths are chosen.
    pub(crate) fn copy_bytes(&self) -> u64 {
        (self.graph.len() + self.tasks.len() * 3) as u64 * PER_ENTRY
    }

    /// The largest of the tasks' smallest blocks.
    fn least(&self) -> (u64, Option<&Task>) {
        let smallest = |task: &Task| working_set(&self.graph, task, &Cut::new(&task.shape, unit(task), 1));
        let all = self.tasks.iter().map(|task| (smallest(task), task));
        all.max_by_key(|(bytes, _)| *bytes).map_or((1, None), |(bytes, task)| (bytes, Some(task)))
    }
}

/// The elements that can't be cut: a group, or one element of what is not quantized.
fn unit(task: &Task) -> u64 {
    task.format.as_ref().map_or(1, |spec| spec.0.group_size() as u64)
}

/// Cuts a task so that each block fits into `worker_bytes`, if any cut does.
pub fn cut(graph: &Graph, task: &Task, worker_bytes: u64) -> Cut {
    let size = (task.dtype.bits() / 8).max(1);
    let mut most = (worker_bytes.min(LARGEST_BLOCK) / size).max(1);
    loop {
        let cut = Cut::new(&task.shape, unit(task), most);
        if most == 1 || working_set(graph, task, &cut) <= worker_bytes {
            return cut;
        }
        most = most.div_ceil(2);
    }
}

/// Bytes that the dearest block of a cut needs at once.
///
/// The first block is never smaller than the others. Where the cost depends on the place as well,
/// every block is asked, or for very many a bound is taken.
fn working_set(graph: &Graph, task: &Task, cut: &Cut) -> u64 {
    let count = cut.count();
    let needs = |index: u64| block_bytes(graph, task, &cut.block(index));
    if count == 0 {
        0
    } else if cost::is_steady(graph, task.node) {
        needs(0)
    } else if count <= MOST_ASKED {
        (0..count).map(needs).max().unwrap_or(0)
    } else {
        let first = cut.block(0).len;
        held_bytes(task, first) + cost::bound(graph, task.node, first)
    }
}

fn block_bytes(graph: &Graph, task: &Task, block: &Block) -> u64 {
    if let Some(moved) = &task.moved {
        let parts = moved.nodes.iter().zip(&task.parts);
        let scratch = parts.map(|(node, part)| cost::scratch(graph, *node, &part.region(task, block)));
        return stored_bytes(task, block.len) + scratch.max().unwrap_or(0);
    }
    held_bytes(task, block.len) + cost::scratch(graph, task.node, &block.region)
}

/// Bytes of a block as pulled and as stored, and of what is found out for it.
fn held_bytes(task: &Task, elements: u64) -> u64 {
    let look = if task.format.is_some() { LOOK } else { 0 };
    let weights = if task.weighed { weight_bytes(task, elements) } else { 0 };
    elements * task.dtype.bits() / 8 + stored_bytes(task, elements) + look + weights
}

/// Bytes of codes, scales and biases; nothing for a block that is written as it is.
fn stored_bytes(task: &Task, elements: u64) -> u64 {
    match task.format {
        None => 0,
        Some(_) => (u128::from(task.bytes()) * u128::from(elements))
            .div_ceil(u128::from(task.elements().max(1))) as u64,
    }
}
