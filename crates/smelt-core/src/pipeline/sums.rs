//! The hashes of a run's finished tensors, and what their weights amount to.
//!
//! One table, made before the first block: many small allocations that outlive the blocks would leave
//! holes in the memory from which the blocks come.

use blake3::Hash;

use super::weigh::Weighed;
use crate::plan::Plan;

/// Which tasks are finished, and the hashes of their parts.
#[derive(Clone, Debug)]
pub(super) struct PartSums {
    done: Vec<bool>,
    /// Where the parts of each task begin in `all`; one more at the end.
    first: Vec<usize>,
    all: Vec<Hash>,
    /// What the weights of each task amount to, as far as it is known.
    weighed: Vec<Option<Weighed>>,
}

impl PartSums {
    /// A table in which no task is finished.
    pub(super) fn new(plan: &Plan) -> Self {
        let mut first = vec![0];
        first.extend(plan.tasks.iter().scan(0, |end, task| {
            *end += task.parts.len();
            Some(*end)
        }));
        let parts = first.last().copied().unwrap_or(0);
        let (tasks, none) = (plan.tasks.len(), Hash::from_bytes([0; 32]));
        Self { done: vec![false; tasks], first, all: vec![none; parts], weighed: vec![None; tasks] }
    }

    /// Marks a task as finished, if there is a hash for each of its parts.
    pub(super) fn set(
        &mut self,
        task: usize,
        hashes: impl ExactSizeIterator<Item = Hash>,
        weighed: Option<Weighed>,
    ) {
        let places = &mut self.all[self.first[task]..self.first[task + 1]];
        if hashes.len() == places.len() {
            places.iter_mut().zip(hashes).for_each(|(place, hash)| *place = hash);
            self.done[task] = true;
            self.weighed[task] = weighed;
        }
    }

    /// Marks a task as unfinished.
    pub(super) fn unset(&mut self, task: usize) {
        self.done[task] = false;
        self.weighed[task] = None;
    }

    /// Which tasks are finished.
    pub(super) fn done(&self) -> &[bool] {
        &self.done
    }

    /// The hashes of the parts of a finished task.
    pub(super) fn of(&self, task: usize) -> &[Hash] {
        if self.done[task] { &self.all[self.first[task]..self.first[task + 1]] } else { &[] }
    }

    /// What the weights of each task amount to; `None` where there are no floats, or not all are finite.
    pub(super) fn weighed(&self) -> &[Option<Weighed>] {
        &self.weighed
    }

    /// The hashes of all finished parts, in the order of the plan.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Hash> {
        (0..self.done.len()).flat_map(|task| self.of(task))
    }
}
