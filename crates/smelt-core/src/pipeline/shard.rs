//! The shards of a run: reserved before the first block, published when their last is written.

use std::sync::atomic::{AtomicU64, Ordering};

use super::event::{Event, Observer};
use super::output::{OutputDir, Pending};
use crate::error::Result;
use crate::plan::{Part, Plan, shard_header};

/// A shard that is being written.
#[derive(Debug)]
struct ShardFile {
    pending: Pending,
    /// Bytes of tensors that are not written yet.
    missing: AtomicU64,
    header_bytes: u64,
}

/// All shards of a run.
#[derive(Debug)]
pub(super) struct Shards<'a> {
    plan: &'a Plan,
    output: &'a OutputDir,
    files: Vec<ShardFile>,
}

impl<'a> Shards<'a> {
    /// Reserves every shard on the disk and writes its header.
    pub(super) fn create(plan: &'a Plan, output: &'a OutputDir) -> Result<Self> {
        let mut files = Vec::with_capacity(plan.shards.len());
        for (index, shard) in plan.shards.iter().enumerate() {
            let pending = output.begin(&shard.name, shard.bytes())?;
            pending.write_at(0, &shard_header(plan, index as u32))?;
            let missing = AtomicU64::new(shard.tensor_bytes);
            files.push(ShardFile { pending, missing, header_bytes: shard.header_bytes });
        }
        Ok(Self { plan, output, files })
    }

    /// Publishes the shards that hold no bytes at all, to which no write will come.
    pub(super) fn publish_empty(&self, observer: &dyn Observer) -> Result<()> {
        let mut empty = (0..self.files.len()).filter(|&index| self.plan.shards[index].tensor_bytes == 0);
        empty.try_for_each(|index| self.publish(index, observer))
    }

    /// Writes bytes of a part, `offset` bytes from its beginning, and publishes the shard if they
    /// were its last.
    pub(super) fn write(
        &self,
        part: &Part,
        offset: u64,
        bytes: &[u8],
        observer: &dyn Observer,
    ) -> Result<()> {
        let file = &self.files[part.shard as usize];
        file.pending.write_at(file.header_bytes + part.offset + offset, bytes)?;
        let written = bytes.len() as u64;
        let before = file.missing.fetch_sub(written, Ordering::AcqRel);
        if before == written && written > 0 {
            self.publish(part.shard as usize, observer)?;
        }
        Ok(())
    }

    fn publish(&self, index: usize, observer: &dyn Observer) -> Result<()> {
        self.output.publish(&self.files[index].pending)?;
        let shard = &self.plan.shards[index];
        observer.on(&Event::Finished { file: shard.name.clone(), bytes: shard.bytes() });
        Ok(())
    }
}
