//! Checkpoints in memory: what opens, what each refusal is, which files go where.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::sync::Arc;

use smelt_core::checkpoint::{Checkpoint, DType, Storage};
use smelt_core::source::{FileEntry, MemorySource, Source};
use smelt_core::{CheckpointError, Error, HeaderError, Result, SourceError};

/// A file of a checkpoint in memory.
type File = (String, Vec<u8>);

fn text(path: &str, text: &str) -> File {
    (path.to_owned(), text.as_bytes().to_vec())
}

/// A shard of tensors (name, dtype, bytes), one dimension each, filled with their own place.
fn shard(path: &str, tensors: &[(&str, &str, u64)]) -> File {
    let mut end = 0;
    let mut members = Vec::new();
    let mut data = Vec::new();
    for (place, (name, dtype, bytes)) in tensors.iter().enumerate() {
        let (begin, elements) = (end, bytes * 8 / DType::from_name(dtype).unwrap().bits());
        end += bytes;
        data.resize(end as usize, place as u8);
        members.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":[{elements}],"data_offsets":[{begin},{end}]}}"#
        ));
    }
    let header = format!("{{{}}}", members.join(","));
    let length = (header.len() as u64).to_le_bytes();
    (path.to_owned(), [&length[..], header.as_bytes(), &data].concat())
}

fn index(entries: &[(&str, &str)]) -> File {
    let entries: Vec<_> = entries.iter().map(|(name, file)| format!(r#""{name}":"{file}""#)).collect();
    let map = entries.join(",");
    text("model.safetensors.index.json", &format!(r#"{{"metadata":{{}},"weight_map":{{{map}}}}}"#))
}

fn config() -> File {
    text("config.json", r#"{"model_type": "llama", "text_config": {"hidden_size": 8}}"#)
}

fn open(files: &[File]) -> Result<Checkpoint> {
    Checkpoint::open(Arc::new(MemorySource::new(files.iter().cloned())))
}

fn two_shards() -> [File; 2] {
    [
        shard("model-00001-of-00002.safetensors", &[("b", "BF16", 4), ("a", "F32", 8)]),
        shard("model-00002-of-00002.safetensors", &[("c", "F16", 6)]),
    ]
}

fn names(files: &[File]) -> Vec<String> {
    let checkpoint = open(files).unwrap();
    checkpoint.tensors().iter().map(|tensor| tensor.name.to_string()).collect()
}

#[test]
fn opens_with_and_without_an_index() {
    let [one, two] = two_shards();
    let good = index(&[
        ("c", "model-00002-of-00002.safetensors"),
        ("a", "model-00001-of-00002.safetensors"),
        ("b", "model-00001-of-00002.safetensors"),
    ]);
    for files in [vec![config(), one.clone(), two.clone()], vec![config(), one, two, good]] {
        let checkpoint = open(&files).unwrap();
        assert_eq!(names(&files), ["a", "b", "c"]);
        assert_eq!(checkpoint.config().model_type(), Some("llama"));
        assert_eq!(checkpoint.config().get("text_config.hidden_size").unwrap(), 8);
        assert_eq!(checkpoint.config().get("text_config.absent"), None);
        assert_eq!(checkpoint.shards().len(), 2);
        assert_eq!(checkpoint.find("d"), None);
        let id = checkpoint.find("b").unwrap();
        assert_eq!(checkpoint.tensor(id).dtype, DType::BF16);
        assert_eq!(checkpoint.storage(), Storage::Plain);
    }
}

#[test]
fn reads_inside_a_tensor_only() {
    let [one, two] = two_shards();
    let checkpoint = open(&[config(), one, two]).unwrap();
    let id = checkpoint.find("a").unwrap();
    let mut buf = [0xEE; 8];
    checkpoint.read(id, 0, &mut buf).unwrap();
    assert_eq!(buf, [1; 8], "the second tensor of its shard is filled with ones");
    checkpoint.read(id, 5, &mut buf[..3]).unwrap();
    checkpoint.read(id, 8, &mut []).unwrap();
    for (offset, length) in [(1, 8), (8, 1), (u64::MAX, 1), (9, 0)] {
        let result = checkpoint.read(id, offset, &mut buf[..length]);
        assert!(
            matches!(result, Err(Error::Checkpoint(CheckpointError::OutsideTensor { bytes: 8, .. }))),
            "{result:?}"
        );
    }
}

/// Checks that the files are refused as `$pattern`, with a message that holds each word.
macro_rules! refused {
    ($files:expr, $pattern:pat, $($word:literal),+) => {
        let error = open(&$files).expect_err("must be refused");
        assert!(matches!(error, $pattern), "{error:?}");
        $(assert!(error.to_string().contains($word), "{error}");)+
    };
}

#[test]
fn refuses_a_broken_configuration() {
    let [one, two] = two_shards();
    let with = |bytes: &[u8]| [("config.json".to_owned(), bytes.to_vec()), one.clone(), two.clone()];
    refused!([one.clone(), two.clone()], Error::Checkpoint(CheckpointError::NoConfig { .. }), "config.json");
    refused!(with(b"{"), Error::Checkpoint(CheckpointError::Json { .. }), "`config.json`");
    refused!(with(b"[1]"), Error::Checkpoint(CheckpointError::NotAnObject { .. }), "`config.json`");
    refused!(with(b" Infinity"), Error::Checkpoint(CheckpointError::NotAnObject { .. }), "`config.json`");
    refused!(with(b"{\"a\":\"\xff\"}"), Error::Checkpoint(CheckpointError::Utf8 { .. }), "`config.json`");
    let folder = [("config.json/x".to_owned(), vec![]), one];
    refused!(folder, Error::Checkpoint(CheckpointError::NoConfig { .. }), "config.json");
}

#[test]
fn refuses_a_checkpoint_without_shards() {
    refused!([config()], Error::Checkpoint(CheckpointError::NoWeights { other: None, .. }), "memory");
    let other = [config(), text("pytorch_model.bin", "x")];
    refused!(other, Error::Checkpoint(CheckpointError::NoWeights { .. }), "`pytorch_model.bin`");
    let nested = [config(), shard("original/model.safetensors", &[])];
    refused!(nested, Error::Checkpoint(CheckpointError::NoWeights { .. }), "no safetensors");
    refused!([config(), index(&[])], Error::Checkpoint(CheckpointError::NoWeights { .. }), "no safetensors");
}

#[test]
fn refuses_a_broken_index() {
    let [one, two] = two_shards();
    let with = |json| [config(), text("model.safetensors.index.json", json), one.clone(), two.clone()];
    refused!(with("{"), Error::Checkpoint(CheckpointError::Json { .. }), "index.json");
    refused!(
        with(r#"{"weight_map":{"a":1}}"#),
        Error::Checkpoint(CheckpointError::Json { .. }),
        "index.json"
    );
    refused!(
        with(r#"{"metadata":{}}"#),
        Error::Checkpoint(CheckpointError::NoWeightMap { .. }),
        "weight_map"
    );
    let twice = r#"{"weight_map":{"a":"x","a":"x"}}"#;
    refused!(with(twice), Error::Checkpoint(CheckpointError::IndexDuplicate { .. }), "`a`");
    refused!(
        with(r#"{"weight_map":{"a":""}}"#),
        Error::Checkpoint(CheckpointError::Json { .. }),
        "index.json"
    );
}

#[test]
fn refuses_an_index_of_another_checkpoint() {
    let [one, two] = two_shards();
    let (first, second) = (one.0.as_str(), two.0.as_str());
    let with = |entries: &[(&str, &str)]| [config(), index(entries), one.clone(), two.clone()];
    let missing = [("a", first), ("b", first), ("c", "model-3.safetensors")];
    refused!(
        with(&missing),
        Error::Checkpoint(CheckpointError::MissingShard { .. }),
        "`model-3.safetensors`"
    );
    let outside = [("a", first), ("b", first), ("c", "../model-3.safetensors")];
    refused!(
        with(&outside),
        Error::Checkpoint(CheckpointError::MissingShard { .. }),
        "`../model-3.safetensors`"
    );
    for extra in ["0", "bb", "d"] {
        let entries = [("a", first), ("b", first), ("c", second), (extra, second)];
        refused!(with(&entries), Error::Checkpoint(CheckpointError::MissingTensor { .. }), "00002");
    }
    refused!(
        with(&[("a", first), ("c", second)]),
        Error::Checkpoint(CheckpointError::UnindexedTensor { .. }),
        "`b`",
        "00001"
    );
    let tail = [("a", first), ("b", first)];
    assert_eq!(names(&with(&tail)[..3]), ["a", "b"], "a shard that the index does not name");
    let swapped = [("a", first), ("b", second), ("c", second)];
    refused!(
        with(&swapped),
        Error::Checkpoint(CheckpointError::MisplacedTensor { .. }),
        "`b`",
        "00001",
        "00002"
    );
}

#[test]
fn refuses_broken_shards() {
    let [one, _] = two_shards();
    let copy = ("model-copy.safetensors".to_owned(), one.1.clone());
    refused!(
        [config(), one.clone(), copy],
        Error::Checkpoint(CheckpointError::TensorTwice { .. }),
        "`a`",
        "`model-00001-of-00002.safetensors`",
        "`model-copy.safetensors`"
    );
    let cut = (one.0.clone(), one.1[..one.1.len() - 1].to_vec());
    refused!(
        [config(), cut],
        Error::Header(HeaderError::Truncated { .. }),
        "`a`",
        "`model-00001-of-00002.safetensors`"
    );
    // Of two broken shards always the first is named.
    let broken = |name: &str| text(name, "{}");
    let pair = [config(), broken("model-2.safetensors"), broken("model-1.safetensors")];
    for _ in 0..20 {
        refused!(pair, Error::Header(HeaderError::Missing { .. }), "`model-1.safetensors`");
    }
}

/// A source that lists everything and reads all but one file.
#[derive(Debug)]
struct Failing {
    files: MemorySource,
    broken: &'static str,
}

impl Source for Failing {
    fn location(&self) -> &str {
        self.files.location()
    }

    fn list(&self) -> Result<Vec<FileEntry>> {
        self.files.list()
    }

    fn read_at(&self, path: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        if path != self.broken {
            return self.files.read_at(path, offset, buf);
        }
        let (location, file) = (self.location().to_owned(), path.to_owned());
        Err(SourceError::Read { location, file, source: std::io::ErrorKind::TimedOut.into() }.into())
    }
}

#[test]
fn what_the_source_reports_comes_through() {
    let [one, two] = two_shards();
    for broken in ["config.json", "model-00002-of-00002.safetensors"] {
        let files = MemorySource::new([config(), one.clone(), two.clone()]);
        let error = Checkpoint::open(Arc::new(Failing { files, broken })).unwrap_err();
        assert!(
            matches!(&error, Error::Source(SourceError::Read { file, .. }) if file == broken),
            "{error:?}"
        );
    }
}

#[test]
fn refuses_a_configuration_too_large_to_be_one() {
    let huge = ("config.json".to_owned(), vec![b' '; (64 << 20) + 1]);
    refused!([huge], Error::Source(SourceError::TooLarge { .. }), "`config.json`");
}

#[test]
fn shards_without_an_index() {
    let some = |path: &str, name: &str| shard(path, &[(name, "F32", 4)]);
    let consolidated = some("consolidated.safetensors", "k");
    let adapter = some("adapter.safetensors", "l");
    let nested = some("sub/model.safetensors", "n");
    let model = some("model.safetensors", "m");
    let files = [config(), consolidated.clone(), adapter.clone(), nested.clone(), model];
    assert_eq!(names(&files), ["m"]);
    assert_eq!(names(&[config(), consolidated, adapter, nested]), ["l"]);
}

#[test]
fn every_file_has_its_place() {
    let side = [
        "1_Pooling/config.json",
        "LICENSE",
        "README.md",
        "added_tokens.json",
        "additional_chat_templates/tool.jinja",
        "chat_template.jinja",
        "generation_config.json",
        "merges.txt",
        "modeling_x.py",
        "preprocessor_config.json",
        "qwen.tiktoken",
        "tekken.json",
        "tokenizer.json",
        "tokenizer.model",
        "video_preprocessor_config.json",
        "vocab.json",
    ];
    let left = [
        ".gitattributes",
        "consolidated.00.pth",
        "consolidated.safetensors",
        "flax_model.msgpack",
        "hf_quant_config.json",
        "metal/model.bin",
        "model-q4.gguf",
        "onnx/config.json",
        "onnx/model.onnx_data",
        "original/tokenizer.model",
        "pytorch_model.bin.index.json",
        "rust_model.ot",
        "sub/tf_model.h5",
        "tf_model.H5",
        "unused.safetensors",
    ];
    let mut files: Vec<File> = side.iter().chain(&left).map(|path| text(path, "{}")).collect();
    files.extend([config(), shard("model.safetensors", &[("a", "F32", 4)])]);
    let checkpoint = open(&files).unwrap();
    let kept: Vec<_> = checkpoint.side_files().iter().map(|file| file.path.as_str()).collect();
    assert_eq!(kept, side);
    let gone: Vec<_> = checkpoint.left_out().iter().map(|file| file.path.as_str()).collect();
    assert_eq!(gone, left);
    assert!(checkpoint.left_out().iter().all(|file| !file.why.is_empty()));
}

fn storage(config: &str, tensors: &[(&str, &str, u64)], more: &[File]) -> Storage {
    let files = [text("config.json", config), shard("model.safetensors", tensors)];
    open(&[&files[..], more].concat()).unwrap().storage()
}

fn packed(method: &str) -> Storage {
    Storage::Packed { method: method.to_owned() }
}

#[test]
fn storage_by_configuration() {
    let plain = [("x.weight", "BF16", 64)];
    let by_config = |config| storage(config, &plain, &[]);
    let mlx = Storage::Mlx { mode: None, bits: Some(4), group_size: Some(64) };
    assert_eq!(by_config(r#"{"quantization": {"bits": 4, "group_size": 64}}"#), mlx);
    let fp8 = r#"{"quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}}"#;
    assert_eq!(by_config(fp8), packed("fp8, e4m3"));
    let nested = r#"{"text_config": {"quantization_config": {"quant_method": "awq"}}}"#;
    assert_eq!(by_config(nested), packed("awq"));
    // Notes of quantization-aware training over plain weights.
    assert_eq!(by_config(r#"{"quantization_config": {"quant_type": "q4_0"}}"#), Storage::Plain);
    let note = r#"{"quantization_config": {"bits": 4, "group_size": 32}}"#;
    assert_eq!(by_config(note), Storage::Plain);
    assert_eq!(by_config(r#"{"quantization_config": null, "quantization": null}"#), Storage::Plain);
    let modelopt = text("hf_quant_config.json", r#"{"quantization": {"quant_algo": "NVFP4"}}"#);
    assert_eq!(storage("{}", &plain, &[modelopt]), packed("modelopt, NVFP4"));
}

#[test]
fn storage_by_tensors() {
    let by_tensors = |tensors: &[_]| storage("{}", tensors, &[]);
    let codes = [("x.weight", "U32", 64), ("x.scales", "BF16", 4), ("x.biases", "BF16", 4)];
    let unknown = Storage::Mlx { mode: None, bits: None, group_size: None };
    assert_eq!(by_tensors(&codes), unknown);
    let copy = r#"{"quantization_config": {"bits": 8, "group_size": 32, "mode": "mxfp8"}}"#;
    let known = Storage::Mlx { mode: Some("mxfp8".to_owned()), bits: Some(8), group_size: Some(32) };
    assert_eq!(storage(copy, &codes, &[]), known);
    assert!(known.describe().contains("mxfp8, 8 bits, group size 32"));
    for pair in [
        [("x.weight", "F8_E4M3", 64), ("x.weight_scale_inv", "F32", 4)],
        [("x.weight", "U8", 64), ("x.weight_scale", "F8_E4M3", 4)],
        [("x.weight", "I8", 64), ("x.scale", "F8_E8M0", 4)],
        [("e.down_blocks", "U8", 64), ("e.down_scales", "U8", 4)],
        [("x.qweight", "I32", 64), ("x.scales", "F16", 4)],
        [("x.weight_packed", "I32", 64), ("x.weight_scale", "BF16", 4)],
    ] {
        let found = by_tensors(&pair);
        assert!(matches!(found, Storage::Packed { .. }), "{pair:?}: {found:?}");
    }
    // Integers that are no weights.
    let buffers = [("position_ids", "I64", 64), ("mask", "BOOL", 8), ("x.weight", "U8", 8)];
    assert_eq!(by_tensors(&buffers), Storage::Plain);
}

/// The largest checkpoints: 92 160 tensors in 96 shards with an index.
///
/// Run in release: `cargo test --release -p smelt-core --test checkpoint -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, only meaningful in release"]
fn ninety_thousand_tensors() {
    let mut files = vec![config()];
    let mut entries = Vec::new();
    for part in 0..96 {
        let path = format!("model-{part:05}-of-00096.safetensors");
        let tensors: Vec<String> =
            (0..960).map(|i| format!("model.layers.{part}.mlp.experts.{i}.up_proj.weight")).collect();
        let described: Vec<_> = tensors.iter().map(|name| (name.as_str(), "BF16", 2)).collect();
        files.push(shard(&path, &described));
        entries.extend(tensors.into_iter().map(|name| (name, path.clone())));
    }
    let entries: Vec<_> = entries.iter().map(|(name, file)| (name.as_str(), file.as_str())).collect();
    files.push(index(&entries));
    let source = Arc::new(MemorySource::new(files));
    let start = std::time::Instant::now();
    let checkpoint = Checkpoint::open(source).unwrap();
    let time = start.elapsed();
    println!("{} tensors with their index: {time:?}", checkpoint.tensors().len());
    assert!(time.as_secs_f64() < 0.5, "{time:?}");
}
