//! Importance from files of other tools: the right numbers for the right modules, whatever the file; refusals for what
//! is broken or of another model; the same bytes however the work is shared out.

pub(crate) mod encode;
mod refused;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;
use smelt_core::checkpoint::Checkpoint;
use smelt_core::pipeline::{Run, Silent};
use smelt_core::plan::{Importance, ImportanceError, Memory, Method, Note, Options, Plan};
use smelt_core::{Error, PlanError, Result};
use smelt_kernels::Effort;

use self::encode::{Gguf, Given, gguf, legacy, npz, own, read};
use crate::common::Model;
use crate::{PLENTY, contents, open, plan};

pub(crate) fn fast() -> Options {
    Options { method: Method::Search(Effort::Fast), ..Options::default() }
}

/// A plan with the importance of a file.
pub(crate) fn weighed(checkpoint: &Checkpoint, file: Vec<u8>) -> Result<(Plan, Importance)> {
    let mut plan = plan(checkpoint, &fast())?;
    let importance = Importance::new(read(file)?, &plan, checkpoint.config())?;
    plan.weigh(&importance, false)?;
    Ok((plan, importance))
}

fn run(
    checkpoint: &Checkpoint,
    (plan, importance): (&Plan, Option<&Importance>),
    memory: Memory,
    output: &Path,
) -> Result<()> {
    let (schedule, stop) = (plan.schedule(memory)?, AtomicBool::new(false));
    Run { plan, checkpoint, output, schedule, importance, observer: &Silent, stop: &stop }.execute().map(drop)
}

/// What a run with importance writes.
pub(crate) fn written_with(
    checkpoint: &Checkpoint,
    given: (&Plan, &Importance),
    memory: Memory,
) -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    run(checkpoint, (given.0, Some(given.1)), memory, folder.path()).unwrap();
    contents(folder.path())
}

/// The weights of a module, row after row.
fn channels(importance: &Importance, module: &str, experts: u64) -> Vec<Vec<f32>> {
    let mut reader = importance.reader();
    let (channels, _) = reader.channels(module, 0, experts).unwrap().expect("the module has weights");
    (0..channels.entries()).map(|entry| channels.entry(entry).to_vec()).collect()
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-5 * b.abs())
}

/// A number above zero for each channel.
fn uneven(row: usize, channel: usize) -> f32 {
    ((channel * 37 + row * 5) % 11 + 1) as f32
}

/// The names of one model's modules, in the file of llama.cpp and in the MLX model.
const NAMES: [(&str, &str, usize, usize); 7] = [
    ("blk.1.attn_q", "model.layers.1.self_attn.q_proj", 1, 128),
    ("blk.1.attn_output", "model.layers.1.self_attn.o_proj", 1, 128),
    ("blk.0.ffn_up_exps", "model.layers.0.mlp.switch_mlp.up_proj", 4, 128),
    ("blk.2.ffn_down_exps", "model.layers.2.mlp.switch_mlp.down_proj", 4, 64),
    // What has the input of one above has no name of its own there.
    ("blk.1.attn_q", "model.layers.1.self_attn.k_proj", 1, 128),
    ("blk.1.attn_q", "model.layers.1.self_attn.v_proj", 1, 128),
    ("blk.0.ffn_up_exps", "model.layers.0.mlp.switch_mlp.gate_proj", 4, 128),
];

/// Some numbers for them; the third expert of each layer had no input.
fn given(mlx: bool) -> Vec<Given> {
    let named = |&(llama, module, rows, width): &(&str, &str, usize, usize)| {
        let counts: &[f32] = if rows == 1 { &[64.0] } else { &[16.0, 8.0, 0.0, 2.0] };
        let sum = |row: usize, channel: usize| if counts[row] > 0.0 { uneven(row, channel) } else { 0.0 };
        Given::new(if mlx { module } else { llama }, width, counts, sum)
    };
    NAMES.iter().take(if mlx { NAMES.len() } else { 4 }).map(named).collect()
}

#[test]
fn all_files_give_the_same_means() {
    let checkpoint = open(&Model::manifest("qwen3_moe"));
    for file in [gguf(&given(false)), npz(&given(true)), own(&given(true)), own(&given(false))] {
        let (plan, importance) = weighed(&checkpoint, file).unwrap();
        for (given, (_, module, rows, width)) in given(true).iter().zip(NAMES) {
            let found = channels(&importance, module, rows as u64);
            // What one expert lacks is the mean over all inputs of the layer.
            let all: f32 = given.counts.iter().sum();
            let layer: Vec<f32> = (0..width)
                .map(|channel| (0..rows).map(|row| given.sums[row * width + channel]).sum::<f32>() / all)
                .collect();
            for (row, found) in found.iter().enumerate() {
                let expected = if given.counts[row] > 0.0 { given.mean(row) } else { layer.clone() };
                assert!(close(found, &expected), "{module} {row}: {found:?} {expected:?}");
            }
        }
        let coverage = plan.importance.as_ref().unwrap();
        assert_eq!((coverage.experts_without_data, coverage.unused_entries), (3, 0));
        assert!(coverage.weighed == 7 && coverage.weighed < coverage.modules, "{coverage:?}");
        let noted = |note: &Note| matches!(note, Note::NoImportance { module } if module == "lm_head");
        assert!(plan.notes.iter().any(noted));
        let unseen = Note::ExpertsWithoutData { experts: 3, modules: 3 };
        assert!(plan.notes.contains(&unseen), "{:?}", plan.notes);
    }
}

#[test]
fn a_file_without_counts_tells_only_how_channels_compare() {
    let checkpoint = open(&Model::manifest("qwen3_moe"));
    let (plan, importance) = weighed(&checkpoint, legacy(&given(false), 5)).unwrap();
    let dense = channels(&importance, NAMES[1].1, 1);
    assert!(close(&dense[0], &given(false)[1].mean(0)));
    let found = channels(&importance, NAMES[2].1, 4);
    for row in [0, 1, 3] {
        let mean = given(false)[2].mean(row);
        let scale = mean.iter().sum::<f32>() / 128.0;
        assert!(close(&found[row], &mean.iter().map(|value| value / scale).collect::<Vec<_>>()));
    }
    assert_eq!(plan.importance.unwrap().experts_without_data, 3);
}

#[test]
fn matrices_with_one_input_share_its_statistic() {
    let checkpoint = open(&Model::manifest("qwen3_moe"));
    let (_, importance) = weighed(&checkpoint, gguf(&given(false))).unwrap();
    for name in ["self_attn.k_proj", "self_attn.v_proj"] {
        let shared = channels(&importance, &format!("model.layers.1.{name}"), 1);
        assert_eq!(shared, channels(&importance, NAMES[0].1, 1));
    }
    let gate = channels(&importance, "model.layers.0.mlp.switch_mlp.gate_proj", 4);
    assert_eq!(gate, channels(&importance, NAMES[2].1, 4));
    let mut reader = importance.reader();
    assert!(reader.channels("model.layers.3.self_attn.q_proj", 0, 1).unwrap().is_none());
}

#[test]
fn names_of_the_checkpoint_are_followed_into_stacks() {
    let checkpoint = open(&Model::manifest("qwen3_moe"));
    let name = |expert: usize| format!("model.layers.3.mlp.experts.{expert}.down_proj");
    // One expert is missing.
    let experts = [0, 1, 3].map(|expert| {
        Given::new(&name(expert), 64, &[1.0 + expert as f32], |_, channel| uneven(expert, channel))
    });
    let (plan, importance) = weighed(&checkpoint, own(&experts)).unwrap();
    let found = channels(&importance, "model.layers.3.mlp.switch_mlp.down_proj", 4);
    assert!(close(&found[3], &experts[2].mean(0)));
    let sum = |channel: usize| experts.iter().map(|given| given.sums[channel]).sum::<f32>();
    assert!(close(&found[2], &(0..64).map(|channel| sum(channel) / 7.0).collect::<Vec<_>>()));
    assert_eq!(plan.importance.unwrap().experts_without_data, 1);
}

#[test]
fn split_and_folded_latent_projections_have_their_inputs() {
    let checkpoint = open(&Model::manifest("../../manifests/deepseek_v3"));
    let latent = |name: &str, width: usize| Given::new(name, width, &[4.0], uneven);
    let all =
        [latent("blk.1.attn_kv_b", 32), latent("blk.1.attn_q_b", 32), latent("blk.1.attn_kv_a_mqa", 128)];
    let (_, importance) = weighed(&checkpoint, gguf(&all)).unwrap();
    let of = |name: &str| channels(&importance, &format!("model.layers.1.self_attn.{name}"), 1);
    assert!(close(&of("unembed_out")[0], &all[0].mean(0)));
    assert!(close(&of("q_b_proj")[0], &all[1].mean(0)));
    assert!(close(&of("q_a_proj")[0], &all[2].mean(0)));
    let without = importance.reader().channels("model.layers.1.self_attn.embed_q", 0, 4).unwrap();
    assert!(without.is_none(), "the inputs of a folded projection are the latent ones");
    // Heads with one count for all; an older file has other sizes, which then count for nothing.
    let heads = |width: usize| {
        let heads = Given::new("blk.1.attn_k_b", width, &[1.0; 4], uneven);
        Given { counts: vec![2.0], ..heads }
    };
    let (_, importance) = weighed(&checkpoint, gguf(&[all[0].clone(), heads(32)])).unwrap();
    let found = channels(&importance, "model.layers.1.self_attn.embed_q", 4);
    assert!((0..4).all(|head| close(&found[head], &heads(32).mean(head))));
    let (plan, _) = weighed(&checkpoint, gguf(&[all[0].clone(), heads(64)])).unwrap();
    assert_eq!(plan.importance.unwrap().unused_entries, 1);
}

#[test]
fn tiled_heads_are_brought_into_order() {
    let checkpoint = open(&Model::manifest("../../manifests/qwen3_5"));
    // Two groups of two heads of 32 channels; each head has a value of its own, in the file as [head, group].
    let tiled = |channel: usize| [1.0, 3.0, 2.0, 4.0][channel / 32];
    let all = [Given::new("blk.0.ssm_out", 128, &[1.0], |_, channel| tiled(channel))];
    let (_, importance) = weighed(&checkpoint, gguf(&all)).unwrap();
    let found = channels(&importance, "language_model.model.layers.0.linear_attn.out_proj", 1);
    let heads: Vec<f32> = found[0].iter().step_by(32).copied().collect();
    assert_eq!(heads, [1.0, 2.0, 3.0, 4.0]);
}

#[test]
fn the_same_bytes_however_the_work_is_shared_out() {
    let checkpoint = open(&Model::manifest("qwen3_moe"));
    let plain = crate::written(&plan(&checkpoint, &fast()).unwrap(), &checkpoint, PLENTY);
    let mut all = Vec::new();
    for file in [gguf(&given(false)), npz(&given(true)), own(&given(true))] {
        let (plan, importance) = weighed(&checkpoint, file).unwrap();
        let given = (&plan, &importance);
        let mut whole = written_with(&checkpoint, given, PLENTY);
        let least = match plan.schedule(Memory { limit: 0, threads: 1 }) {
            Err(Error::Plan(PlanError::Memory { needed, .. })) => needed,
            other => panic!("{other:?}"),
        };
        // Blocks of a few groups begin inside a row.
        for memory in [Memory { limit: 64 << 20, threads: 3 }, Memory { limit: least + 4_000, threads: 2 }] {
            assert!(written_with(&checkpoint, given, memory) == whole, "{memory:?}");
        }
        // The manifest names the file.
        whole.retain(|name, _| name.ends_with(".safetensors"));
        all.push(whole);
    }
    assert!(all[0] == all[1] && all[1] == all[2], "the means are the same");
    assert!(all[0]["model.safetensors"] != plain["model.safetensors"]);
}

#[test]
fn another_importance_is_another_run() {
    let checkpoint = open(&Model::manifest("qwen3_moe"));
    let (plan, importance) = weighed(&checkpoint, own(&given(true))).unwrap();
    let folder = tempfile::tempdir().unwrap();
    run(&checkpoint, (&plan, Some(&importance)), PLENTY, folder.path()).unwrap();
    run(&checkpoint, (&plan, Some(&importance)), PLENTY, folder.path()).unwrap();
    let refused = run(&checkpoint, (&plan, None), PLENTY, folder.path());
    assert!(matches!(refused, Err(Error::Importance(ImportanceError::OtherPlan))), "{refused:?}");
    let mut changed = given(true);
    changed[0].sums[0] += 1.0;
    let (plan, importance) = weighed(&checkpoint, own(&changed)).unwrap();
    let refused = run(&checkpoint, (&plan, Some(&importance)), PLENTY, folder.path()).unwrap_err();
    assert!(refused.to_string().contains("importance: "), "{refused}");
}

#[test]
fn a_plan_that_is_stored_keeps_what_weighs_it() {
    let checkpoint = open(&Model::manifest("qwen3_moe"));
    let (plan, importance) = weighed(&checkpoint, own(&given(true))).unwrap();
    let stored: Plan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
    assert_eq!(stored.importance, plan.importance);
    let [a, b] = [&plan, &stored].map(|plan| written_with(&checkpoint, (plan, &importance), PLENTY));
    assert!(a == b);
}

/// A few channels of one projection matter; what the search makes of them is better there.
#[test]
fn channels_that_matter_come_out_closer() {
    let checkpoint = open(&Model::manifest("llama"));
    let name = "model.layers.1.mlp.down_proj";
    let weight = |channel: usize| if channel.is_multiple_of(16) { 100.0 } else { 1.0 };
    let errors = [true, false].map(|told| {
        let one = Given::new(name, 256, &[1.0], |_, channel| if told { weight(channel) } else { 1.0 });
        let (plan, importance) = weighed(&checkpoint, own(&[one])).unwrap();
        let written = written_with(&checkpoint, (&plan, &importance), PLENTY);
        let weight = |channel| f64::from(weight(channel));
        weighted_error(&checkpoint, &written["model.safetensors"], name, weight)
    });
    assert!(errors[0] < 0.9 * errors[1], "{errors:?}");
}

/// `Σ h (ŵ - w)²` of a matrix of 4-bit groups of 64.
fn weighted_error(checkpoint: &Checkpoint, file: &[u8], module: &str, weight: impl Fn(usize) -> f64) -> f64 {
    let tensors = safetensors::SafeTensors::deserialize(file).unwrap();
    let bf16 = |bytes: &[u8]| -> Vec<f64> {
        let value = |pair: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*pair)) << 16);
        bytes.as_chunks().0.iter().map(|pair| f64::from(value(pair))).collect()
    };
    let part = |what: &str| tensors.tensor(&format!("{module}.{what}")).unwrap().data().to_vec();
    let (codes, scales, biases) = (part("weight"), bf16(&part("scales")), bf16(&part("biases")));
    let id =
        checkpoint.tensors().iter().position(|tensor| *tensor.name == format!("{module}.weight")).unwrap();
    let tensor = &checkpoint.tensors()[id];
    let width = *tensor.shape.last().unwrap() as usize;
    let mut raw = vec![0; tensor.bytes as usize];
    let shard = &checkpoint.shards()[tensor.shard as usize].path;
    checkpoint.source().read_at(shard, tensor.offset, &mut raw).unwrap();
    let error = |(place, value): (usize, f64)| {
        let code = (codes[place / 2] >> (4 * (place % 2))) & 15;
        let found = f64::from(code) * scales[place / 64] + biases[place / 64];
        weight(place % width) * (found - value).powi(2)
    };
    bf16(&raw).into_iter().enumerate().map(error).sum()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Whatever is done to a file, it is read or refused.
    #[test]
    fn broken_files_are_refused(
        kind in 0..4usize, cut in any::<prop::sample::Index>(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        whole in any::<bool>(),
    ) {
        let checkpoint = open(&Model::manifest("qwen3_moe"));
        let mut file = match kind {
            0 => gguf(&given(false)),
            1 => legacy(&given(false), 3),
            2 => npz(&given(true)),
            _ => own(&given(true)),
        };
        for (place, value) in changes {
            // The first bytes say most.
            let len = if whole { file.len() } else { file.len().min(600) };
            file[place.index(len)] = value;
        }
        if !whole {
            file.truncate(cut.index(file.len() + 1));
        }
        if let Ok((plan, importance)) = weighed(&checkpoint, file) {
            let mut reader = importance.reader();
            for task in &plan.tasks {
                let experts = if task.shape.len() > 2 { task.shape[0] } else { 1 };
                let _ = reader.channels(task.module(), 0, experts);
            }
        }
    }
}

#[test]
fn an_empty_gguf_of_other_things_is_named() {
    let other = Gguf { version: 3, kind: "model", tensors: Vec::new() };
    let refused = read(other.bytes());
    assert!(matches!(refused, Err(Error::Importance(ImportanceError::NotImatrix { .. }))), "{refused:?}");
}
