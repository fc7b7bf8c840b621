//! The files of an output, as readers other than smelt see them.

use std::fs;

use safetensors::SafeTensors;
use serde_json::Value;
use smelt_core::layout::{Family, family};
use smelt_core::plan::{Note, Options, Origin, Plan, shard_header};

use crate::common::{Model, manifests};
use crate::{Contents, PLENTY, open, plan, written};

fn run(name: &str, shard_bytes: u64) -> (Plan, Contents) {
    let checkpoint = open(&Model::manifest(name));
    let plan = plan(&checkpoint, &Options { shard_bytes, ..Options::default() }).unwrap();
    let output = written(&plan, &checkpoint, PLENTY);
    (plan, output)
}

/// The header of a shard, as text.
fn header(shard: &[u8]) -> &str {
    let length = u64::from_le_bytes(shard[..8].try_into().unwrap()) as usize;
    std::str::from_utf8(&shard[8..8 + length]).unwrap()
}

#[test]
fn every_file_has_the_predicted_size() {
    for entry in fs::read_dir(manifests()).unwrap() {
        let name = entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned();
        let (plan, output) = run(&name, 100_000);
        let expected: Vec<_> = plan.shards.iter().map(|shard| (&shard.name, shard.bytes())).collect();
        for (file, bytes) in &expected {
            assert_eq!(output[*file].len() as u64, *bytes, "{name}: {file}");
        }
        let sides = plan.side_files.iter().map(|file| file.path.as_str());
        let mut names: Vec<_> = expected.iter().map(|(file, _)| file.as_str()).chain(sides).collect();
        names.extend(["config.json", "model.safetensors.index.json", "smelt-manifest.json"]);
        names.sort_unstable();
        assert!(output.keys().eq(names.iter()), "{name}: {:?}", output.keys());
        let shards: u64 = expected.iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(plan.totals.file_bytes, shards, "{name}");
        assert_eq!(plan.totals.disk_bytes(), shards + 14, "{name}: the tokenizer has 14 bytes");
    }
}

#[test]
fn files_that_a_library_is_to_change_are_not_called_its_own() {
    let text = family::text("llama").unwrap().replace("[let]", "preimage = [\"mlx-lm\"]\n\n[let]");
    let checkpoint = open(&Model::manifest("llama"));
    for (target, says) in [("mlx-lm", "pt"), ("mlx-vlm", "mlx")] {
        let origin = Origin::family(&checkpoint, &Family::parse(&text).unwrap(), Some(target)).unwrap();
        let plan = Plan::new(&checkpoint, origin, &Options::default()).unwrap();
        let stored: Plan = serde_json::from_str(&serde_json::to_string(&plan).unwrap()).unwrap();
        let bytes = shard_header(&stored, 0);
        assert_eq!(bytes.len() as u64, stored.shards[0].header_bytes);
        assert!(
            header(&bytes).starts_with(&format!(r#"{{"__metadata__":{{"format":"{says}"}},"#)),
            "{target}"
        );
    }
}

#[test]
fn headers_are_sorted_aligned_and_of_mlx() {
    let (plan, output) = run("qwen3_moe", 30_000);
    for shard in &plan.shards {
        let bytes = &output[&shard.name];
        let read = SafeTensors::deserialize(bytes).unwrap();
        let text = header(bytes);
        assert!(text.starts_with(r#"{"__metadata__":{"format":"mlx"},"#), "{text}");
        assert_eq!((8 + text.len()) % 8, 0, "the data is aligned");
        let object: Value = serde_json::from_str(text).unwrap();
        let names: Vec<_> = object.as_object().unwrap().keys().collect();
        assert!(names.is_sorted(), "{names:?}");
        assert_eq!(names.len(), read.len() + 1);
        assert_eq!(serde_json::to_string(&object).unwrap(), text.trim_end(), "no spaces inside");
    }
}

#[test]
fn the_index_names_every_tensor_and_counts_as_mlx_does() {
    let (plan, output) = run("qwen3_moe", 30_000);
    let index: Value = serde_json::from_slice(&output["model.safetensors.index.json"]).unwrap();
    let map = index["weight_map"].as_object().unwrap();
    assert!(map.keys().is_sorted());
    let mut bytes = 0;
    let mut count = 0;
    for shard in &plan.shards {
        let read = SafeTensors::deserialize(&output[&shard.name]).unwrap();
        for (name, view) in read.iter() {
            assert_eq!(map[name], *shard.name);
            (bytes, count) = (bytes + view.data().len(), count + 1);
        }
    }
    assert_eq!(map.len(), count);
    assert_eq!(index["metadata"]["total_size"], bytes);
    // Parameters are those before quantization.
    let source: u64 =
        Model::manifest("qwen3_moe").tensors.iter().map(|(_, shape)| shape.iter().product::<u64>()).sum();
    assert_eq!(index["metadata"]["total_parameters"], source);
    let last = &plan.shards.last().unwrap().name;
    let count = plan.shards.len();
    assert_eq!(*last, format!("model-{count:05}-of-{count:05}.safetensors"));
}

#[test]
fn the_config_keeps_its_text_and_gains_the_format() {
    let (_, output) = run("qwen3_moe", 1 << 30);
    let config: Value = serde_json::from_slice(&output["config.json"]).unwrap();
    let source = Model::manifest("qwen3_moe").config;
    for (key, value) in source.as_object().unwrap() {
        assert_eq!(config[key], *value, "{key}");
    }
    let format = &config["quantization"];
    assert_eq!(format["bits"], 4);
    assert_eq!(format["group_size"], 64);
    assert_eq!(format["mode"], "affine");
    assert_eq!(format["model.layers.0.mlp.gate"]["bits"], 8, "the router keeps eight bits");
    assert_eq!(config["quantization_config"], *format);
    assert_eq!(output["tokenizer.json"], b"{\"tokens\": []}");
}

#[test]
fn a_run_that_quantizes_nothing_says_nothing_of_formats() {
    let checkpoint = open(&Model::manifest("llama"));
    let plan = plan(&checkpoint, &Options { format: None, ..Options::default() }).unwrap();
    let config: Value = serde_json::from_str(&plan.config).unwrap();
    assert_eq!(config, Model::manifest("llama").config);
}

#[test]
fn a_config_asks_for_no_code_where_a_library_has_the_model() {
    let mut model = Model::manifest("llama");
    model.config["model_file"] = "custom.py".into();
    let plan = plan(&open(&model), &Options::default()).unwrap();
    assert_eq!(plan.notes, [Note::Code { file: "custom.py".to_owned(), kept: false }]);
    let config: Value = serde_json::from_str(&plan.config).unwrap();
    assert!(config.get("model_file").is_none() && config["model_type"] == "llama", "{config}");
}

/// mlx-lm would refuse the result: it does not quantize activations for affine weights.
#[test]
fn a_config_does_not_ask_for_quantized_activations() {
    let mut model = Model::manifest("llama");
    model.config["quantize_activations"] = true.into();
    let plan = plan(&open(&model), &Options::default()).unwrap();
    let config: Value = serde_json::from_str(&plan.config).unwrap();
    assert!(config.get("quantize_activations").is_none() && config.get("quantization").is_some());
}

#[test]
fn code_stays_where_no_library_has_the_model() {
    let mut model = Model::manifest("llama");
    model.config["model_type"] = "my_own".into();
    model.config["model_file"] = "custom.py".into();
    let checkpoint = open(&model);
    let family = Family::parse(family::text("llama").unwrap()).unwrap();
    let origin = Origin::family(&checkpoint, &family, None).unwrap();
    let plan = Plan::new(&checkpoint, origin, &Options::default()).unwrap();
    assert_eq!(plan.notes, [Note::Code { file: "custom.py".to_owned(), kept: true }]);
    let config: Value = serde_json::from_str(&plan.config).unwrap();
    assert_eq!(config["model_file"], "custom.py");
}
