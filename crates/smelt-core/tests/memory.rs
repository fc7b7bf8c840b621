//! The promise of bounded memory, measured: what the allocator hands out while a model of hundreds
//! of megabytes passes through. Alone in its process, because every allocation counts.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Map, Value, json};
use smelt_core::checkpoint::Checkpoint;
use smelt_core::layout::Family;
use smelt_core::pipeline::{Run, Silent};
use smelt_core::plan::{Importance, Memory, Method, Options, Origin, Plan, Statistics};
use smelt_core::source::{FileEntry, Source};
use smelt_core::{Error, PlanError, Result};
use smelt_kernels::Effort;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator with a count of what is in use.
struct Counting;

#[expect(unsafe_code, reason = "an allocator can only be counted by standing in for it")]
// SAFETY: every call goes to the system's allocator as it came; the counts change nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let live = LIVE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(live, Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the contract of `GlobalAlloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Experts of a layer, and the sides of their matrices: 8 MiB each layer and projection.
const EXPERTS: u64 = 8;
const INNER: u64 = 512;
const HIDDEN: u64 = 1024;

/// Rows and columns of a weight of FP8 that share a scale.
const BLOCK: u64 = 128;

/// Weights of AWQ and GPTQ that share a scale.
const GROUP: u64 = 128;

/// How matrices are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    Floats,
    Fp8,
    Nvfp4,
    Awq,
    Gptq,
}

/// A stored tensor: what its name ends in, its dtype with the bytes of one, its shape.
type Part = (&'static str, (&'static str, u64), Vec<u64>);

impl Stored {
    /// The tensors of a matrix.
    fn parts(self, rows: u64, cols: u64) -> Vec<Part> {
        let (i32, bf16) = (("I32", 4), ("BF16", 2));
        let groups =
            vec![("qzeros", i32, vec![cols / GROUP, rows / 8]), ("scales", bf16, vec![cols / GROUP, rows])];
        let mut parts = match self {
            Self::Floats => vec![("weight", bf16, vec![rows, cols])],
            Self::Fp8 => vec![
                ("weight", ("F8_E4M3", 1), vec![rows, cols]),
                ("weight_scale_inv", ("F32", 4), vec![rows.div_ceil(BLOCK), cols.div_ceil(BLOCK)]),
            ],
            Self::Nvfp4 => vec![
                ("weight", ("U8", 1), vec![rows, cols / 2]),
                ("weight_scale", ("F8_E4M3", 1), vec![rows, cols / 16]),
                ("weight_scale_2", ("F32", 4), vec![]),
            ],
            Self::Awq => vec![("qweight", i32, vec![cols, rows / 8])],
            Self::Gptq => vec![("qweight", i32, vec![cols / 8, rows])],
        };
        if matches!(self, Self::Awq | Self::Gptq) {
            parts.extend(groups);
        }
        parts
    }

    /// What config.json says of it.
    fn config(self) -> Option<Value> {
        match self {
            Self::Floats => None,
            Self::Fp8 => Some(json!({ "quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK] })),
            Self::Nvfp4 => Some(json!({ "quant_method": "modelopt", "quant_algo": "NVFP4" })),
            Self::Awq => Some(json!({
                "quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": true
            })),
            Self::Gptq => Some(json!({
                "quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": false, "sym": false
            })),
        }
    }
}

/// Experts come with rows and columns exchanged and two projections in one, a dense projection as
/// well: stacks of transposed slices, the dearest thing that real families ask for.
const FAMILY: &str = r#"
name = "own"
title = "Own"
model_types = ["own"]

[index]
layer = "layers"
expert = "experts"

[[group]]
[group.tensors]
"l.{layer}.up.weight" = { from = 'stack(expert, transpose(slice("l.{layer}.e.{expert}.gate_up.weight", 1, 0, 1024, 2), 1, 0))', module = "SwitchLinear", role = "expert-up" }
"l.{layer}.gate.weight" = { from = 'stack(expert, transpose(slice("l.{layer}.e.{expert}.gate_up.weight", 1, 1, 1024, 2), 1, 0))', module = "SwitchLinear", role = "expert-gate" }
"l.{layer}.o.weight" = { from = 'transpose("l.{layer}.o.weight", 1, 0)', module = "Linear", role = "attention-output" }
"l.{layer}.qk.weight" = { from = 'concat(0, "l.{layer}.o.weight", cast(cast(transpose("l.{layer}.o.weight", 1, 0), "f32"), "bf16"), "l.{layer}.o.weight")', module = "Linear", role = "attention-fused" }
"l.{layer}.norm.weight" = { from = '"l.{layer}.norm" + 1', role = "norm" }
"#;

/// A checkpoint of one shard that exists nowhere: bytes are worked out when they are asked for.
#[derive(Debug)]
struct Fabricated {
    config: Vec<u8>,
    head: Vec<u8>,
    size: u64,
}

impl Fabricated {
    /// An importance of all experts.
    fn importance(layers: u64) -> Self {
        let (mut header, mut end) = (Map::new(), 0);
        for layer in 0..layers {
            for name in ["up", "gate"] {
                let begin = end;
                end += 4 * EXPERTS * HIDDEN;
                let shape = [EXPERTS, HIDDEN];
                let entry = json!({ "dtype": "F32", "shape": shape, "data_offsets": [begin, end] });
                header.insert(format!("l.{layer}.{name}"), entry);
            }
        }
        let header = Value::Object(header).to_string().into_bytes();
        let head = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
        let size = head.len() as u64 + end;
        Self { config: Vec::new(), head, size }
    }

    fn new(layers: u64, stored: Stored) -> Self {
        let (mut header, mut end) = (Map::new(), 0);
        let mut put = |name: String, (dtype, size): (&str, u64), shape: &[u64]| {
            let begin = end;
            end += size * shape.iter().product::<u64>();
            header.insert(name, json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, end] }));
        };
        let mut matrix = |name: &str, rows: u64, cols: u64| {
            for (part, dtype, shape) in stored.parts(rows, cols) {
                put(format!("{name}.{part}"), dtype, &shape);
            }
        };
        for layer in 0..layers {
            for expert in 0..EXPERTS {
                matrix(&format!("l.{layer}.e.{expert}.gate_up"), HIDDEN, 2 * INNER);
            }
            matrix(&format!("l.{layer}.o"), HIDDEN, HIDDEN);
        }
        for layer in 0..layers {
            put(format!("l.{layer}.norm"), ("BF16", 2), &[HIDDEN]);
        }
        let header = Value::Object(header).to_string().into_bytes();
        let head = [&(header.len() as u64).to_le_bytes()[..], &header].concat();
        let size = head.len() as u64 + end;
        let mut config = json!({ "model_type": "own", "layers": layers, "experts": EXPERTS });
        if let Some(quantized) = stored.config() {
            config["quantization_config"] = quantized;
        }
        Self { config: config.to_string().into_bytes(), head, size }
    }
}

impl Source for Fabricated {
    fn location(&self) -> &'static str {
        "nowhere"
    }

    fn list(&self) -> Result<Vec<FileEntry>> {
        let files = [("config.json", self.config.len() as u64), ("model.safetensors", self.size)];
        Ok(files.map(|(path, size)| FileEntry { path: path.to_owned(), size }).to_vec())
    }

    fn read_at(&self, path: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        let start = &(if path == "config.json" { &self.config } else { &self.head })[..];
        let from_start = start.get(offset as usize..).unwrap_or(&[]);
        let copied = from_start.len().min(buf.len());
        buf[..copied].copy_from_slice(&from_start[..copied]);
        // Any byte below 0x7F is fine as either half of a BF16; weights need not be sensible.
        buf[copied..].fill((offset % 61) as u8 + 1);
        Ok(())
    }
}

/// The most memory that a run takes, without what was there before it, and what the plan says.
fn peak(layers: u64, stored: Stored, memory: Memory) -> (u64, u64) {
    let checkpoint = Checkpoint::open(Arc::new(Fabricated::new(layers, stored))).unwrap();
    let family = Family::parse(FAMILY).unwrap();
    let origin = Origin::family(&checkpoint, &family, None).unwrap();
    // The least effort: how long a search takes is another matter.
    let options = Options { method: Method::Search(Effort::Fast), ..Options::default() };
    let mut plan = Plan::new(&checkpoint, origin, &options).unwrap();
    let file = Fabricated::importance(layers);
    let size = file.size;
    let statistics = Statistics::read(Arc::new(file), "model.safetensors", size).unwrap();
    let importance = Importance::new(statistics, &plan, checkpoint.config()).unwrap();
    plan.weigh(&importance, false).unwrap();
    assert_eq!(plan.importance.as_ref().map(|coverage| coverage.weighed), Some(2 * layers));
    let schedule = plan.schedule(memory).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let stop = AtomicBool::new(false);
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let output = folder.path();
    Run {
        plan: &plan,
        checkpoint: &checkpoint,
        output,
        schedule,
        importance: Some(&importance),
        observer: &Silent,
        stop: &stop,
    }
    .execute()
    .unwrap();
    let peak = PEAK.load(Ordering::Relaxed) - before;
    (peak as u64, plan.peak_memory(schedule))
}

/// What the plan sets aside for the program and its stacks, of which the allocator knows nothing;
/// a little of it is for buffers that all runs have.
const RESERVE: u64 = 22 << 20;

#[test]
fn a_run_stays_within_the_plan_and_does_not_grow_with_the_model() {
    let budgets = [(32 << 20, 1), (40 << 20, 4), (256 << 20, 3)].map(|budget| (Stored::Floats, budget));
    // Decoding needs a tile for each worker.
    let decoded = [Stored::Fp8, Stored::Nvfp4, Stored::Awq, Stored::Gptq];
    let decoded =
        decoded.into_iter().flat_map(|stored| [(34 << 20, 1), (256 << 20, 3)].map(|budget| (stored, budget)));
    for (stored, (limit, threads)) in budgets.into_iter().chain(decoded) {
        let memory = Memory { limit, threads };
        let (small, planned) = peak(2, stored, memory);
        assert!(planned <= limit, "{planned} bytes planned with {memory:?}, {stored:?}");
        assert!(
            small + RESERVE <= planned,
            "{small} bytes held, {planned} planned with {memory:?}, {stored:?}"
        );
        let (large, planned) = peak(12, stored, memory);
        assert!(planned <= limit, "{planned} bytes planned with {memory:?}, {stored:?}");
        assert!(
            large + RESERVE <= planned,
            "{large} bytes held, {planned} planned with {memory:?}, {stored:?}"
        );
        // Ten layers more: the tables grow, and how threads meet differs; the blocks do not add up.
        assert!(
            large < small + (1 << 20) + small / 4,
            "{small} bytes of 2 layers, {large} of 12, {memory:?}, {stored:?}"
        );
    }
    let model = Arc::new(Fabricated::new(1, Stored::Floats));
    let checkpoint = Checkpoint::open(model).unwrap();
    let origin = Origin::family(&checkpoint, &Family::parse(FAMILY).unwrap(), None).unwrap();
    let plan = Plan::new(&checkpoint, origin, &Options::default()).unwrap();
    let refused = plan.schedule(Memory { limit: 1 << 20, threads: 1 });
    assert!(matches!(refused, Err(Error::Plan(PlanError::Memory { .. }))), "{refused:?}");
}
