//! A layout file: it is refused, or makes a layout or problems of a small checkpoint.
#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use smelt_core::checkpoint::Checkpoint;
use smelt_core::layout::discovered::Trace;
use smelt_core::source::ManifestSource;

const MANIFEST: &str = include_str!("../../tests/manifests/llama.json");

fn checkpoint() -> &'static Checkpoint {
    static OPENED: OnceLock<Checkpoint> = OnceLock::new();
    OPENED.get_or_init(|| {
        let source = ManifestSource::parse("fuzz", MANIFEST).expect("the manifest is sound");
        Checkpoint::open(Arc::new(source)).expect("the manifest is a checkpoint")
    })
}

fuzz_target!(|data: &[u8]| {
    let Ok(trace) = serde_json::from_slice::<Trace>(data) else { return };
    let _ = trace.layout(checkpoint());
});
