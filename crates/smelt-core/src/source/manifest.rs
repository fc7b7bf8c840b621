//! A checkpoint without weights, made from a list of its tensors.
//!
//! A manifest is one JSON file: `{"config": {…}, "files": {file: {tensor: [dtype, shape]}}}`, or
//! shorter `{"config": {…}, "tensors": {names: shape}}`, where names that differ in numbers are one line
//! (`model.layers.{0-3,5}.mlp.gate.weight`) and a shape stands for BF16 unless a dtype comes before it:
//! `["F32", [4]]`. It is enough to plan, to discover a layout and to check a family; the weights read
//! as zeros. This is how hundreds of architectures fit into a test.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{FileEntry, Source};
use crate::checkpoint::{CONFIG, DType};
use crate::error::{Result, SourceError};

/// A source whose shards have headers and nothing but zeros behind them.
#[derive(Debug)]
pub struct ManifestSource {
    location: String,
    /// The bytes at the beginning of each file, and its size.
    files: BTreeMap<String, (Vec<u8>, u64)>,
}

type Tensors = BTreeMap<String, (DType, Vec<u64>)>;

#[derive(Deserialize)]
struct Manifest {
    config: Value,
    #[serde(default)]
    files: BTreeMap<String, Tensors>,
    #[serde(default)]
    tensors: BTreeMap<String, Shape>,
}

#[derive(Clone, Deserialize)]
#[serde(untagged)]
enum Shape {
    Plain(Vec<u64>),
    Typed(DType, Vec<u64>),
}

impl ManifestSource {
    /// Parses the text of a manifest; `name` is for messages.
    ///
    /// # Errors
    /// [`SourceError::Manifest`] if it is none.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let manifest: Manifest = serde_json::from_str(text)
            .map_err(|source| SourceError::Manifest { file: name.to_owned(), source })?;
        let config = manifest.config.to_string().into_bytes();
        let mut files = BTreeMap::from([(CONFIG.to_owned(), (config.clone(), config.len() as u64))]);
        for (file, tensors) in manifest.files {
            files.insert(file, shard(&tensors));
        }
        if !manifest.tensors.is_empty() {
            files.insert("model.safetensors".to_owned(), shard(&expanded(manifest.tensors)));
        }
        Ok(Self { location: name.to_owned(), files })
    }
}

/// Every tensor by its own name.
fn expanded(lines: BTreeMap<String, Shape>) -> Tensors {
    let mut tensors = Tensors::new();
    for (names, shape) in lines {
        let typed = match shape {
            Shape::Plain(shape) => (DType::BF16, shape),
            Shape::Typed(dtype, shape) => (dtype, shape),
        };
        tensors.extend(expand(&names).into_iter().map(|name| (name, typed.clone())));
    }
    tensors
}

/// `a.{0-2,5}.b` is `a.0.b`, `a.1.b`, `a.2.b` and `a.5.b`; several ranges multiply.
fn expand(names: &str) -> Vec<String> {
    let Some((before, rest)) = names.split_once('{') else {
        return vec![names.to_owned()];
    };
    let (list, after) = rest.split_once('}').unwrap_or((rest, ""));
    let tails = expand(after);
    let numbers = list.split(',').flat_map(|item| {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        let number = |text: &str| text.parse::<u32>().unwrap_or(0);
        number(first)..=number(last)
    });
    numbers.flat_map(|number| tails.iter().map(move |tail| format!("{before}{number}{tail}"))).collect()
}

/// The header of a shard that holds these tensors, and the size of the file.
fn shard(tensors: &Tensors) -> (Vec<u8>, u64) {
    let mut entries = serde_json::Map::new();
    let mut end = 0;
    for (name, (dtype, shape)) in tensors {
        let elements = shape.iter().fold(1u64, |total, &size| total.saturating_mul(size));
        let start = end;
        end += dtype.bytes(elements).unwrap_or(0);
        let entry = json!({ "dtype": dtype.name(), "shape": shape, "data_offsets": [start, end] });
        entries.insert(name.clone(), entry);
    }
    let text = Value::Object(entries).to_string();
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.into_bytes());
    let size = bytes.len() as u64 + end;
    (bytes, size)
}

impl Source for ManifestSource {
    fn location(&self) -> &str {
        &self.location
    }

    fn list(&self) -> Result<Vec<FileEntry>> {
        let files = self.files.iter();
        Ok(files.map(|(path, (_, size))| FileEntry { path: path.clone(), size: *size }).collect())
    }

    fn read_at(&self, path: &str, offset: u64, buf: &mut [u8]) -> Result<()> {
        let location = || self.location.clone();
        let (bytes, size) = self
            .files
            .get(path)
            .ok_or_else(|| SourceError::NoSuchFile { location: location(), file: path.to_owned() })?;
        let length = buf.len() as u64;
        if length > 0 && offset.checked_add(length).is_none_or(|end| end > *size) {
            let file = path.to_owned();
            return Err(
                SourceError::PastEnd { location: location(), file, size: *size, offset, length }.into()
            );
        }
        buf.fill(0);
        let known = bytes.get(usize::try_from(offset).unwrap_or(usize::MAX)..).unwrap_or_default();
        let len = known.len().min(buf.len());
        buf[..len].copy_from_slice(&known[..len]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_multiply() {
        let names = expand("a.{0-1}.b.{3,5-6}.c");
        assert_eq!(names, ["a.0.b.3.c", "a.0.b.5.c", "a.0.b.6.c", "a.1.b.3.c", "a.1.b.5.c", "a.1.b.6.c"]);
    }

    #[test]
    fn a_manifest_opens_as_a_checkpoint() {
        let text = r#"{"config": {"model_type": "x"}, "tensors": {"w.{0-1}": [2, 3], "s": ["F32", []]}}"#;
        let source = ManifestSource::parse("x.json", text).unwrap();
        let checkpoint = crate::checkpoint::Checkpoint::open(std::sync::Arc::new(source)).unwrap();
        let shown: Vec<String> =
            checkpoint.tensors().iter().map(|t| format!("{} {} {:?}", t.name, t.dtype, t.shape)).collect();
        assert_eq!(shown, ["s F32 []", "w.0 BF16 [2, 3]", "w.1 BF16 [2, 3]"]);
    }
}
