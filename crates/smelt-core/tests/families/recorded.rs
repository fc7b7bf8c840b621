//! Every family gives the layouts that were recorded as equal to the libraries' own.
//!
//! `tests/conformance/record.py` compares with the real libraries and writes the fingerprints;
//! `cargo xtask conformance` compares again, live.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use smelt_core::checkpoint::Checkpoint;
use smelt_core::layout::{differences, fingerprint};
use smelt_core::plan::{Options, Origin, Override, Plan, family_of};
use smelt_core::source::ManifestSource;

#[derive(Deserialize)]
struct Cell {
    family: Option<String>,
    fingerprint: Option<String>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/manifests")
}

fn recorded(name: &str) -> Checkpoint {
    let manifest = fs::read_to_string(folder().join(format!("{name}.json"))).unwrap();
    Checkpoint::open(Arc::new(ManifestSource::parse(name, &manifest).unwrap())).unwrap()
}

#[test]
fn recorded_layouts_are_still_made() {
    let text = fs::read_to_string(folder().join("expected.json")).unwrap();
    let expected: BTreeMap<String, BTreeMap<String, Cell>> = serde_json::from_str(&text).unwrap();
    let mut compared = 0;
    for (name, row) in &expected {
        let checkpoint = recorded(name);
        for (library, cell) in row {
            let Some(recorded) = &cell.fingerprint else { continue };
            let family = family_of(&checkpoint, None).unwrap();
            assert_eq!(Some(&family.name), cell.family.as_ref(), "{name}");
            let layout = Origin::family(&checkpoint, family, Some(library)).unwrap().layout;
            assert_eq!(&fingerprint(&layout, &checkpoint), recorded, "{name} for {library}");
            compared += 1;
        }
    }
    assert!(compared > 0, "nothing is recorded");
}

/// What a finished model of every recorded layout must have, told from its config and its own names.
#[test]
fn finished_models_are_told_from_broken_ones() {
    let text = fs::read_to_string(folder().join("expected.json")).unwrap();
    let expected: BTreeMap<String, BTreeMap<String, Cell>> = serde_json::from_str(&text).unwrap();
    let (mut removed, mut noticed) = (0, 0);
    for (name, row) in &expected {
        let checkpoint = recorded(name);
        for (library, _) in row.iter().filter(|(_, cell)| cell.fingerprint.is_some()) {
            let family = family_of(&checkpoint, None).unwrap();
            // That every recorded layout is made is the matter of the test above.
            let Ok(Origin { layout, .. }) = Origin::family(&checkpoint, family, Some(library)) else {
                continue;
            };
            let shapes: BTreeMap<&str, &[u64]> = layout
                .outputs
                .iter()
                .map(|output| (output.name.as_str(), &*layout.graph.node(output.node).shape))
                .collect();
            let config = checkpoint.config();
            let found = family.expected(config, library, &|name| shapes.contains_key(name));
            for (parameter, shape) in &shapes {
                let all = found.parameters.get(*parameter);
                let all = all.unwrap_or_else(|| panic!("{name} for {library}: {parameter} is not expected"));
                let fits = |sizes: &Vec<Option<u64>>| {
                    sizes.len() == shape.len()
                        && sizes
                            .iter()
                            .zip(*shape)
                            .all(|(size, found)| size.is_none_or(|size| size == *found))
                };
                assert!(
                    all.iter().any(|one| one.shape.as_ref().is_none_or(fits)),
                    "{name} for {library}: {parameter} {shape:?} is not {all:?}"
                );
            }
            for (parameter, all) in &found.parameters {
                let missing = all.iter().any(|one| one.required) && !shapes.contains_key(parameter.as_str());
                assert!(!missing, "{name} for {library}: {parameter} is expected");
            }
            let every = (shapes.len() / 5).max(1);
            for gone in shapes.keys().skip(every / 2).step_by(every) {
                let found =
                    family.expected(config, library, &|name| name != *gone && shapes.contains_key(name));
                let required =
                    found.parameters.get(*gone).is_some_and(|all| all.iter().any(|one| one.required));
                (removed, noticed) = (removed + 1, noticed + u32::from(required));
            }
        }
    }
    assert!(removed > 1000 && f64::from(noticed) > 0.97 * f64::from(removed), "{noticed} of {removed}");
}

#[test]
fn every_manifest_is_recorded() {
    let text = fs::read_to_string(folder().join("expected.json")).unwrap();
    let expected: BTreeMap<String, BTreeMap<String, Cell>> = serde_json::from_str(&text).unwrap();
    for path in
        fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file())
    {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(
            name == "expected" || expected.contains_key(&name),
            "{name}: run tests/conformance/record.py"
        );
    }
}

/// What the plan of a manifest says with these words in it.
fn told(name: &str, words: &str, options: &Options) -> Option<String> {
    let checkpoint = recorded(name);
    let origin = Origin::family(&checkpoint, family_of(&checkpoint, None).unwrap(), None).unwrap();
    let plan = Plan::new(&checkpoint, origin, options).unwrap();
    plan.notes.iter().map(ToString::to_string).find(|note| note.contains(words))
}

#[test]
fn a_module_that_the_library_quantizes_and_cannot_run_is_told() {
    let words = "loads and does not run";
    let note = told("llama4_text", words, &Options::default()).unwrap();
    assert!(note.ends_with("`--override model.embed_tokens=keep` leaves it as it is"), "{note}");
    let overrides = vec![Override::parse("model.embed_tokens=keep", None).unwrap()];
    assert_eq!(told("llama4_text", words, &Options { overrides, ..Options::default() }), None);
    assert_eq!(told("seed_oss", words, &Options::default()), None);
}

#[test]
fn what_mlx_leaves_open_is_told() {
    let told = |name: &str| told(name, "last bits", &Options::default());
    let gates = told("muse_spark").unwrap();
    let expected = "`model.language_model.layers.0.add_attn_alpha`, `model.language_model.layers.0.add_attn_beta`, \
         `model.language_model.layers.0.add_ffn_alpha` and 13 more are computed in double: MLX leaves the last bits open";
    assert_eq!(gates.replace("language_model.model.", "model.language_model."), expected);
    assert_eq!(told("llama"), None);
}

/// A library that fails when it is asked what `--dtype` leaves has no opinion that could differ.
#[test]
fn casts_are_compared_where_both_sides_know() {
    let checkpoint = recorded("deepseek_v3");
    let first = crate::layout_of(&checkpoint, None).unwrap();
    let mut second = crate::layout_of(&checkpoint, None).unwrap();
    second.outputs.iter_mut().for_each(|output| output.cast = true);
    assert!(!differences(&first, &second).is_empty());
    second.cast_fault = Some("TypeError: 'property' object is not callable".to_owned());
    assert_eq!(differences(&first, &second), []);
}
