//! Levels: named budgets, with the figures of oMLX's oQ, given out by our own solver.
//!
//! A level is a number of bits per weight, the one at which oQ stops raising widths. Whoever knows oQ4 gets a
//! file of that size; which module gets what is decided by measured errors.

use std::fmt;
use std::str::FromStr;

use super::BitsError;

/// A named budget.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Level {
    name: &'static str,
    /// Bits per weight, over all parameters.
    pub bits_per_weight: f64,
    /// Whether errors are weighted by an importance matrix, which then must be there.
    pub weighted: bool,
}

/// Names and the bits per weight at which oQ stops; oQ8 is 8 bits throughout.
const LEVELS: [(&str, f64); 9] = [
    ("oq2", 3.0),
    ("oq2.5", 3.3),
    ("oq2.7", 3.35),
    ("oq3", 3.7),
    ("oq3.5", 4.0),
    ("oq4", 4.7),
    ("oq5", 5.7),
    ("oq6", 6.7),
    ("oq8", 8.5),
];

impl Level {
    /// All of them, without an importance matrix.
    pub fn all() -> impl Iterator<Item = Self> {
        LEVELS.into_iter().map(|(name, bits_per_weight)| Self { name, bits_per_weight, weighted: false })
    }

    /// The name of the budget, without the `e`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Whether all modules have one format, so that nothing is to be given out.
    pub fn is_plain(&self) -> bool {
        self.name == "oq8"
    }
}

impl FromStr for Level {
    type Err = BitsError;

    fn from_str(text: &str) -> Result<Self, BitsError> {
        let lower = text.to_ascii_lowercase();
        let (plain, weighted) = lower.strip_suffix('e').map_or((&*lower, false), |plain| (plain, true));
        let found = LEVELS.into_iter().find(|(name, _)| *name == plain);
        let known = || LEVELS.map(|(name, _)| name).join(", ");
        found
            .map(|(name, bits_per_weight)| Self { name, bits_per_weight, weighted })
            .ok_or_else(|| BitsError::Level { text: text.to_owned(), known: known() })
    }
}

impl fmt::Display for Level {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // As oMLX spells it.
        write!(out, "oQ{}{}", &self.name[2..], if self.weighted { "e" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_by_name() {
        let level: Level = "oQ2.7e".parse().unwrap();
        assert_eq!((level.to_string().as_str(), level.bits_per_weight), ("oQ2.7e", 3.35));
        let plain: Level = "oq4".parse().unwrap();
        assert_eq!((plain.to_string().as_str(), plain.weighted), ("oQ4", false));
        assert!("oq7".parse::<Level>().unwrap_err().to_string().contains("oq2.5, oq2.7"));
    }
}
