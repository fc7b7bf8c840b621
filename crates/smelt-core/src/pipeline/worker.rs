//! One worker: takes a block, pulls it, quantizes it, writes it, and again.
//!
//! Workers and not stages: with a few more of them than cores, one waits for the disk while another
//! computes, the memory of each is known, and no queue stands between them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use smelt_kernels::{Format, Stored};

use super::encode::{Encoder, Place};
use super::event::{Event, Observer};
use super::sample::sampled;
use super::shard::{OpenTask, Shards};
use super::weigh::Tally;
use super::weights::Weights;
use crate::checkpoint::Checkpoint;
use crate::checkpoint::region::{Region, elements};
use crate::error::{CheckpointError, Error, Result};
use crate::layout::pool::Pool;
use crate::layout::pull::Puller;
use crate::plan::blocks::{Block, Cut};
use crate::plan::{Importance, Moved, Part, Plan, cut};

/// Hands out blocks, in the order in which they lie in the files.
#[derive(Debug)]
pub(super) struct Queue<'a> {
    plan: &'a Plan,
    worker_bytes: u64,
    /// Tasks that an earlier run has finished.
    done: Vec<bool>,
    next: Mutex<Next>,
}

/// The block that comes next: which task, and where in its cut.
#[derive(Debug, Default)]
struct Next {
    task: usize,
    block: u64,
    open: Option<(Cut, Arc<OpenTask>)>,
}

impl<'a> Queue<'a> {
    pub(super) fn new(plan: &'a Plan, worker_bytes: u64, done: Vec<bool>) -> Self {
        Self { plan, worker_bytes, done, next: Mutex::default() }
    }

    fn next(&self) -> Option<(Arc<OpenTask>, Block)> {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let (task, index) = (self.plan.tasks.get(next.task)?, next.block);
            let begin = |task_index| {
                let cut = cut(&self.plan.graph, task, self.worker_bytes);
                (cut, Arc::new(OpenTask::new(task_index, task)))
            };
            let at = next.task;
            if !self.done[at] {
                let (cut, open) = next.open.get_or_insert_with(|| begin(at));
                if index < cut.count() {
                    let found = (Arc::clone(open), cut.block(index));
                    next.block += 1;
                    return Some(found);
                }
            }
            *next = Next { task: next.task + 1, ..Next::default() };
        }
    }
}

/// What the workers of a run share.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a> {
    pub(super) plan: &'a Plan,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) importance: Option<&'a Importance>,
    pub(super) shards: &'a Shards<'a>,
    pub(super) queue: &'a Queue<'a>,
    pub(super) observer: &'a dyn Observer,
    /// Set from outside to stop the run, and by a worker that fails.
    pub(super) stop: &'a AtomicBool,
}

/// Works until nothing is left, something fails, or the run is stopped.
pub(super) fn work(shared: Shared<'_>) -> Result<()> {
    let mut worker = Worker {
        shared,
        weights: Weights::new(shared.plan, shared.importance),
        pool: Pool::default(),
        block: Vec::new(),
        stored: Vec::new(),
    };
    let mut last = "";
    while let Some((open, block)) = shared.queue.next() {
        let task = &shared.plan.tasks[open.index];
        if shared.stop.load(Ordering::Relaxed) {
            return Err(Error::Interrupted);
        }
        if task.name != last {
            // Buffers of another tensor's sizes would add up to more than the share.
            worker.pool.trim();
            (worker.block, worker.stored) = (Vec::new(), Vec::new());
            last = &task.name;
        }
        worker.run(&open, &block).inspect_err(|_| shared.stop.store(true, Ordering::Relaxed))?;
    }
    Ok(())
}

struct Worker<'a> {
    shared: Shared<'a>,
    weights: Weights<'a>,
    pool: Pool,
    /// The block as pulled.
    block: Vec<u8>,
    /// Its codes, scales and biases.
    stored: Vec<u8>,
}

impl Worker<'_> {
    fn run(&mut self, open: &OpenTask, block: &Block) -> Result<()> {
        let task = &self.shared.plan.tasks[open.index];
        let size = task.dtype.bits() / 8;
        if let Some(moved) = &task.moved {
            return self.transcode(open, block, moved);
        }
        resize(&mut self.block, (block.len * size) as usize);
        let puller = Puller::new(&self.shared.plan.graph, self.shared.checkpoint);
        puller.pull(task.node, &block.region, &mut self.block, &mut self.pool)?;
        self.weigh(open, block)?;
        match &task.format {
            None => self.shared.shards.write(open, 0, block.offset * size, &self.block)?,
            Some(spec) => self.quantize(open, block, spec.0)?,
        }
        self.shared.shards.advance(open, block.len, self.shared.observer)?;
        self.shared.observer.on(&Event::Block { bytes: block.len * size });
        Ok(())
    }

    /// Pulls the parts as the source has them, looks at what they stand for, and writes them.
    fn transcode(&mut self, open: &OpenTask, block: &Block, moved: &Moved) -> Result<()> {
        let task = &self.shared.plan.tasks[open.index];
        let puller = Puller::new(&self.shared.plan.graph, self.shared.checkpoint);
        let regions: Vec<_> = task.parts.iter().map(|part| part.region(task, block)).collect();
        let bytes = |(region, part): (&Region, &Part)| (elements(region) * part.dtype.bits() / 8) as usize;
        let sizes: Vec<usize> = regions.iter().zip(&task.parts).map(bytes).collect();
        let mut stored = std::mem::take(&mut self.stored);
        resize(&mut stored, sizes.iter().sum());
        let mut rest = &mut stored[..];
        for ((node, region), size) in moved.nodes.iter().zip(&regions).zip(&sizes) {
            let (now, later) = rest.split_at_mut(*size);
            puller.pull(*node, region, now, &mut self.pool)?;
            rest = later;
        }
        self.weigh_moved(open, block, &stored, &sizes)?;
        let mut rest = &stored[..];
        for (index, (part, size)) in task.parts.iter().zip(&sizes).enumerate() {
            let (now, later) = rest.split_at(*size);
            let before = (u128::from(block.offset) * u128::from(part.bytes)
                / u128::from(task.elements().max(1))) as u64;
            self.shared.shards.write(open, index, before, now)?;
            rest = later;
        }
        self.stored = stored;
        self.shared.shards.advance(open, block.len, self.shared.observer)?;
        self.shared.observer.on(&Event::Block { bytes: block.len * task.dtype.bits() / 8 });
        Ok(())
    }

    /// Weighs what moved parts stand for.
    fn weigh_moved(&self, open: &OpenTask, block: &Block, stored: &[u8], sizes: &[usize]) -> Result<()> {
        let task = &self.shared.plan.tasks[open.index];
        let (Some(spec), Some(dtype)) = (&task.format, task.dtype.float()) else { return Ok(()) };
        let (codes, rest) = stored.split_at(sizes[0]);
        let (scales, biases) = rest.split_at(sizes[1]);
        let (mut tally, place) = (Tally::default(), Place { offset: block.offset, len: block.len });
        let parts = Stored { codes, scales, biases };
        let finite = tally.add_stored((spec.0, dtype), task.elements(), place, parts);
        self.settle(open, &tally, finite)
    }

    /// Weighs the block as it was pulled.
    fn weigh(&self, open: &OpenTask, block: &Block) -> Result<()> {
        let task = &self.shared.plan.tasks[open.index];
        let Some(dtype) = task.dtype.float() else { return Ok(()) };
        let (mut tally, place) = (Tally::default(), Place { offset: block.offset, len: block.len });
        let finite = tally.add(dtype, task.elements(), place, &self.block);
        self.settle(open, &tally, finite)
    }

    /// Adds what a block amounts to, unless not all of it is finite.
    fn settle(&self, open: &OpenTask, tally: &Tally, finite: bool) -> Result<()> {
        let Shared { plan, .. } = self.shared;
        if !finite && !plan.allow_nonfinite {
            return Err(CheckpointError::NonFinite { tensor: plan.tasks[open.index].name.clone() }.into());
        }
        open.weigh(tally);
        Ok(())
    }

    fn quantize(&mut self, open: &OpenTask, block: &Block, format: Format) -> Result<()> {
        let Shared { plan, checkpoint, .. } = self.shared;
        let task = &plan.tasks[open.index];
        let at = Place { offset: block.offset, len: block.len };
        let found = self.weights.of(Puller::new(&plan.graph, checkpoint), task, at)?;
        let (channels, place) = found.map_or((None, at), |(channels, place)| (Some(channels), place));
        let encoder = Encoder::new(plan, task, format, channels);
        let (group, sizes) = (format.group_size() as u64, encoder.group());
        let (before, groups) = (block.offset / group, (block.len / group) as usize);
        let mut stored = std::mem::take(&mut self.stored);
        resize(&mut stored, groups * sizes.all());
        encoder.encode(place, &self.block, &mut stored);
        let dtype = task.dtype.float().expect("the plan quantizes floats only");
        let distortion = sampled((format, dtype), at, &self.block, &stored);
        open.sample(distortion);
        self.shared.observer.on(&Event::Sampled { task: open.index, distortion });
        let mut rest = &stored[..];
        for (part, each) in [sizes.codes, sizes.scales, sizes.biases].into_iter().enumerate() {
            let (bytes, later) = rest.split_at(groups * each);
            if part < task.parts.len() {
                self.shared.shards.write(open, part, before * each as u64, bytes)?;
            }
            rest = later;
        }
        self.stored = stored;
        Ok(())
    }
}

/// Makes a buffer this long; where it must grow it is allocated anew rather than copied.
fn resize(buffer: &mut Vec<u8>, len: usize) {
    if buffer.capacity() < len {
        *buffer = Vec::with_capacity(len);
    }
    buffer.resize(len, 0);
}
