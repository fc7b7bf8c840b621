//! What a library makes of the tensors that a layout stores.
//!
//! Some libraries change what they load each time, also what they wrote themselves: they transpose again,
//! put a prefix before a name again. The family of such a model lists what becomes the parameters, and
//! whether it does is seen by asking the library a second time: about the tensors that the family stores.
//! Its answer, written over these, must be what it makes of the checkpoint.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::catalog::{Catalog, Info};
use super::discovered::{self, Trace};
use super::{Layout, Problem};
use crate::checkpoint::{Checkpoint, TensorId};

/// What the tracer is asked of a checkpoint that holds the tensors of a layout.
pub fn request(checkpoint: &Checkpoint, stored: &Layout, library: &str) -> Value {
    let tensors: Map<String, Value> = stored
        .outputs
        .iter()
        .map(|output| {
            let node = stored.graph.node(output.node);
            (output.name.clone(), json!([node.dtype.name(), node.shape]))
        })
        .collect();
    let mut request = discovered::request(checkpoint, library);
    request["files"] = json!({ "model.safetensors": tensors });
    request["index"] = json!(false);
    request
}

/// The library's parameters, made of the tensors of the checkpoint by way of what the layout stores. Each
/// is treated as what it is made of.
///
/// # Errors
/// What the library refuses, and every operation that smelt does not compute.
pub fn loaded(stored: &Layout, trace: &Trace) -> Result<Layout, Vec<Problem>> {
    let tensors = Tensors::of(stored);
    let over_stored = trace.layout(&tensors)?;
    let leaf = |name: &str| Some(stored.outputs[tensors.find(name)?.0 as usize].node);
    let mut loaded = trace.layout_of(stored.graph.clone(), &|_, name| leaf(name))?;
    for (output, over) in loaded.outputs.iter_mut().zip(&over_stored.outputs) {
        if let Some(&source) = over_stored.graph.sources(over.node).first() {
            let origin = &stored.outputs[source.0 as usize];
            (output.module, output.cast) = (origin.module, origin.cast);
        }
    }
    Ok(loaded)
}

/// The outputs of a layout as the tensors of another checkpoint.
struct Tensors<'a> {
    layout: &'a Layout,
    places: HashMap<&'a str, TensorId>,
}

impl<'a> Tensors<'a> {
    fn of(layout: &'a Layout) -> Self {
        let named = layout.outputs.iter().enumerate();
        let places = named.map(|(place, output)| (output.name.as_str(), TensorId(place as u32))).collect();
        Self { layout, places }
    }
}

impl Catalog for Tensors<'_> {
    fn count(&self) -> u32 {
        self.layout.outputs.len() as u32
    }

    fn find(&self, name: &str) -> Option<TensorId> {
        self.places.get(name).copied()
    }

    fn info(&self, id: TensorId) -> Info<'_> {
        let output = &self.layout.outputs[id.0 as usize];
        let node = self.layout.graph.node(output.node);
        Info { name: &output.name, dtype: node.dtype, shape: &node.shape }
    }
}
