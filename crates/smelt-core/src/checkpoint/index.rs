//! `model.safetensors.index.json`: which shard holds which tensor.
//!
//! Only `weight_map` counts. Its file names are interned while they are read, since ninety thousand
//! tensors share a hundred of them.

use std::collections::HashMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::header::Text;
use crate::{CheckpointError, Result};

/// Name of the index in a checkpoint.
pub const INDEX: &str = "model.safetensors.index.json";

/// A parsed index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    files: Vec<String>,
    entries: Vec<(Box<str>, u32)>,
}

impl Index {
    /// Parses the bytes of the index called `file` (for messages).
    ///
    /// # Errors
    /// [`CheckpointError::Utf8`], [`CheckpointError::Json`], [`CheckpointError::NoWeightMap`] and
    /// [`CheckpointError::IndexDuplicate`].
    pub fn parse(file: &str, bytes: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(bytes)
            .map_err(|source| CheckpointError::Utf8 { file: file.to_owned(), source })?;
        let mut index = parse_json(text)
            .map_err(|source| CheckpointError::Json { file: file.to_owned(), source })?
            .ok_or_else(|| CheckpointError::NoWeightMap { file: file.to_owned() })?;
        index.sort();
        let twice = index.entries.windows(2).find(|pair| pair[0].0 == pair[1].0);
        match twice {
            None => Ok(index),
            Some(pair) => {
                Err(CheckpointError::IndexDuplicate { file: file.to_owned(), tensor: pair[0].0.to_string() }
                    .into())
            }
        }
    }

    /// Shards, sorted by path.
    pub fn files(&self) -> &[String] {
        &self.files
    }

    /// Tensor names, sorted, each with the place of its shard in [`files`](Self::files).
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&str, usize)> {
        self.entries.iter().map(|(name, file)| (&**name, *file as usize))
    }

    fn sort(&mut self) {
        self.entries.sort_unstable();
        let mut order: Vec<usize> = (0..self.files.len()).collect();
        order.sort_unstable_by(|&a, &b| self.files[a].cmp(&self.files[b]));
        let mut place = vec![0; order.len()];
        for (new, &old) in order.iter().enumerate() {
            place[old] = new as u32;
        }
        self.entries.iter_mut().for_each(|(_, file)| *file = place[*file as usize]);
        self.files.sort_unstable();
    }
}

fn parse_json(text: &str) -> serde_json::Result<Option<Index>> {
    let mut parser = serde_json::Deserializer::from_str(text);
    let index = parser.deserialize_map(IndexVisitor)?;
    parser.end()?;
    Ok(index)
}

struct IndexVisitor;

impl<'de> Visitor<'de> for IndexVisitor {
    type Value = Option<Index>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object with `weight_map`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Option<Index>, A::Error> {
        let mut index = None;
        while let Some(key) = map.next_key_seed(Text)? {
            if key == "weight_map" {
                index = Some(map.next_value_seed(MapVisitor)?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(index)
    }
}

struct MapVisitor;

impl<'de> DeserializeSeed<'de> for MapVisitor {
    type Value = Index;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Index, D::Error> {
        input.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for MapVisitor {
    type Value = Index;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object from tensor names to file names")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Index, A::Error> {
        let mut index = Index::default();
        let mut places: HashMap<String, u32> = HashMap::new();
        while let Some(name) = map.next_key_seed(Text)? {
            let file = map.next_value_seed(Text)?;
            if file.is_empty() {
                return Err(A::Error::custom(format_args!("tensor `{name}` has no file")));
            }
            let place = places.get(&*file).copied().unwrap_or_else(|| {
                let place = index.files.len() as u32;
                index.files.push(file.clone().into_owned());
                places.insert(file.into_owned(), place);
                place
            });
            index.entries.push((name.into(), place));
        }
        Ok(index)
    }
}
