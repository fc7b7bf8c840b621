//! The keys of a recipe file with their types, as serde reads them.

use serde::Deserialize;
use toml::Spanned;

use crate::units::parse_bytes;

/// A whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileToml {
    pub(super) schema: Spanned<u32>,
    pub(super) description: Option<String>,
    pub(super) target_bpw: Option<Spanned<f64>>,
    pub(super) target_size: Option<Spanned<Size>>,
    pub(super) fit: Option<Spanned<Size>>,
    pub(super) context: Option<Spanned<u64>>,
    pub(super) level: Option<Spanned<String>>,
    pub(super) bits: Option<Spanned<u8>>,
    pub(super) group_size: Option<Spanned<usize>>,
    pub(super) mode: Option<Spanned<String>>,
    pub(super) formats: Option<Spanned<Vec<Spanned<String>>>>,
    #[serde(default)]
    pub(super) rule: Vec<Spanned<RuleToml>>,
}

impl FileToml {
    /// The budgets that are given, by their keys, with the offsets of their values. Bits, group size and
    /// mode together are one.
    pub(super) fn budgets(&self) -> Vec<(&'static str, usize)> {
        let bits = self.bits.as_ref().map(|bits| ("bits", bits.span().start));
        let group_size = self.group_size.as_ref().map(|size| ("group_size", size.span().start));
        let mode = self.mode.as_ref().map(|mode| ("mode", mode.span().start));
        let mut given: Vec<(&'static str, usize)> = [
            self.target_bpw.as_ref().map(|value| ("target_bpw", value.span().start)),
            self.target_size.as_ref().map(|value| ("target_size", value.span().start)),
            self.fit.as_ref().map(|value| ("fit", value.span().start)),
            self.level.as_ref().map(|value| ("level", value.span().start)),
            bits.or(group_size).or(mode),
        ]
        .into_iter()
        .flatten()
        .collect();
        given.sort_by_key(|(_, at)| *at);
        given
    }
}

/// A `[[rule]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleToml {
    #[serde(rename = "match")]
    pub(super) pattern: Option<Spanned<String>>,
    pub(super) role: Option<Spanned<Names>>,
    pub(super) layers: Option<Spanned<String>>,
    pub(super) format: Option<Spanned<String>>,
    pub(super) floor: Option<Spanned<u8>>,
    pub(super) ceiling: Option<Spanned<u8>>,
    pub(super) reason: Option<String>,
}

impl RuleToml {
    /// The conditions in short.
    pub(super) fn words(&self) -> String {
        let role = self.role.as_ref().map(|names| names.get_ref().all().join(" or "));
        let pattern = self.pattern.as_ref().map(|pattern| format!("/{}/", pattern.get_ref()));
        let layers = self.layers.as_ref().map(|layers| format!("layers {}", layers.get_ref()));
        [role, pattern, layers].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// A name or several.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a role or a list of roles is needed")]
pub(super) enum Names {
    One(String),
    Several(Vec<String>),
}

impl Names {
    pub(super) fn all(&self) -> &[String] {
        match self {
            Self::One(name) => std::slice::from_ref(name),
            Self::Several(names) => names,
        }
    }
}

/// Bytes, as a number or in words such as `96GiB`.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a size is needed: a number of bytes, or a text such as \"96GiB\"")]
pub(super) enum Size {
    Bytes(u64),
    Text(String),
}

impl Size {
    pub(super) fn bytes(&self) -> Option<u64> {
        match self {
            Self::Bytes(bytes) => Some(*bytes),
            Self::Text(text) => parse_bytes(text),
        }
    }
}
