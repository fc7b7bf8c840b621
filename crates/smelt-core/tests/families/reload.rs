//! Models that a library changes again when it loads what it wrote itself.

use serde_json::{Value, json};
use smelt_core::layout::discovered::Trace;
use smelt_core::layout::{Family, differences, reload};
use smelt_core::plan::Origin;

use crate::common::Model;
use crate::open;

/// A library that transposes a projection and puts a prefix before all names, whatever they are.
fn trace() -> Trace {
    let source =
        |name: &str, shape: Value| json!({"op": "source", "name": name, "dtype": "BF16", "shape": shape});
    let turned = json!({"op": "transpose", "in": [0], "perm": [1, 0], "dtype": "BF16", "shape": [8, 8]});
    let table = json!({"op": "full", "value": 2.0, "dtype": "BF16", "shape": [3]});
    let modules =
        json!([{"path": "model.proj", "class": "Linear"}, {"path": "model.other", "class": "Linear"}]);
    let nodes =
        json!([source("proj.weight", json!([8, 8])), turned, source("norm.weight", json!([8])), table]);
    let outputs = json!([["model.proj.weight", 1], ["model.norm.weight", 2], ["model.table", 3]]);
    serde_json::from_value(json!({
        "version": 1, "library": "mlx-vlm", "nodes": nodes, "outputs": outputs, "model": {"modules": modules}
    }))
    .unwrap()
}

/// How what the library makes of a family's tensors differs from what it makes of the checkpoint.
fn found(proj: &str) -> Vec<String> {
    let text = format!(
        "name = \"small\"\ntitle = \"\"\nmodel_types = [\"small\"]\ntargets = [\"mlx-vlm\"]\n\
         preimage = [\"mlx-vlm\"]\n[[group]]\n[group.tensors]\n\"proj.weight\" = {{ {proj} }}\n\
         \"norm.weight\" = {{ role = \"norm\" }}\n"
    );
    let tensors = vec![("proj.weight".to_owned(), vec![8, 8]), ("norm.weight".to_owned(), vec![8])];
    let checkpoint = open(&Model { config: json!({"model_type": "small"}), tensors });
    let stored = Origin::family(&checkpoint, &Family::parse(&text).unwrap(), None).unwrap().layout;
    assert!(stored.preimage);
    let request = reload::request(&checkpoint, &stored, "mlx-vlm");
    assert_eq!(request["files"]["model.safetensors"]["norm.weight"], json!(["BF16", [8]]));
    let loaded = reload::loaded(&stored, &trace()).unwrap();
    let differing = differences(&loaded, &trace().layout(&checkpoint).unwrap());
    differing.iter().map(ToString::to_string).collect()
}

#[test]
fn what_becomes_the_parameters_is_right() {
    assert!(found(r#"module = "Linear", role = "mlp-up""#).is_empty());
}

#[test]
fn the_parameters_themselves_are_changed_again() {
    let found = found(r#"from = 'transpose("proj.weight", 1, 0)', module = "Linear", role = "mlp-up""#);
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("`model.proj.weight` is #"), "{found:?}");
}

#[test]
fn the_treatment_is_that_of_what_is_stored() {
    let found = found(r#"role = "mlp-up""#);
    assert_eq!(found, ["`model.proj.weight` is not quantized, not quantized"]);
}
