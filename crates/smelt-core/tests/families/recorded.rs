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
use smelt_core::layout::fingerprint;
use smelt_core::plan::{Origin, family_of};
use smelt_core::source::ManifestSource;

#[derive(Deserialize)]
struct Cell {
    family: Option<String>,
    fingerprint: Option<String>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/manifests")
}

#[test]
fn recorded_layouts_are_still_made() {
    let text = fs::read_to_string(folder().join("expected.json")).unwrap();
    let expected: BTreeMap<String, BTreeMap<String, Cell>> = serde_json::from_str(&text).unwrap();
    let mut compared = 0;
    for (name, row) in &expected {
        let manifest = fs::read_to_string(folder().join(format!("{name}.json"))).unwrap();
        let source = ManifestSource::parse(name, &manifest).unwrap();
        let checkpoint = Checkpoint::open(Arc::new(source)).unwrap();
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

#[test]
fn every_manifest_is_recorded() {
    let text = fs::read_to_string(folder().join("expected.json")).unwrap();
    let expected: BTreeMap<String, BTreeMap<String, Cell>> = serde_json::from_str(&text).unwrap();
    for entry in fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned();
        assert!(
            name == "expected" || expected.contains_key(&name),
            "{name}: run tests/conformance/record.py"
        );
    }
}
