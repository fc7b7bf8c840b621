//! Which file each stored tensor goes to, and the header and index that say so.
//!
//! As mlx-lm does it: tensors in order, a new shard when the next one would pass the limit, a
//! larger tensor in a shard of its own. The header lists names in byte order with their keys
//! sorted, as `mx.save_safetensors` writes it, padded so that the data is aligned.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::mtp::{FOLDER, parted};
use super::{Part, Plan, Task};
use crate::checkpoint::INDEX;

/// A file of tensors to write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputShard {
    /// Its name.
    pub name: String,
    /// Bytes of tensors in it.
    pub tensor_bytes: u64,
    /// Bytes in front of the tensors: the length and the header.
    pub header_bytes: u64,
}

impl OutputShard {
    /// Size of the file.
    pub fn bytes(&self) -> u64 {
        self.header_bytes + self.tensor_bytes
    }
}

/// What the files are to be like.
#[derive(Clone, Copy)]
pub(super) struct Files {
    /// Bytes of tensors in a file, unless one tensor alone has more.
    pub(super) limit: u64,
    /// Whether the library is to put the tensors through its `sanitize`.
    pub(super) preimage: bool,
}

/// Gives every part its shard and offset: the model's in the top folder, what is written apart in its own.
pub(super) fn place(tasks: &mut [Task], files: Files) -> Vec<OutputShard> {
    let model = parted(tasks).0.len();
    let (model, apart) = tasks.split_at_mut(model);
    let mut shards = fill(model, "", files, 0);
    if !apart.is_empty() {
        shards.extend(fill(apart, FOLDER, files, shards.len()));
    }
    shards
}

/// Fills the shards of a folder, of which the first has the number `first`.
fn fill(tasks: &mut [Task], folder: &str, files: Files, first: usize) -> Vec<OutputShard> {
    let mut sizes = vec![0u64];
    for part in tasks.iter_mut().flat_map(|task| &mut task.parts) {
        let last = sizes.len() - 1;
        if sizes[last] > 0 && sizes[last] + part.bytes > files.limit {
            sizes.push(0);
        }
        let shard = sizes.len() - 1;
        part.shard = (first + shard) as u32;
        part.offset = sizes[shard];
        sizes[shard] += part.bytes;
    }
    let count = sizes.len();
    let sizes = sizes.into_iter().enumerate();
    sizes
        .map(|(index, tensor_bytes)| OutputShard {
            name: format!("{folder}{}", name(index, count)),
            tensor_bytes,
            header_bytes: header(tasks, (first + index) as u32, files.preimage).len() as u64,
        })
        .collect()
}

fn name(index: usize, count: usize) -> String {
    if count == 1 {
        return "model.safetensors".to_owned();
    }
    format!("model-{:05}-of-{count:05}.safetensors", index + 1)
}

/// The bytes in front of the tensors of a shard.
pub fn shard_header(plan: &Plan, shard: u32) -> Vec<u8> {
    header(&plan.tasks, shard, plan.preimage)
}

/// `mlx` says that the tensors are a library's own parameters: mlx-vlm had versions that change nothing in
/// such files, and those that do change it load what is written for that alone.
fn header(tasks: &[Task], shard: u32, preimage: bool) -> Vec<u8> {
    let parts = tasks.iter().flat_map(|task| &task.parts).filter(|part| part.shard == shard);
    let sorted: BTreeMap<&str, &Part> = parts.map(|part| (part.name.as_str(), part)).collect();
    let format = if preimage { "pt" } else { "mlx" };
    let mut text = format!(r#"{{"__metadata__":{{"format":"{format}"}}"#);
    for (name, part) in sorted {
        let name = json!(name);
        let (start, end) = (part.offset, part.offset + part.bytes);
        let (dtype, shape) = (part.dtype.name(), &part.shape);
        let shape = shape.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let entry =
            format!(r#",{name}:{{"data_offsets":[{start},{end}],"dtype":"{dtype}","shape":[{shape}]}}"#);
        text.push_str(&entry);
    }
    text.push('}');
    while text.len() % 8 != 0 {
        text.push(' ');
    }
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.into_bytes());
    bytes
}

/// An index to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Index {
    /// Its name.
    pub name: String,
    /// Its text, as mlx-lm writes it.
    pub text: String,
}

/// The index of the model, and that of what is written apart, if anything is.
pub fn indexes(plan: &Plan) -> Vec<Index> {
    let model = index(plan, plan.model_tasks(), "");
    let apart = plan.mtp.iter().map(|_| index(plan, plan.mtp_tasks(), FOLDER));
    [model].into_iter().chain(apart).collect()
}

/// The index of the tasks in one folder, which names files as they are called there.
fn index(plan: &Plan, tasks: &[Task], folder: &str) -> Index {
    let file = |part: &Part| {
        let name = plan.shards[part.shard as usize].name.as_str();
        name.strip_prefix(folder).unwrap_or(name)
    };
    let parts = tasks.iter().flat_map(|task| &task.parts);
    let map: BTreeMap<&str, &str> = parts.map(|part| (part.name.as_str(), file(part))).collect();
    let size: u64 = tasks.iter().map(Task::bytes).sum();
    let parameters: u64 = tasks.iter().map(Task::elements).sum();
    let mut text = String::new();
    let _ = write!(
        text,
        "{{\n    \"metadata\": {{\n        \"total_size\": {size},\n        \"total_parameters\": {parameters}\n    }},\n    \"weight_map\": {{"
    );
    for (index, (name, file)) in map.into_iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let _ = write!(text, "{comma}\n        {}: {}", json!(name), json!(file));
    }
    text.push_str("\n    }\n}");
    Index { name: format!("{folder}{INDEX}"), text }
}
