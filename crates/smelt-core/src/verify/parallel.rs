//! Works through a list with several threads, and hands the results back in the order of the list.
//!
//! A parameter is one piece of work, from its first byte to its last: what is summed over it is summed in
//! one order, so the numbers do not depend on how many threads there are. The largest begin first, so
//! that no thread is left with one at the end.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::error::{Error, Result};

/// How the work is shared out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Crew<'a> {
    pub(super) workers: usize,
    /// Ends the work when it is set.
    pub(super) stop: &'a AtomicBool,
}

impl Crew<'_> {
    /// Does `work` for each index below `sizes.len()`.
    ///
    /// # Errors
    /// Of the pieces that fail the first by its index; [`Error::Interrupted`] if `stop` was set.
    pub(super) fn each<R: Send>(
        self,
        sizes: &[u64],
        work: impl Fn(usize) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        let mut order: Vec<usize> = (0..sizes.len()).collect();
        order.sort_by_key(|&index| std::cmp::Reverse(sizes[index]));
        let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
        let run = || {
            let mut done = Vec::new();
            while let Some(&index) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                if self.stop.load(Ordering::Relaxed) || failed.load(Ordering::Relaxed) {
                    break;
                }
                let result = work(index);
                failed.fetch_or(result.is_err(), Ordering::Relaxed);
                done.push((index, result));
            }
            done
        };
        let mut done = thread::scope(|scope| {
            let workers: Vec<_> = (0..self.workers.max(1)).map(|_| scope.spawn(run)).collect();
            let join = |worker: thread::ScopedJoinHandle<'_, _>| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            workers.into_iter().flat_map(join).collect::<Vec<_>>()
        });
        done.sort_by_key(|(index, _)| *index);
        let results = done.into_iter().map(|(_, result)| result).collect::<Result<Vec<_>>>()?;
        if results.len() < sizes.len() { Err(Error::Interrupted) } else { Ok(results) }
    }
}
