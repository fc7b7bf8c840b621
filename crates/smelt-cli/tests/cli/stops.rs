//! Ctrl-C.

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

#[test]
fn an_interrupted_run_stops_at_once_and_leaves_nothing() {
    let place = large_model();
    let mut command = place.command("quantize model -o new/out --json --threads 1 --max-memory 64MiB");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut events = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let progress = events.find(|event| event.contains("\"progress\""));
    assert!(progress.is_some(), "the run did not begin: {:?}", child.wait_with_output());
    assert!(place.path("new/out").is_dir());
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let asked = Instant::now();
    let status = child.wait().unwrap();
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    assert_eq!(status.code(), Some(1));
    assert!(!place.path("new").exists());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    insta::assert_snapshot!(place.filtered(&said), @"error: stopped; nothing is left behind in `new/out`");
    let last = events.last().unwrap();
    assert!(last.contains("\"error\"") && last.contains("stopped"), "{last}");
}
