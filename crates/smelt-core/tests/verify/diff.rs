//! Two models side by side.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde_json::json;
use smelt_core::pipeline::Silent;
use smelt_core::plan::{Options, Override};
use smelt_core::source::{MemorySource, Source};
use smelt_core::verify::diff::{Diff, Differences, Entry, Status};
use smelt_kernels::{Format, Mode};

use crate::shards::{bytes, edit_json};
use crate::{Contents, MEMORY, made, mixed};

pub(crate) fn diff(first: &Contents, second: &Contents) -> Differences {
    let [first, second]: [Arc<dyn Source>; 2] =
        [first, second].map(|model| Arc::new(MemorySource::new(model.clone())) as Arc<dyn Source>);
    let stop = AtomicBool::new(false);
    Diff { first: &first, second: &second, memory: MEMORY, observer: &Silent, stop: &stop }.run().unwrap()
}

fn entry<'a>(found: &'a Differences, name: &str) -> &'a Entry {
    found.tensors.iter().find(|entry| entry.name == name).unwrap()
}

fn plain() -> Options {
    Options { format: None, ..Options::default() }
}

#[test]
fn a_model_is_equal_to_itself_however_it_is_cut() {
    let whole = made("qwen3_moe", &Options { shard_bytes: 5 << 30, ..mixed() }).model;
    let cut = made("qwen3_moe", &mixed()).model;
    assert_ne!(whole.len(), cut.len());
    let found = diff(&whole, &cut);
    assert!(found.is_equal(), "{found:#?}");
}

#[test]
fn formats_differ_by_what_quantization_costs() {
    let floats = made("llama", &plain()).model;
    let four = made("llama", &Options::default()).model;
    let eight =
        made("llama", &Options { format: Format::new(Mode::Affine, 8, 32), ..Options::default() }).model;
    let error =
        |second: &Contents| entry(&diff(&floats, second), "lm_head.weight").metrics.unwrap().relative_rmse;
    assert!((0.05..0.2).contains(&error(&four)) && (0.002..0.02).contains(&error(&eight)));
    let found = diff(&four, &eight);
    let head = entry(&found, "lm_head.weight");
    assert_eq!(head.status, Status::Differs);
    assert_eq!(head.first.as_ref().unwrap().format, "4-bit g64");
    assert_eq!(head.second.as_ref().unwrap().format, "8-bit g32");
    assert!((head.metrics.unwrap().relative_rmse - error(&four)).abs() < 0.02);
    assert_eq!(entry(&found, "model.norm.weight").status, Status::Equal);
    let keys: Vec<_> = found.config.iter().map(|change| change.key.as_str()).collect();
    let expected = [
        "quantization.group_size",
        "quantization.bits",
        "quantization_config.group_size",
        "quantization_config.bits",
    ];
    assert_eq!(keys, expected);
    assert_eq!((&found.config[1].first, &found.config[1].second), (&Some(json!(4)), &Some(json!(8))));
}

#[test]
fn one_byte_one_name_one_key() {
    let first = made("llama", &Options::default()).model;
    let mut second = first.clone();
    bytes(&mut second, "lm_head.weight")[3] ^= 1;
    edit_json(&mut second, "config.json", |config| config["rope_theta"] = json!(1));
    let found = diff(&first, &second);
    let others: Vec<_> = found.tensors.iter().filter(|entry| entry.status != Status::Equal).collect();
    assert_eq!(
        (others.len(), others[0].name.as_str(), others[0].status),
        (1, "lm_head.weight", Status::Differs)
    );
    assert_eq!(found.config.len(), 1);
    let tied = made("llama_tied", &Options::default()).model;
    let found = diff(&first, &tied);
    assert_eq!(entry(&found, "lm_head.weight").status, Status::OnlyFirst);
    assert_eq!(diff(&tied, &first).count(Status::OnlySecond), found.count(Status::OnlyFirst));
}

#[test]
fn the_same_values_in_a_wider_type() {
    let first = made("llama", &plain()).model;
    let wide = Options { dtype: Some(smelt_core::checkpoint::DType::F32), ..plain() };
    let found = diff(&first, &made("llama", &wide).model);
    assert_eq!(found.count(Status::SameValues), found.tensors.len());
    // Groups of different sizes are read side by side.
    let groups = |group: usize| {
        let rule = Override::parse(&format!("lm_head=8:{group}"), None).unwrap();
        made("llama", &Options { overrides: vec![rule], ..plain() }).model
    };
    let found = diff(&groups(32), &groups(128));
    assert_eq!(entry(&found, "lm_head.weight").status, Status::Differs);
    assert!(entry(&found, "lm_head.weight").metrics.unwrap().relative_rmse < 0.02);
}

#[test]
fn a_folder_without_tensors_is_no_model() {
    let model = made("llama", &plain()).model;
    let mut empty = model.clone();
    empty.retain(|file, _| !file.ends_with(".safetensors"));
    let [first, second]: [Arc<dyn Source>; 2] =
        [model, empty].map(|model| Arc::new(MemorySource::new(model)) as Arc<dyn Source>);
    let stop = AtomicBool::new(false);
    let diff = Diff { first: &first, second: &second, memory: MEMORY, observer: &Silent, stop: &stop };
    assert!(diff.run().unwrap_err().to_string().contains("no safetensors file to read"));
}
