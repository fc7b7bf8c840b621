//! The header parser: one broken file for each refusal, the accepted oddities, and the reference
//! reader as an oracle.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeMap;

use proptest::prelude::*;
use smelt_core::checkpoint::{DType, Header, TensorInfo, parse_header};
use smelt_core::{Error, HeaderError, Result};

/// Parses a file in memory. `size` may lie, as a cut file does.
fn parse_sized(file: &[u8], size: u64) -> Result<Header> {
    parse_header("shard", size, |offset, buf| {
        let start = usize::try_from(offset).unwrap();
        buf.copy_from_slice(&file[start..start + buf.len()]);
        Ok(())
    })
}

fn parse(file: &[u8]) -> Result<Header> {
    parse_sized(file, file.len() as u64)
}

/// A file of this header text and `data` bytes.
fn file(header: &[u8], data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header);
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn tensor(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

/// A file of these tensors.
fn with(tensors: &[String], data: usize) -> Vec<u8> {
    file(format!("{{{}}}", tensors.join(",")).as_bytes(), data)
}

/// Checks that `bytes` is refused as `$pattern`, with a message that names the shard.
macro_rules! refused {
    ($bytes:expr, $pattern:pat) => {
        let bytes = &$bytes;
        let error = parse(AsRef::<[u8]>::as_ref(bytes)).expect_err("must be refused");
        assert!(matches!(error, Error::Header($pattern)), "{error:?}");
        assert!(error.to_string().contains("`shard`"), "{error}");
    };
}

#[test]
fn refuses_broken_lengths() {
    refused!(b"", HeaderError::Missing { size: 0, .. });
    refused!(b"\x02\0\0\0\0\0\0", HeaderError::Missing { size: 7, .. });
    refused!(b"version https://git-lfs", HeaderError::LfsPointer { .. });
    refused!(file(b"", 4), HeaderError::Length { length: 0, .. });
    refused!(file(b"{", 4), HeaderError::Length { length: 1, .. });
    refused!(100_000_001_u64.to_le_bytes(), HeaderError::Length { length: 100_000_001, .. });
    refused!(u64::MAX.to_le_bytes(), HeaderError::Length { length: u64::MAX, .. });
    refused!(100_000_000_u64.to_le_bytes(), HeaderError::PastEnd { size: 8, .. });
    refused!(file(b"{}", 0)[..9], HeaderError::PastEnd { length: 2, size: 9, .. });
}

#[test]
fn refuses_broken_json() {
    refused!(file(b"{\"\xff\":1}", 0), HeaderError::Utf8 { .. });
    let broken = [
        r"[]",
        r"{ ",
        r"{}x",
        r"null",
        r#"{"a":1}"#,
        r#"{"a":null}"#,
        r#"{"a":{}}"#,
        r#"{"a":{"dtype":"U8","shape":[1]}}"#,
        r#"{"a":{"shape":[1],"data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":"U8","data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":3,"shape":[1],"data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":"U8","shape":[1.0],"data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":"U8","shape":1,"data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,1]}}"#,
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0]}}"#,
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1,2]}}"#,
        r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[-1,0]}}"#,
        r#"{"__metadata__":{"a":1}}"#,
        r#"{"__metadata__":[]}"#,
        r#"{"__metadata__":null,"__metadata__":{}}"#,
    ];
    for header in broken {
        refused!(file(header.as_bytes(), 1), HeaderError::Json { .. });
    }
}

#[test]
fn the_parsers_words_name_the_tensor_and_the_place() {
    let error = parse(&file(br#"{"a.b":{"dtype":"U8","shape":[-1]}}"#, 1)).unwrap_err();
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.starts_with("tensor `a.b`: invalid value") && cause.contains("column"), "{cause}");
}

#[test]
fn deep_nesting_does_not_exhaust_the_stack() {
    let deep = "[".repeat(1_000_000);
    refused!(file(format!(r#"{{"a":{{"x":{deep}"#).as_bytes(), 0), HeaderError::Json { .. });
    refused!(file(format!(r#"{{"a":{deep}"#).as_bytes(), 0), HeaderError::Json { .. });
    refused!(file(deep.as_bytes(), 0), HeaderError::Json { .. });
}

#[test]
fn refuses_broken_tensors() {
    refused!(
        with(&[tensor("a", "U8", "[1]", 0, 1), tensor("a", "U8", "[1]", 1, 2)], 2),
        HeaderError::DuplicateName { .. }
    );
    refused!(
        with(&[tensor("a", "U8", "[1]", 0, 1), tensor(r"\u0061", "U8", "[1]", 1, 2)], 2),
        HeaderError::DuplicateName { .. }
    );
    let unknown = with(&[tensor("a", "F12", "[1]", 0, 1)], 1);
    refused!(unknown, HeaderError::UnknownDType { .. });
    assert!(parse(&unknown).unwrap_err().to_string().contains("`F12`"));
    refused!(with(&[tensor("a", "bf16", "[1]", 0, 2)], 2), HeaderError::UnknownDType { .. });
    for shape in ["[18446744073709551615]", "[4294967296,4294967296]", "[9223372036854775808,2,0]"] {
        refused!(with(&[tensor("a", "U16", shape, 0, 2)], 2), HeaderError::ShapeOverflow { .. });
    }
    refused!(with(&[tensor("a", "F4", "[3]", 0, 2)], 2), HeaderError::PartialByte { dtype: "F4", .. });
    refused!(with(&[tensor("a", "F6_E2M3", "[2]", 0, 2)], 2), HeaderError::PartialByte { .. });
    for (begin, end) in [(0, 3), (0, 5), (4, 0), (0, 0), (u64::MAX, 3)] {
        let broken = with(&[tensor("a", "F32", "[1]", begin, end)], 8);
        refused!(broken, HeaderError::TensorBytes { needed: 4, .. });
    }
}

#[test]
fn refuses_broken_layouts() {
    let pair = |begin, end| [tensor("a", "U8", "[8]", 0, 8), tensor("b", "U8", "[8]", begin, end)];
    refused!(with(&pair(7, 15), 15), HeaderError::Overlap { .. });
    refused!(with(&pair(0, 8), 8), HeaderError::Overlap { .. });
    // Inside of another one, also when it is empty.
    let inside = [tensor("a", "U8", "[8]", 0, 8), tensor("b", "U8", "[0]", 4, 4)];
    refused!(with(&inside, 8), HeaderError::Overlap { .. });
    refused!(with(&pair(8, 16), 15), HeaderError::Truncated { .. });
    refused!(with(&pair(u64::MAX - 8, u64::MAX), 16), HeaderError::Truncated { .. });
    refused!(with(&pair(9, 17), 17), HeaderError::Hole { bytes: 1, .. });
    refused!(with(&pair(8192, 8200), 8200), HeaderError::Hole { bytes: 8184, .. });
    refused!(with(&[tensor("a", "U8", "[8]", 8192, 8200)], 8200), HeaderError::Hole { bytes: 8192, .. });
    refused!(with(&[], 5000), HeaderError::Hole { bytes: 5000, .. });
}

#[test]
fn accepts_alignment_padding() {
    // 8 + 57 bytes of header: aligned in the data, not in the file.
    let aligned = |alignment: u64| {
        let a = tensor("a", "U8", "[8]", 0, 8);
        let b = tensor("b", "U8", "[8]", alignment, alignment + 8);
        with(&[a, b], alignment as usize + 8)
    };
    for alignment in [16, 64, 256, 4096] {
        assert_eq!(parse(&aligned(alignment)).unwrap().tensors.len(), 2, "{alignment}");
    }
    // The end of the file rounded up to a page.
    let mut padded = with(&[tensor("a", "U8", "[8]", 0, 8)], 8);
    padded.resize(4096, 0);
    assert_eq!(parse(&padded).unwrap().tensors.len(), 1);
    padded.push(0);
    assert!(matches!(parse(&padded), Err(Error::Header(HeaderError::Hole { .. }))));
}

#[test]
fn accepts_what_writers_do() {
    assert!(parse(&file(b"{}", 0)).unwrap().tensors.is_empty());
    // Space padding, null metadata, unknown keys, scalars, empty tensors, any order.
    let scalar = r#""z":{"extra":[{}],"data_offsets":[4,8],"shape":[],"dtype":"F32"}"#;
    let tensors = [tensor("b", "U8", "[4]", 0, 4), tensor("e", "U8", "[7,0]", 4, 4)];
    let header = format!(r#"{{"__metadata__":null,{scalar},{}}}    "#, tensors.join(","));
    let header = parse(&file(header.as_bytes(), 8)).unwrap();
    let names: Vec<_> = header.tensors.iter().map(|tensor| &*tensor.name).collect();
    assert_eq!(names, ["b", "e", "z"]);
    assert_eq!(header.metadata, None);
    assert_eq!(header.tensors[2].offset, header.data_start + 4);
    assert_eq!(header.tensors[2].shape.len(), 0);
}

#[test]
fn tensors_beyond_four_gib() {
    let header = with(&[tensor("a", "U8", "[6442450944]", 0, 6_442_450_944)], 0);
    let size = header.len() as u64 + 6_442_450_944;
    assert_eq!(parse_sized(&header, size).unwrap().tensors[0].bytes, 6_442_450_944);
    assert!(matches!(parse_sized(&header, size - 1), Err(Error::Header(HeaderError::Truncated { .. }))));
}

#[test]
fn dtypes_are_those_of_the_reference() {
    for dtype in DType::ALL {
        let name = format!("\"{}\"", dtype.name());
        let reference: safetensors::Dtype = serde_json::from_str(&name).unwrap();
        assert_eq!(reference.bitsize() as u64, dtype.bits(), "{dtype}");
        assert_eq!(DType::from_name(dtype.name()), Some(dtype));
        let whole = 24 / dtype.bits().min(24);
        assert_eq!(
            dtype.bytes(whole),
            (whole * dtype.bits()).is_multiple_of(8).then_some(whole * dtype.bits() / 8)
        );
        assert_eq!(dtype.bytes(u64::MAX), None);
    }
    assert_eq!(DType::F4.bytes(3), None);
    assert_eq!(DType::F6E3M2.bytes(4), Some(3));
}

/// A tensor of the strategy: name, dtype, shape.
type Wanted = (String, DType, Vec<u64>);

fn wanted() -> impl Strategy<Value = Vec<Wanted>> {
    let shape = prop::collection::vec(0_u64..5, 0..4);
    let tensor = (".{0,6}", prop::sample::select(&DType::ALL[..]), shape);
    let tensor = tensor.prop_map(|(name, dtype, mut shape)| {
        if dtype.bits() < 8 {
            shape.push(4);
        }
        (name, dtype, shape)
    });
    prop::collection::vec(tensor, 0..8).prop_map(|list| {
        // Names once each, and none that means something else.
        let unique: BTreeMap<_, _> = list.into_iter().map(|(n, d, s)| (n, (d, s))).collect();
        let unique = unique.into_iter().filter(|(name, _)| name != "__metadata__");
        unique.map(|(name, (dtype, shape))| (name, dtype, shape)).collect()
    })
}

fn count(shape: &[u64]) -> u64 {
    shape.iter().product()
}

/// The header text in the order of `tensors`, the data laid out in the order of `places`.
fn write(tensors: &[Wanted], places: &[usize], metadata: bool) -> (String, u64) {
    let mut end = 0;
    let mut offsets = vec![(0, 0); tensors.len()];
    for &place in places {
        let (_, dtype, shape) = &tensors[place];
        let begin = end;
        end += dtype.bytes(count(shape)).unwrap();
        offsets[place] = (begin, end);
    }
    let mut members = Vec::new();
    for ((name, dtype, shape), (begin, end)) in tensors.iter().zip(&offsets) {
        let name = serde_json::to_string(name).unwrap();
        let offsets = format!(r#""data_offsets":[{begin},{end}]"#);
        members.push(format!(r#"{name}:{{"dtype":"{dtype}","shape":{shape:?},{offsets}}}"#));
    }
    if metadata {
        members.insert(0, r#""__metadata__":{"format":"pt"}"#.to_owned());
    }
    (format!("{{{}}}", members.join(",")), end)
}

/// Tensors with an order for their data.
fn laid_out() -> impl Strategy<Value = (Vec<Wanted>, Vec<usize>)> {
    wanted().prop_flat_map(|tensors| {
        let places: Vec<usize> = (0..tensors.len()).collect();
        (Just(tensors), Just(places).prop_shuffle())
    })
}

fn oracle(file: &[u8]) -> Option<safetensors::tensor::Metadata> {
    safetensors::SafeTensors::read_metadata(file).ok().map(|(_, metadata)| metadata)
}

/// That both readers found the same tensors.
fn agrees(ours: &Header, reference: &safetensors::tensor::Metadata) {
    let theirs = reference.tensors();
    assert_eq!(ours.tensors.len(), theirs.len());
    for TensorInfo { name, dtype, shape, offset, bytes } in &ours.tensors {
        let info = theirs[&**name];
        assert_eq!(format!("\"{dtype}\""), serde_json::to_string(&info.dtype).unwrap());
        assert!(shape.iter().copied().eq(info.shape.iter().map(|&dim| dim as u64)));
        assert_eq!(offset - ours.data_start, info.data_offsets.0 as u64);
        assert_eq!(offset + bytes - ours.data_start, info.data_offsets.1 as u64);
    }
    let metadata = reference.metadata().clone().map(|map| map.into_iter().collect());
    assert_eq!(ours.metadata, metadata);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Every valid file is read, and read as the reference reads it.
    #[test]
    fn valid_headers_round_trip((tensors, places) in laid_out(), metadata: bool, padding in 0_usize..9) {
        let (mut header, data) = write(&tensors, &places, metadata);
        header.extend(std::iter::repeat_n(' ', padding));
        let file = file(header.as_bytes(), data as usize);
        let parsed = parse(&file).unwrap();
        let found: Vec<Wanted> = parsed
            .tensors
            .iter()
            .map(|t| (t.name.to_string(), t.dtype, t.shape.to_vec()))
            .collect();
        // The strategy sorts by name too.
        prop_assert_eq!(&found, &tensors);
        agrees(&parsed, &oracle(&file).unwrap());
    }

    /// A damaged file: whatever the reference accepts is accepted and read alike, except names
    /// given twice; whatever it refuses is refused, except padding.
    #[test]
    fn damaged_headers_are_judged_as_by_the_reference(
        (tensors, places) in laid_out(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), "[ -~]"), 1..3),
        more in 0_usize..3,
    ) {
        let (header, data) = write(&tensors, &places, true);
        let mut bytes = header.into_bytes();
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte.as_bytes()[0];
        }
        let file = file(&bytes, data as usize + more);
        match (parse(&file), oracle(&file)) {
            (Ok(ours), Some(reference)) => agrees(&ours, &reference),
            (Err(error), Some(_)) => {
                prop_assert!(matches!(error, Error::Header(HeaderError::DuplicateName { .. })), "{error:?}");
            }
            (Ok(ours), None) => {
                let owned: u64 = ours.tensors.iter().map(|tensor| tensor.bytes).sum();
                prop_assert!(ours.data_start + owned < file.len() as u64, "{ours:?}");
            }
            (Err(_), None) => {}
        }
    }

    /// No bytes make the parser panic or read outside of the file.
    #[test]
    fn random_bytes_never_panic(
        length in prop_oneof![Just(None), (0_u64..300).prop_map(Some)],
        mut bytes in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        if let (Some(length), Some(place)) = (length, bytes.get_mut(..8)) {
            place.copy_from_slice(&length.to_le_bytes());
        }
        let _ = parse(&bytes);
    }

    /// The same for text made of the format's own pieces.
    #[test]
    fn random_json_never_panics(text in r#"(\{|\}|\[|\]|,|:|"|"a"|"dtype"|"F4"|"shape"|"data_offsets"|[0-9]{1,20}|-|null){0,40}"#) {
        let _ = parse(&file(text.as_bytes(), 16));
        let _ = parse(&file(format!("{{{text}}}").as_bytes(), 16));
    }
}

/// The size of the largest checkpoints: 92 160 tensors in 96 shards.
///
/// Run in release: `cargo test --release -p smelt-core --test header -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement, only meaningful in release"]
fn ninety_thousand_tensors() {
    let shards: Vec<Vec<u8>> = (0..96).map(large_shard).collect();
    let start = std::time::Instant::now();
    let count: usize = shards.iter().map(|shard| parse_counted(shard)).sum();
    let time = start.elapsed();
    let bytes: usize = shards.iter().map(Vec::len).sum();
    println!("{count} tensors, {bytes} bytes of headers: {time:?}");
    assert!(time.as_secs_f64() < 0.3, "{time:?}");
}

fn parse_counted(shard: &[u8]) -> usize {
    parse_sized(shard, shard.len() as u64 + 960 * 512).unwrap().tensors.len()
}

fn large_shard(shard: u64) -> Vec<u8> {
    let tensors: Vec<String> = (0..960)
        .map(|i| {
            let (layer, expert) = (shard * 960 / 1536 + i / 480, i % 480);
            let name = format!("model.layers.{layer}.mlp.experts.{expert}.up_proj.weight_{shard}");
            tensor(&name, "BF16", "[16,16]", i * 512, (i + 1) * 512)
        })
        .collect();
    with(&tensors, 0)
}
