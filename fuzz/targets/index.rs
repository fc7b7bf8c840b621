//! The index of shards: any bytes are refused or name files inside the folder.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smelt_core::checkpoint::Index;

fuzz_target!(|data: &[u8]| {
    let Ok(index) = Index::parse("fuzz", data) else { return };
    for file in index.files() {
        assert!(!file.is_empty());
    }
});
