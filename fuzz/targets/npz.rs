//! Importance as oMLX's zip file of numpy arrays: any bytes behind the first four are refused or give weights.
#![no_main]

#[path = "shared/importance.rs"]
mod importance;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| importance::check([b"PK\x03\x04", data].concat()));
