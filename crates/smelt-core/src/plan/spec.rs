//! Formats and rounding rules as they stand in a plan's JSON.

use serde::{Deserialize, Serialize};
use smelt_kernels::{Format, Mode, Rounding};

/// A format by its parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "SpecJson", into = "SpecJson")]
pub struct Spec(pub Format);

impl From<Format> for Spec {
    fn from(format: Format) -> Self {
        Self(format)
    }
}

#[derive(Serialize, Deserialize)]
struct SpecJson {
    mode: String,
    bits: u8,
    group_size: usize,
}

impl From<Spec> for SpecJson {
    fn from(Spec(format): Spec) -> Self {
        Self { mode: format.mode().name().to_owned(), bits: format.bits(), group_size: format.group_size() }
    }
}

impl TryFrom<SpecJson> for Spec {
    type Error = String;

    fn try_from(json: SpecJson) -> Result<Self, String> {
        let mode = Mode::from_name(&json.mode).ok_or_else(|| format!("`{}` is no mode", json.mode))?;
        let format = Format::new(mode, json.bits, json.group_size);
        format.map(Self).ok_or_else(|| super::options::unknown(mode, json.bits, json.group_size))
    }
}

/// A rounding rule by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoundingSpec {
    /// Halves to even.
    Cpu,
    /// Halves away from zero.
    Gpu,
}

impl From<Rounding> for RoundingSpec {
    fn from(rounding: Rounding) -> Self {
        match rounding {
            Rounding::Cpu => Self::Cpu,
            Rounding::Gpu => Self::Gpu,
        }
    }
}

impl From<RoundingSpec> for Rounding {
    fn from(spec: RoundingSpec) -> Self {
        match spec {
            RoundingSpec::Cpu => Self::Cpu,
            RoundingSpec::Gpu => Self::Gpu,
        }
    }
}
