//! Threads, memory and shards decide nothing about the bytes of a tensor.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use smelt_core::checkpoint::DType;
use smelt_core::plan::{Memory, Options, Override, Plan};
use smelt_core::{Error, PlanError};
use smelt_kernels::{Format, Mode};

use crate::common::Model;
use crate::{Contents, PLENTY, open, plan, written};

fn all_options() -> Vec<Options> {
    let format = |mode, bits, group| Format::new(mode, bits, group);
    let mixed = Override::parse("down_proj=6:32", None).unwrap();
    vec![
        Options { overrides: vec![mixed], ..Options::default() },
        Options { format: format(Mode::Mxfp4, 4, 32), dtype: Some(DType::F16), ..Options::default() },
        Options { format: format(Mode::Affine, 3, 32), dtype: Some(DType::F32), ..Options::default() },
        Options { format: None, ..Options::default() },
    ]
}

/// Every stored tensor: dtype, shape and bytes, from all shards of an output.
fn tensors(output: &Contents) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let shards = output.iter().filter(|(name, _)| name.ends_with(".safetensors"));
    let mut found = BTreeMap::new();
    for (_, bytes) in shards {
        for (name, view) in SafeTensors::deserialize(bytes).unwrap().iter() {
            let value = (format!("{:?}", view.dtype()), view.shape().to_vec(), view.data().to_vec());
            assert!(found.insert(name.to_owned(), value).is_none(), "`{name}` is stored twice");
        }
    }
    found
}

/// The least memory in which the plan can be carried out.
fn least(plan: &Plan) -> Memory {
    match plan.schedule(Memory { limit: 0, threads: 1 }) {
        Err(Error::Plan(PlanError::Memory { needed, .. })) => Memory { limit: needed, threads: 4 },
        other => panic!("{other:?}"),
    }
}

#[test]
fn threads_and_memory_do_not_change_a_byte() {
    for name in ["qwen3_moe", "gemma2", "llama_odd_width"] {
        let checkpoint = open(&Model::manifest(name));
        for options in all_options() {
            let plan = plan(&checkpoint, &options).unwrap();
            let expected = written(&plan, &checkpoint, Memory { limit: 4 << 30, threads: 1 });
            for memory in [
                Memory { limit: 4 << 30, threads: 4 },
                Memory { limit: 64 << 20, threads: 1 },
                Memory { limit: 64 << 20, threads: 4 },
                Memory { limit: least(&plan).limit + 20_000, threads: 3 },
            ] {
                assert_eq!(written(&plan, &checkpoint, memory), expected, "{name}, {memory:?}");
            }
        }
    }
}

#[test]
fn the_least_memory_that_is_asked_for_is_enough() {
    // One group at a time: small, because every group is a write of its own.
    let mut model = Model::manifest("llama");
    model.tensors.retain(|(name, _)| !name.contains(".layers."));
    model.config["num_hidden_layers"] = 0.into();
    let checkpoint = open(&model);
    let plan = plan(&checkpoint, &Options::default()).unwrap();
    let memory = least(&plan);
    assert_eq!(written(&plan, &checkpoint, memory), written(&plan, &checkpoint, PLENTY));
    let short = plan.schedule(Memory { limit: memory.limit - 1, ..memory }).unwrap_err().to_string();
    assert!(short.contains("`--max-memory`") && short.contains(".weight`"), "{short}");
}

#[test]
fn shards_hold_the_same_tensors() {
    for name in ["qwen3_moe", "llama_tied"] {
        let checkpoint = open(&Model::manifest(name));
        for options in all_options() {
            let whole = written(&plan(&checkpoint, &options).unwrap(), &checkpoint, PLENTY);
            let plan = plan(&checkpoint, &Options { shard_bytes: 20_000, ..options }).unwrap();
            assert!(plan.shards.len() > 5, "{name} has {} shards", plan.shards.len());
            let cut = written(&plan, &checkpoint, PLENTY);
            assert_eq!(tensors(&cut), tensors(&whole), "{name}");
            assert_eq!(cut["config.json"], whole["config.json"]);
            for (at, shard) in plan.shards.iter().enumerate() {
                let parts = plan.tasks.iter().flat_map(|task| &task.parts);
                let count = parts.filter(|part| part.shard as usize == at).count();
                assert!(shard.tensor_bytes <= 20_000 || count == 1, "{shard:?} holds {count} tensors");
            }
        }
    }
}

#[test]
fn a_plan_that_was_stored_and_read_writes_the_same() {
    let checkpoint = open(&Model::manifest("qwen3_moe_dense_layer"));
    for options in all_options() {
        let plan = plan(&checkpoint, &options).unwrap();
        let json = serde_json::to_string(&plan).unwrap();
        let read: Plan = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), json);
        read.check_source(&checkpoint).unwrap();
        assert_eq!(written(&read, &checkpoint, PLENTY), written(&plan, &checkpoint, PLENTY));
        let other = open(&Model::manifest("qwen3_moe"));
        let refused = read.check_source(&other);
        assert!(matches!(refused, Err(Error::Plan(PlanError::OtherSource { .. }))), "{refused:?}");
    }
}

#[test]
fn what_is_not_quantized_is_the_source() {
    let model = Model::manifest("mixtral");
    let checkpoint = open(&model);
    let plan = plan(&checkpoint, &Options { format: None, ..Options::default() }).unwrap();
    let stored = tensors(&written(&plan, &checkpoint, PLENTY));
    let source = model.files().into_iter().find(|(name, _)| name == "model.safetensors").unwrap().1;
    let source = SafeTensors::deserialize(&source).unwrap();
    let norm = "model.layers.1.input_layernorm.weight";
    assert_eq!(stored[norm].2, source.tensor(norm).unwrap().data());
    let experts = (0..4).flat_map(|expert| {
        let name = format!("model.layers.1.block_sparse_moe.experts.{expert}.w3.weight");
        source.tensor(&name).unwrap().data().to_vec()
    });
    let stack = &stored["model.layers.1.block_sparse_moe.switch_mlp.up_proj.weight"];
    assert_eq!(stack.1[0], 4);
    assert!(experts.eq(stack.2.iter().copied()), "experts one after another");
}
