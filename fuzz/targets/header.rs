//! The header of a safetensors file: any bytes are refused or give tensors that lie inside the file.
#![no_main]

use libfuzzer_sys::fuzz_target;
use smelt_core::checkpoint::parse_header;

fuzz_target!(|data: &[u8]| {
    let size = data.len() as u64;
    let read = |offset: u64, buf: &mut [u8]| {
        let start = offset as usize;
        buf.copy_from_slice(&data[start..start + buf.len()]);
        Ok(())
    };
    let Ok(header) = parse_header("fuzz", size, read) else { return };
    assert!(header.data_start <= size);
    for tensor in &header.tensors {
        let elements: u64 = tensor.shape.iter().product();
        assert_eq!(tensor.dtype.bytes(elements), Some(tensor.bytes));
        assert!(tensor.offset >= header.data_start && tensor.offset + tensor.bytes <= size);
    }
});
