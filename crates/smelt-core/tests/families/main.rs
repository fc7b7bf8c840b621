//! Families over small checkpoints: what each makes of one, and what it says of a broken one.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "../common/mod.rs"]
mod common;
mod file;
mod problems;
mod recorded;
mod reload;

use std::collections::BTreeSet;

use std::fs;
use std::sync::Arc;

use common::{Model, manifests};
use serde_json::json;
use smelt_core::Result;
use smelt_core::checkpoint::{Checkpoint, Config};
use smelt_core::layout::graph::Op;
use smelt_core::layout::{Family, Layout, Role, family};
use smelt_core::plan::{Options, Origin, Plan, family_of};
use smelt_core::source::MemorySource;

/// The names of all manifests, sorted.
pub(crate) fn manifest_names() -> Vec<String> {
    let files = fs::read_dir(manifests()).unwrap().map(|entry| entry.unwrap().path());
    let mut names: Vec<_> =
        files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

fn open(model: &Model) -> Checkpoint {
    Checkpoint::open(Arc::new(MemorySource::new(model.files()))).unwrap()
}

/// The layout of a checkpoint by its family, or by one of the user's own.
fn layout_of(checkpoint: &Checkpoint, own: Option<&Family>) -> Result<Layout> {
    let family = family_of(checkpoint, own)?;
    Origin::family(checkpoint, family, None).map(|origin| origin.layout)
}

#[test]
fn every_family_is_embedded_under_its_own_names() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("families");
    assert_eq!(family::all().len(), std::fs::read_dir(folder).unwrap().count());
    let mut seen = BTreeSet::new();
    for family in family::all() {
        assert!(!family.title.is_empty() && !family.model_types.is_empty(), "{}", family.name);
        for model_type in &family.model_types {
            let names = (model_type.as_str(), &family.architectures);
            assert!(seen.insert(names), "`{model_type}` belongs to two families");
            let config = json!({ "model_type": model_type, "architectures": family.architectures });
            let config = Config::parse("config.json", config.to_string().as_bytes()).unwrap();
            assert_eq!(family::of_config(&config).unwrap().name, family.name);
        }
    }
    let nameless = Config::parse("config.json", br#"{"model_type": ""}"#).unwrap();
    assert!(family::of_config(&nameless).is_none());
}

#[test]
fn every_checkpoint_of_the_conformance_tests_fits() {
    for name in manifest_names() {
        let model = Model::manifest(&name);
        let checkpoint = open(&model);
        let family = family_of(&checkpoint, None).unwrap();
        let origin =
            Origin::family(&checkpoint, family, None).unwrap_or_else(|error| panic!("{name}: {error}"));
        let plan = Plan::new(&checkpoint, origin, &Options::default()).unwrap();
        let mut outputs = BTreeSet::new();
        assert!(plan.tasks.iter().all(|task| outputs.insert(&task.name)), "{name}: one name twice");
        // Nothing is made and nothing is lost: a layout only moves elements.
        let dropped: BTreeSet<_> = plan.dropped.iter().map(|dropped| dropped.tensor.as_str()).collect();
        let kept = model.tensors.iter().filter(|(name, _)| !dropped.contains(name.as_str()));
        let kept: u64 = kept.map(|(_, shape)| shape.iter().product::<u64>()).sum();
        assert_eq!(plan.totals.parameters, kept, "{name}");
        assert!(plan.totals.roles.contains_key(&Role::Embedding), "{name}");
        assert!(!plan.totals.roles.contains_key(&Role::Other), "{name}");
    }
}

#[test]
fn experts_are_stacked_in_the_order_of_their_numbers() {
    let mut model = Model::manifest("qwen3_moe");
    // Ten and more: as texts, `10` comes before `2`.
    model.config["num_experts"] = 12.into();
    let shapes: Vec<_> =
        ["gate_proj", "up_proj", "down_proj"].into_iter().zip([[64, 128], [64, 128], [128, 64]]).collect();
    for (layer, expert) in (0..4).flat_map(|layer| (4..12).map(move |expert| (layer, expert))) {
        for (part, shape) in &shapes {
            let name = format!("model.layers.{layer}.mlp.experts.{expert}.{part}.weight");
            model.tensors.push((name, shape.to_vec()));
        }
    }
    model
        .tensors
        .iter_mut()
        .filter(|(name, _)| name.ends_with("mlp.gate.weight"))
        .for_each(|(_, s)| s[0] = 12);
    let checkpoint = open(&model);
    let layout = layout_of(&checkpoint, None).unwrap();
    let output =
        layout.outputs.iter().find(|output| output.name == "model.layers.2.mlp.switch_mlp.up_proj.weight");
    let output = output.unwrap();
    assert_eq!(*layout.graph.node(output.node).shape, [12, 64, 128]);
    let made_of =
        layout.graph.sources(output.node).into_iter().map(|id| checkpoint.logical(id).name.to_string());
    let expected = (0..12).map(|expert| format!("model.layers.2.mlp.experts.{expert}.up_proj.weight"));
    assert!(made_of.eq(expected));
}

#[test]
fn layers_lie_one_after_another() {
    let checkpoint = open(&Model::manifest("qwen3_moe_every_second"));
    let layout = layout_of(&checkpoint, None).unwrap();
    let layer = |name: &str| name.strip_prefix("model.layers.")?.split('.').next()?.parse::<u32>().ok();
    let layers: Vec<u32> = layout.outputs.iter().filter_map(|output| layer(&output.name)).collect();
    assert!(layers.is_sorted(), "{layers:?}");
    assert_eq!(layers.last(), Some(&3));
    let names: Vec<_> = layout.outputs.iter().map(|output| output.name.as_str()).collect();
    assert_eq!(names.first(), Some(&"model.embed_tokens.weight"));
    assert!(names.iter().any(|name| name.contains("switch_mlp")));
    assert!(names.contains(&"model.layers.0.mlp.gate_proj.weight"), "every second layer is dense: {names:?}");
}

#[test]
fn a_tied_head_is_left_out_with_its_reason() {
    let checkpoint = open(&Model::manifest("qwen3_tied_with_head"));
    let layout = layout_of(&checkpoint, None).unwrap();
    let dropped: Vec<_> = layout.dropped.iter().map(|d| (d.tensor.as_str(), d.why.as_str())).collect();
    assert_eq!(dropped, [("lm_head.weight", "the head is tied to the embedding")]);
    assert!(layout.outputs.iter().all(|output| output.role != Role::Head));
}

#[test]
fn what_a_layout_leaves_alone_is_read_straight() {
    let checkpoint = open(&Model::manifest("llama"));
    let layout = layout_of(&checkpoint, None).unwrap();
    assert!(layout.outputs.iter().all(|output| matches!(layout.graph.node(output.node).op, Op::Source(_))));
}
