//! Runs that succeed.

use std::collections::BTreeMap;
use std::fs;

use insta::assert_snapshot;
use serde_json::Value;

use crate::{Place, importance, sample};

#[test]
fn quantize_the_sample() {
    let place = Place::new();
    let model = sample();
    let shown = place.run(&format!("quantize {model} -o out"));
    assert_snapshot!(shown, @"
    exit 0
    --- stderr
    done: 5.39 MiB → 1.52 MiB in `out`, 4.512 bits per weight, [time, rate, memory]
    ");
    let mut names: Vec<_> =
        fs::read_dir(place.path("out")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_snapshot!(format!("{names:?}"), @r#"["README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json", "smelt-manifest.json", "smelt-report.json", "tokenizer.json", "tokenizer_config.json"]"#);
    let inspected = place.run("inspect out");
    assert!(inspected.contains("already quantized by MLX (affine, 4 bits, group size 64)"), "{inspected}");
}

#[test]
fn a_second_run_says_that_all_is_there() {
    let place = Place::new();
    let quantize = |options: &str| place.run(&format!("quantize {} -o out {options}", sample()));
    quantize("");
    assert_snapshot!(quantize(""), @"
    exit 0
    --- stderr
    done: `out` is finished already: 1.52 MiB, 4.512 bits per weight; sizes, headers and small files are as they were written
    ");
    assert_snapshot!(quantize("--bits 8"), @"
    exit 1
    --- stderr
    error: the output directory `out` holds a finished model that was made differently:
      bits: 4 → 8
    remove it or choose another with `-o`
    ");
    assert_snapshot!(quantize("--no-resume"), @"
    exit 1
    --- stderr
    error: the output directory `out` holds a finished model; remove it or choose another with `-o`
    ");
    let events = place.output(&format!("quantize {} -o out --json", sample())).stdout;
    let last: Value =
        serde_json::from_slice(events.split(|byte| *byte == b'\n').rev().nth(1).unwrap()).unwrap();
    assert_eq!((&last["type"], &last["data"]["already_finished"]), (&"done".into(), &true.into()));
    place.write("out/tokenizer.json", b"{}");
    assert_snapshot!(quantize(""), @"
    exit 1
    --- stderr
    error: `tokenizer.json` in the finished output `out` is damaged: its bytes have changed; remove the directory and run again
    ");
}

#[test]
fn the_card_says_how_and_stays_as_its_owner_left_it() {
    let place = Place::new();
    place.write("secret/README.md", b"");
    let run = format!("quantize {} -o secret/out --bits 3 --threads 2", sample());
    assert!(place.output(&run).status.success());
    let card = fs::read_to_string(place.path("secret/out/README.md")).unwrap();
    assert!(card.contains("\nsmelt quantize tiny-moe --bits 3\n") && !card.contains("secret"), "{card}");
    fs::write(place.path("secret/out/README.md"), "mine").unwrap();
    fs::remove_file(place.path("secret/out/smelt-report.json")).unwrap();
    assert!(place.output(&run).status.success());
    assert_eq!(fs::read_to_string(place.path("secret/out/README.md")).unwrap(), "mine");
    assert!(place.path("secret/out/smelt-report.json").is_file());
}

#[test]
fn threads_and_memory_change_nothing() {
    let place = Place::new();
    let files = |name: &str| -> BTreeMap<_, _> {
        let entries = fs::read_dir(place.path(name)).unwrap().map(|entry| entry.unwrap());
        // The report tells how long the run took.
        let entries = entries.filter(|entry| entry.file_name() != "smelt-report.json");
        entries.map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap())).collect()
    };
    for (name, options) in [("a", "--threads 1 --max-memory 64MiB"), ("b", "--threads 4 --max-memory 2G")] {
        assert!(place.output(&format!("quantize {} -o {name} {options}", sample())).status.success());
    }
    assert_eq!(files("a"), files("b"));
}

#[test]
fn events() {
    let place = Place::with("llama_odd_width", |_| {});
    let output = place.output("quantize model -o out --json");
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let kinds: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let first = kinds.iter().position(|kind| *kind != "note").unwrap();
    assert!(first > 0 && events[0]["data"]["kind"] == "not_divisible", "{kinds:?}");
    assert_eq!(kinds[first..first + 2], ["plan", "started"]);
    assert_eq!(kinds.last(), Some(&"done"));
    let of = |kind: &str| {
        events.iter().filter(|event| event["type"] == kind).map(|event| &event["data"]).collect::<Vec<_>>()
    };
    let last = *of("progress").last().unwrap();
    assert_eq!(last["bytes"], last["of"]);
    assert_eq!(last["of"], of("started")[0]["bytes"]);
    let file = of("file")[0];
    let size = fs::metadata(place.path("out").join(file["name"].as_str().unwrap())).unwrap().len();
    assert_eq!(file["bytes"], size);
    let done = of("done")[0];
    assert!(done["bits_per_weight"].as_f64().unwrap() > 4.0 && done["output"] == "out", "{done}");
}

#[test]
fn the_default_output_lies_beside_the_checkpoint() {
    let place = Place::with("llama", |_| {});
    for (options, name) in [
        ("", "model-4bit"),
        ("--bits 6", "model-6bit"),
        ("--mode mxfp8", "model-mxfp8"),
        ("--mode none", "model-mlx"),
    ] {
        assert!(place.output(&format!("quantize model {options}")).status.success());
        assert!(place.path(name).join("model.safetensors.index.json").is_file(), "{name}");
    }
    // From inside, where the checkpoint is called `.`.
    let output = place.command("quantize . --bits 8").current_dir(place.path("model")).output().unwrap();
    assert!(output.status.success() && place.path("model-8bit").is_dir(), "{output:?}");
}

#[test]
fn a_family_of_ones_own() {
    let place = Place::with("llama", |model| model.config["model_type"] = "mine".into());
    let text = String::from_utf8(place.output("families show llama").stdout).unwrap();
    place.write("mine.toml", text.replace("name = \"llama\"", "name = \"mine\"").as_bytes());
    let shown = place.run("quantize model -o out --family mine.toml");
    assert!(shown.starts_with("exit 0\n"), "{shown}");
    let plan = place.output("plan model --family mine.toml --json");
    let plan: Value = serde_json::from_slice(&plan.stdout).unwrap();
    assert_eq!(plan["family"], "mine");
}

#[test]
fn a_second_target_reads_no_weight_to_choose() {
    let place = Place::with("qwen3_moe", |_| {});
    let first = place.run("quantize model -o a --target-bpw 4 --effort fast");
    assert!(first.contains("measured 30 modules") && first.contains("model.measures.json"), "{first}");
    let second = place.run("quantize model -o b --target-size 500000 --effort fast");
    assert!(second.contains("no weight is read to choose widths"), "{second}");
    let size = |name: &str| std::fs::metadata(place.path(name)).unwrap().len();
    assert!(size("b/model.safetensors") <= 500_000 && size("b/model.safetensors") > 480_000);
    let level = place.run("quantize model --level oq3 --effort fast");
    assert!(level.starts_with("exit 0") && place.path("model-oQ3/config.json").exists(), "{level}");
}

/// A recipe with a budget and rules.
const RECIPE: &str = r#"
schema = 1
description = "what matters"
target_bpw = 4.5

[[rule]]
role = ["attention-key", "attention-value"]
floor = 6
reason = "long contexts"

[[rule]]
match = "o_proj"
layers = "-1"
format = "8/32"

[[rule]]
match = "no_such"
format = "keep"
"#;

#[test]
fn a_recipe_and_what_each_of_its_rules_does() {
    let place = Place::with("llama", |_| {});
    place.write("recipes/own.toml", RECIPE.as_bytes());
    let args = "model --recipe recipes/own.toml --override q_proj=5 --effort fast";
    let shown = String::from_utf8(place.output(&format!("plan {args}")).stdout).unwrap();
    let rules: Vec<&str> = shown
        .lines()
        .skip_while(|line| !line.starts_with("rule"))
        .take_while(|line| !line.is_empty())
        .collect();
    assert_snapshot!(rules.join("\n"), @"
    rule                                               modules      size  from
    attention-key or attention-value: at least 6 bits        8  50.2 KiB  recipe, line 6: long contexts
    /o_proj/, layers -1: 8-bit g32                           1  18.0 KiB  recipe, line 11
    /no_such/: keep                                       none       0 B  recipe, line 16
    q_proj=5                                                 4  44.0 KiB  override
    ");
    let done = place.run(&format!("quantize {args}"));
    assert!(done.contains("warning: rule `/no_such/: keep` (line 16"), "{done}");
    let read = |file: &str| fs::read_to_string(place.path("model-own").join(file)).unwrap();
    let report: Value = serde_json::from_str(&read("smelt-report.json")).unwrap();
    assert_eq!(report["rules"][0]["reason"], "long contexts");
    assert_eq!(report["rules"][3]["source"], "override");
    let card = read("README.md");
    let stored = card.split("## ").find(|part| part.starts_with("How it is stored")).unwrap();
    assert_snapshot!(stored, @"
    How it is stored

    Each module has the bits with which the whole is predicted to lose least at 4.5 bits per weight; the errors were measured on the weights. Scales were searched for the least squared error, briefly. Modules with a format of their own: 9 by rules of a recipe, 4 by overrides.

    | part | stored as | bits per weight | size |
    |---|---|--:|--:|
    | embedding | 4-bit g128 | 4.25 | 34.0 KiB |
    | attention-query | 5-bit g64 | 5.50 | 44.0 KiB |
    | attention-key | 6-bit g128 | 6.25 | 25.0 KiB |
    | attention-value | 3 × 6-bit g128, 1 × 6-bit g64 | 6.31 | 25.2 KiB |
    | attention-output | 1 × 4-bit g128, 1 × 4-bit g64, 1 × 6-bit g128, 1 × 8-bit g32 | 6.00 | 48.0 KiB |
    | mlp-gate | 3 × 3-bit g128, 1 × 4-bit g128 | 3.50 | 56.0 KiB |
    | mlp-up | 3 × 3-bit g128, 1 × 4-bit g128 | 3.50 | 56.0 KiB |
    | mlp-down | 1 × 3-bit g128, 3 × 4-bit g128 | 4.00 | 64.0 KiB |
    | head | 5-bit g128 | 5.25 | 42.0 KiB |
    | norm | bf16 | 16.00 | 2.25 KiB |
    ");
    assert!(card.contains("--recipe own.toml --override q_proj=5"), "{card}");
    let page = String::from_utf8(place.output("report model-own -o -").stdout).unwrap();
    assert!(page.contains("What each rule did") && page.contains("long contexts"), "{page}");
}

#[test]
fn a_model_stored_as_another_one() {
    let place = Place::with("llama", |_| {});
    let first =
        place.run("quantize model -o first --override down_proj=6:32 --override embed=keep --method rtn");
    assert!(first.starts_with("exit 0"), "{first}");
    assert!(place.run("quantize model --like first --method rtn").starts_with("exit 0"));
    let files = |name: &str, file: &str| fs::read(place.path(name).join(file)).unwrap();
    for file in ["model.safetensors", "config.json", "model.safetensors.index.json"] {
        assert!(files("first", file) == files("model-like-first", file), "{file}");
    }
    let card = String::from_utf8(files("model-like-first", "README.md")).unwrap();
    assert!(card.contains("--like first --method rtn"), "{card}");
    // Rules go before what is copied.
    place.write("own.toml", b"schema = 1\n[[rule]]\nrole = 'head'\nformat = '8/64'\n");
    let plan = place.output("plan model --like first --recipe own.toml --json --strict").stdout;
    let plan: Value = serde_json::from_slice(&plan).unwrap();
    let head =
        plan["tasks"].as_array().unwrap().iter().find(|task| task["name"] == "lm_head.weight").unwrap();
    assert_eq!(head["format"]["bits"], 8);
    assert_eq!((&plan["rules"][0]["source"], &plan["rules"][1]["line"]), (&"like".into(), &2.into()));
}

#[test]
fn importance_is_told() {
    let place = Place::with("llama", |_| {});
    let modules: Vec<String> = (0..4).map(|layer| format!("model.layers.{layer}.mlp.up_proj")).collect();
    let mut modules: Vec<&str> = modules.iter().map(String::as_str).collect();
    modules.push("lm_head.unknown");
    place.write("folder/own.importance", &importance(&modules, 128));
    let shown = place.run("plan model --imatrix folder/own.importance");
    let told = "importance       own.importance (mean squares): 4 of 29 modules, experts without data 0, unused entries 1";
    assert!(shown.contains(told), "{shown}");
    assert!(shown.contains("are weighed by the columns alone"), "{shown}");
    let output = place.output("quantize model -o out --level oq4e --imatrix folder/own.importance --json");
    assert!(output.status.success(), "{output:?}");
    let report: Value =
        serde_json::from_slice(&fs::read(place.path("out/smelt-report.json")).unwrap()).unwrap();
    assert_eq!(report["importance"]["weighed"], 4);
    assert_eq!(report["importance"]["kind"], "mean_squares");
    assert_eq!(report["command"][6], "own.importance", "{}", report["command"]);
    // With other importance it is another run.
    modules.pop();
    place.write("folder/own.importance", &importance(&modules, 128));
    let refused = place.run("quantize model -o out --level oq4e --imatrix folder/own.importance");
    assert!(refused.contains("importance: "), "{refused}");
}
