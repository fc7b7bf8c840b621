//! `smelt verify` and `smelt diff`.

use std::fs;

use insta::assert_snapshot;
use serde_json::Value;

use crate::{Place, sample};

/// With the sample, quantized into `out`.
fn quantized(options: &str) -> Place {
    let place = Place::new();
    assert!(place.output(&format!("quantize {} -o out {options}", sample())).status.success());
    place
}

fn events(place: &Place, args: &str) -> Vec<Value> {
    let output = place.output(args);
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn of<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events.iter().filter(|event| event["type"] == kind).map(|event| &event["data"]).collect()
}

fn edit(place: &Place, file: &str, change: impl FnOnce(String) -> String) {
    let path = place.path(file);
    fs::write(&path, change(fs::read_to_string(&path).unwrap())).unwrap();
}

#[test]
fn a_sound_model() {
    let place = quantized("");
    assert_snapshot!(place.run("verify out"), @"
    exit 0
    --- stderr
    done: `out` is sound: 1.52 MiB in 116 tensors, names and shapes of mlx-lm, [hashes], no errors, no warnings, [time, rate, memory]
    ");
    let shown = place.run(&format!("verify out --against {} --show 2", sample()));
    let (tables, done) = shown.split_once("--- stderr\n").unwrap();
    assert!(
        tables.contains("norm") && tables.contains("worst tensors") && tables.contains("4-bit g64"),
        "{shown}"
    );
    assert_snapshot!(done, @"done: `out` is sound: 1.52 MiB in 116 tensors, names and shapes of mlx-lm, [hashes], 50 parameters compared with the source, no errors, no warnings, [time, rate, memory]");
    let events = events(&place, &format!("verify out --against {} --json", sample()));
    assert_eq!(of(&events, "tensor").len(), 50);
    assert!(of(&events, "finding").is_empty() && !of(&events, "kind").is_empty());
    let tensor = of(&events, "tensor")[0];
    assert!(tensor["metrics"]["relative_rmse"].as_f64().unwrap() < 0.15, "{tensor}");
    let last = events.last().unwrap();
    assert_eq!((&last["type"], &last["data"]["sound"]), (&"done".into(), &true.into()));
    let progress = *of(&events, "progress").last().unwrap();
    assert_eq!(progress["bytes"], progress["of"]);
}

#[test]
fn a_model_with_faults() {
    let place = quantized("");
    edit(&place, "out/config.json", |text| text.replacen("\"bits\": 4", "\"bits\": 8", 1));
    place.write("out/model-00002.safetensors.partial", b"");
    fs::remove_file(place.path("out/tokenizer.json")).unwrap();
    // Where the model has hashes they find the changed files too.
    let _ = fs::remove_file(place.path("out/smelt-manifest.json"));
    assert_snapshot!(place.run("verify out"), @"
    exit 1
    --- stdout
    error: `model-00002.safetensors.partial`: a file that was never finished
      finish the run that writes it, or remove the file
    error: `config.json`: `quantization_config` is not equal to `quantization`; readers that look at it see another model
      correct `quantization` in config.json
    error: `model.embed_tokens.weight`, `model.layers.0.mlp.switch_mlp.down_proj.weight`, `model.layers.0.mlp.switch_mlp.gate_proj.weight` and 26 more: `quantization` says 8-bit g64 for what has no entry, its shapes are those of 4-bit g64; only mlx-lm from 0.32.2 on looks at them
      correct `quantization` in config.json: what stands at its top, or an entry for the module
    warning: `tokenizer.json`: the model has no tokenizer
      copy it from the source
    --- stderr
    error: `out` is not sound: 3 errors, 1 warning
    ");
    let output = place.output("verify out --json");
    assert_eq!(output.status.code(), Some(1));
    let events = events(&place, "verify out --json");
    let severities: Vec<_> =
        of(&events, "finding").iter().map(|finding| finding["severity"].clone()).collect();
    assert_eq!(severities, ["error", "error", "error", "warning"]);
    assert_eq!(of(&events, "done")[0]["errors"], 3);
    assert_eq!(events.last().unwrap()["type"], "error");
}

#[test]
fn nothing_to_check() {
    let place = Place::new();
    assert_snapshot!(place.refusal("verify nothing"), @"
    error: cannot open the directory `nothing`
      caused by: [os error]
    ");
    place.write("empty/readme", b"");
    assert_snapshot!(place.run("verify empty"), @"
    exit 1
    --- stdout
    error: `config.json`: the file is missing
      write or download the model again
    error: `*.safetensors`: there are no files of tensors
      write or download the model again
    warning: `tokenizer.json`: the model has no tokenizer
      copy it from the source
    --- stderr
    error: `empty` is not sound: 2 errors, 1 warning
    ");
}

#[test]
fn two_models() {
    let place = quantized("");
    assert!(place.output(&format!("quantize {} -o three --bits 3", sample())).status.success());
    assert_snapshot!(place.run("diff out out"), @"
    exit 0
    --- stdout
    parameters             first  second
    the same bytes  50  1.52 MiB  1.52 MiB
    all             50  1.52 MiB  1.52 MiB
    ");
    let shown = place.run("diff out three --show 1");
    let table = shown.split("\n\n").take(2).collect::<Vec<_>>().join("\n\n");
    assert_snapshot!(table, @"
    exit 0
    --- stdout
    parameters             first  second
    the same bytes  21  7.00 KiB  7.00 KiB
    other values    29  1.51 MiB  1.18 MiB
    all             50  1.52 MiB  1.18 MiB

    config.json
      quantization.bits         4  3
      quantization_config.bits  4  3
    ");
    assert!(shown.contains("and 28 more: --show lists them"), "{shown}");
    let events = events(&place, "diff out three --json");
    assert_eq!((of(&events, "tensor").len(), of(&events, "config").len()), (50, 2));
    assert_eq!(of(&events, "done")[0]["counts"]["differs"], 29);
    let shown = place.run(&format!("diff out {} --show 1", sample()));
    assert!(
        shown.contains("only in the second") && shown.contains("`smelt verify MODEL --against SOURCE`"),
        "{shown}"
    );
}
