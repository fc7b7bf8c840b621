//! A whole checkpoint: config, index and two shards, from pieces of the input. What opens is planned,
//! and whatever happens is a refusal or a plan that fits its own files.
//!
//! The first byte says how many 255ths of the rest are the config, the second the same of the index.
#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use smelt_core::checkpoint::Checkpoint;
use smelt_core::plan::{Memory, Options, Origin, Plan, family_of};
use smelt_core::source::MemorySource;

fuzz_target!(|data: &[u8]| {
    let [first, second, rest @ ..] = data else { return };
    let (config, rest) = rest.split_at(rest.len() * usize::from(*first) / 255);
    let (index, shard) = rest.split_at(rest.len() * usize::from(*second) / 255);
    let mut files = vec![("config.json", config.to_vec()), ("model.safetensors", shard.to_vec())];
    if !index.is_empty() {
        files.push(("model.safetensors.index.json", index.to_vec()));
    }
    let Ok(checkpoint) = Checkpoint::open(Arc::new(MemorySource::new(files))) else { return };
    let planned = family_of(&checkpoint, None)
        .and_then(|family| Origin::family(&checkpoint, family, None))
        .and_then(|origin| Plan::new(&checkpoint, origin, &Options::default()));
    let Ok(plan) = planned else { return };
    let sum: u64 = plan.tasks.iter().map(|task| task.bytes()).sum();
    assert_eq!(sum, plan.totals.tensor_bytes);
    let _ = plan.schedule(Memory { limit: 1 << 30, threads: 2 });
});
