//! The header of a safetensors file, and how to distrust it.
//!
//! ```text
//! u64 LE  n
//! n bytes JSON  {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}
//! data, the offsets count from here
//! ```
//!
//! A parser of our own, because the refusals need names, sizes must be 64-bit on every system, and
//! real files have padding that the format's reference reader refuses. Checks run from the outside
//! in: length, UTF-8, JSON, then each tensor alone, then the tensors together against the file.
//! Nothing is allocated for a length that the file does not have.
//!
//! **Padding.** The format allows no bytes without an owner; the loaders that matter accept them,
//! and writers that align tensors leave them. Accepted is what rounding up to a power of two (at
//! most 4096, counted from the start of the file or of the data) explains, between tensors and at
//! the end. Anything longer is [`HeaderError::Hole`]: there a tensor was lost, or something is hidden.
//!
//! **Order.** Names and offsets may come in any order, the header may be padded with spaces, and
//! `__metadata__` may be missing or null. Unknown keys of a tensor are ignored.
//!
//! **Against the reference reader.** Laxer in padding alone. Stricter where that one lets the later
//! of two equal names win, and where it takes an array of the fields for the object of a tensor.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use super::DType;
use crate::{HeaderError, Result};

/// Longest header that the format allows.
pub const MAX_HEADER: u64 = 100_000_000;

/// Widest alignment that counts as padding.
const MAX_ALIGNMENT: u32 = 4096;

const METADATA: &str = "__metadata__";

/// What a header says of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name.
    pub name: Box<str>,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Box<[u64]>,
    /// First byte, from the start of the file.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// A header that passed every check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Tensors, sorted by name bytewise.
    pub tensors: Vec<TensorInfo>,
    /// The free text map, if the file has one.
    pub metadata: Option<BTreeMap<String, String>>,
    /// First byte of the data, from the start of the file.
    pub data_start: u64,
}

/// Reads and checks the header of the file `file` (a name for messages) of `size` bytes; `read`
/// fills a buffer from an offset of the file.
///
/// # Errors
/// One variant of [`HeaderError`] for each rule above, with the names of file and tensor; and what `read`
/// returns.
pub fn parse_header(
    file: &str,
    size: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<()>,
) -> Result<Header> {
    if size < 8 {
        return Err(HeaderError::Missing { file: file.to_owned(), size }.into());
    }
    let mut length = [0; 8];
    read(0, &mut length)?;
    let length = header_length(file, size, length)?;
    let mut bytes = vec![0; length as usize];
    read(8, &mut bytes)?;
    let text =
        std::str::from_utf8(&bytes).map_err(|source| HeaderError::Utf8 { file: file.to_owned(), source })?;
    let raw = parse_json(text).map_err(|source| HeaderError::Json { file: file.to_owned(), source })?;
    let checks = Checks { file, size, data_start: 8 + length };
    Ok(checks.header(raw)?)
}

fn header_length(file: &str, size: u64, bytes: [u8; 8]) -> Result<u64, HeaderError> {
    let file = || file.to_owned();
    if &bytes == b"version " {
        return Err(HeaderError::LfsPointer { file: file() });
    }
    let length = u64::from_le_bytes(bytes);
    if !(2..=MAX_HEADER).contains(&length) {
        return Err(HeaderError::Length { file: file(), length, limit: MAX_HEADER });
    }
    if length > size - 8 {
        return Err(HeaderError::PastEnd { file: file(), length, size });
    }
    Ok(length)
}

/// The checks that need more than the text: they know the file.
struct Checks<'a> {
    file: &'a str,
    size: u64,
    data_start: u64,
}

impl Checks<'_> {
    fn header(&self, raw: RawHeader) -> Result<Header, HeaderError> {
        let tensors = raw.tensors.into_iter().map(|(name, tensor)| self.tensor(name, tensor));
        let mut tensors = tensors.collect::<Result<Vec<_>, _>>()?;
        tensors.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        self.unique_names(&tensors)?;
        self.layout(&tensors)?;
        Ok(Header { tensors, metadata: raw.metadata, data_start: self.data_start })
    }

    /// One tensor alone: known dtype, countable shape, offsets of the length that both ask for.
    fn tensor(&self, name: Box<str>, raw: RawTensor) -> Result<TensorInfo, HeaderError> {
        let file = || self.file.to_owned();
        let dtype = match raw.dtype {
            Ok(dtype) => dtype,
            Err(dtype) => {
                return Err(HeaderError::UnknownDType { file: file(), tensor: name.into(), dtype });
            }
        };
        let elements = raw.shape.iter().try_fold(1_u64, |product, &dim| product.checked_mul(dim));
        let Some(bits) = elements.and_then(|count| count.checked_mul(dtype.bits())) else {
            let shape = raw.shape;
            return Err(HeaderError::ShapeOverflow { file: file(), tensor: name.into(), shape });
        };
        if !bits.is_multiple_of(8) {
            let dtype = dtype.name();
            return Err(HeaderError::PartialByte { file: file(), tensor: name.into(), dtype });
        }
        let (begin, end) = raw.offsets;
        let bytes = bits / 8;
        if end.checked_sub(begin) != Some(bytes) {
            let tensor = name.into();
            return Err(HeaderError::TensorBytes { file: file(), tensor, needed: bytes, begin, end });
        }
        if end > self.size - self.data_start {
            let end = end.saturating_add(self.data_start);
            return Err(HeaderError::Truncated { file: file(), tensor: name.into(), end, size: self.size });
        }
        // Cannot overflow: `begin` is at most `end`, which was just found to lie inside the file.
        let offset = self.data_start + begin;
        Ok(TensorInfo { name, dtype, shape: raw.shape, offset, bytes })
    }

    fn unique_names(&self, sorted: &[TensorInfo]) -> Result<(), HeaderError> {
        match sorted.windows(2).find(|pair| pair[0].name == pair[1].name) {
            None => Ok(()),
            Some(pair) => Err(HeaderError::DuplicateName {
                file: self.file.to_owned(),
                tensor: pair[0].name.to_string(),
            }),
        }
    }

    /// The tensors together: no byte with two owners, none without except padding.
    fn layout(&self, tensors: &[TensorInfo]) -> Result<(), HeaderError> {
        let mut by_place: Vec<&TensorInfo> = tensors.iter().collect();
        // By length too, so that an empty tensor may stand where another one starts.
        by_place.sort_unstable_by_key(|tensor| (tensor.offset, tensor.bytes));
        let mut end = self.data_start;
        let mut last: Option<&TensorInfo> = None;
        for tensor in by_place {
            if tensor.offset < end {
                return Err(HeaderError::Overlap {
                    file: self.file.to_owned(),
                    tensor: last.map_or_else(String::new, |last| last.name.to_string()),
                    other: tensor.name.to_string(),
                });
            }
            self.only_padding(end, tensor.offset)?;
            end = tensor.offset + tensor.bytes;
            last = Some(tensor);
        }
        self.only_padding(end, self.size)
    }

    /// Refuses bytes from `end` to `next` unless aligning `next` explains them.
    fn only_padding(&self, end: u64, next: u64) -> Result<(), HeaderError> {
        let aligned = |place: u64| 1_u64 << place.trailing_zeros().min(MAX_ALIGNMENT.trailing_zeros());
        let bytes = next - end;
        if bytes == 0 || bytes < aligned(next).max(aligned(next - self.data_start)) {
            return Ok(());
        }
        Err(HeaderError::Hole { file: self.file.to_owned(), offset: end, bytes })
    }
}

/// A tensor as the JSON has it: a dtype that may be unknown, offsets that may be nonsense.
struct RawTensor {
    dtype: Result<DType, String>,
    shape: Box<[u64]>,
    offsets: (u64, u64),
}

#[derive(Default)]
struct RawHeader {
    tensors: Vec<(Box<str>, RawTensor)>,
    metadata: Option<BTreeMap<String, String>>,
}

/// From the text straight into the vectors: a tree of JSON values would cost several times the
/// memory and time, and would let the later of two equal names win in silence.
fn parse_json(text: &str) -> serde_json::Result<RawHeader> {
    let mut parser = serde_json::Deserializer::from_str(text);
    let header = parser.deserialize_map(HeaderVisitor)?;
    parser.end()?;
    Ok(header)
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut header = RawHeader::default();
        let mut metadata_seen = false;
        // As seeds, because serde's own `Cow<str>` always copies.
        while let Some(name) = map.next_key_seed(Text)? {
            if name == METADATA {
                if std::mem::replace(&mut metadata_seen, true) {
                    return Err(A::Error::duplicate_field(METADATA));
                }
                header.metadata = map.next_value()?;
                continue;
            }
            // The parser's own words say what is wrong and where, but not with which tensor.
            let tensor = map
                .next_value_seed(TensorSeed)
                .map_err(|error| A::Error::custom(format_args!("tensor `{name}`: {error}")))?;
            header.tensors.push((name.into(), tensor));
        }
        Ok(header)
    }
}

struct TensorSeed;

impl<'de> DeserializeSeed<'de> for TensorSeed {
    type Value = RawTensor;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<RawTensor, D::Error> {
        input.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TensorSeed {
    type Value = RawTensor;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("an object with `dtype`, `shape` and `data_offsets`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawTensor, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(key) = map.next_key_seed(Text)? {
            match &*key {
                "dtype" => {
                    let name = map.next_value_seed(Text)?;
                    let known = DType::from_name(&name).ok_or_else(|| name.into_owned());
                    once(&mut dtype, known, "dtype")?;
                }
                "shape" => once(&mut shape, map.next_value::<Box<[u64]>>()?, "shape")?,
                "data_offsets" => once(&mut offsets, map.next_value()?, "data_offsets")?,
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(RawTensor {
            dtype: dtype.ok_or_else(|| A::Error::missing_field("dtype"))?,
            shape: shape.ok_or_else(|| A::Error::missing_field("shape"))?,
            offsets: offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))?,
        })
    }
}

fn once<T, E: serde::de::Error>(slot: &mut Option<T>, value: T, name: &'static str) -> Result<(), E> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(E::duplicate_field(name)),
    }
}

/// A string, borrowed from the text unless it holds escapes.
pub(super) struct Text;

impl<'de> DeserializeSeed<'de> for Text {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Self::Value, D::Error> {
        input.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Text {
    type Value = Cow<'de, str>;

    fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("a string")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}
