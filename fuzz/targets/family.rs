//! A family file: it is refused, or expands to a layout or to problems on a small checkpoint.
#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use smelt_core::checkpoint::Checkpoint;
use smelt_core::layout::Family;
use smelt_core::source::ManifestSource;

/// A manifest with stacked and single experts, norms, towers.
const MANIFEST: &str = include_str!("../../tests/manifests/qwen3_vl_moe.json");

fn checkpoint() -> &'static Checkpoint {
    static OPENED: OnceLock<Checkpoint> = OnceLock::new();
    OPENED.get_or_init(|| {
        let source = ManifestSource::parse("fuzz", MANIFEST).expect("the manifest is sound");
        Checkpoint::open(Arc::new(source)).expect("the manifest is a checkpoint")
    })
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(family) = Family::parse(text) else { return };
    for target in &family.targets {
        let _ = family.layout(checkpoint().config(), checkpoint(), target);
    }
});
