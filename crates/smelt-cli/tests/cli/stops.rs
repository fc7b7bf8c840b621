//! Ctrl-C, and what can be done afterwards.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Place, shard};

/// Enough for some seconds: 8 GiB of zeros, of which the disk holds none.
const ROWS: u64 = 1 << 25;

fn large_model() -> Place {
    let place = Place::with("llama_tied", |model| {
        model.config["num_hidden_layers"] = 0.into();
        model.config["vocab_size"] = ROWS.into();
    });
    let header = format!(
        r#"{{"model.embed_tokens.weight":{{"dtype":"BF16","shape":[{ROWS},128],"data_offsets":[256,{end}]}},"model.norm.weight":{{"dtype":"BF16","shape":[128],"data_offsets":[0,256]}}}}"#,
        end = 256 + ROWS * 256
    );
    let bytes = shard(&header, 0);
    place.write("model/model.safetensors", &bytes);
    let file = File::options().write(true).open(place.path("model/model.safetensors")).unwrap();
    file.set_len(bytes.len() as u64 + 256 + ROWS * 256).unwrap();
    place
}

/// Runs the program, presses Ctrl-C when blocks go through, and gives what it said on both outputs.
fn interrupted(place: &Place, output: &str) -> (String, String) {
    let args = format!("quantize model -o {output} --json --threads 1 --max-memory 64MiB");
    let mut command = place.command(&args);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut events = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let progress = events.find(|event| event.contains("\"progress\""));
    assert!(progress.is_some(), "the run did not begin: {:?}", child.wait_with_output());
    assert!(place.path(output).is_dir());
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let asked = Instant::now();
    let status = child.wait().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    assert_eq!(status.code(), Some(1));
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    (events.collect::<Vec<_>>().join("\n"), place.filtered(&said))
}

#[test]
fn an_interrupted_run_stops_at_once_and_leaves_nothing_unfinished() {
    let place = large_model();
    let (events, said) = interrupted(&place, "new/out");
    assert!(!place.path("new").exists());
    insta::assert_snapshot!(said, @"error: stopped; nothing is left behind in `new/out`");
    let last = events.lines().last().unwrap();
    assert!(last.contains("\"error\"") && last.contains("stopped"), "{last}");
}

/// Small tensors first, then three of 2 GiB of zeros, of which the disk holds none.
fn model_of_two_sizes() -> Place {
    let inner = 1u64 << 23;
    let place = Place::with("llama_tied", |model| {
        model.config["num_hidden_layers"] = 1.into();
        model.config["intermediate_size"] = inner.into();
        model.tensors.retain(|(name, _)| !name.contains(".layers.") || name.contains(".layers.0."));
        for (name, shape) in &mut model.tensors {
            if name.contains(".mlp.") {
                *shape = if name.contains("down_proj") { vec![128, 64] } else { vec![64, 128] };
            }
        }
    });
    // The header says that the last tensors are larger than the file has bytes; then it gets them.
    let bytes = std::fs::read(place.path("model/model.safetensors")).unwrap();
    let length = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: serde_json::Value = serde_json::from_slice(&bytes[8..length]).unwrap();
    let mut end = 0;
    for (name, entry) in header.as_object_mut().unwrap() {
        if name.contains(".mlp.") {
            let large = if name.contains("down_proj") { [128, inner] } else { [inner, 128] };
            entry["shape"] = large.to_vec().into();
        }
        let elements: u64 =
            entry["shape"].as_array().unwrap().iter().map(|size| size.as_u64().unwrap()).product();
        entry["data_offsets"] = vec![end, end + 2 * elements].into();
        end += 2 * elements;
    }
    let bytes = shard(&header.to_string(), 0);
    place.write("model/model.safetensors", &bytes);
    let file = File::options().write(true).open(place.path("model/model.safetensors")).unwrap();
    file.set_len(bytes.len() as u64 + end).unwrap();
    place
}

#[test]
fn what_is_finished_is_kept_and_says_how_to_go_on() {
    let place = model_of_two_sizes();
    let (events, said) = interrupted(&place, "out");
    let counts = regex::Regex::new(r"\d+ of \d+").unwrap();
    insta::assert_snapshot!(counts.replace(&said, "[some of all]"), @"error: stopped; [some of all] tensors are kept in `out`: run the same command again to go on");
    assert!(events.contains("\"kept\""), "{events}");
    assert!(!place.path("out/config.json").exists());
    insta::assert_snapshot!(place.run("quantize model -o out --bits 8"), @"
    exit 1
    --- stderr
    error: the output directory `out` holds an unfinished run that was made differently:
      bits: 4 → 8
    run it as before to go on, start anew with `--no-resume`, or choose another with `-o`
    ");
    insta::assert_snapshot!(place.run("quantize model -o out --no-resume --max-memory 1MiB"), @"
    exit 1
    --- stderr
    error: `model.layers.0.self_attn.v_proj.weight` needs at least 26.0 MiB of memory; give `--max-memory` as much
    ");
    assert!(place.path("out/smelt-journal.partial").is_file(), "a refusal takes nothing away");
}
