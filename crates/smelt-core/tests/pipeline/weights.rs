//! What weights amount to, and which of them can't be right.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use safetensors::SafeTensors;
use smelt_core::checkpoint::Checkpoint;
use smelt_core::pipeline::{Event, Measure, Observer, Outcome, Outlier, Run, Weighed};
use smelt_core::plan::{Memory, Options, Plan};
use smelt_core::source::MemorySource;
use smelt_core::{Error, PlanError, Result};

use crate::common::Model;
use crate::{PLENTY, open_source, plan};

/// Notes what weights amount to, and may stop the run after so many blocks.
#[derive(Default)]
struct Watch {
    weighed: Mutex<BTreeMap<usize, Weighed>>,
    outliers: Mutex<Vec<Outlier>>,
    left: Mutex<Option<usize>>,
    stop: AtomicBool,
}

impl Observer for Watch {
    fn on(&self, event: &Event) {
        match event {
            Event::Weighed { task, weighed } => drop(self.weighed.lock().unwrap().insert(*task, *weighed)),
            Event::Outlier(outlier) => self.outliers.lock().unwrap().push(outlier.clone()),
            Event::Block { .. } => {
                let mut left = self.left.lock().unwrap();
                *left = left.map(|left| left.saturating_sub(1));
                self.stop.store(*left == Some(0), Ordering::Relaxed);
            }
            _ => {}
        }
    }
}

impl Watch {
    fn run(
        &self,
        (plan, checkpoint): (&Plan, &Checkpoint),
        memory: Memory,
        output: &Path,
    ) -> Result<Outcome> {
        let schedule = plan.schedule(memory)?;
        Run { plan, checkpoint, output, schedule, importance: None, observer: self, stop: &self.stop }
            .execute()
    }

    /// What a run tells that begins anew.
    fn of(made: (&Plan, &Checkpoint), memory: Memory) -> Self {
        let (watch, folder) = (Self::default(), tempfile::tempdir().unwrap());
        watch.run(made, memory, folder.path()).unwrap();
        watch
    }

    fn weighed(&self) -> BTreeMap<usize, Weighed> {
        self.weighed.lock().unwrap().clone()
    }

    fn outliers(&self) -> Vec<Outlier> {
        self.outliers.lock().unwrap().clone()
    }
}

/// A llama whose tensors `change` has changed.
fn llama(change: impl Fn(&str, &mut [u8])) -> Vec<(String, Vec<u8>)> {
    let mut files = Model::manifest("llama").files();
    let shard = &mut files.iter_mut().find(|(name, _)| name == "model.safetensors").unwrap().1;
    let length = u64::from_le_bytes(shard[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&shard[8..8 + length]).unwrap();
    for (name, entry) in header.as_object().unwrap() {
        let at = |side: usize| entry["data_offsets"][side].as_u64().unwrap() as usize + 8 + length;
        change(name, &mut shard[at(0)..at(1)]);
    }
    files
}

fn made(files: Vec<(String, Vec<u8>)>, options: &Options) -> (Checkpoint, Plan) {
    let checkpoint = open_source(MemorySource::new(files));
    let plan = plan(&checkpoint, options).unwrap();
    (checkpoint, plan)
}

/// Every weight of BF16 times a power of two.
fn times(power: i16, data: &mut [u8]) {
    for bytes in data.as_chunks_mut::<2>().0 {
        let bits = u16::from_le_bytes(*bytes);
        *bytes = bits.wrapping_add_signed(power << 7).to_le_bytes();
    }
}

#[test]
fn sums_are_those_of_the_weights_however_the_work_is_cut() {
    let zeroed = |name: &str, data: &mut [u8]| {
        if name.contains("mlp.up_proj") {
            data[..20].fill(0);
        }
    };
    let files = llama(zeroed);
    for options in [Options::default(), Options { format: None, ..Options::default() }] {
        let (checkpoint, plan) = made(files.clone(), &options);
        let found = Watch::of((&plan, &checkpoint), Memory { limit: 4 << 30, threads: 1 }).weighed();
        assert_eq!(found.len(), plan.tasks.len());
        let tensors = SafeTensors::deserialize(&files[1].1).unwrap();
        for (task, weighed) in &found {
            let data = tensors.tensor(&plan.tasks[*task].name).unwrap().data();
            let value = |bytes: &[u8; 2]| f64::from(half::bf16::from_le_bytes(*bytes).to_f32());
            let values: Vec<f64> = data.as_chunks::<2>().0.iter().map(value).collect();
            assert_eq!(f64::from(weighed.largest), values.iter().fold(0.0, |a, b| b.abs().max(a)));
            assert_eq!(weighed.zeros, values.iter().filter(|value| **value == 0.0).count() as u64);
            let rms = (values.iter().map(|value| value * value).sum::<f64>() / values.len() as f64).sqrt();
            assert!((f64::from(weighed.rms) - rms).abs() < 1e-6 * rms, "{weighed:?} and {rms}");
        }
        let least = match plan.schedule(Memory { limit: 0, threads: 1 }) {
            Err(Error::Plan(PlanError::Memory { needed, .. })) => needed + 20_000,
            other => panic!("{other:?}"),
        };
        for memory in [Memory { limit: least, threads: 3 }, Memory { limit: 64 << 20, threads: 4 }] {
            assert_eq!(Watch::of((&plan, &checkpoint), memory).weighed(), found);
        }
    }
}

#[test]
fn a_layer_unlike_the_others_is_told() {
    let change = |name: &str, data: &mut [u8]| match name {
        "model.layers.1.mlp.down_proj.weight" => times(10, data),
        "model.layers.2.self_attn.q_proj.weight" => times(-11, data),
        "model.layers.0.self_attn.k_proj.weight" => times(20, data),
        "model.layers.3.self_attn.o_proj.weight" => data.fill(0),
        "model.layers.1.mlp.up_proj.weight" => {
            let hole = data.len() * 5 / 8;
            data[..hole].fill(0);
        }
        _ => {}
    };
    let (checkpoint, plan) = made(llama(change), &Options::default());
    let found = Watch::of((&plan, &checkpoint), PLENTY).outliers();
    let mut short: Vec<_> =
        found.iter().map(|o| (&o.tensor[13..], o.measure, o.siblings.is_some())).collect();
    short.sort_unstable_by_key(|(name, ..)| *name);
    assert_eq!(
        short,
        [
            ("0.self_attn.k_proj.weight", Measure::Rms, false),
            ("1.mlp.down_proj.weight", Measure::Rms, false),
            ("1.mlp.up_proj.weight", Measure::Zeros, true),
            ("2.self_attn.q_proj.weight", Measure::Rms, true),
            ("3.self_attn.o_proj.weight", Measure::Rms, false),
        ]
    );
    let said: Vec<String> = found.iter().map(ToString::to_string).collect();
    assert!(said.iter().any(|text| text.ends_with("all weights are 0")), "{said:?}");
    assert!(said.iter().any(|text| text.contains("the median of 4 parameters like it")), "{said:?}");
}

#[test]
fn strict_runs_end_before_the_result_loads_and_keep_what_they_know() {
    let change = |name: &str, data: &mut [u8]| {
        if name == "model.layers.1.mlp.down_proj.weight" {
            times(10, data);
        }
    };
    let files = llama(change);
    let (checkpoint, lenient) = made(files, &Options::default());
    let strict = plan(&checkpoint, &Options { strict: true, ..Options::default() }).unwrap();
    let whole = Watch::of((&lenient, &checkpoint), PLENTY);
    let folder = tempfile::tempdir().unwrap();
    let half = Watch { left: Mutex::new(Some(lenient.tasks.len() / 2)), ..Watch::default() };
    let stopped = half.run((&lenient, &checkpoint), PLENTY, folder.path());
    assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
    for _ in 0..2 {
        let refused = Watch::default().run((&strict, &checkpoint), PLENTY, folder.path()).unwrap_err();
        let said = refused.to_string();
        assert!(
            said.contains("`model.layers.1.mlp.down_proj.weight`") && said.contains("`--strict`"),
            "{said}"
        );
        assert!(!folder.path().join("config.json").exists());
    }
    let rest = Watch::default();
    assert_eq!(rest.run((&lenient, &checkpoint), PLENTY, folder.path()).unwrap(), Outcome::Written);
    assert_eq!((rest.weighed(), rest.outliers()), (whole.weighed(), whole.outliers()));
    assert!(folder.path().join("config.json").exists());
}
