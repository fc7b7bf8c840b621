//! How the codes of a module are found: by MLX's own rule, or by a search for less error.

use std::fmt;

use serde::{Deserialize, Serialize};
use smelt_kernels::Effort;

/// How codes, scales and biases are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Method {
    /// Rounding between a group's extremes, bit for bit as MLX does it.
    Rtn,
    /// The scale and bias of least squared error that a search finds; never worse than rounding.
    Search(Effort),
}

impl Default for Method {
    fn default() -> Self {
        Self::Search(Effort::Default)
    }
}

impl Method {
    /// Every method.
    const ALL: [Self; 4] =
        [Self::Rtn, Self::Search(Effort::Fast), Self::Search(Effort::Default), Self::Search(Effort::Best)];

    /// The name in plans and measurements.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rtn => "rtn",
            Self::Search(Effort::Fast) => "search-fast",
            Self::Search(Effort::Default) => "search",
            Self::Search(Effort::Best) => "search-best",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

impl From<Method> for String {
    fn from(method: Method) -> Self {
        method.name().to_owned()
    }
}

impl TryFrom<String> for Method {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|method| method.name() == name);
        found.ok_or_else(|| format!("`{name}` is no method"))
    }
}
