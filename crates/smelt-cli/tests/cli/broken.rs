//! Checkpoints that are broken: each message names the file and the tensor.

use insta::assert_snapshot;
use serde_json::json;

use crate::{Place, shard};

/// The sound checkpoint with one file replaced.
fn with_file(name: &str, bytes: &[u8]) -> String {
    let place = Place::with("llama", |_| {});
    place.write(&format!("model/{name}"), bytes);
    place.quantize_refusal()
}

fn with_shard(header: &str, data: usize) -> String {
    with_file("model.safetensors", &shard(header, data))
}

#[test]
fn no_directory() {
    let place = Place::new();
    assert_snapshot!(place.quantize_refusal(), @"
    error: cannot open the directory `model`
      caused by: [os error]
    ");
    place.write("model", b"a file");
    assert_snapshot!(place.quantize_refusal(), @"error: `model` is not a directory; name the folder that holds `config.json`");
}

#[test]
fn no_config() {
    let place = Place::new();
    place.write("model/model.safetensors", &shard("{}", 0));
    assert_snapshot!(place.quantize_refusal(), @"error: no `config.json` in `model`; name the folder of a Hugging Face checkpoint");
}

#[test]
fn a_config_that_is_none() {
    assert_snapshot!(with_file("config.json", b"{\"model_type\": "), @"
    error: `config.json` is not valid JSON; download it again
      caused by: EOF while parsing a value at line 1 column 15
    ");
    assert_snapshot!(with_file("config.json", b"[]"), @"error: `config.json` holds no JSON object; download it again");
    assert_snapshot!(with_file("config.json", b"{}"), @"error: config.json has no `model_type`, by which smelt finds the family; `--family` takes a family file of your own (see CONTRIBUTING.md)");
}

#[test]
fn no_weights() {
    let place = Place::new();
    place.write("model/config.json", b"{\"model_type\": \"llama\"}");
    assert_snapshot!(place.quantize_refusal(), @"error: no safetensors file to read in `model`; finish the download");
    place.write("model/pytorch_model.bin", b"");
    assert_snapshot!(place.quantize_refusal(), @"error: no safetensors file to read in `model`; `pytorch_model.bin` is in a format that smelt does not read, get or make the safetensors");
}

#[test]
fn headers_that_are_cut_or_nonsense() {
    assert_snapshot!(with_file("model.safetensors", b"abc"), @"error: `model.safetensors` has 3 bytes, too few for a safetensors file; download it again");
    assert_snapshot!(with_file("model.safetensors", &[&900u64.to_le_bytes()[..], b"{\"a\""].concat()), @"error: `model.safetensors` ends inside its header (900 bytes of header, 12 in the file); download it again");
    assert_snapshot!(with_file("model.safetensors", &[&u64::MAX.to_le_bytes()[..], b"{}"].concat()), @"error: `model.safetensors` gives its header 18446744073709551615 bytes, the format allows 2 to 100000000; is it a safetensors file?");
    assert_snapshot!(with_shard("{\"a\": 1", 0), @"
    error: the header of `model.safetensors` is not that of a safetensors file; download it again
      caused by: tensor `a`: invalid type: integer `1`, expected an object with `dtype`, `shape` and `data_offsets` at line 1 column 7
    ");
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n";
    assert_snapshot!(with_file("model.safetensors", pointer), @"error: `model.safetensors` is a Git LFS pointer, not the weights; run `git lfs pull` in the checkpoint");
}

#[test]
fn tensors_that_do_not_fit_their_file() {
    let two = |a: &str, b: &str| {
        let entry = |offsets: &str| format!(r#"{{"dtype":"BF16","shape":[4],"data_offsets":{offsets}}}"#);
        format!(r#"{{"a":{},"b":{}}}"#, entry(a), entry(b))
    };
    assert_snapshot!(with_shard(&two("[0,8]", "[4,12]"), 12), @"error: the tensors `a` and `b` in `model.safetensors` overlap; download it again");
    assert_snapshot!(with_shard(&two("[0,8]", "[8,18]"), 18), @"error: the tensor `b` in `model.safetensors` needs 8 bytes for its dtype and shape, its offsets are 8 and 18; download it again");
    assert_snapshot!(with_shard(&two("[0,8]", "[8,16]"), 12), @"error: `model.safetensors` is cut short: the tensor `b` ends at byte 134, the file at 130; download it again");
    assert_snapshot!(with_shard(&two("[0,8]", "[9008,9016]"), 9016), @"error: `model.safetensors` has 9000 bytes at 131 that belong to no tensor; download it again");
    let odd = r#"{"a":{"dtype":"F12","shape":[4],"data_offsets":[0,8]}}"#;
    assert_snapshot!(with_shard(odd, 8), @"error: the tensor `a` in `model.safetensors` has the unknown dtype `F12`; is there a newer smelt?");
    let huge = r#"{"a":{"dtype":"BF16","shape":[9223372036854775807,4],"data_offsets":[0,8]}}"#;
    assert_snapshot!(with_shard(huge, 8), @"error: the tensor `a` in `model.safetensors` has a shape too large to count: [9223372036854775807, 4]; download it again");
}

#[test]
fn an_index_of_other_shards() {
    let index = |change: &dyn Fn(&mut serde_json::Map<String, serde_json::Value>)| {
        let place = Place::with("llama", |_| {});
        let names = crate::Model::manifest("llama").tensors.into_iter().map(|(name, _)| name);
        let mut map = names.map(|name| (name, json!("model.safetensors"))).collect();
        change(&mut map);
        let text = json!({ "metadata": {}, "weight_map": map }).to_string();
        place.write("model/model.safetensors.index.json", text.as_bytes());
        place.quantize_refusal()
    };
    let shard = |name: &'static str| {
        move |map: &mut serde_json::Map<_, _>| {
            map.insert("model.norm.weight".to_owned(), json!(name));
        }
    };
    assert_snapshot!(index(&shard("model-00002-of-00002.safetensors")), @"error: the index names the shard `model-00002-of-00002.safetensors`, which is not in `model`; finish the download, or remove the index if it is of other shards");
    assert_snapshot!(index(&|map| drop(map.insert("model.gone".to_owned(), json!("model.safetensors")))), @"error: the index says that `model.safetensors` holds the tensor `model.gone`, it does not; index and shards are not of the same checkpoint");
    assert_snapshot!(index(&|map| drop(map.shift_remove("model.norm.weight"))), @"error: `model.safetensors` holds the tensor `model.norm.weight`, which the index does not name; index and shards are not of the same checkpoint");
    assert_snapshot!(index(&|map| map.clear()), @"error: no safetensors file to read in `model`; finish the download");
    assert_snapshot!(with_file("model.safetensors.index.json", b"{}"), @"error: `model.safetensors.index.json` has no `weight_map`; remove the file if the shards need no index");
}

#[test]
fn weights_that_hold_nan() {
    let place = Place::with("llama", |_| {});
    let mut bytes = std::fs::read(place.path("model/model.safetensors")).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&[0xC0, 0x7F]);
    place.write("model/model.safetensors", &bytes);
    let shown = regex::Regex::new(r"\d+ of 39")
        .unwrap()
        .replace(&place.run("quantize model -o out"), "[some] of 39")
        .into_owned();
    assert_snapshot!(shown, @"
    exit 1
    --- stderr
    warning: [some] of 39 tensors are kept in `out`, from where the next run goes on
    error: `lm_head.weight` holds NaN or infinity; `--allow-nonfinite` goes on all the same
    ");
    assert!(!place.path("out/config.json").exists());
    assert!(place.output("quantize model -o out --allow-nonfinite").status.success());
}

#[cfg(unix)]
#[test]
fn a_file_that_can_not_be_read() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::with("llama", |_| {});
    let shard = place.path("model/model.safetensors");
    std::fs::set_permissions(&shard, std::fs::Permissions::from_mode(0o000)).unwrap();
    if std::fs::File::open(&shard).is_ok() {
        // The administrator may read everything.
        return;
    }
    let said = place.quantize_refusal();
    assert!(said.contains("cannot read `model.safetensors`") && said.contains("ermission"), "{said}");
}
