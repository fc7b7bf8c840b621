//! The shards of a run: reserved before the first block, or taken up from an earlier run; published
//! when their last tensor is there.
//!
//! Finished tensors are recorded in groups: the shards are flushed, then the journal says so. A flush
//! for each tensor would cost more than it saves; as it is, a loss of power costs some seconds of work.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use smelt_kernels::Distortion;

use super::disk::Entry;
use super::event::{Event, Observer};
use super::hash::AnyOrder;
use super::journal::{Journal, Record, Sample};
use super::output::{OutputDir, Pending, write_error};
use super::sums::PartSums;
use super::weigh::{Tally, Weighed};
use crate::error::{Error, Result};
use crate::plan::{Part, Plan, Task, shard_header};

/// Finished tensors are recorded after this time, if their bytes do not ask for it before.
const GROUP_TIME: Duration = Duration::from_secs(5);

/// More than a stored tensor takes in journal, index and manifest together.
const RECORD_BYTES: u64 = 512;

/// A shard that is being written.
#[derive(Debug)]
struct ShardFile {
    /// The file, unless it is complete from an earlier run.
    pending: Option<Pending>,
    /// Bytes of tensors that are not finished yet.
    missing: AtomicU64,
    header_bytes: u64,
}

/// A task that is being worked on.
#[derive(Debug)]
pub(super) struct OpenTask {
    pub(super) index: usize,
    parts: Vec<AnyOrder>,
    /// How far a sample of the blocks so far is from the source.
    sampled: Mutex<Option<Distortion>>,
    /// Elements that are not written yet.
    missing: AtomicU64,
    tally: Mutex<Tally>,
}

impl OpenTask {
    pub(super) fn new(index: usize, task: &Task) -> Self {
        let parts = task.parts.iter().map(|part| AnyOrder::new(part.bytes)).collect();
        let missing = AtomicU64::new(task.elements());
        Self { index, parts, sampled: Mutex::default(), missing, tally: Mutex::default() }
    }

    /// Adds the sample of a block.
    pub(super) fn sample(&self, sums: Distortion) {
        *self.sampled().get_or_insert_default() += sums;
    }

    fn sampled(&self) -> MutexGuard<'_, Option<Distortion>> {
        self.sampled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds what the weights of a block amount to.
    pub(super) fn weigh(&self, tally: &Tally) {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner).merge(tally);
    }

    fn weighed(&self, task: &Task) -> Option<Weighed> {
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        tally.finish().filter(|_| task.dtype.float().is_some())
    }
}

/// All shards of a run.
#[derive(Debug)]
pub(super) struct Shards<'a> {
    plan: &'a Plan,
    output: &'a OutputDir<'a>,
    journal: &'a Journal,
    files: Vec<ShardFile>,
    unfinished: AtomicUsize,
    finished: Mutex<Finished>,
    /// Held while tensors are recorded; false after that has failed, because a flush that has failed
    /// may seem to succeed when it is tried again.
    sound: Mutex<bool>,
}

/// A finished task that the journal does not have yet.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    task: usize,
    sample: Option<Sample>,
}

/// Finished tensors.
#[derive(Debug)]
struct Finished {
    sums: PartSums,
    /// Tasks that the journal does not have yet.
    waiting: Vec<Waiting>,
    /// Their bytes.
    bytes: u64,
    since: Instant,
    recorded: usize,
}

impl<'a> Shards<'a> {
    /// Opens every shard: those that an earlier run has begun as they are, the others reserved anew.
    /// What is recorded of a shard that is gone is done again.
    pub(super) fn open(
        plan: &'a Plan,
        output: &'a OutputDir<'a>,
        journal: &'a Journal,
        records: &[Record],
    ) -> Result<Self> {
        let mut done = recorded(plan, records);
        let found = Found::look(plan, output)?;
        let lost = found.lost(plan, done.done());
        if !lost.is_empty() {
            journal.record(&lost)?;
            done = recorded(plan, &[records, &lost[..]].concat());
        }
        output.check_space(found.needed(plan))?;
        let recorded = done.done().iter().filter(|done| **done).count();
        mark_empty(plan, &mut done);
        let missing = missing_bytes(plan, done.done());
        let shards = missing.into_iter().enumerate();
        let files = shards.map(|(index, missing)| open_shard(plan, output, index, missing, &found));
        let files = files.collect::<Result<Vec<_>>>()?;
        let finished =
            Finished { sums: done, waiting: Vec::new(), bytes: 0, since: Instant::now(), recorded };
        Ok(Self {
            plan,
            output,
            journal,
            unfinished: AtomicUsize::new(files.iter().filter(|file| file.pending.is_some()).count()),
            files,
            finished: Mutex::new(finished),
            sound: Mutex::new(true),
        })
    }

    /// Publishes the shards in which nothing is missing, to which no write will come.
    pub(super) fn publish_complete(&self, observer: &dyn Observer) -> Result<()> {
        let complete = self
            .files
            .iter()
            .enumerate()
            .filter(|(_, file)| file.pending.is_some() && file.missing.load(Ordering::Acquire) == 0);
        for (index, _) in complete {
            self.publish(index, observer)?;
        }
        Ok(())
    }

    /// Which tasks are finished.
    pub(super) fn done(&self) -> Vec<bool> {
        self.lock().sums.done().to_vec()
    }

    /// How many tensors the journal has.
    pub(super) fn recorded(&self) -> usize {
        self.lock().recorded
    }

    /// What the weights of each task amount to.
    pub(super) fn weighed(&self) -> Vec<Option<Weighed>> {
        self.lock().sums.weighed().to_vec()
    }

    /// The hashes of all tensors, once all are finished.
    pub(super) fn into_sums(self) -> PartSums {
        self.finished.into_inner().unwrap_or_else(PoisonError::into_inner).sums
    }

    /// Writes bytes of a part of a task, `offset` bytes from its beginning.
    pub(super) fn write(&self, open: &OpenTask, part: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let place = &self.plan.tasks[open.index].parts[part];
        let file = &self.files[place.shard as usize];
        let pending = file.pending.as_ref().expect("a shard with an unfinished tensor is open");
        pending.write_at(file.header_bytes + place.offset + offset, bytes)?;
        open.parts[part].add(offset, bytes);
        Ok(())
    }

    /// Takes note that a block of `elements` is written; finishes the task if it was its last, and
    /// publishes the shards of which that was the last tensor.
    pub(super) fn advance(&self, open: &OpenTask, elements: u64, observer: &dyn Observer) -> Result<()> {
        if open.missing.fetch_sub(elements, Ordering::AcqRel) > elements {
            return Ok(());
        }
        let task = &self.plan.tasks[open.index];
        let due = self.lock().add(open, task, self.output.group_bytes());
        for part in task.parts.iter().filter(|part| part.bytes > 0) {
            let missing = &self.files[part.shard as usize].missing;
            if missing.fetch_sub(part.bytes, Ordering::AcqRel) == part.bytes {
                self.publish(part.shard as usize, observer)?;
            }
        }
        // While another worker records, the next group waits for the next tensor.
        match self.sound.try_lock() {
            Ok(sound) if due => self.record_waiting(sound),
            _ => Ok(()),
        }
    }

    /// Records what is finished and not recorded yet.
    pub(super) fn record(&self) -> Result<()> {
        self.record_waiting(self.sound())
    }

    fn record_waiting(&self, mut sound: MutexGuard<'_, bool>) -> Result<()> {
        if !*sound {
            return Err(Error::Interrupted);
        }
        let (tasks, records) = self.lock().take();
        if tasks.is_empty() {
            return Ok(());
        }
        *sound = false;
        self.flush(&tasks)?;
        self.output.settle()?;
        self.journal.record(&records)?;
        self.lock().recorded += tasks.len();
        *sound = true;
        Ok(())
    }

    /// Flushes the shards of these tasks.
    fn flush(&self, tasks: &[usize]) -> Result<()> {
        let parts = tasks.iter().flat_map(|&task| &self.plan.tasks[task].parts);
        let shards: BTreeSet<u32> = parts.map(|part| part.shard).collect();
        let files = shards.into_iter().filter_map(|shard| self.files[shard as usize].pending.as_ref());
        files.into_iter().try_for_each(Pending::sync)
    }

    /// Gives a complete shard its name. Its tensors are recorded before; but not those of the last
    /// one: the journal is about to go, and should the run end before, they are done again.
    fn publish(&self, index: usize, observer: &dyn Observer) -> Result<()> {
        let pending = self.files[index].pending.as_ref().expect("a shard is published once");
        if self.unfinished.fetch_sub(1, Ordering::AcqRel) == 1 {
            let sound = self.sound();
            if !*sound {
                return Err(Error::Interrupted);
            }
            pending.sync()?;
        } else {
            self.record()?;
        }
        self.output.rename(pending)?;
        let shard = &self.plan.shards[index];
        observer.on(&Event::Finished { file: shard.name.clone(), bytes: shard.bytes() });
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Finished> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sound(&self) -> MutexGuard<'_, bool> {
        self.sound.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Finished {
    /// Adds a task; says whether it is time to record.
    fn add(&mut self, open: &OpenTask, task: &Task, most: u64) -> bool {
        if self.waiting.is_empty() {
            self.since = Instant::now();
        }
        self.sums.set(open.index, open.parts.iter().map(AnyOrder::finish), open.weighed(task));
        let sample = open.sampled().as_ref().and_then(Sample::of);
        self.waiting.push(Waiting { task: open.index, sample });
        self.bytes += task.bytes();
        self.bytes >= most || self.since.elapsed() >= GROUP_TIME
    }

    fn take(&mut self) -> (Vec<usize>, Vec<Record>) {
        let waiting = std::mem::take(&mut self.waiting);
        self.bytes = 0;
        let hex = |task: usize| self.sums.of(task).iter().map(|hash| hash.to_hex().to_string());
        let done = |&Waiting { task, sample }: &_| {
            let weighed = self.sums.weighed()[task];
            Record::Done { task, parts: hex(task).collect(), weighed, sample }
        };
        let records = waiting.iter().map(done).collect();
        (waiting.into_iter().map(|waiting| waiting.task).collect(), records)
    }
}

/// What records say is finished.
fn recorded(plan: &Plan, records: &[Record]) -> PartSums {
    let mut sums = PartSums::new(plan);
    for record in records {
        match record {
            Record::Done { task, parts, weighed, .. } if *task < plan.tasks.len() => {
                let hashes: Result<Vec<_>, _> = parts.iter().map(blake3::Hash::from_hex).collect();
                sums.set(*task, hashes.unwrap_or_default().into_iter(), *weighed);
            }
            Record::Done { .. } => {}
            Record::Lost { shard } => {
                let inside = |task: &Task| task.parts.iter().any(|part| part.shard == *shard);
                let tasks = plan.tasks.iter().enumerate().filter(|(_, task)| inside(task));
                tasks.for_each(|(index, _)| sums.unset(index));
            }
        }
    }
    sums
}

/// Tensors without bytes are finished from the beginning: no block will come for them.
fn mark_empty(plan: &Plan, sums: &mut PartSums) {
    let empty = plan.tasks.iter().enumerate().filter(|(_, task)| task.bytes() == 0);
    empty.for_each(|(index, task)| sums.set(index, task.parts.iter().map(|_| blake3::hash(&[])), None));
}

/// Bytes of unfinished tensors, by shard.
fn missing_bytes(plan: &Plan, done: &[bool]) -> Vec<u64> {
    let mut missing = vec![0; plan.shards.len()];
    let tasks = plan.tasks.iter().zip(done).filter(|(_, done)| !**done);
    let parts = tasks.flat_map(|(task, _)| &task.parts);
    parts.for_each(|part: &Part| missing[part.shard as usize] += part.bytes);
    missing
}

/// What an earlier run has left of each shard: bytes on the disk, and whether under its final name.
#[derive(Debug)]
struct Found(Vec<Option<Left>>);

#[derive(Clone, Copy, Debug)]
struct Left {
    allocated: u64,
    complete: bool,
}

impl Found {
    fn look(plan: &Plan, output: &OutputDir<'_>) -> Result<Self> {
        let left = |(index, shard): (usize, &crate::plan::OutputShard)| {
            let sound = |entry, complete| match entry {
                Some(Entry::File { len, allocated }) if len == shard.bytes() => {
                    Some(Left { allocated, complete })
                }
                _ => None,
            };
            if let Some(left) = sound(output.look(&shard.name)?, true) {
                return Ok(has_header(plan, output, index)?.then_some(left));
            }
            Ok(sound(output.look_partial(&shard.name)?, false))
        };
        plan.shards.iter().enumerate().map(left).collect::<Result<_>>().map(Self)
    }

    /// Shards that are gone although something is recorded of them.
    fn lost(&self, plan: &Plan, done: &[bool]) -> Vec<Record> {
        let tasks = plan.tasks.iter().zip(done).filter(|(_, done)| **done);
        let used: BTreeSet<u32> = tasks.flat_map(|(task, _)| &task.parts).map(|part| part.shard).collect();
        let gone = used.into_iter().filter(|&shard| self.0[shard as usize].is_none());
        gone.map(|shard| Record::Lost { shard }).collect()
    }

    /// Bytes that the disk must still have: also for journal, index and manifest, so that the disk
    /// is not full when all the work is done.
    fn needed(&self, plan: &Plan) -> u64 {
        let there = self.0.iter().flatten().map(|left| left.allocated).sum();
        let parts: usize = plan.tasks.iter().map(|task| task.parts.len()).sum();
        plan.totals.disk_bytes().saturating_sub(there)
            + parts as u64 * RECORD_BYTES
            + plan.config.len() as u64
            + plan.mtp.as_ref().map_or(0, |apart| apart.config.len() as u64)
    }
}

/// Whether a shard under its final name begins as this plan has it.
fn has_header(plan: &Plan, output: &OutputDir<'_>, index: usize) -> Result<bool> {
    let name = &plan.shards[index].name;
    let (header, file) = (shard_header(plan, index as u32), output.read(name)?);
    let mut found = vec![0; header.len()];
    file.read_at(&mut found, 0).map_err(write_error(&output.at(name)))?;
    Ok(found == header)
}

fn open_shard(
    plan: &Plan,
    output: &OutputDir<'_>,
    index: usize,
    missing: u64,
    found: &Found,
) -> Result<ShardFile> {
    let (shard, left) = (&plan.shards[index], found.0[index]);
    let header_bytes = shard.header_bytes;
    let complete = left.is_some_and(|left| left.complete);
    if complete && missing == 0 {
        return Ok(ShardFile { pending: None, missing: AtomicU64::new(0), header_bytes });
    }
    if complete {
        output.unpublish(&shard.name)?;
    }
    let pending = if left.is_some() {
        output.take_up(&shard.name)?
    } else {
        output.remove(&output.at(&shard.name))?;
        output.begin(&shard.name, shard.bytes())?
    };
    pending.write_at(0, &shard_header(plan, index as u32))?;
    Ok(ShardFile { pending: Some(pending), missing: AtomicU64::new(missing), header_bytes })
}
