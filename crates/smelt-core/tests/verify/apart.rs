//! What lies apart from a model is checked like it: files, index, hashes, values.

use serde_json::json;
use smelt_core::checkpoint::Checkpoint;
use smelt_core::layout::Role;
use smelt_core::plan::{Mtp, Options};
use smelt_core::verify::Check;
use smelt_core::verify::diff::Status;

use crate::diff::diff;
use crate::predicting::deepseek;
use crate::shards::{edit_header, edit_json, header_len};
use crate::{Contents, errors, has_error, open, quantized, verify, written};

const FILE: &str = "mtp/model.safetensors";
const INDEX: &str = "mtp/model.safetensors.index.json";
const CONFIG: &str = "mtp/config.json";
const MODULE: &str = "model.layers.1.self_attn.o_proj";
const FUSION: &str = "model.layers.1.eh_proj.weight";

fn source() -> Checkpoint {
    open(deepseek().files())
}

fn options() -> Options {
    Options { mtp: Mtp::Separate, ..Options::default() }
}

/// Where the bytes of a tensor begin in the file.
fn begin(file: &[u8], tensor: &str) -> usize {
    let header = header_len(file);
    let entries: serde_json::Value = serde_json::from_slice(&file[8..header]).unwrap();
    header + entries[tensor]["data_offsets"][0].as_u64().unwrap() as usize
}

/// Turns a bit of a tensor.
fn flip(model: &mut Contents, tensor: &str) {
    let file = model.get_mut(FILE).unwrap();
    let begin = begin(file, tensor);
    // The upper byte of a BF16: its sign.
    file[begin + 1] ^= 0x80;
}

#[test]
fn it_is_sound_with_and_without_its_source() {
    let source = source();
    let model = written(&source, &options());
    let report = verify(&model, None);
    assert!(report.findings.iter().all(|finding| finding.check == Check::SideFiles), "{:?}", report.findings);
    assert!(report.hashed);
    let alone = verify(&written(&source, &Options::default()), None);
    assert!(report.tensors > alone.tensors && report.quantized > alone.quantized);
    let compared = verify(&model, Some(&source));
    assert!(errors(&compared).is_empty(), "{:?}", compared.findings);
    let tensors = compared.comparison.unwrap().tensors;
    let apart: Vec<_> = tensors.iter().filter(|tensor| tensor.role == Role::Mtp).collect();
    assert!(apart.iter().any(|tensor| tensor.name == FUSION && tensor.format == "bf16"));
    assert!(
        apart.iter().any(|tensor| tensor.name == format!("{MODULE}.weight") && tensor.format == "8-bit g64")
    );
}

#[test]
fn a_turned_bit_is_found_by_its_hash() {
    let model = written(&source(), &options());
    for tensor in [FUSION.to_owned(), format!("{MODULE}.weight"), format!("{MODULE}.scales")] {
        let mut broken = model.clone();
        flip(&mut broken, &tensor);
        assert!(has_error(&verify(&broken, None), Check::Hashes, &tensor), "{tensor}");
    }
    let mut broken = model.clone();
    edit_header(broken.get_mut(FILE).unwrap(), |header| header["__metadata__"]["format"] = json!("MLX"));
    assert!(has_error(&verify(&broken, None), Check::Hashes, FILE));
    for file in [CONFIG, INDEX] {
        let mut broken = model.clone();
        broken.get_mut(file).unwrap().push(b'\n');
        assert!(has_error(&verify(&broken, None), Check::Hashes, file), "{file}");
        broken.remove(file).unwrap();
        assert!(has_error(&verify(&broken, None), Check::Hashes, file), "{file}");
    }
}

#[test]
fn a_wrong_value_is_found_by_its_source() {
    let source = source();
    let mut model = quantized(&source, &options());
    flip(&mut model, FUSION);
    assert!(verify(&model, None).is_sound());
    assert!(has_error(&verify(&model, Some(&source)), Check::Source, FUSION));
}

#[test]
fn missing_files_and_other_formats_are_found_without_hashes() {
    let model = quantized(&source(), &options());
    let mut broken = model.clone();
    broken.remove(FILE).unwrap();
    assert!(has_error(&verify(&broken, None), Check::Shards, FILE));
    let mut broken = model.clone();
    edit_json(&mut broken, CONFIG, |config| config["quantization"]["bits"] = json!(4));
    let report = verify(&broken, None);
    assert!(
        errors(&report).iter().any(|found| {
            found.check == Check::Quantization && found.names.iter().all(|name| name.starts_with("mtp/"))
        }),
        "{:?}",
        report.findings
    );
    let mut broken = model;
    edit_json(&mut broken, INDEX, |index| index["weight_map"]["spare.weight"] = json!("model.safetensors"));
    assert!(has_error(&verify(&broken, None), Check::Index, "mtp/spare.weight"));
}

#[test]
fn two_models_are_compared_apart_as_well() {
    let source = source();
    let (first, alone) = (written(&source, &options()), written(&source, &Options::default()));
    let mut second = first.clone();
    flip(&mut second, &format!("{MODULE}.scales"));
    edit_json(&mut second, CONFIG, |config| config["model_type"] = json!("another"));
    let found = diff(&first, &second);
    let others: Vec<_> = found.tensors.iter().filter(|entry| entry.status != Status::Equal).collect();
    assert_eq!((others.len(), others[0].name.as_str()), (1, &*format!("mtp/{MODULE}.weight")));
    assert_eq!(found.config.iter().map(|change| change.key.as_str()).collect::<Vec<_>>(), ["mtp/model_type"]);
    let found = diff(&first, &alone);
    assert!(found.count(Status::OnlyFirst) > 0 && found.count(Status::OnlySecond) == 0);
    assert!(found.tensors.iter().all(|entry| entry.name.starts_with("mtp/") == entry.second.is_none()));
}
