//! Rules of recipes, overrides and models to copy from: who wins, what is counted, what is refused.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use smelt_core::checkpoint::Checkpoint;
use smelt_core::layout::Family;
use smelt_core::pipeline::{Allocating, Means, Silent};
use smelt_core::plan::allocate::{BitsError, Request, Target, candidates, parse_formats};
use smelt_core::plan::measures::Measures;
use smelt_core::plan::rules::RuleSource;
use smelt_core::plan::{Like, Note, Options, Origin, Override, Plan, RecipeFile, family_of};
use smelt_core::source::MemorySource;
use smelt_core::{Error, PlanError, Result};
use smelt_kernels::{Format, Mode};

use crate::common::Model;
use crate::widths::{choose, fast};
use crate::{PLENTY, open, written};

fn origin(checkpoint: &Checkpoint) -> Origin {
    Origin::family(checkpoint, family_of(checkpoint, None).unwrap(), None).unwrap()
}

/// Options with the rules of a recipe.
fn recipe(rules: &str) -> Options {
    let file = RecipeFile::parse("r.toml", &format!("schema = 1\n{rules}")).unwrap();
    Options { rules: file.rules, ..fast() }
}

fn planned(checkpoint: &Checkpoint, options: &Options) -> Result<Plan> {
    Plan::new(checkpoint, origin(checkpoint), options)
}

/// How each module is stored.
fn stored(plan: &Plan) -> BTreeMap<&str, String> {
    let name = |task: &smelt_core::plan::Task| {
        task.format.as_ref().map_or("keep".to_owned(), |spec| spec.0.to_string())
    };
    plan.tasks.iter().map(|task| (task.module(), name(task))).collect()
}

fn target(bits: f64) -> Request {
    let (target, formats) = (Target::BitsPerWeight(bits), candidates());
    Request { target, asked: format!("{bits} bits per weight"), formats, layers: None }
}

#[test]
fn later_rules_win_and_overrides_win_over_all() {
    let checkpoint = open(&Model::manifest("qwen3_moe"));
    let rules = "[[rule]]\nrole = ['attention-value', 'attention-key']\nformat = '6/64'\n\
                 [[rule]]\nmatch = 'v_proj'\nlayers = '-1'\nformat = 'keep'\n\
                 [[rule]]\nrole = 'router'\nformat = '5/64'\n[[rule]]\nmatch = 'no_such'\nformat = '3'\n";
    let overrides = vec![Override::parse(r"layers\.0\..*k_proj=mxfp8", None).unwrap()];
    let plan = planned(&checkpoint, &Options { overrides, ..recipe(rules) }).unwrap();
    let found = stored(&plan);
    let last = plan.tasks.iter().filter(|task| task.name.contains("v_proj.weight")).count() - 1;
    let at = |layer: usize, module: &str| found[format!("model.layers.{layer}.{module}").as_str()].clone();
    assert_eq!(at(0, "self_attn.v_proj"), "6-bit g64");
    assert_eq!(at(last, "self_attn.v_proj"), "keep");
    assert_eq!(at(0, "self_attn.k_proj"), "mxfp8");
    assert_eq!(at(last, "self_attn.k_proj"), "6-bit g64");
    assert_eq!(at(0, "mlp.gate"), "5-bit g64");
    assert_eq!(at(0, "self_attn.q_proj"), "4-bit g64");
    let counts: Vec<_> = plan.rules.iter().map(|rule| (rule.source, rule.matched, rule.modules)).collect();
    let layers = last as u64 + 1;
    assert_eq!(
        counts,
        [
            (RuleSource::Recipe, 2 * layers, 2 * layers - 2),
            (RuleSource::Recipe, 1, 1),
            (RuleSource::Recipe, layers, layers),
            (RuleSource::Recipe, 0, 0),
            (RuleSource::Override, 1, 1),
        ]
    );
    // The bytes are those of the modules that each rule decided about.
    let bytes = |pick: &dyn Fn(&str) -> bool| -> u64 {
        plan.tasks.iter().filter(|task| pick(task.module())).map(smelt_core::plan::Task::bytes).sum()
    };
    assert_eq!(plan.rules[4].bytes, bytes(&|module| module == "model.layers.0.self_attn.k_proj"));
    assert_eq!(plan.rules[2].bytes, bytes(&|module| module.ends_with("mlp.gate")));
    assert!(
        plan.notes.iter().any(|note| matches!(note, Note::RuleUnused { line: 12, .. })),
        "{:?}",
        plan.notes
    );
    let strict = planned(&checkpoint, &Options { strict: true, ..recipe(rules) });
    assert!(matches!(strict, Err(Error::Plan(PlanError::Strict { .. }))), "{strict:?}");
}

/// A model whose library wants codes of two floating-point modes.
const FLOATING: &str = r#"
name = "own"
title = "Own"
model_types = ["own"]
[[group]]
[group.tensors]
"experts.down_proj.weight" = { module = "SwitchLinear", role = "expert-down", mode = "mxfp4" }
"q_proj.weight" = { module = "Linear", role = "attention-query", mode = "mxfp8" }
"head.weight" = { module = "Linear", role = "head" }
"#;

fn floating() -> (Checkpoint, Family) {
    let shapes = [("experts.down_proj", vec![4, 64, 128]), ("q_proj", vec![64, 128]), ("head", vec![96, 64])];
    let tensors = shapes.map(|(name, shape)| (format!("{name}.weight"), shape)).to_vec();
    let model = Model { config: serde_json::json!({ "model_type": "own" }), tensors };
    (open(&model), Family::parse(FLOATING).unwrap())
}

/// The formats of experts, query and head.
fn formats(plan: &Plan) -> String {
    let found = stored(plan);
    ["experts.down_proj", "q_proj", "head"].map(|module| found[module].as_str()).join(", ")
}

#[test]
fn a_familys_mode_is_for_runs_of_as_many_bits_unless_it_keeps_more() {
    let (checkpoint, family) = floating();
    let planned = |options: &Options| {
        Plan::new(&checkpoint, Origin::family(&checkpoint, &family, None).unwrap(), options).unwrap()
    };
    let run = |mode, bits, group_size| {
        let format = Format::new(mode, bits, group_size);
        formats(&planned(&Options { format, ..fast() }))
    };
    assert_eq!(run(Mode::Affine, 4, 64), "mxfp4, mxfp8, 4-bit g64");
    assert_eq!(run(Mode::Affine, 4, 32), "mxfp4, mxfp8, 4-bit g32");
    assert_eq!(run(Mode::Affine, 3, 64), "3-bit g64, mxfp8, 3-bit g64");
    assert_eq!(run(Mode::Affine, 8, 64), "8-bit g64, mxfp8, 8-bit g64");
    assert_eq!(run(Mode::Nvfp4, 4, 16), "nvfp4, mxfp8, nvfp4");
    assert_eq!(formats(&planned(&Options { format: None, ..fast() })), "keep, keep, keep");
    let overrides = vec![Override::parse("experts=6", None).unwrap()];
    assert_eq!(formats(&planned(&Options { overrides, ..fast() })), "6-bit g64, mxfp8, 4-bit g64");
    let rules = recipe("[[rule]]\nrole = 'attention-query'\nformat = 'keep'\n");
    assert_eq!(formats(&planned(&rules)), "mxfp4, keep, 4-bit g64");
    let files = written(&planned(&fast()), &checkpoint, PLENTY);
    let config: serde_json::Value = serde_json::from_slice(&files["config.json"]).unwrap();
    let expected = serde_json::json!({ "group_size": 64, "bits": 4, "mode": "affine",
        "experts.down_proj": { "group_size": 32, "bits": 4, "mode": "mxfp4" },
        "q_proj": { "group_size": 32, "bits": 8, "mode": "mxfp8" } });
    assert_eq!(config["quantization"], expected);
}

#[test]
fn a_target_chooses_for_a_familys_four_bits_and_not_for_its_eight() {
    let (checkpoint, family) = floating();
    let chosen = |bits: f64| {
        let origin = Origin::family(&checkpoint, &family, None).unwrap();
        let (options, request) = (fast(), target(bits));
        let allocating = Allocating::new(&checkpoint, origin, &options, &request, None).unwrap();
        let mut measures = Measures::new(allocating.fingerprint());
        let stop = AtomicBool::new(false);
        allocating.measure(&mut measures, Means { memory: PLENTY, observer: &Silent, stop: &stop }).unwrap();
        allocating.plan(&measures).unwrap()
    };
    let few = stored(&chosen(4.0))["experts.down_proj"].clone();
    assert!(few.starts_with("2-bit") || few.starts_with("3-bit"), "{few}");
    let plan = chosen(7.0);
    assert!(formats(&plan).contains(", mxfp8, ") && !formats(&plan).contains("mxfp4"), "{}", formats(&plan));
}

#[test]
fn floors_and_ceilings_hold_for_whatever_a_target_chooses() {
    let checkpoint = open(&Model::manifest("llama"));
    let rules = "[[rule]]\nrole = 'mlp-down'\nfloor = 6\n[[rule]]\nmatch = 'q_proj'\nceiling = 3\n\
                 [[rule]]\nmatch = 'o_proj'\nfloor = 4\nceiling = 5\n[[rule]]\nmatch = 'o_proj'\nlayers = '0'\nfloor = 3\n";
    let plan = choose(&checkpoint, &recipe(rules), &target(4.5), PLENTY, None).unwrap().plan;
    let bits = |part: &str| {
        let of = |task: &smelt_core::plan::Task| task.format.as_ref().map(|spec| spec.0.bits());
        plan.tasks.iter().filter(|task| task.module().contains(part)).filter_map(of).collect::<Vec<_>>()
    };
    assert!(bits("down_proj").iter().all(|bits| *bits >= 6));
    assert!(bits("q_proj").iter().all(|bits| *bits <= 3));
    assert!(bits("o_proj")[1..].iter().all(|bits| (4..=5).contains(bits)));
    assert!((3..=5).contains(&bits("o_proj")[0]), "the later floor holds, and the earlier ceiling");
    assert!(plan.totals.bits_per_weight <= 4.5);
    let layers = bits("o_proj").len() as u64;
    let counts: Vec<_> = plan.rules.iter().map(|rule| (rule.matched, rule.modules)).collect();
    assert_eq!(counts, [(layers, layers), (layers, layers), (layers, layers), (1, 1)]);
    let output = written(&plan, &checkpoint, PLENTY);
    let files = output.iter().filter(|(name, _)| name.ends_with(".safetensors"));
    assert_eq!(files.map(|(_, bytes)| bytes.len() as u64).sum::<u64>(), plan.totals.file_bytes);
}

fn refused(options: &Options, request: &Request) -> BitsError {
    let checkpoint = open(&Model::manifest("llama"));
    match Allocating::new(&checkpoint, origin(&checkpoint), options, request, None) {
        Err(Error::Bits(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_rules_make_impossible_is_refused_before_a_weight_is_read() {
    let floor = recipe("[[rule]]\nmatch = ''\nfloor = 6\n");
    let error = refused(&floor, &target(4.0));
    let BitsError::Unreachable { bounded: true, .. } = &error else { panic!("{error}") };
    assert!(
        error.to_string().contains("with the floors and ceilings of the recipe this model takes from 6.")
    );
    let ceiling = recipe("[[rule]]\nmatch = ''\nceiling = 3\n");
    assert!(matches!(refused(&ceiling, &target(5.0)), BitsError::Unreachable { bounded: true, .. }));
    let narrow = Request { formats: parse_formats("4/64,8/64").unwrap(), ..target(5.0) };
    let between = recipe("[[rule]]\nmatch = 'q_proj'\nfloor = 5\nceiling = 6\n");
    let error = refused(&between, &narrow).to_string();
    assert!(
        error.contains("model.layers.0.self_attn.q_proj") && error.contains("`r.toml`, line 2"),
        "{error}"
    );
    let crossed = recipe("[[rule]]\nrole = 'head'\nfloor = 6\n[[rule]]\nmatch = 'lm_head'\nceiling = 4\n");
    let error = refused(&crossed, &target(5.0)).to_string();
    assert!(
        error.contains("`lm_head`: the floor of rule `head: at least 6 bits` (`r.toml`, line 2, column 1)"),
        "{error}"
    );
    let set = recipe("[[rule]]\nmatch = ''\nformat = '4'\n");
    assert!(matches!(refused(&set, &target(4.5)), BitsError::NothingFree));
    // Without a target a floor means nothing.
    let checkpoint = open(&Model::manifest("llama"));
    let alone = planned(&checkpoint, &floor);
    assert!(matches!(alone, Err(Error::Bits(BitsError::BoundAlone { .. }))), "{alone:?}");
    // A rule that finds nothing is known before anything is measured.
    let unused = Options { strict: true, ..recipe("[[rule]]\nmatch = 'zzz'\nfloor = 4\n") };
    let usual = target(4.5);
    let strict = Allocating::new(&checkpoint, origin(&checkpoint), &unused, &usual, None);
    assert!(matches!(strict, Err(Error::Plan(PlanError::Strict { .. }))), "{strict:?}");
}

/// A finished output, opened as a checkpoint.
fn finished(checkpoint: &Checkpoint, plan: &Plan) -> Checkpoint {
    let files = written(plan, checkpoint, PLENTY);
    Checkpoint::open(Arc::new(MemorySource::new(files))).unwrap()
}

#[test]
fn a_model_is_copied_module_for_module() {
    for name in ["qwen3_moe", "llama_tied", "gemma2"] {
        let checkpoint = open(&Model::manifest(name));
        let overrides = ["down_proj=6:32", r"layers\.0\..*q_proj=mxfp4", "k_proj=keep", "embed=8:128"];
        let overrides = overrides.map(|text| Override::parse(text, None).unwrap()).to_vec();
        let first = planned(&checkpoint, &Options { overrides, ..fast() }).unwrap();
        let like = Like::of(&finished(&checkpoint, &first), "first").unwrap();
        let options = Options { format: Some(like.common()), like: Some(like), ..fast() };
        let second = planned(&checkpoint, &options).unwrap();
        assert_eq!(stored(&second), stored(&first), "{name}");
        assert_eq!(second.config, first.config, "{name}");
        assert_eq!(
            (second.rules[0].source, second.rules[0].matched),
            (RuleSource::Like, second.rules[0].modules)
        );
        assert!(second.notes.is_empty(), "{:?}", second.notes);
    }
}

#[test]
fn modules_that_one_model_lacks_are_told() {
    let tied = open(&Model::manifest("llama_tied"));
    let untied = open(&Model::manifest("llama"));
    let of = |checkpoint: &Checkpoint| {
        let plan = planned(checkpoint, &fast()).unwrap();
        Like::of(&finished(checkpoint, &plan), "other").unwrap()
    };
    let (small, large) = (of(&tied), of(&untied));
    let options = |like: Like| Options { format: Some(like.common()), like: Some(like), ..fast() };
    let plan = planned(&untied, &options(small.clone())).unwrap();
    let missing = |note: &Note| matches!(note, Note::LikeMissing { modules, .. } if *modules == ["lm_head"]);
    assert!(plan.notes.iter().any(missing), "{:?}", plan.notes);
    assert_eq!(stored(&plan)["lm_head"], "4-bit g64");
    let strict = planned(&untied, &Options { strict: true, ..options(small.clone()) });
    assert!(matches!(strict, Err(Error::Plan(PlanError::Strict { .. }))), "{strict:?}");
    let decided = Options {
        overrides: vec![Override::parse("lm_head=8", None).unwrap()],
        strict: true,
        ..options(small)
    };
    assert_eq!(stored(&planned(&untied, &decided).unwrap())["lm_head"], "8-bit g64");
    let plan = planned(&tied, &Options { strict: true, ..options(large) }).unwrap();
    let spare = |note: &Note| matches!(note, Note::LikeSpare { modules, .. } if *modules == ["lm_head"]);
    assert!(plan.notes.iter().any(spare), "{:?}", plan.notes);
    let plain = Like::of(&tied, "plain");
    assert!(matches!(plain, Err(Error::Bits(BitsError::NotLike { .. }))), "{plain:?}");
}

/// The files of a model with `language_model.` in front of all tensors, but not in the config.
fn renamed(mut files: BTreeMap<String, Vec<u8>>) -> Checkpoint {
    files.retain(|name, _| name == "config.json" || name == "model.safetensors");
    let shard = files.get_mut("model.safetensors").unwrap();
    let length = u64::from_le_bytes(shard[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&shard[8..8 + length]).unwrap();
    let entries = header.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__");
    let named: serde_json::Map<_, _> =
        entries.map(|(name, entry)| (format!("language_model.{name}"), entry.clone())).collect();
    let header = serde_json::to_vec(&named).unwrap();
    *shard = [&(header.len() as u64).to_le_bytes()[..], &header, &shard[8 + length..]].concat();
    Checkpoint::open(Arc::new(MemorySource::new(files))).unwrap()
}

#[test]
fn a_language_model_inside_another_is_found() {
    let checkpoint = open(&Model::manifest("llama"));
    let overrides = vec![Override::parse("down_proj=6:32", None).unwrap()];
    let first = planned(&checkpoint, &Options { overrides, ..fast() }).unwrap();
    let like = Like::of(&renamed(written(&first, &checkpoint, PLENTY)), "inside").unwrap();
    let options = Options { format: Some(like.common()), like: Some(like), strict: true, ..fast() };
    assert_eq!(stored(&planned(&checkpoint, &options).unwrap()), stored(&first));
}

/// A checkpoint whose head is of whole numbers.
fn with_whole_numbers() -> Checkpoint {
    let mut files = Model::manifest("llama").files();
    let shard = &mut files[1].1;
    let length = u64::from_le_bytes(shard[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&shard[8..8 + length]).unwrap();
    header["lm_head.weight"]["dtype"] = "I16".into();
    let header = serde_json::to_vec(&header).unwrap();
    *shard = [&(header.len() as u64).to_le_bytes()[..], &header, &shard[8 + length..]].concat();
    Checkpoint::open(Arc::new(MemorySource::new(files))).unwrap()
}

#[test]
fn what_a_refusal_proposes_helps() {
    let checkpoint = with_whole_numbers();
    let said = planned(&checkpoint, &fast()).unwrap_err().to_string();
    let (_, proposed) = said.split_once("--override '").unwrap();
    let proposed = Override::parse(proposed.trim_end_matches("'`"), None).unwrap();
    planned(&checkpoint, &Options { overrides: vec![proposed], ..fast() }).unwrap();
}
