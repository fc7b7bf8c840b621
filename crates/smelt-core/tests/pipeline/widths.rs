//! Widths that are chosen: within the target to the byte, the same whatever measures them, refused before
//! anything is read.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use smelt_core::checkpoint::Checkpoint;
use smelt_core::pipeline::{Allocating, Means, Run, Silent};
use smelt_core::plan::allocate::{BitsError, Request, Target, candidates, parse_formats};
use smelt_core::plan::measures::Measures;
use smelt_core::plan::{Channels, Importance, Memory, Method, Options, Origin, Override, Plan, family_of};
use smelt_core::source::{FileEntry, MemorySource, Source};
use smelt_core::{Error, Result};
use smelt_kernels::Effort;

use crate::common::Model;
use crate::{PLENTY, contents, open, open_source, written};

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
    importance: Option<&Importance>,
) -> Result<Chosen> {
    let allocating = Allocating::new(checkpoint, origin(checkpoint), options, request)?;
    let mut measures = Measures::new(allocating.fingerprint(importance));
    let stop = AtomicBool::new(false);
    assert!(allocating.measure(&mut measures, Means { importance, memory, observer: &Silent, stop: &stop })?);
    Ok(Chosen { plan: allocating.plan(&measures)?, measures })
}

fn uniform(checkpoint: &Checkpoint) -> Plan {
    Plan::new(checkpoint, origin(checkpoint), &fast()).unwrap()
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
    let Some(Error::Memory { needed, .. }) = short else { panic!("{short:?}") };
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
    let allocating = Allocating::new(&checkpoint, origin(&checkpoint), &options, &second).unwrap();
    let mut measures = Measures::read(&file, allocating.fingerprint(None)).unwrap();
    assert_eq!(measures, chosen.measures);
    let stop = AtomicBool::new(false);
    let means = Means { importance: None, memory: PLENTY, observer: &Silent, stop: &stop };
    assert!(!allocating.measure(&mut measures, means).unwrap());
    let plan = allocating.plan(&measures).unwrap();
    assert_eq!(read.load(Ordering::Relaxed), before);
    let allowed = |task: &smelt_core::plan::Task| {
        task.format.as_ref().is_none_or(|spec| second.formats.contains(&spec.0))
    };
    assert!(plan.tasks.iter().all(allowed));
    // Other weights, another method: the file counts for nothing.
    let rtn = Options { method: Method::Rtn, ..fast() };
    let other = Allocating::new(&checkpoint, origin(&checkpoint), &rtn, &second).unwrap();
    assert!(Measures::read(&file, other.fingerprint(None)).unwrap().is_empty());
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

/// Weights for the channels of one expert stack, and of one dense module.
fn importance(checkpoint: &Checkpoint, weight: impl Fn(usize) -> f32) -> Importance {
    let plan = uniform(checkpoint);
    let of = |name: &str| {
        let task = plan.tasks.iter().find(|task| task.module().ends_with(name)).unwrap();
        let width = *task.shape.last().unwrap() as usize;
        let entries = if task.shape.len() > 2 { task.shape[0] as usize } else { 1 };
        (task.module().to_owned(), Channels::new((0..entries * width).map(&weight).collect(), width).unwrap())
    };
    let names = ["layers.0.mlp.switch_mlp.up_proj", "layers.1.self_attn.o_proj"];
    Importance::new(names.map(of).into_iter().collect(), "test".to_owned())
}

fn written_with(
    plan: &Plan,
    checkpoint: &Checkpoint,
    memory: Memory,
    importance: &Importance,
) -> BTreeMap<String, Vec<u8>> {
    let (folder, stop) = (tempfile::tempdir().unwrap(), AtomicBool::new(false));
    let schedule = plan.schedule(memory).unwrap();
    let (output, importance) = (folder.path(), Some(importance));
    Run { plan, checkpoint, output, schedule, importance, observer: &Silent, stop: &stop }.execute().unwrap();
    contents(output)
}

#[test]
fn importance_decides_codes_and_not_how_they_are_shared_out() {
    let checkpoint = open(&Model::manifest("qwen3_moe"));
    let plan = uniform(&checkpoint);
    let plain = written(&plan, &checkpoint, PLENTY);
    let uneven = importance(&checkpoint, |channel| ((channel * 37 % 11) as f32).exp2());
    let weighted = written_with(&plan, &checkpoint, PLENTY, &uneven);
    assert!(weighted != plain);
    let least = match plan.schedule(Memory { limit: 0, threads: 1 }) {
        Err(Error::Memory { needed, .. }) => needed,
        other => panic!("{other:?}"),
    };
    // Blocks of a few groups begin inside a row.
    for memory in [Memory { limit: 64 << 20, threads: 3 }, Memory { limit: least + 4_000, threads: 2 }] {
        assert!(written_with(&plan, &checkpoint, memory, &uneven) == weighted, "{memory:?}");
    }
    let request = request(Target::BitsPerWeight(4.0));
    let measured = choose(&checkpoint, &fast(), &request, PLENTY, Some(&uneven)).unwrap().measures;
    assert_ne!(measured, choose(&checkpoint, &fast(), &request, PLENTY, None).unwrap().measures);
}

#[test]
fn importance_of_another_model_is_refused() {
    let checkpoint = open(&Model::manifest("qwen3_moe"));
    let wrong = HashMap::from([(
        "model.layers.0.self_attn.o_proj".to_owned(),
        Channels::new(vec![1.0; 96], 96).unwrap(),
    )]);
    let wrong = Importance::new(wrong, String::new());
    let request = request(Target::BitsPerWeight(4.0));
    let refused = choose(&checkpoint, &fast(), &request, PLENTY, Some(&wrong)).err();
    assert!(matches!(refused, Some(Error::Bits(BitsError::Channels { .. }))), "{refused:?}");
}
