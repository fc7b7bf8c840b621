//! Models with which nothing is wrong, as smelt and as other tools write them.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use smelt_core::Error;
use smelt_core::checkpoint::Checkpoint;
use smelt_core::pipeline::{Event, Observer, Silent};
use smelt_core::plan::{Memory, Options, Origin, family_of};
use smelt_core::source::{MemorySource, Source};
use smelt_core::verify::{Check, Report, Verify};
use smelt_kernels::{Format, Mode};

use crate::shards::{edit_json, hashed, rename};
use crate::{
    Contents, MANIFEST, MEMORY, Model, errors, has_error, in_mode, made, mixed, open, verify, verify_with,
    written,
};

#[test]
fn what_smelt_writes_is_sound() {
    for name in ["llama", "qwen3_moe", "gemma2", "mixtral", "llama_odd_width", "llama_tied", "phi3"] {
        let every = [mixed(), Options { format: None, ..Options::default() }];
        let modes = [Mode::Affine, Mode::Mxfp4, Mode::Mxfp8, Mode::Nvfp4].map(in_mode);
        let widths =
            [2, 3, 5, 8].map(|bits| Options { format: Format::new(Mode::Affine, bits, 32), ..mixed() });
        for options in every.into_iter().chain(modes).chain(widths) {
            let made = made(name, &options);
            let report = verify(&hashed(&made.model), Some(&made.source));
            assert!(report.findings.is_empty(), "{name}, {:?}: {:#?}", options.format, report.findings);
            assert!(report.hashed && report.library.as_deref() == Some("mlx-lm"), "{name}");
            let comparison = report.comparison.unwrap();
            assert_eq!(comparison.tensors.len(), report.parameters, "{name}");
            let exact =
                comparison.tensors.iter().filter(|tensor| tensor.metrics.relative_rmse == 0.0).count();
            assert_eq!(report.parameters - report.quantized, exact, "{name}: what is not quantized is exact");
        }
    }
}

#[test]
fn the_hashes_that_are_written_are_those_of_the_bytes() {
    let source = open(Model::manifest("qwen3_moe").files());
    let model = written(&source, &mixed());
    let report = verify(&model, None);
    assert!(report.findings.is_empty() && report.hashed, "{:#?}", report.findings);
    let hashes = |model: &Contents| {
        let manifest: Value = serde_json::from_slice(&model[MANIFEST]).unwrap();
        ["shards", "tensors", "files"].map(|key| manifest[key].clone())
    };
    // By the reference reader, over what lies there.
    assert_eq!(hashes(&hashed(&model)), hashes(&model));
}

#[test]
fn threads_and_memory_change_no_number() {
    let made = made("qwen3_moe", &mixed());
    let report = |limit, threads| {
        let report = verify_with(&made.model, Some(&made.source), Memory { limit, threads });
        serde_json::to_string(&report).unwrap()
    };
    let expected = report(1 << 30, 1);
    assert_eq!(report(1 << 30, 4), expected);
    assert_eq!(report(0, 3), expected);
}

#[test]
fn other_tools_write_as_they_like() {
    let made = made("qwen3_moe", &Options::default());
    let mut model = made.model;
    // No index, no manifest, another order of keys, entries that say what the top says or `false`.
    model.remove("model.safetensors.index.json");
    edit_json(&mut model, "config.json", |config| {
        let mut block = config["quantization"].clone();
        block["lm_head"] = json!({"group_size": 64, "bits": 4, "mode": "affine"});
        block["model.layers.0.self_attn.q_proj"] = json!(true);
        block["model.norm"] = json!(false);
        block.as_object_mut().unwrap().remove("mode");
        config["quantization_config"] = block.clone();
        config["quantization"] = block;
    });
    let report = verify(&model, Some(&made.source));
    assert!(report.findings.is_empty() && !report.hashed, "{:#?}", report.findings);
    // Only the twin is missing: no reader of MLX needs it.
    edit_json(&mut model, "config.json", |config| {
        config.as_object_mut().unwrap().remove("quantization_config");
    });
    assert!(verify(&model, None).findings.is_empty());
}

#[test]
fn a_model_type_that_smelt_does_not_know_is_checked_as_far_as_it_goes() {
    let mut model = made("llama", &Options::default()).model;
    edit_json(&mut model, "config.json", |config| config["model_type"] = json!("llama9"));
    let report = verify(&model, None);
    assert!(report.is_sound() && report.family.is_none(), "{:#?}", report.findings);
    assert!(report.findings.iter().any(|finding| finding.check == Check::Keys), "{:#?}", report.findings);
    edit_json(&mut model, "config.json", |config| config["quantization"]["bits"] = json!(8));
    let report = verify(&model, None);
    assert!(has_error(&report, Check::Quantization, "lm_head.weight"), "{:#?}", report.findings);
}

/// Verifies a model by the layout of its source, as a library would have given it.
fn by_layout(model: &Contents, source: &Checkpoint) -> Report {
    let family = family_of(source, None).unwrap();
    let layout = Origin::family(source, family, None).unwrap().layout;
    let model: Arc<dyn Source> = Arc::new(MemorySource::new(model.clone()));
    let verify = Verify {
        source: &model,
        family: None,
        library: Some("mlx-lm"),
        against: Some(source),
        layout: Some(&layout),
        memory: MEMORY,
        observer: &Silent,
        stop: &AtomicBool::new(false),
    };
    verify.run().unwrap()
}

#[test]
fn a_layout_takes_the_place_of_a_family() {
    let made = made("qwen3_moe", &Options { format: Format::new(Mode::Affine, 4, 32), ..mixed() });
    let mut model = made.model;
    edit_json(&mut model, "config.json", |config| config["model_type"] = json!("own"));
    let report = by_layout(&model, &made.source);
    assert!(report.findings.is_empty() && report.family.is_none(), "{:#?}", report.findings);
    assert_eq!(report.library.as_deref(), Some("mlx-lm"));
    assert_eq!(report.comparison.unwrap().tensors.len(), report.parameters);
    // Two formats have these shapes; the layout's rows tell them apart.
    let mut other = model.clone();
    edit_json(&mut other, "config.json", |config| {
        for block in ["quantization", "quantization_config"] {
            config[block]["bits"] = json!(2);
            config[block]["group_size"] = json!(64);
        }
    });
    let report = by_layout(&other, &made.source);
    assert!(has_error(&report, Check::Quantization, "lm_head.weight"), "{:#?}", errors(&report));
    let name = "model.layers.1.input_layernorm.weight";
    rename(&mut model, name, "model.layers.1.norm.weight");
    let report = by_layout(&model, &made.source);
    assert!(has_error(&report, Check::Source, name), "{:#?}", errors(&report));
    assert!(has_error(&report, Check::Source, "model.layers.1.norm.weight"), "{:#?}", errors(&report));
}

#[test]
fn a_config_that_promises_more_than_there_is() {
    let mut model = made("llama", &Options::default()).model;
    edit_json(&mut model, "config.json", |config| config["num_hidden_layers"] = json!(5));
    let report = verify(&model, None);
    assert!(has_error(&report, Check::Keys, "model.layers.4.mlp.down_proj.weight"), "{:#?}", errors(&report));
    edit_json(&mut model, "config.json", |config| config["num_hidden_layers"] = json!(3));
    let report = verify(&model, None);
    assert!(has_error(&report, Check::Keys, "model.layers.3.mlp.down_proj.weight"), "{:#?}", errors(&report));
    edit_json(&mut model, "config.json", |config| *config = Value::Null);
    assert!(!verify(&model, None).is_sound());
}

/// Sums up what it is told.
#[derive(Default)]
struct Told {
    of: Mutex<u64>,
    done: Mutex<u64>,
}

impl Observer for Told {
    fn on(&self, event: &Event) {
        match event {
            Event::Started { bytes } => *self.of.lock().unwrap() = *bytes,
            Event::Block { bytes } => *self.done.lock().unwrap() += bytes,
            _ => {}
        }
    }
}

#[test]
fn progress_ends_where_it_was_said_to_end_and_a_stop_stops() {
    let made = made("qwen3_moe", &mixed());
    let source: Arc<dyn Source> = Arc::new(MemorySource::new(made.model.clone()));
    for against in [None, Some(&made.source)] {
        let (told, stop) = (Told::default(), AtomicBool::new(false));
        let verify = Verify {
            source: &source,
            family: None,
            library: None,
            against,
            layout: None,
            memory: MEMORY,
            observer: &told,
            stop: &stop,
        };
        verify.run().unwrap();
        assert_eq!(*told.of.lock().unwrap(), *told.done.lock().unwrap());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        assert!(matches!(verify.run(), Err(Error::Interrupted)));
    }
}
