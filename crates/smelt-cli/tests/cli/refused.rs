//! Sound files that can't become what was asked.

use std::fs;

use insta::assert_snapshot;
use serde_json::json;

use crate::{Model, Place, importance, shard};

fn changed(name: &str, change: impl FnOnce(&mut Model)) -> String {
    Place::with(name, change).quantize_refusal()
}

fn shape<'a>(model: &'a mut Model, name: &str) -> &'a mut Vec<u64> {
    &mut model.tensors.iter_mut().find(|(tensor, _)| tensor == name).unwrap().1
}

fn asked(options: &str) -> String {
    Place::with("llama", |_| {}).refusal(&format!("quantize model -o out {options}"))
}

#[test]
fn shapes_against_the_config() {
    assert_snapshot!(changed("llama", |model| *shape(model, "model.norm.weight") = vec![64]), @"
    error: the checkpoint does not fit the family `llama`:
      `model.norm.weight` has shape [64], but config.json asks for [128]
    ");
    assert_snapshot!(changed("llama", |model| drop(model.config.as_object_mut().unwrap().remove("hidden_size"))), @"error: mlx-lm 0.32.2 does not load a model of type `llama` whose config.json has no `hidden_size`; take the config.json that the model was published with, or add the key");
}

#[test]
fn experts() {
    let name = "model.layers.1.mlp.experts.2.up_proj.weight";
    assert_snapshot!(changed("qwen3_moe", |model| model.tensors.retain(|(tensor, _)| tensor != name)), @"
    error: the checkpoint does not fit the family `qwen3_moe`:
      `model.layers.1.mlp.experts.2.up_proj.weight` is missing, of which `model.layers.1.mlp.switch_mlp.up_proj.weight` is made
    ");
    assert_snapshot!(changed("qwen3_moe", |model| *shape(model, name) = vec![32, 128]), @"
    error: the checkpoint does not fit the family `qwen3_moe`:
      `model.layers.1.mlp.switch_mlp.up_proj.weight`: `model.layers.1.mlp.experts.2.up_proj.weight`: part 2 has shape [32, 128] and dtype BF16 where the first has [64, 128] and BF16
    ");
}

#[test]
fn models_that_smelt_does_not_know() {
    let said = changed("llama", |model| model.config["model_type"] = json!("llama9"));
    assert!(
        said.starts_with("error: smelt has no family for the model type `llama9` (did you mean `llama`"),
        "{said}"
    );
    assert!(said.contains("--discover") && said.contains("--family"), "{said}");
    assert_snapshot!(changed("llama", |model| model.tensors.push(("model.sinks".to_owned(), vec![4]))), @"
    error: the checkpoint does not fit the family `llama`:
      no rule takes `model.sinks`
    ");
}

#[test]
fn models_that_are_finished() {
    let said = changed("llama", |model| model.config["model_type"] = json!("prism_hadamard_qwen35"));
    assert_snapshot!(said, @"error: checkpoints of the type `prism_hadamard_qwen35` are finished: the library loads their rotated weights in these 2 bits alone; load the checkpoint as it is, or quantize the model that it was made from");
}

#[test]
fn layouts_that_a_library_does_not_keep() {
    let place = Place::with("llama", |model| model.config["model_type"] = json!("gpt2"));
    place.write("layout.json", br#"{"version": 1, "library": "mlx-vlm"}"#);
    assert_snapshot!(place.refusal("quantize model -o out --layout layout.json"), @"error: mlx-vlm changes its own parameters of a `gpt2` when it loads them, so its layout can't be stored; without `--discover` and `--layout` the family `gpt2` writes what it loads");
    place.write("layout.json", br#"{"version": 1, "library": "mlx-lm"}"#);
    assert!(!place.refusal("quantize model -o out --layout layout.json").contains("own parameters"));
}

#[test]
fn weights_that_are_quantized_already() {
    let quantized = |block: serde_json::Value| changed("llama", |model| model.config["quantization"] = block);
    assert_snapshot!(quantized(json!({"group_size": 64, "bits": 4})), @"error: the weights are already quantized by MLX (affine, 4 bits, group size 64); quantizing them again loses more: take the original checkpoint, or give `--allow-requantize`");
    // A scale that is missing, in a format that smelt reads.
    let place = Place::with("llama", |_| {});
    let fp8 = r#"{"x.weight":{"dtype":"F8_E4M3","shape":[4,8],"data_offsets":[0,32]}}"#;
    place.write("model/model.safetensors", &shard(fp8, 32));
    assert_snapshot!(place.quantize_refusal(), @"
    error: the weights can't be read as they are stored:
      `x.weight` (F8_E4M3) has no scale such as `x.weight_scale_inv` or `x.weight_scale`
    ");
}

#[test]
fn rows_that_do_not_divide() {
    let place = Place::with("llama_odd_width", |_| {});
    assert_snapshot!(place.refusal("quantize model -o out --strict"), @"error: `model.embed_tokens` is not quantized: its rows of 96 do not divide into groups of 64; without `--strict` this is allowed");
    assert_snapshot!(place.run("quantize model -o out"), @"
    exit 0
    --- stderr
    warning: `model.embed_tokens`, `model.layers.0.mlp.gate_proj`, `model.layers.0.mlp.up_proj` and 23 more are not quantized: rows of 96 do not divide into groups of 64
    done: 818 KiB → 714 KiB in `out`, 13.975 bits per weight, [time, rate, memory]
    ");
}

#[test]
fn outputs_in_the_wrong_place() {
    let place = Place::with("llama", |_| {});
    assert_snapshot!(place.refusal("quantize model -o model/out"), @"error: the output directory `model/out` lies inside the source; choose another with `-o`");
    assert!(!place.path("model/out").exists());
    place.write("full/mine", b"mine");
    assert_snapshot!(place.refusal("quantize model -o full"), @"error: the output directory `full` is not empty; remove it or choose another with `-o`");
    assert_eq!(fs::read_dir(place.path("full")).unwrap().count(), 1);
    assert_snapshot!(place.refusal("quantize model -o full/mine"), @"error: the output `full/mine` is not a directory; choose another with `-o`");
}

#[test]
fn options_that_make_no_sense() {
    assert_snapshot!(asked("--override down_proj"), @"error: override `down_proj`: there is no `=` between pattern and format");
    assert_snapshot!(asked("--override (=4"), @"error: override `(=4`: the pattern is no regular expression: unclosed group");
    assert_snapshot!(asked("--override down_proj=7"), @"error: override `down_proj=7`: mode affine has 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128, not 7 bits in groups of 64");
    assert_snapshot!(asked("--override nothing=6 --strict"), @"error: override `nothing=6` matches no module that can be quantized; without `--strict` this is allowed");
    assert_snapshot!(asked("--bits 7"), @"error: mode affine has 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128, not 7 bits in groups of 64");
    assert_snapshot!(asked("--mode mxfp4 --group-size 64"), @"error: mode mxfp4 has 4 bits in groups of 32, not 4 bits in groups of 64");
    assert_snapshot!(asked("--mode int4"), @"
    error: invalid value 'int4' for '--mode <MODE>'
      [possible values: affine, mxfp4, mxfp8, nvfp4, none]

    For more information, try '--help'.
    ");
    assert_snapshot!(asked("--max-memory lots"), @"
    error: invalid value 'lots' for '--max-memory <SIZE>': a size such as 64MiB, 1.5G or 4096 is needed

    For more information, try '--help'.
    ");
    assert_snapshot!(asked("--max-memory 1MiB"), @"error: `lm_head.weight` needs at least 26.0 MiB of memory; give `--max-memory` as much");
    assert_snapshot!(asked("--threads 0"), @"
    error: invalid value '0' for '--threads <N>': 0 is not in 1..=1024

    For more information, try '--help'.
    ");
    assert_snapshot!(asked("--frobnicate"), @"
    error: unexpected argument '--frobnicate' found

      tip: to pass '--frobnicate' as a value, use '-- --frobnicate'

    Usage: smelt quantize --output <DIR> <MODEL>

    For more information, try '--help'.
    ");
}

#[test]
fn family_files() {
    let place = Place::with("llama", |_| {});
    assert_snapshot!(place.refusal("quantize model -o out --family own.toml"), @"
    error: cannot read the family file `own.toml`
      caused by: [os error]
    ");
    place.write("own.toml", b"name = \"own\"\ntitle = 3\n");
    assert_snapshot!(place.refusal("quantize model -o out --family own.toml"), @"
    error: the family file `own.toml` is not valid
      caused by: TOML parse error at line 2, column 9
      |
    2 | title = 3
      |         ^
    invalid type: integer `3`, expected a string
    ");
    let head = "name = \"own\"\ntitle = \"Own\"\nmodel_types = []\n[[group]]\n[group.tensors]\n";
    place.write("own.toml", format!("{head}\"w\" = {{ role = \"other\", shape = \"a b\" }}\n").as_bytes());
    assert_snapshot!(place.refusal("quantize model -o out --family own.toml"), @"
    error: the family file `own.toml` is not valid
      caused by: in `w`: `,` or the closing bracket expected at column 4 of `[a b]`
    ");
}

#[test]
fn an_error_is_an_event_as_well() {
    let place = Place::new();
    let output = place.output("quantize model -o out --json");
    assert_eq!(output.status.code(), Some(1));
    let event: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(event["type"], "error");
    assert_eq!(event["data"]["message"], "cannot open the directory `model`");
    assert_eq!(event["data"]["causes"].as_array().unwrap().len(), 1);
}

#[test]
fn importance_that_can_not_be_used() {
    let place = Place::with("llama", |_| {});
    let refusal = |args: &str| place.refusal(&format!("quantize model -o out --imatrix imatrix.gguf {args}"));
    assert!(refusal("").starts_with("error: cannot open the importance file `imatrix.gguf`\n  caused by: "));
    place.write("imatrix.gguf", b"a diary, of which nobody would think that it is one");
    assert_snapshot!(refusal(""), @"error: `imatrix.gguf` is no importance file; smelt reads the imatrix of llama.cpp (GGUF and .dat), the .npz of oMLX and safetensors of mean squares (docs/bits.md)");
    place.write("imatrix.gguf", &importance(&["model.layers.0.mlp.up_proj"], 96));
    assert_snapshot!(refusal("--level oq4e"), @"error: `model.layers.0.mlp.up_proj` in `imatrix.gguf` is for 1 × 96 channels, but `model.layers.0.mlp.up_proj` has shape [256, 128]; it is of another model");
    place.write("imatrix.gguf", &importance(&["h.0.up"], 128));
    assert!(refusal("").contains("none of the 1 entries of `imatrix.gguf`, such as `h.0.up`, is for one of"));
    place.write("imatrix.gguf", &importance(&["model.layers.0.mlp.up_proj"], 128));
    assert!(refusal("--method rtn").contains("`rtn` only rounds"));
    assert!(refusal("--strict").contains("has no importance in the file"));
}

#[test]
fn wishes_about_bits_that_can_not_be_met() {
    let place = Place::with("llama", |_| {});
    let refusal = |args: &str| place.refusal(&format!("quantize model -o out {args}"));
    let unreachable = refusal("--target-bpw 1.5");
    assert!(
        unreachable.contains("1.5 bits per weight can't be reached: this model takes from 2."),
        "{unreachable}"
    );
    let unreachable = refusal("--target-size 12");
    assert!(unreachable.contains("a size of 12 B (12 bytes) can't be reached"), "{unreachable}");
    assert!(refusal("--fit 64MiB").contains("shorten it with `--context`"));
    assert!(refusal("--level oq4e").contains("`oq4` does without"));
    assert!(refusal("--level oq7").contains("oq2.5, oq2.7"));
    assert!(refusal("--target-bpw 4 --formats 7/64").contains("2, 3, 4, 5, 6 or 8 bits"));
    assert!(refusal("--target-bpw x").contains("a number of bits"));
    assert!(refusal("--method rtn --effort best").contains("`--effort` is for `--method search`"));
    place.write("map.json", b"{\"a\": 1}");
    assert!(refusal("--target-bpw 4 --sensitivity-map map.json").contains("scores by layer number"));
    place.write("model.measures.json", b"not ours");
    assert!(refusal("--target-bpw 4").contains("cannot read the measurements"));
    for args in [
        "--target-bpw 4 --bits 4",
        "--target-bpw 4 --target-size 1G",
        "--level oq4 --recipe mixed_4_6",
        "--recipe mixed_4_6 --mode mxfp4",
        "--fit 64GiB --group-size 64",
        "--formats 4/64",
        "--context 4096",
        "--measures x.json",
    ] {
        let refused = refusal(args);
        assert!(refused.contains("cannot be used with") || refused.contains("required"), "{args}: {refused}");
    }
}

#[test]
fn recipes_that_can_not_be_followed() {
    let place = Place::with("llama", |_| {});
    let refusal = |args: &str| place.refusal(&format!("quantize model -o out {args}"));
    let recipe = |text: &str, args: &str| {
        place.write("own.toml", format!("schema = 1\n{text}\n").as_bytes());
        refusal(&format!("--recipe own.toml {args}"))
    };
    assert_snapshot!(refusal("--recipe own.toml"), @"
    error: cannot read the recipe `own.toml`
      caused by: [os error]
    ");
    assert!(refusal("--recipe mixed_9_9").contains("mixed_4_6) and no file"));
    assert_snapshot!(recipe("[[rule]]\nrole = 'nose'\nformat = '4'", "").lines().next().unwrap().split(';').next().unwrap(), @"error: the recipe `own.toml`, line 3, column 8: `nose` is no role");
    assert_snapshot!(recipe("target_bpw = 4\nlevels = 3", ""), @"error: the recipe `own.toml`, line 3, column 1: unknown field `levels`, expected one of `schema`, `description`, `target_bpw`, `target_size`, `fit`, `context`, `level`, `bits`, `group_size`, `mode`, `formats`, `rule`");
    assert_snapshot!(recipe("target_bpw = 4", "--bits 4"), @"error: the recipe `own.toml`, line 2, column 14: this stands here, and `--bits` is given too; leave one of them out");
    assert_snapshot!(recipe("bits = 3", "--like elsewhere"), @"error: the recipe `own.toml`, line 2, column 8: this stands here, and `--like` is given too; leave one of them out");
    assert_snapshot!(recipe("target_bpw = 4\nformats = ['4']", "--formats 8/64"), @"error: the recipe `own.toml`, line 3, column 11: this stands here, and `--formats` is given too; leave one of them out");
    assert_snapshot!(recipe("formats = ['4']", ""), @"error: the recipe `own.toml`, line 2, column 11: `formats` is what a target chooses among, but neither recipe nor command line gives a target");
    assert_snapshot!(recipe("", "--measures x.json"), @"error: `--measures` says how a target chooses, but neither recipe nor command line gives a target");
    assert_snapshot!(recipe("[[rule]]\nmatch = 'q_proj'\nfloor = 4", ""), @"error: rule `/q_proj/: at least 4 bits` (`own.toml`, line 2, column 1) bounds what a target chooses, but there is none; give one, such as `--target-bpw`");
    assert_snapshot!(recipe("[[rule]]\nmatch = ''\nfloor = 6", "--target-bpw 4"), @"error: 4 bits per weight can't be reached: with the floors and ceilings of the recipe this model takes from 6.266 to 8.511 bits per weight");
    assert_snapshot!(recipe("[[rule]]\nrole = 'head'\nfloor = 6\n[[rule]]\nmatch = 'lm_head'\nceiling = 4", "--target-bpw 4"), @"error: `lm_head`: the floor of rule `head: at least 6 bits` (`own.toml`, line 2, column 1) is above the ceiling of rule `/lm_head/: at most 4 bits` (`own.toml`, line 5, column 1)");
    assert_snapshot!(recipe("[[rule]]\nmatch = 'zzz'\nformat = '4'", "--strict"), @"error: rule `/zzz/: 4-bit g64` (line 2 of the recipe) matches no module that can be quantized; without `--strict` this is allowed");
}

#[test]
fn models_that_can_not_be_copied() {
    let place = Place::with("llama", |_| {});
    let refusal = |args: &str| place.refusal(&format!("quantize model -o out {args}"));
    assert_snapshot!(refusal("--like nowhere"), @"
    error: cannot open the directory `nowhere`
      caused by: [os error]
    ");
    assert_snapshot!(refusal("--like model"), @"error: `model` is no model that MLX quantized, whose formats could be copied: it holds plain floats");
    for args in
        ["--bits 4", "--mode mxfp4", "--group-size 32", "--target-bpw 4", "--level oq4", "--vision-bits 4"]
    {
        let refused = refusal(&format!("--like model {args}"));
        assert!(refused.contains("cannot be used with"), "{args}: {refused}");
    }
}
