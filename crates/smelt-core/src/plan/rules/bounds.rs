//! Floors and ceilings of one module, and what contradicts them.

use smelt_kernels::Format;

use super::{Ruling, Verdict};
use crate::plan::allocate::BitsError;

/// The bits between which a target may choose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// The fewest, where a rule says.
    pub floor: Option<u8>,
    /// The most, where a rule says.
    pub ceiling: Option<u8>,
}

impl Bounds {
    /// Whether there are none.
    pub fn is_open(self) -> bool {
        self.floor.or(self.ceiling).is_none()
    }

    /// Keeps the formats within the bounds. Where no rule sets a floor, `usual` is one for as long as
    /// formats reach it.
    pub(in crate::plan) fn narrow(self, formats: &mut Vec<Format>, usual: u8) {
        formats.retain(|format| self.ceiling.is_none_or(|most| format.bits() <= most));
        let most = formats.iter().map(|format| format.bits()).max().unwrap_or(0);
        let floor = self.floor.unwrap_or(usual.min(most));
        formats.retain(|format| format.bits() >= floor);
    }
}

impl Ruling<'_> {
    /// Refuses a floor above the ceiling of the same module.
    pub(in crate::plan) fn check_bounds(&self, module: &str, verdict: &Verdict) -> Result<(), BitsError> {
        match (verdict.floor, verdict.ceiling) {
            (Some((low, floor)), Some((high, ceiling))) if floor > ceiling => Err(BitsError::Contradiction {
                module: module.to_owned(),
                floor: self.words(low),
                ceiling: self.words(high),
            }),
            _ => Ok(()),
        }
    }

    /// The rules that bound a module, in words.
    pub(in crate::plan) fn bounding(&self, verdict: &Verdict) -> String {
        let mut entries: Vec<usize> =
            [verdict.floor, verdict.ceiling].into_iter().flatten().map(|(index, _)| index).collect();
        entries.dedup();
        entries.into_iter().map(|index| self.words(index)).collect::<Vec<_>>().join(" and ")
    }
}
