//! `--mtp separate`: what predicts further tokens, in files of its own that a run resumes and hashes like
//! all others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use smelt_core::checkpoint::{Checkpoint, StoredId};
use smelt_core::layout::{Family, Role, family};
use smelt_core::pipeline::{Event, MANIFEST, Manifest, Observer, Run};
use smelt_core::plan::{Mtp, Note, Options, Origin, Override, Plan};
use smelt_core::{Error, PlanError, Result};
use smelt_kernels::{Format, Mode};

use crate::common::Model;
use crate::predicting::deepseek;
use crate::{Contents, PLENTY, contents, open, plan, written};

fn separate() -> Options {
    Options { mtp: Mtp::Separate, ..Options::default() }
}

/// A stored tensor: dtype, shape, bytes.
type Stored = (String, Vec<u64>, Vec<u8>);

/// The tensors of a file.
fn tensors(file: &[u8]) -> BTreeMap<String, Stored> {
    let length = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&file[8..8 + length]).unwrap();
    let (entries, data) = (header.as_object().unwrap(), &file[8 + length..]);
    let tensor = |entry: &Value| {
        let at = |place: usize| entry["data_offsets"][place].as_u64().unwrap() as usize;
        let shape = entry["shape"].as_array().unwrap().iter().map(|size| size.as_u64().unwrap()).collect();
        (entry["dtype"].as_str().unwrap().to_owned(), shape, data[at(0)..at(1)].to_vec())
    };
    let named = entries.iter().filter(|(name, _)| *name != "__metadata__");
    named.map(|(name, entry)| (name.clone(), tensor(entry))).collect()
}

/// What the source holds.
fn source(model: &Model) -> BTreeMap<String, Stored> {
    tensors(&model.files()[1].1)
}

fn bf16(bytes: &[u8]) -> Vec<f32> {
    let float = |pair: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes(pair.try_into().unwrap())) << 16);
    bytes.chunks_exact(2).map(float).collect()
}

/// Asserts that 8-bit codes in groups of 64 are as near to the weights as such codes get.
fn assert_near(stored: &BTreeMap<String, Stored>, module: &str, weights: &[u8]) {
    let codes = &stored[&format!("{module}.weight")].2;
    let (scales, biases) =
        (bf16(&stored[&format!("{module}.scales")].2), bf16(&stored[&format!("{module}.biases")].2));
    let weights = bf16(weights);
    assert_eq!(codes.len(), weights.len(), "{module}");
    for (place, (weight, code)) in weights.iter().zip(codes).enumerate() {
        let (scale, bias) = (scales[place / 64], biases[place / 64]);
        let found = f32::from(*code) * scale + bias;
        // Half a step, and what rounding the scale to bf16 adds over 255 of them.
        let most = scale.abs() * (0.5 + 255.0 / 256.0) + bias.abs() / 128.0;
        assert!((found - weight).abs() <= most, "{module}[{place}]: {found}, not {weight}");
    }
}

#[test]
fn layers_that_predict_lie_apart_at_eight_bits() {
    let model = deepseek();
    let checkpoint = open(&model);
    let plan =
        plan(&checkpoint, &Options { format: Format::new(Mode::Affine, 3, 32), ..separate() }).unwrap();
    assert!(plan.notes.is_empty(), "{:?}", plan.notes);
    let output = written(&plan, &checkpoint, PLENTY);
    let (stored, source) = (tensors(&output["mtp/model.safetensors"]), source(&model));
    let name = |rest: &str| format!("model.layers.1.{rest}");
    for dense in ["eh_proj", "embed_tokens", "shared_head.head", "mlp.gate", "enorm", "shared_head.norm"] {
        let name = name(&format!("{dense}.weight"));
        assert_eq!(stored[&name], source[&name], "{dense}");
    }
    let bias = name("mlp.gate.e_score_correction_bias");
    assert_eq!(stored[&bias], source[&bias]);
    for module in ["self_attn.kv_b_proj", "self_attn.o_proj", "mlp.shared_experts.up_proj"] {
        assert_near(&stored, &name(module), &source[&name(&format!("{module}.weight"))].2);
    }
    let experts = |projection: &str| -> Vec<u8> {
        let each = (0..3).map(|expert| name(&format!("mlp.experts.{expert}.{projection}.weight")));
        each.flat_map(|name| source[&name].2.clone()).collect()
    };
    for projection in ["gate_proj", "up_proj", "down_proj"] {
        let module = name(&format!("mlp.switch_mlp.{projection}"));
        assert_eq!(stored[&format!("{module}.weight")].1, [3, 64, 16]);
        assert_near(&stored, &module, &experts(projection));
    }
    assert!(stored.keys().all(|name| !name.contains(".experts.")));
}

#[test]
fn the_model_is_as_without_them() {
    let checkpoint = open(&deepseek());
    let without = plan(&checkpoint, &Options::default()).unwrap();
    let with = plan(&checkpoint, &separate()).unwrap();
    let (mut ours, mut theirs) =
        (written(&with, &checkpoint, PLENTY), written(&without, &checkpoint, PLENTY));
    for output in [&mut ours, &mut theirs] {
        output.remove(MANIFEST).unwrap();
    }
    let apart = BTreeSet::from(["config.json", "model.safetensors", "model.safetensors.index.json"]);
    assert_eq!(ours.keys().filter_map(|name| name.strip_prefix("mtp/")).collect::<BTreeSet<_>>(), apart);
    ours.retain(|name, _| !name.starts_with("mtp/"));
    assert!(ours == theirs);
    let (totals, alone) = (&with.totals, &without.totals);
    assert_eq!((totals.parameters, totals.tensor_bytes), (alone.parameters, alone.tensor_bytes));
    assert_eq!(totals.active_parameters, alone.active_parameters);
    assert!((totals.bits_per_weight - alone.bits_per_weight).abs() < 1e-12);
    let files: u64 = with.shards.iter().map(smelt_core::plan::OutputShard::bytes).sum();
    assert_eq!(totals.file_bytes, files);
    assert!(totals.file_bytes > alone.file_bytes);
    assert_eq!(totals.roles[&Role::Mtp].bytes, files - alone.file_bytes - with.shards[1].header_bytes);
}

#[test]
fn every_tensor_of_the_source_is_used_or_left_out() {
    let checkpoint = open(&deepseek());
    let plan = plan(&checkpoint, &separate()).unwrap();
    assert!(plan.dropped.is_empty(), "{:?}", plan.dropped);
    let nodes = plan.tasks.iter().flat_map(|task| plan.graph.sources(task.node));
    let used: BTreeSet<u32> = nodes.map(|id| id.0).collect();
    let all = 0..checkpoint.tensors().len() as u32;
    let unused: Vec<_> =
        all.filter(|id| !used.contains(id)).map(|id| &checkpoint.tensor(StoredId(id)).name).collect();
    assert!(unused.is_empty(), "{unused:?}");
}

#[test]
fn index_and_config_speak_of_what_is_beside_them() {
    let checkpoint = open(&deepseek());
    let plan = plan(&checkpoint, &Options { shard_bytes: 30_000, ..separate() }).unwrap();
    let output = written(&plan, &checkpoint, PLENTY);
    let read = |name: &str| -> Value { serde_json::from_slice(&output[name]).unwrap() };
    let (index, config) = (read("mtp/model.safetensors.index.json"), read("mtp/config.json"));
    let map = index["weight_map"].as_object().unwrap();
    let mut held = 0;
    let files: BTreeSet<&str> = map.values().map(|file| file.as_str().unwrap()).collect();
    assert!(files.len() > 1);
    for file in files {
        let stored = tensors(&output[&format!("mtp/{file}")]);
        assert!(stored.keys().all(|name| map[name] == *file));
        held += stored.len();
    }
    assert_eq!(held, map.len());
    assert_eq!(config["model_type"], "deepseek_v3_mtp");
    assert_eq!(config["text_config"]["num_nextn_predict_layers"], 1);
    assert_eq!(config["quantization"], json!({ "group_size": 64, "bits": 8, "mode": "affine" }));
    let model = read("config.json");
    assert_eq!(model["num_nextn_predict_layers"], 0);
    assert!(!model["quantization"].to_string().contains("layers.1"));
    let index = read("model.safetensors.index.json");
    assert!(index["weight_map"].as_object().unwrap().keys().all(|name| !name.contains("layers.1.")));
}

#[test]
fn the_manifest_has_every_file() {
    let checkpoint = open(&deepseek());
    let output = written(&plan(&checkpoint, &separate()).unwrap(), &checkpoint, PLENTY);
    let manifest: Manifest = serde_json::from_slice(&output[MANIFEST]).unwrap();
    let named: BTreeSet<&String> = manifest.shards.keys().chain(manifest.files.keys()).collect();
    assert_eq!(named, output.keys().filter(|name| *name != MANIFEST).collect::<BTreeSet<_>>());
    let stored = tensors(&output["mtp/model.safetensors"]);
    for (name, (_, _, bytes)) in &stored {
        assert_eq!(manifest.tensors[name], blake3::hash(bytes).to_hex().as_str(), "{name}");
    }
}

#[test]
fn without_quantization_all_is_as_in_the_source() {
    let model = deepseek();
    let checkpoint = open(&model);
    let plan = plan(&checkpoint, &Options { format: None, ..separate() }).unwrap();
    let output = written(&plan, &checkpoint, PLENTY);
    let (stored, source) = (tensors(&output["mtp/model.safetensors"]), source(&model));
    assert!(stored.values().all(|(dtype, _, _)| dtype == "BF16"));
    let name = "model.layers.1.self_attn.kv_b_proj.weight";
    assert_eq!(stored[name], source[name]);
    assert!(!String::from_utf8_lossy(&output["mtp/config.json"]).contains("quantization"));
}

/// Fused experts, as the published Qwen3.5 checkpoints have them, are cut like those of the model.
#[test]
fn fused_experts_are_cut() {
    let mut model = deepseek();
    let gone = |name: &str| name.starts_with("model.layers.1.mlp.experts.");
    model.tensors.retain(|(name, _)| !gone(name));
    model.tensors.push(("model.layers.1.mlp.experts.gate_up_proj".to_owned(), vec![3, 128, 64]));
    let text = family::text("deepseek_v3").unwrap();
    let cut = "[mtp.experts]\n\"mlp.experts.gate_up_proj\" = [\"mlp.switch_mlp.gate_proj.weight\", \
               \"mlp.switch_mlp.up_proj.weight\"]\n";
    let family = Family::parse(&text.replace("[mtp.experts]\n", cut)).unwrap();
    let checkpoint = open(&model);
    let origin = Origin::family(&checkpoint, &family, None).unwrap();
    let plan = Plan::new(&checkpoint, origin, &separate()).unwrap();
    let output = written(&plan, &checkpoint, PLENTY);
    let (stored, source) = (tensors(&output["mtp/model.safetensors"]), source(&model));
    let fused = &source["model.layers.1.mlp.experts.gate_up_proj"].2;
    let half = 64 * 64 * 2;
    for (part, projection) in ["gate_proj", "up_proj"].into_iter().enumerate() {
        let halves = fused.chunks_exact(half).skip(part).step_by(2);
        let rows: Vec<u8> = halves.flatten().copied().collect();
        assert_near(&stored, &format!("model.layers.1.mlp.switch_mlp.{projection}"), &rows);
    }
}

/// Stops a run after so many blocks.
#[derive(Default)]
struct After {
    blocks: AtomicUsize,
    stop: std::sync::atomic::AtomicBool,
    most: usize,
}

impl Observer for After {
    fn on(&self, event: &Event) {
        if matches!(event, Event::Block { .. }) && self.blocks.fetch_add(1, Ordering::Relaxed) >= self.most {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

fn run_until(most: usize, plan: &Plan, checkpoint: &Checkpoint, output: &Path) -> Result<()> {
    let watch = After { most, ..After::default() };
    let schedule = plan.schedule(PLENTY).unwrap();
    let run =
        Run { plan, checkpoint, output, schedule, importance: None, observer: &watch, stop: &watch.stop };
    run.execute().map(drop)
}

#[test]
fn a_stopped_run_goes_on_in_both_folders() {
    let checkpoint = open(&deepseek());
    let plan = plan(&checkpoint, &Options { shard_bytes: 30_000, ..separate() }).unwrap();
    let expected: Contents = written(&plan, &checkpoint, PLENTY);
    for most in [5, plan.tasks.len() / 2, plan.tasks.len() * 3 / 4] {
        let folder = tempfile::tempdir().unwrap();
        let stopped = run_until(most, &plan, &checkpoint, folder.path());
        assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
        assert!(!folder.path().join("config.json").exists());
        run_until(usize::MAX, &plan, &checkpoint, folder.path()).unwrap();
        assert!(contents(folder.path()) == expected, "after {most} blocks");
    }
}

#[test]
fn with_and_without_are_different_runs() {
    let checkpoint = open(&deepseek());
    let (with, without) =
        (plan(&checkpoint, &separate()).unwrap(), plan(&checkpoint, &Options::default()).unwrap());
    let folder = tempfile::tempdir().unwrap();
    run_until(usize::MAX, &without, &checkpoint, folder.path()).unwrap();
    let said = run_until(usize::MAX, &with, &checkpoint, folder.path()).unwrap_err().to_string();
    assert!(said.contains("\n  mtp: none → separate"), "{said}");
}

#[test]
fn overrides_speak_of_the_model_alone() {
    let checkpoint = open(&deepseek());
    let rule = |text: &str| Override::parse(text, None).unwrap();
    let plan = plan(
        &checkpoint,
        &Options { overrides: vec![rule("o_proj=3:32"), rule("layers.1=4")], ..separate() },
    );
    let plan = plan.unwrap();
    let apart = plan.mtp_tasks().iter().filter_map(|task| task.format.as_ref());
    assert!(
        apart.clone().count() > 5
            && apart.clone().all(|spec| Some(spec.0) == Format::new(Mode::Affine, 8, 64))
    );
    assert_eq!(plan.notes, [Note::OverrideUnused { text: "layers.1=4".to_owned() }]);
}

#[test]
fn a_checkpoint_without_them_says_so() {
    let mut model = deepseek();
    model.tensors.retain(|(name, _)| !name.starts_with("model.layers.1."));
    let checkpoint = open(&model);
    let lenient = plan(&checkpoint, &separate()).unwrap();
    assert_eq!(lenient.notes, [Note::NoMtp]);
    assert!(lenient.mtp.is_none() && lenient.shards.len() == 1);
    let strict = plan(&checkpoint, &Options { strict: true, ..separate() }).unwrap_err().to_string();
    assert!(strict.contains("no layers that predict further tokens"), "{strict}");
    assert!(plan(&checkpoint, &Options { strict: true, ..Options::default() }).is_ok());
}

#[test]
fn a_family_that_does_not_mark_them_says_so() {
    let unmarked = family::text("deepseek_v3").unwrap().replace("mtp = true\n", "");
    let family = Family::parse(&unmarked).unwrap();
    let checkpoint = open(&deepseek());
    let origin = || Origin::family(&checkpoint, &family, None).unwrap();
    let plan = Plan::new(&checkpoint, origin(), &separate()).unwrap();
    let first = "model.layers.1.eh_proj.weight".to_owned();
    assert_eq!(plan.notes, [Note::MtpUnknown { tensors: 1, first }]);
    let strict = Plan::new(&checkpoint, origin(), &Options { strict: true, ..separate() });
    assert!(matches!(strict, Err(Error::Plan(PlanError::Strict { .. }))));
}

/// The last one too, which leaves no gap.
#[test]
fn a_missing_expert_is_refused() {
    for expert in [1, 2] {
        let mut model = deepseek();
        let gone = format!("model.layers.1.mlp.experts.{expert}.up_proj.weight");
        model.tensors.retain(|(name, _)| *name != gone);
        let checkpoint = open(&model);
        assert!(plan(&checkpoint, &Options::default()).is_ok());
        let said = plan(&checkpoint, &separate()).unwrap_err().to_string();
        let names = [&format!("expert {expert}"), "model.layers.1.mlp.switch_mlp.up_proj.weight"];
        assert!(names.iter().all(|name| said.contains(*name)), "{said}");
    }
}

/// Gate and up of a fused tensor have the same rows.
#[test]
fn fused_experts_that_do_not_divide_are_refused() {
    let mut model = deepseek();
    model.tensors.push(("model.layers.1.mlp.experts.gate_up_proj".to_owned(), vec![3, 127, 64]));
    let text = family::text("deepseek_v3").unwrap();
    let cut = "[mtp.experts]\n\"mlp.experts.gate_up_proj\" = [\"gate.weight\", \"up.weight\"]\n";
    let family = Family::parse(&text.replace("[mtp.experts]\n", cut)).unwrap();
    let checkpoint = open(&model);
    let origin = Origin::family(&checkpoint, &family, None).unwrap();
    let said = Plan::new(&checkpoint, origin, &separate()).unwrap_err().to_string();
    assert!(said.contains("64..128 of axis 1"), "{said}");
}

#[test]
fn experts_of_different_shapes_are_refused() {
    let mut model = deepseek();
    let odd =
        model.tensors.iter_mut().find(|(name, _)| name == "model.layers.1.mlp.experts.2.up_proj.weight");
    odd.unwrap().1 = vec![32, 64];
    let checkpoint = open(&model);
    let said = plan(&checkpoint, &separate()).unwrap_err().to_string();
    assert!(said.contains("model.layers.1.mlp.switch_mlp.up_proj.weight"), "{said}");
}
