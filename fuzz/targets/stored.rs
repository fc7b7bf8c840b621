//! Small checkpoints made of the bytes of an input, for the targets that pair and decode tensors.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use smelt_core::checkpoint::{Checkpoint, DType};
use smelt_core::source::MemorySource;

/// The bytes of an input, one after another; zeros behind its end.
pub struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    pub fn new(data: &'a [u8]) -> Self {
        Self(data)
    }

    pub fn next(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.next()) % end
    }

    /// At most so many bytes.
    pub fn take(&mut self, most: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// A tensor to store; its data are `data` again and again.
pub struct Tensor {
    pub name: String,
    pub dtype: &'static str,
    pub shape: Vec<u64>,
    pub data: Vec<u8>,
}

/// A checkpoint that holds these tensors, if it opens.
pub fn checkpoint(config: &Value, tensors: &[Tensor]) -> Option<Checkpoint> {
    let (mut header, mut data) = (Map::new(), Vec::new());
    for Tensor { name, dtype, shape, data: pattern } in tensors {
        let begin = data.len();
        let bits = DType::from_name(dtype)?.bits() * shape.iter().product::<u64>();
        let pattern = if pattern.is_empty() { &[0][..] } else { pattern };
        data.extend(pattern.iter().cycle().take(bits.div_ceil(8) as usize));
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()] });
        header.insert(name.clone(), entry);
    }
    let header = Value::Object(header).to_string().into_bytes();
    let shard = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    let files = [("config.json", config.to_string().into_bytes()), ("model.safetensors", shard)];
    Checkpoint::open(Arc::new(MemorySource::new(files))).ok()
}
