//! Takes a model's shards apart and puts them together again, with the reference reader.

use std::collections::BTreeMap;

use safetensors::SafeTensors;
use serde_json::{Value, json};

use crate::{Contents, MANIFEST};

pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// Where the bytes of a stored tensor lie.
pub(crate) struct Place {
    pub(crate) file: String,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

pub(crate) fn shard_names(model: &Contents) -> Vec<String> {
    model.keys().filter(|name| name.ends_with(".safetensors")).cloned().collect()
}

/// Bytes in front of the tensors of a shard.
pub(crate) fn header_len(shard: &[u8]) -> usize {
    8 + u64::from_le_bytes(shard[..8].try_into().unwrap()) as usize
}

pub(crate) fn header(shard: &[u8]) -> Value {
    serde_json::from_slice(&shard[8..header_len(shard)]).unwrap()
}

/// The place of a tensor.
pub(crate) fn place(model: &Contents, tensor: &str) -> Place {
    let found = shard_names(model).into_iter().find_map(|file| {
        let shard = &model[&file];
        let offsets = header(shard).get(tensor)?["data_offsets"].clone();
        let at = |index: usize| header_len(shard) + offsets[index].as_u64().unwrap() as usize;
        Some(Place { start: at(0), end: at(1), file })
    });
    found.unwrap_or_else(|| panic!("no tensor `{tensor}`"))
}

/// The bytes of a tensor, to be changed.
pub(crate) fn bytes<'a>(model: &'a mut Contents, tensor: &str) -> &'a mut [u8] {
    let Place { file, start, end } = place(model, tensor);
    &mut model.get_mut(&file).unwrap()[start..end]
}

/// Writes a shard's header anew after a change; the tensors stay where they are.
pub(crate) fn edit_header(shard: &mut Vec<u8>, change: impl FnOnce(&mut Value)) {
    let mut value = header(shard);
    change(&mut value);
    let mut text = value.to_string().into_bytes();
    while !text.len().is_multiple_of(8) {
        text.push(b' ');
    }
    let data = shard.split_off(header_len(shard));
    *shard = [&(text.len() as u64).to_le_bytes()[..], &text, &data].concat();
}

pub(crate) fn edit_json(model: &mut Contents, file: &str, change: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&model[file]).unwrap();
    change(&mut value);
    model.insert(file.to_owned(), value.to_string().into_bytes());
}

/// The model with the hashes that are written with it.
pub(crate) fn hashed(model: &Contents) -> Contents {
    let hash = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
    let (mut shards, mut tensors, mut files) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (name, bytes) in model {
        if name.ends_with(".safetensors") {
            let header = hash(&bytes[..header_len(bytes)]);
            shards.insert(name.clone(), json!({ "bytes": bytes.len(), "header": header }));
            for (tensor, view) in SafeTensors::deserialize(bytes).unwrap().iter() {
                tensors.insert(tensor.to_owned(), hash(view.data()));
            }
        } else if name != MANIFEST {
            files.insert(name.clone(), hash(bytes));
        }
    }
    let manifest = json!({
        "version": 1, "smelt": "0.1.0", "settings": {}, "source": {},
        "fingerprint": hash(br#"{"settings":{},"source":{}}"#),
        "shards": shards, "tensors": tensors, "files": files,
    });
    let mut model = model.clone();
    model.insert(MANIFEST.to_owned(), sealed(&manifest));
    model
}

/// A manifest or report with the hash of itself.
pub(crate) fn sealed(value: &Value) -> Vec<u8> {
    let text = serde_json::to_string_pretty(value).unwrap();
    let text = text.strip_suffix("\n}").unwrap();
    format!("{text},\n  \"digest\": \"{}\"\n}}\n", blake3::hash(text.as_bytes()).to_hex()).into_bytes()
}

/// The shard that holds a tensor.
pub(crate) fn shard<'a>(model: &'a mut Contents, tensor: &str) -> &'a mut Vec<u8> {
    let name = place(model, tensor).file;
    model.get_mut(&name).unwrap()
}

/// Gives a tensor another name, in its shard and in the index.
pub(crate) fn rename(model: &mut Contents, from: &str, to: &str) {
    edit_header(shard(model, from), |header| {
        let entry = header.as_object_mut().unwrap().remove(from).unwrap();
        header[to] = entry;
    });
    edit_json(model, INDEX, |index| {
        let file = index["weight_map"].as_object_mut().unwrap().remove(from).unwrap();
        index["weight_map"][to] = file;
    });
}
