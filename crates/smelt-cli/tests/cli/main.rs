//! The program as a user meets it: what it prints, where, and with which exit code.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod broken;
#[path = "../../../smelt-core/tests/common/mod.rs"]
mod common;
mod kills;
mod refused;
mod shows;
#[cfg(unix)]
mod stops;
mod verifies;
mod works;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Model, manifests};
use regex::Regex;
use tempfile::TempDir;

/// Mean squares of `width` channels for these modules, as a file.
fn importance(modules: &[&str], width: usize) -> Vec<u8> {
    let entry = |(place, module): (usize, &&str)| {
        let offsets = [4 * width * place, 4 * width * (place + 1)];
        let entry = serde_json::json!({ "dtype": "F32", "shape": [width], "data_offsets": offsets });
        ((*module).to_owned(), entry)
    };
    let header: serde_json::Map<_, _> = modules.iter().enumerate().map(entry).collect();
    let header = serde_json::Value::Object(header).to_string().into_bytes();
    let values = (0..modules.len() * width).flat_map(|place| ((place % 7 + 1) as f32).to_le_bytes());
    [(header.len() as u64).to_le_bytes().to_vec(), header, values.collect()].concat()
}

/// A folder of a test, in which the program runs.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        assert!(manifests().is_dir());
        Self(tempfile::tempdir().unwrap())
    }

    /// With the checkpoint of a manifest, after a change, in the folder `model`.
    fn with(name: &str, change: impl FnOnce(&mut Model)) -> Self {
        let (place, mut model) = (Self::new(), Model::manifest(name));
        change(&mut model);
        for (file, bytes) in model.files() {
            place.write(&format!("model/{file}"), &bytes);
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// The program with these arguments, ready to start.
    fn command(&self, args: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_smelt"));
        command.args(args.split_whitespace()).current_dir(&self.0).env("NO_COLOR", "1").env("COLUMNS", "100");
        command
    }

    fn output(&self, args: &str) -> Output {
        self.command(args).output().unwrap()
    }

    /// Exit code, standard output and standard error of a run, without what differs between runs.
    fn run(&self, args: &str) -> String {
        let Output { status, stdout, stderr } = self.output(args);
        let mut shown = format!("exit {}\n", status.code().unwrap());
        for (name, bytes) in [("stdout", stdout), ("stderr", stderr)] {
            if !bytes.is_empty() {
                let text = self.filtered(&String::from_utf8(bytes).unwrap());
                write!(shown, "--- {name}\n{text}").unwrap();
            }
        }
        shown
    }

    /// What a run that must fail says on standard error; it prints nothing else, writes nothing.
    fn refusal(&self, args: &str) -> String {
        let Output { status, stdout, stderr } = self.output(args);
        assert_eq!(status.code(), Some(1));
        assert!(stdout.is_empty(), "{}", String::from_utf8_lossy(&stdout));
        assert!(!self.path("out").exists(), "nothing is left");
        self.filtered(&String::from_utf8(stderr).unwrap())
    }

    /// What `quantize` says of the checkpoint, which it must refuse.
    fn quantize_refusal(&self) -> String {
        self.refusal("quantize model -o out")
    }

    fn filtered(&self, text: &str) -> String {
        let here = self.0.path().display().to_string();
        let replaced = [
            (regex::escape(&here), "[here]"),
            (r"\d+\.\d s, \d+\.\d\d GB/s, peak memory [\d.]+ [KMG]iB".to_owned(), "[time, rate, memory]"),
            (r#""(seconds|peak_memory)":[\d.e-]+"#.to_owned(), "\"$1\":0"),
            (r"no hashes to compare with|every byte as it was written".to_owned(), "[hashes]"),
            (r"[\d.]+ [KMGT]iB free".to_owned(), "[space] free"),
            (r"caused by: .* \(os error (\d+)\)".to_owned(), "caused by: [os error]"),
            (r"smelt\.exe".to_owned(), "smelt"),
        ];
        replaced.iter().fold(text.to_owned(), |text, (pattern, with)| {
            Regex::new(pattern).unwrap().replace_all(&text, *with).into_owned()
        })
    }
}

/// A shard with this header, and zeros after it.
fn shard(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

fn sample() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../samples/tiny-moe").display().to_string()
}
