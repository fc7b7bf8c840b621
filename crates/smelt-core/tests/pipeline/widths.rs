//! Widths that are chosen: within the target to the byte, the same whatever measures them, refused before
//! anything is read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use smelt_core::checkpoint::Checkpoint;
use smelt_core::pipeline::{Allocating, Means, Silent};
use smelt_core::plan::allocate::{BitsError, Request, Target, candidates, parse_formats};
use smelt_core::plan::measures::Measures;
use smelt_core::plan::{Memory, Method, Options, Origin, Override, Plan, Statistics, family_of};
use smelt_core::source::{FileEntry, MemorySource, Source};
use smelt_core::{Error, PlanError, Result};
use smelt_kernels::Effort;

use crate::common::Model;
use crate::importance::encode::{Given, own, read};
use crate::importance::written_with;
use crate::{PLENTY, open, open_source, written};

fn request(target: Target) -> Request {
    Request { target, asked: format!("{target:?}"), formats: candidates(), layers: None }
}

pub(crate) fn fast() -> Options {
    Options { method: Method::Search(Effort::Fast), ..Options::default() }
}

fn origin(checkpoint: &Checkpoint) -> Origin {
    Origin::family(checkpoint, family_of(checkpoint, None).unwrap(), None).unwrap()
}

#[derive(Debug)]
pub(crate) struct Chosen {
    pub(crate) plan: Plan,
    pub(crate) measures: Measures,
}

pub(crate) fn choose(
    checkpoint: &Checkpoint,
    options: &Options,
    request: &Request,
    memory: Memory,
    statistics: Option<Statistics>,
) -> Result<Chosen> {
    let allocating = Allocating::new(checkpoint, origin(checkpoint), options, request, statistics)?;
    let mut measures = Measures::new(allocating.fingerprint());
    let stop = AtomicBool::new(false);
    assert!(allocating.measure(&mut measures, Means { memory, observer: &Silent, stop: &stop })?);
    Ok(Chosen { plan: allocating.plan(&measures)?, measures })
}

#[test]
fn a_target_is_met_from_below_and_to_the_byte() {
    for name in ["llama", "qwen3_moe", "llama_odd_width", "gemma2"] {
        let checkpoint = open(&Model::manifest(name));
        let usual = choose(&checkpoint, &fast(), &request(Target::BitsPerWeight(5.0)), PLENTY, None);
        let size = usual.unwrap().plan.totals.file_bytes;
        for shard_bytes in [40_000, Options::default().shard_bytes] {
            for share in [0.8, 1.0, 1.3] {
                let most = (size as f64 * share) as u64;
                let options = Options { shard_bytes, ..fast() };
                let chosen = choose(&checkpoint, &options, &request(Target::FileBytes(most)), PLENTY, None);
                let plan = chosen.unwrap().plan;
                assert!(plan.totals.file_bytes <= most, "{name}: {} of {most}", plan.totals.file_bytes);
                assert!(
                    plan.totals.file_bytes as f64 > most as f64 * 0.97,
                    "{name}: {} of {most}",
                    plan.totals.file_bytes
                );
                let output = written(&plan, &checkpoint, PLENTY);
                let files = output.iter().filter(|(name, _)| name.ends_with(".safetensors"));
                let bytes: u64 = files.map(|(_, bytes)| bytes.len() as u64).sum();
                assert_eq!(bytes, plan.totals.file_bytes, "{name}");
            }
        }
    }
}

#[test]
fn bits_per_weight_count_all_parameters() {
    let checkpoint = open(&Model::manifest("qwen3_moe"));
    for bits in [2.8, 3.7, 4.6, 6.5] {
        let plan =
            choose(&checkpoint, &fast(), &request(Target::BitsPerWeight(bits)), PLENTY, None).unwrap().plan;
        let found = plan.totals.bits_per_weight;
        assert!(found <= bits && found > bits - 0.05, "{found} of {bits}");
        let allocation = plan.allocation.as_ref().unwrap();
        assert!(allocation.bound <= allocation.loss);
        // The frontier passes below the result, which is a choice of whole modules.
        let before =
            allocation.frontier.iter().rfind(|point| point.tensor_bytes <= plan.totals.tensor_bytes).unwrap();
        assert!(allocation.loss <= before.loss, "{allocation:?}");
        let json = serde_json::to_string(&plan).unwrap();
        let read: Plan = serde_json::from_str(&json).unwrap();
        assert!(serde_json::to_string(&read).unwrap() == json, "a plan reads as it was written");
    }
}

#[test]
fn more_bytes_lose_less() {
    let checkpoint = open(&Model::manifest("llama"));
    let loss = |bits| {
        let plan =
            choose(&checkpoint, &fast(), &request(Target::BitsPerWeight(bits)), PLENTY, None).unwrap().plan;
        plan.allocation.unwrap().loss
    };
    let losses = [2.6, 3.2, 4.0, 5.1, 7.0].map(loss);
    assert!(losses.windows(2).all(|pair| pair[1] < pair[0]), "{losses:?}");
}

#[test]
fn threads_and_memory_do_not_change_a_measurement() {
    let checkpoint = open(&Model::manifest("qwen3_moe"));
    let request = request(Target::BitsPerWeight(4.0));
    let of = |memory| choose(&checkpoint, &fast(), &request, memory, None).unwrap().measures;
    let expected = of(PLENTY);
    assert_eq!(of(Memory { limit: 64 << 20, threads: 1 }), expected);
    assert_eq!(of(Memory { limit: 4 << 30, threads: 5 }), expected);
    let short = choose(&checkpoint, &fast(), &request, Memory { limit: 1 << 20, threads: 1 }, None).err();
    let Some(Error::Plan(PlanError::Memory { needed, .. })) = short else { panic!("{short:?}") };
    assert_eq!(of(Memory { limit: needed, threads: 3 }), expected);
}

/// Counts the bytes that are read.
#[derive(Debug)]
struct Counting(MemorySource, Arc<AtomicU64>);

impl Source for Counting {
    fn location(&self) -> &'static str {
        "memory"
    }

    fn list(&self) -> Result<Vec<FileEntry>> {
        self.0.list()
    }

    fn read_at(&self, path: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.1.fetch_add(buf.len() as u64, Ordering::Relaxed);
        self.0.read_at(path, offset, buf)
    }
}

#[test]
fn measurements_serve_another_target_without_a_read() {
    let read = Arc::new(AtomicU64::new(0));
    let model = MemorySource::new(Model::manifest("qwen3_moe").files());
    let checkpoint = open_source(Counting(model, Arc::clone(&read)));
    let (options, first) = (fast(), request(Target::BitsPerWeight(4.0)));
    let chosen = choose(&checkpoint, &options, &first, PLENTY, None).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("measures.json");
    chosen.measures.write(&file).unwrap();
    let before = read.load(Ordering::Relaxed);
    let second =
        Request { formats: parse_formats("3/64,4/64,8/64").unwrap(), ..request(Target::BitsPerWeight(5.0)) };
    let allocating = Allocating::new(&checkpoint, origin(&checkpoint), &options, &second, None).unwrap();
    let mut measures = Measures::read(&file, allocating.fingerprint()).unwrap();
    assert_eq!(measures, chosen.measures);
    let stop = AtomicBool::new(false);
    let means = Means { memory: PLENTY, observer: &Silent, stop: &stop };
    assert!(!allocating.measure(&mut measures, means).unwrap());
    let plan = allocating.plan(&measures).unwrap();
    assert_eq!(read.load(Ordering::Relaxed), before);
    let allowed = |task: &smelt_core::plan::Task| {
        task.format.as_ref().is_none_or(|spec| second.formats.contains(&spec.0))
    };
    assert!(plan.tasks.iter().all(allowed));
    // Other weights, another method: the file counts for nothing.
    let rtn = Options { method: Method::Rtn, ..fast() };
    let other = Allocating::new(&checkpoint, origin(&checkpoint), &rtn, &second, None).unwrap();
    assert!(Measures::read(&file, other.fingerprint()).unwrap().is_empty());
    std::fs::write(&file, "a diary").unwrap();
    let refused = Measures::read(&file, String::new());
    assert!(matches!(refused, Err(Error::Bits(BitsError::Measures { .. }))), "{refused:?}");
}

#[test]
fn a_target_out_of_reach_is_refused_before_a_weight_is_read() {
    let read = Arc::new(AtomicU64::new(0));
    let model = MemorySource::new(Model::manifest("llama").files());
    let checkpoint = open_source(Counting(model, Arc::clone(&read)));
    let before = read.load(Ordering::Relaxed);
    for target in [
        Target::BitsPerWeight(1.0),
        Target::BitsPerWeight(12.0),
        Target::FileBytes(1000),
        Target::AtMost(1000),
    ] {
        let refused = choose(&checkpoint, &fast(), &request(target), PLENTY, None).err();
        let Some(Error::Bits(BitsError::Unreachable { least, most, .. })) = refused else {
            panic!("{refused:?}")
        };
        assert!(!least.is_empty() && !most.is_empty());
    }
    let all = Options { overrides: vec![Override::parse("=keep", None).unwrap()], ..fast() };
    let refused = choose(&checkpoint, &all, &request(Target::BitsPerWeight(4.0)), PLENTY, None).err();
    assert!(matches!(refused, Some(Error::Bits(BitsError::NothingFree))), "{refused:?}");
    assert_eq!(read.load(Ordering::Relaxed), before);
    let plan = choose(&checkpoint, &fast(), &request(Target::AtMost(1 << 40)), PLENTY, None).unwrap().plan;
    assert!(plan.totals.bits_per_weight > 8.0, "more room than needed is fine");
}

#[test]
fn overrides_and_what_the_family_fixes_stay() {
    let checkpoint = open(&Model::manifest("qwen3_moe"));
    let overrides =
        vec![Override::parse("v_proj=8:32", None).unwrap(), Override::parse("lm_head=keep", None).unwrap()];
    let options = Options { overrides, ..fast() };
    let plan =
        choose(&checkpoint, &options, &request(Target::BitsPerWeight(6.0)), PLENTY, None).unwrap().plan;
    let shown: BTreeMap<&str, String> = plan
        .tasks
        .iter()
        .map(|task| {
            (task.module(), task.format.as_ref().map_or("keep".to_owned(), |spec| spec.0.to_string()))
        })
        .collect();
    assert_eq!(shown["model.layers.1.self_attn.v_proj"], "8-bit g32");
    assert_eq!(shown["lm_head"], "keep");
    assert_eq!(shown["model.layers.1.mlp.gate"], "8-bit g64");
}

#[test]
fn importance_decides_about_widths_and_is_part_of_what_was_measured() {
    let checkpoint = open(&Model::manifest("qwen3_moe"));
    let request = request(Target::BitsPerWeight(4.0));
    let uneven = |channel: usize| ((channel * 37 % 11) as f32).exp2();
    let file =
        own(&[Given::new("model.layers.1.self_attn.o_proj", 128, &[9.0], |_, channel| uneven(channel))]);
    let of = |statistics| choose(&checkpoint, &fast(), &request, PLENTY, statistics).unwrap();
    let (plain, weighed) = (of(None), of(Some(read(file.clone()).unwrap())));
    assert_ne!(weighed.measures, plain.measures);
    assert_eq!(weighed.plan.importance.as_ref().map(|coverage| coverage.weighed), Some(1));
    // The file of one is none of the other's.
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("measures.json");
    weighed.measures.write(&path).unwrap();
    let options = fast();
    let new = |statistics| Allocating::new(&checkpoint, origin(&checkpoint), &options, &request, statistics);
    assert!(Measures::read(&path, new(None).unwrap().fingerprint()).unwrap().is_empty());
    let again = new(Some(read(file).unwrap())).unwrap();
    assert_eq!(Measures::read(&path, again.fingerprint()).unwrap(), weighed.measures);
    let plan = again.plan(&weighed.measures).unwrap();
    let importance = again.into_importance().unwrap();
    assert!(written_with(&checkpoint, (&plan, &importance), PLENTY).contains_key("model.safetensors"));
}
