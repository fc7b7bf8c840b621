//! Bits that are moved: the output holds the source's codes and scales, and stands for its numbers.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::json;
use smelt_core::checkpoint::Checkpoint;
use smelt_core::checkpoint::region::whole;
use smelt_core::layout::Family;
use smelt_core::layout::catalog::Catalog;
use smelt_core::layout::pull::Tensors;
use smelt_core::pipeline::{Allocating, Means, Run, Silent};
use smelt_core::plan::allocate::{FrontierPoint, Request, Target, parse_formats};
use smelt_core::plan::measures::Measures;
use smelt_core::plan::{Memory, Note, Options, Origin, Plan, RecipeFile, Transcode};
use smelt_core::source::LocalSource;
use smelt_kernels::{Format, Mode};

use crate::cases::{self, Draw};
use crate::{Tensor, open};

/// Experts in one tensor that multiply from the right, rows of two projections in turn; experts apart.
const FAMILY: &str = r#"
name = "own"
title = "Own"
model_types = ["own"]

[index]
expert = "2"

[[group]]
when = 'has("e.down_proj")'
[group.tensors]
"gate.weight" = { from = 'transpose(slice("e.down_proj", 2, 0, 12, 2), 0, 2, 1)', module = "SwitchLinear", role = "expert-gate" }
"up.weight" = { from = 'transpose(slice("e.down_proj", 2, 1, 12, 2), 0, 2, 1)', module = "SwitchLinear", role = "expert-up" }

[[group]]
when = 'has("e.0.proj.weight")'
[group.tensors]
"down.weight" = { from = 'stack(expert, "e.{expert}.proj.weight")', module = "SwitchLinear", role = "expert-down" }
"turned.weight" = { from = 'transpose("e.0.proj.weight", 1, 0)', module = "Linear", role = "other" }
"#;

fn plan(checkpoint: &Checkpoint, options: &Options) -> Plan {
    let family = Family::parse(FAMILY).unwrap();
    Plan::new(checkpoint, Origin::family(checkpoint, &family, None).unwrap(), options).unwrap()
}

/// Carries a plan out and opens the result.
fn run(checkpoint: &Checkpoint, plan: &Plan, folder: &Path) -> Checkpoint {
    let schedule = plan.schedule(Memory { limit: 40 << 20, threads: 2 }).unwrap();
    let stop = AtomicBool::new(false);
    Run { plan, checkpoint, output: folder, schedule, importance: None, observer: &Silent, stop: &stop }
        .execute()
        .unwrap();
    Checkpoint::open(Arc::new(LocalSource::open(folder).unwrap())).unwrap()
}

fn read(checkpoint: &Checkpoint, name: &str) -> (Vec<u64>, Vec<[u8; 2]>) {
    let id = Catalog::find(checkpoint, name).unwrap();
    let shape = checkpoint.info(id).shape.to_vec();
    let mut out = vec![0; shape.iter().product::<u64>() as usize * 2];
    checkpoint.read_region(id, &whole(&shape), &mut out).unwrap();
    (shape, out.as_chunks().0.to_vec())
}

fn stored(checkpoint: &Checkpoint, name: &str) -> Vec<u8> {
    let id = checkpoint.find(name).unwrap();
    let mut out = vec![0; checkpoint.tensor(id).bytes as usize];
    checkpoint.read(id, 0, &mut out).unwrap();
    out
}

fn own(tensors: &[Tensor]) -> Checkpoint {
    open(&json!({ "model_type": "own" }), tensors)
}

#[test]
fn powers_of_two_through_exchanged_axes() {
    let case = cases::mxfp4(Draw { lead: 3, rows: 12, cols: 64, pick: 0, seed: 5 });
    let source = own(&case.tensors);
    let plan = plan(&source, &Options::default());
    let moved: Vec<_> = plan.tasks.iter().filter(|task| task.moved.is_some()).collect();
    assert_eq!(moved.len(), 2);
    assert!(moved.iter().all(|task| task.format.as_ref().unwrap().0.mode() == Mode::Mxfp4));
    assert!(matches!(&plan.notes[..], [Note::Moved { .. }, Note::Moved { .. }]), "{:?}", plan.notes);
    let folder = tempfile::tempdir().unwrap();
    let result = run(&source, &plan, folder.path());
    let (_, all) = read(&source, "e.down_proj");
    for (name, first) in [("gate.weight", 0), ("up.weight", 1)] {
        let (shape, found) = read(&result, name);
        assert_eq!(shape, [3, 6, 64]);
        for (place, value) in found.into_iter().enumerate() {
            let (expert, row, col) = (place / 64 / 6, place / 64 % 6, place % 64);
            assert_eq!(value, all[(expert * 64 + col) * 12 + row * 2 + first], "{name} {place}");
        }
    }
}

#[test]
fn a_family_may_ask_for_the_format_of_the_source() {
    let case = cases::mxfp4(Draw { lead: 3, rows: 12, cols: 64, pick: 0, seed: 5 });
    let source = own(&case.tensors);
    let family = FAMILY.replace("\"SwitchLinear\"", "\"SwitchLinear\", mode = \"mxfp4\"");
    let family = Family::parse(&family).unwrap();
    let made = |mode, bits, group_size| {
        let options = Options { format: Format::new(mode, bits, group_size), ..Options::default() };
        let plan = Plan::new(&source, Origin::family(&source, &family, None).unwrap(), &options).unwrap();
        let formats = plan.tasks.iter().map(|task| task.format.as_ref().unwrap().0.to_string());
        let moved = plan.tasks.iter().filter(|task| task.moved.is_some()).count();
        (formats.collect::<Vec<_>>().join(" "), moved, plan.notes.len())
    };
    assert_eq!(made(Mode::Affine, 4, 64), ("mxfp4 mxfp4".to_owned(), 2, 0));
    // Other bits are what counts then: more can't be had, and of that notes tell, as of fewer.
    assert_eq!(made(Mode::Affine, 8, 64), ("mxfp4 mxfp4".to_owned(), 2, 2));
    assert_eq!(made(Mode::Affine, 3, 64), ("3-bit g64 3-bit g64".to_owned(), 0, 2));
}

/// Two experts of the integers with these names.
fn experts(pick: u64) -> Vec<Tensor> {
    let expert = |index: u64| {
        let case = cases::integers(Draw { lead: 1, rows: 64, cols: 96, pick, seed: index });
        let renamed = move |tensor: Tensor| Tensor {
            name: tensor.name.replace("a.", &format!("e.{index}.")),
            ..tensor
        };
        case.tensors.into_iter().map(renamed)
    };
    (0..2).flat_map(expert).collect()
}

#[test]
fn symmetric_integers_with_their_bias() {
    let source = own(&experts(0));
    let plan = plan(&source, &Options::default());
    let folder = tempfile::tempdir().unwrap();
    let result = run(&source, &plan, folder.path());
    let both =
        |ending: &str| [0, 1].map(|e| stored(&source, &format!("e.{e}.proj.weight_{ending}"))).concat();
    assert_eq!(stored(&result, "down.weight"), both("packed"));
    assert_eq!(stored(&result, "down.scales"), both("scale"));
    let number = |bytes: &[u8; 2]| half::bf16::from_le_bytes(*bytes).to_f32();
    let (scales, biases) = (both("scale"), stored(&result, "down.biases"));
    for (scale, bias) in scales.as_chunks().0.iter().zip(biases.as_chunks().0) {
        assert_eq!(number(bias), -8.0 * number(scale));
    }
    // Across its rows a weight has no groups to move.
    let turned = plan.tasks.iter().find(|task| task.name == "turned.weight").unwrap();
    assert!(turned.moved.is_none());
    assert!(
        plan.notes.iter().any(|note| matches!(note, Note::NotMoved { module, .. } if module == "turned"))
    );
}

#[test]
fn what_is_asked_for_decides() {
    let source = own(&experts(0));
    let moved =
        |options: &Options| plan(&source, options).tasks.iter().filter(|task| task.moved.is_some()).count();
    assert_eq!(moved(&Options::default()), 1);
    assert_eq!(moved(&Options { transcode: Transcode::Never, ..Options::default() }), 0);
    assert_eq!(moved(&Options { format: Format::new(Mode::Affine, 3, 32), ..Options::default() }), 0);
    assert_eq!(moved(&Options { format: Format::new(Mode::Affine, 8, 64), ..Options::default() }), 1);
    assert_eq!(moved(&Options { format: None, ..Options::default() }), 0);
    // Zero points make a bias that need not be exact.
    let zeros = own(&experts(4));
    assert!(plan(&zeros, &Options::default()).tasks.iter().all(|task| task.moved.is_none()));
}

/// Weights in two formats that MLX has, and one that can't be moved.
fn mixed() -> Checkpoint {
    let mut tensors = cases::mxfp4(Draw { lead: 3, rows: 12, cols: 64, pick: 0, seed: 5 }).tensors;
    tensors.extend(experts(0));
    own(&tensors)
}

/// What a target makes of it, among these formats.
fn allocated(source: &Checkpoint, target: Target, formats: &str, options: &Options) -> Plan {
    let family = Family::parse(FAMILY).unwrap();
    let origin = Origin::family(source, &family, None).unwrap();
    let formats = parse_formats(formats).unwrap();
    let request = Request { target, asked: String::new(), formats, layers: None };
    let allocating = Allocating::new(source, origin, options, &request, None).unwrap();
    let mut measures = Measures::new(allocating.fingerprint());
    let (stop, memory) = (AtomicBool::new(false), Memory { limit: 1 << 30, threads: 2 });
    let means = Means { memory, observer: &Silent, stop: &stop };
    allocating.measure(&mut measures, means).unwrap();
    allocating.plan(&measures).unwrap()
}

#[test]
fn a_target_counts_on_bits_that_are_moved() {
    let source = mixed();
    let moved = |plan: &Plan| plan.tasks.iter().filter(|task| task.moved.is_some()).count();
    let every = "2/64,3/64,4/64,5/64,6/64,8/64,8/32";
    let most = allocated(&source, Target::AtMost(1 << 30), every, &Options::default());
    let last = most.allocation.as_ref().unwrap().frontier.last().unwrap();
    assert_eq!(moved(&most), 3);
    assert_eq!(last.tensor_bytes, most.totals.tensor_bytes, "what is moved takes what the source takes");
    let decoded = Options { transcode: Transcode::Never, ..Options::default() };
    let free = allocated(&source, Target::AtMost(1 << 30), every, &decoded);
    assert!(moved(&free) == 0 && free.totals.tensor_bytes > most.totals.tensor_bytes);
    // Every budget is spent as far as whole modules can, and to the byte as predicted.
    let first = most.allocation.as_ref().unwrap().frontier[0].tensor_bytes;
    for budget in (first..=last.tensor_bytes).step_by(200) {
        let plan = allocated(&source, Target::AtMost(budget), every, &Options::default());
        let allocation = plan.allocation.as_ref().unwrap();
        let below = |point: &&FrontierPoint| point.tensor_bytes <= budget;
        let reached = allocation.frontier.iter().rfind(below).unwrap();
        assert!(plan.totals.tensor_bytes <= budget && allocation.loss <= reached.loss, "{budget}");
        for task in plan.tasks.iter().filter(|task| task.moved.is_none()) {
            assert!(task.module() == "turned" || task.format.as_ref().unwrap().0.bits() < 4, "{}", task.name);
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let result = run(&source, &most, folder.path());
    assert_eq!(result.tensors().iter().map(|tensor| tensor.bytes).sum::<u64>(), most.totals.tensor_bytes);
}

#[test]
fn a_format_of_the_source_is_asked_for_by_name_or_by_its_bits() {
    let source = mixed();
    let named = allocated(&source, Target::AtMost(1 << 30), "3/64,mxfp4,8/64,8/32", &Options::default());
    let notes = |plan: &Plan| -> Vec<String> {
        let of = |note: &Note| match note {
            Note::Moved { module, .. } => Some(module.clone()),
            _ => None,
        };
        plan.notes.iter().filter_map(of).collect()
    };
    assert_eq!(notes(&named), ["down"], "what is stored as asked for needs no note");
    let fewer = allocated(&source, Target::AtMost(1 << 30), "3/64,3/32", &Options::default());
    assert!(fewer.tasks.iter().all(|task| task.moved.is_none()));
    // Bounds: a weight without an error is above every floor.
    let text = "schema = 1\n[[rule]]\nmatch = 'gate'\nfloor = 6\n[[rule]]\nmatch = 'up'\nceiling = 3\n";
    let rules = RecipeFile::parse("r.toml", text).unwrap().rules;
    let bounded = Options { rules, ..Options::default() };
    let plan = allocated(&source, Target::AtMost(1 << 30), "2/64,3/64,4/64,8/64,8/32", &bounded);
    let of = |module: &str| plan.tasks.iter().find(|task| task.module() == module).unwrap();
    assert!(of("gate").moved.is_some());
    assert!(of("up").moved.is_none() && of("up").format.as_ref().unwrap().0.bits() == 3);
}
