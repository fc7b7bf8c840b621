//! Small checkpoints in memory, among them those of `tests/conformance/manifests`: configs and
//! tensor names as the `transformers` library writes them, which know nothing of our families.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// A checkpoint to make: its config, and names and shapes of its tensors, all of them BF16.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) config: Value,
    pub(crate) tensors: Vec<(String, Vec<u64>)>,
}

/// Where the manifests lie.
pub(crate) fn manifests() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/conformance/manifests")
}

impl Model {
    /// The model of a manifest.
    pub(crate) fn manifest(name: &str) -> Self {
        let text = fs::read_to_string(manifests().join(format!("{name}.json"))).unwrap();
        let manifest: Value = serde_json::from_str(&text).unwrap();
        let mut tensors = Vec::new();
        for (pattern, shape) in manifest["tensors"].as_object().unwrap() {
            let shape: Vec<u64> = serde_json::from_value(shape.clone()).unwrap();
            tensors.extend(expand(pattern).into_iter().map(|name| (name, shape.clone())));
        }
        Self { config: manifest["config"].clone(), tensors }
    }

    /// The files of the checkpoint. Weights are small floats that depend on name and place.
    pub(crate) fn files(&self) -> Vec<(String, Vec<u8>)> {
        let (mut header, mut data) = (Map::new(), Vec::new());
        for (name, shape) in &self.tensors {
            let (begin, count) = (data.len(), shape.iter().product::<u64>());
            let seed = name.bytes().fold(0u32, |seed, byte| seed.wrapping_mul(31).wrapping_add(byte.into()));
            for place in 0..count as u32 {
                let mixed = (seed ^ place).wrapping_mul(2_654_435_761);
                // A sign, one of eight exponents around 2^-5, seven bits of mantissa.
                let bits =
                    ((mixed >> 31) << 15) | ((118 + ((mixed >> 28) & 7)) << 7) | ((mixed >> 20) & 0x7F);
                data.extend_from_slice(&(bits as u16).to_le_bytes());
            }
            let entry = json!({ "dtype": "BF16", "shape": shape, "data_offsets": [begin, data.len()] });
            header.insert(name.clone(), entry);
        }
        let header = Value::Object(header).to_string().into_bytes();
        let shard = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
        vec![
            ("config.json".to_owned(), self.config.to_string().into_bytes()),
            ("model.safetensors".to_owned(), shard),
            ("tokenizer.json".to_owned(), b"{\"tokens\": []}".to_vec()),
        ]
    }
}

/// `a.{0-2}.b` and `a.{1,3}.b` written out.
fn expand(pattern: &str) -> Vec<String> {
    let Some((head, rest)) = pattern.split_once('{') else {
        return vec![pattern.to_owned()];
    };
    let (range, tail) = rest.split_once('}').unwrap();
    let indices: Vec<u32> = match range.split_once('-') {
        Some((low, high)) => (low.parse().unwrap()..=high.parse().unwrap()).collect(),
        None => range.split(',').map(|index| index.parse().unwrap()).collect(),
    };
    indices.iter().flat_map(|index| expand(&format!("{head}{index}{tail}"))).collect()
}
