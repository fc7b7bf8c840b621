//! Models of other tools: what is wrong with them is said in words, once, and what loads is sound.

use serde_json::{Value, json};
use smelt_core::plan::Options;
use smelt_core::verify::Severity;
use smelt_kernels::Mode;

use crate::shards::edit_json;
use crate::{Contents, in_mode, made, mixed, verify};

/// What verify says of a model after a change of its config: severities with their words.
fn said(model: &Contents, change: impl FnOnce(&mut Value)) -> Vec<(Severity, String)> {
    let mut model = model.clone();
    edit_json(&mut model, "config.json", change);
    let findings = verify(&model, None).findings;
    findings.into_iter().map(|finding| (finding.severity, finding.what)).collect()
}

/// Takes the dictionary away, and its copy.
fn without(config: &mut Value) -> Value {
    config.as_object_mut().unwrap().remove("quantization_config");
    config.as_object_mut().unwrap().remove("quantization").unwrap()
}

fn error(what: &str) -> Vec<(Severity, String)> {
    vec![(Severity::Error, what.to_owned())]
}

#[test]
fn a_dictionary_in_the_wrong_place() {
    let model = made("qwen3_moe", &mixed()).model;
    let found = said(&model, |config| {
        let block = without(config);
        config["quantization_config"] = block;
    });
    let what = "the formats stand under `quantization_config` alone, where no loader looks for them";
    assert_eq!(found, error(what));
    let plain = made("qwen3_moe", &Options { format: None, ..Options::default() }).model;
    let found = said(&plain, |config| config["quantization_config"] = json!({"bits": 4, "group_size": 64}));
    let what = "`quantization_config` has no `quant_method`, without which mlx-lm does not load the model";
    assert_eq!(found, error(what));
    let found = said(&plain, |config| {
        config["text_config"] = json!({"quantization_config": {"quant_method": "fp8"}});
    });
    assert_eq!(found, error("`quantization_config` says `fp8`, and the loaders will treat the weights so"));
}

#[test]
fn a_method_in_the_place_of_a_dictionary() {
    for mode in [Mode::Mxfp4, Mode::Mxfp8] {
        let options = Options { overrides: Vec::new(), ..in_mode(mode) };
        let mut model = made("llama", &options).model;
        let method = |config: &mut Value| {
            without(config);
            config["quantization_config"] = json!({"quant_method": mode.name()});
        };
        let found = said(&model, method);
        assert!(matches!(&found[..], [(Severity::Warning, what)] if what.contains(mode.name())), "{found:?}");
        edit_json(&mut model, "config.json", method);
        let other = if mode == Mode::Mxfp4 { "mxfp8" } else { "mxfp4" };
        let found = said(&model, |config| config["quantization_config"]["quant_method"] = json!(other));
        assert!(found.iter().any(|(severity, _)| *severity == Severity::Error), "{found:?}");
    }
}

#[test]
fn a_mode_that_nobody_wrote_down() {
    let model = made("llama", &in_mode(Mode::Mxfp4)).model;
    let found = said(&model, |config| {
        let mut block = without(config);
        block.as_object_mut().unwrap().remove("mode");
        config["quantization"] = block;
    });
    assert_eq!(
        found,
        error("`quantization` has no `mode` and so says affine, its shapes are those of mxfp4")
    );
    let found = said(&model, |config| {
        let mut block = without(config);
        block["lm_head"] = json!({"bits": 4, "group_size": 32});
        config["quantization"] = block;
    });
    let what = "its entry in `quantization` has no `mode` and so says affine, its shapes are those of mxfp4";
    assert_eq!(found, error(what));
}

#[test]
fn the_file_of_another_quantization() {
    let file = ("hf_quant_config.json".to_owned(), b"{\"quantization\": {}}".to_vec());
    let mut model = made("llama", &Options::default()).model;
    model.extend([file.clone()]);
    assert_eq!(said(&model, |_| ())[0].0, Severity::Warning);
    let mut plain = made("llama", &Options { format: None, ..Options::default() }).model;
    plain.extend([file]);
    assert_eq!(said(&plain, |_| ())[0].0, Severity::Error);
}
