//! The process is killed at moments that chance chooses; run again, it writes what it would have written
//! undisturbed. `SMELT_KILLS` says how often (`cargo xtask kills`).

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Map, json};

use crate::Place;

/// Kills in a usual run of the tests.
const KILLS: usize = 20;

/// Sizes of the model: 120 MiB, which are written in several groups.
const HIDDEN: u64 = 1024;
const INNER: u64 = 2816;
const VOCABULARY: u64 = 8192;
const LAYERS: u64 = 4;

fn tensors() -> Vec<(String, Vec<u64>)> {
    let mut all = vec![
        ("lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let (square, kv) = (vec![HIDDEN, HIDDEN], vec![HIDDEN / 4, HIDDEN]);
        let (wide, tall) = (vec![INNER, HIDDEN], vec![HIDDEN, INNER]);
        for (name, shape) in [
            ("self_attn.q_proj", square.clone()),
            ("self_attn.k_proj", kv.clone()),
            ("self_attn.v_proj", kv),
            ("self_attn.o_proj", square),
            ("mlp.gate_proj", wide.clone()),
            ("mlp.up_proj", wide),
            ("mlp.down_proj", tall),
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
        ] {
            all.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    all
}

/// Writes the checkpoint. Every mebibyte of it is another, so that bytes in a wrong place are seen.
fn write_model(place: &Place) {
    let config = json!({
        "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INNER, "vocab_size": VOCABULARY,
        "num_hidden_layers": LAYERS, "num_attention_heads": 16, "num_key_value_heads": 4,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": false,
    });
    place.write("model/config.json", config.to_string().as_bytes());
    place.write("model/tokenizer.json", &vec![b'x'; 3 << 20]);
    let (mut header, mut end) = (Map::new(), 0);
    for (name, shape) in tensors() {
        let begin = end;
        end += 2 * shape.iter().product::<u64>();
        header.insert(name, json!({ "dtype": "BF16", "shape": shape, "data_offsets": [begin, end] }));
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut bytes = crate::shard(&header, 0);
    let mebibyte: Vec<u8> = (0..1u32 << 19)
        .flat_map(|place| {
            let mixed = place.wrapping_mul(2_654_435_761);
            let bits = ((mixed >> 31) << 15) | ((118 + ((mixed >> 28) & 7)) << 7) | ((mixed >> 20) & 0x7F);
            (bits as u16).to_le_bytes()
        })
        .collect();
    let data = bytes.len();
    for turn in 0.. {
        let missing = end as usize - (bytes.len() - data);
        if missing == 0 {
            break;
        }
        let turned = mebibyte[turn * 1022..].iter().chain(&mebibyte).copied();
        bytes.extend(turned.take(missing.min(1 << 20)));
    }
    place.write("model/model.safetensors", &bytes);
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let mut files: BTreeMap<_, _> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    if let Some(report) = files.get_mut("smelt-report.json") {
        *report = without_time(report);
    }
    files
}

/// A report without what the run took.
fn without_time(report: &[u8]) -> Vec<u8> {
    let mut report: serde_json::Value = serde_json::from_slice(report).unwrap();
    let taken = report.as_object_mut().unwrap().remove("run");
    assert!(taken.is_some_and(|run| run["seconds"].as_f64().unwrap() > 0.0));
    report.as_object_mut().unwrap().remove("digest");
    report.to_string().into_bytes()
}

const ARGS: &str = "quantize model -o out --bits 8 --threads 2 --max-memory 64MiB";

/// Starts the program and kills it after a while; whether it was still at work.
fn killed(place: &Place, after: Duration) -> bool {
    let mut child = place.command(ARGS).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(after);
    let running = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    running
}

#[test]
fn killed_at_any_moment() {
    let kills = env::var("SMELT_KILLS").map_or(KILLS, |count| count.parse().unwrap());
    let place = Place::new();
    write_model(&place);
    let start = Instant::now();
    assert!(place.output(ARGS).status.success());
    let whole = start.elapsed();
    let expected = files(&place.path("out"));
    let mut chance = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos();
    let mut share = || {
        chance = chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f64::from(chance >> 8) / f64::from(1u32 << 24)
    };
    let (mut done, mut resumed, mut twice) = (0, 0, 0);
    while done < kills {
        fs::remove_dir_all(place.path("out")).unwrap();
        let mut again = 0;
        // A run that goes on may be killed as well.
        while again == 0 || (share() < 0.3 && done < kills) {
            done += usize::from(killed(&place, whole.mul_f64(share() * 1.1)));
            again += 1;
            let left = place.path("out");
            assert!(
                !left.join("config.json").exists() || left.join("smelt-manifest.json").exists(),
                "it looks whole"
            );
        }
        twice += usize::from(again > 1);
        let output = place.output(&format!("{ARGS} --json"));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        resumed += usize::from(String::from_utf8_lossy(&output.stdout).contains("\"resumed\""));
        let found = files(&place.path("out"));
        assert!(found.keys().eq(expected.keys()), "{:?}", found.keys());
        let differing: Vec<_> = found.iter().filter(|(name, bytes)| expected[*name] != **bytes).collect();
        assert!(
            differing.is_empty(),
            "{:?} differ",
            differing.iter().map(|(name, _)| name).collect::<Vec<_>>()
        );
    }
    println!("{done} kills, {twice} outputs killed more than once, {resumed} taken up, all byte-identical");
    assert!(kills < 50 || resumed > 0, "no run found anything to go on with");
}
