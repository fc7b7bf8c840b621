//! JSON files that carry their own hash: a last key `digest`, over all bytes in front of it.
//!
//! The manifest covers every file but itself and the report, which tells how long a run took and so
//! differs from run to run. With a seal in each of the two, no byte of an output can change unseen.

use blake3::Hash;

/// The end of a file whose bytes before it have this hash.
pub(crate) fn end(before: &Hash) -> String {
    format!(",\n  \"digest\": \"{}\"\n}}\n", before.to_hex())
}

/// An object's text, printed over several lines, with its seal.
pub(crate) fn sealed(mut object: String) -> String {
    let before = object.trim_end().strip_suffix("\n}").map_or(object.len(), str::len);
    object.truncate(before);
    let end = end(&blake3::hash(object.as_bytes()));
    object.push_str(&end);
    object
}

/// Whether a file is as it was when it was sealed.
pub(crate) fn is_whole(bytes: &[u8]) -> bool {
    let length = end(&Hash::from_bytes([0; 32])).len();
    let parts = bytes.len().checked_sub(length).map(|before| bytes.split_at(before));
    parts.is_some_and(|(before, seal)| seal == end(&blake3::hash(before)).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flipped_bit_breaks_the_seal_and_the_file_stays_json() {
        let object = serde_json::json!({ "a": [1, 2], "b": { "c": {} } });
        let text = sealed(serde_json::to_string_pretty(&object).unwrap());
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(value.as_object_mut().unwrap().remove("digest").is_some());
        assert_eq!(value, object);
        assert!(is_whole(text.as_bytes()));
        for at in 0..text.len() * 8 {
            let mut bytes = text.clone().into_bytes();
            bytes[at / 8] ^= 1 << (at % 8);
            assert!(!is_whole(&bytes), "bit {at}");
        }
        assert!(!is_whole(&text.as_bytes()[..text.len() - 1]) && !is_whole(b"{}") && !is_whole(b""));
    }
}
