//! What can be wrong with a recipe file.

use std::fmt;

use super::SCHEMA;
use crate::layout::Role;
use crate::plan::allocate::BitsError;
use crate::plan::rules::{LayersError, Place};

/// Something that is wrong with a recipe file, and where.
#[derive(Debug)]
pub struct RecipeError {
    /// Where.
    pub place: Place,
    /// What.
    pub fault: Box<RecipeFault>,
}

impl RecipeError {
    /// A fault at a place.
    pub fn new(place: Place, fault: RecipeFault) -> Self {
        Self { place, fault: Box::new(fault) }
    }
}

impl fmt::Display for RecipeError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "the recipe {}: {}", self.place, self.fault)
    }
}

impl std::error::Error for RecipeError {}

/// What is wrong with a recipe file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecipeFault {
    /// Not TOML, or keys and types that no recipe has.
    #[error("{what}")]
    Toml {
        /// What the parser says.
        what: String,
    },
    /// Another version of the format.
    #[error("schema {found} is not known; this smelt reads schema {SCHEMA}")]
    Schema {
        /// The version.
        found: u32,
    },
    /// More than one budget.
    #[error("`{first}` and `{second}` are both given; a recipe has one budget")]
    TwoBudgets {
        /// The key that comes first.
        first: &'static str,
        /// The other.
        second: &'static str,
    },
    /// `context` without `fit`.
    #[error("`context` belongs to `fit`, which is not given")]
    ContextAlone,
    /// Bits per weight that no model has.
    #[error("a number of bits above zero is needed, such as 4.6")]
    NotPositive,
    /// A size that is none.
    #[error("a size such as \"96GiB\", \"1.5G\" or 13607051 is needed")]
    Size,
    /// A level that there is not.
    #[error("{0}")]
    Level(Box<BitsError>),
    /// A mode that there is not.
    #[error("`{name}` is no mode; there are affine, mxfp4, mxfp8 and nvfp4")]
    Mode {
        /// Its name.
        name: String,
    },
    /// A format that there is not.
    #[error("{why}")]
    Format {
        /// Why.
        why: String,
    },
    /// A format that is listed twice.
    #[error("`{format}` stands there twice")]
    Twice {
        /// The format.
        format: String,
    },
    /// An empty list of formats.
    #[error("no format is listed; leave `formats` out to choose from all")]
    NoFormats,
    /// Floors, ceilings or formats to choose from beside one format throughout.
    #[error("this bounds what a target chooses, but the recipe asks for one format throughout")]
    NoTarget,
    /// Formats to choose from without a target.
    #[error("`formats` is what a target chooses among, but neither recipe nor command line gives a target")]
    FormatsAlone,
    /// A budget, or formats, that the command line gives too.
    #[error("this stands here, and `{option}` is given too; leave one of them out")]
    GivenTwice {
        /// The option.
        option: &'static str,
    },
    /// A rule about nothing.
    #[error(
        "the rule says of no module that it is meant; it needs `match`, `role` or `layers` (`match = \"\"` is every module)"
    )]
    NoCondition,
    /// A rule that does nothing.
    #[error("the rule does nothing; it needs `format`, or `floor` or `ceiling`")]
    NoAction,
    /// A rule that sets and bounds.
    #[error("`format` decides already, so that `floor` and `ceiling` mean nothing in the same rule")]
    FormatAndBound,
    /// A pattern that is none.
    #[error("{why}")]
    Pattern {
        /// Why.
        why: String,
    },
    /// An empty list of roles.
    #[error("no role is listed; leave `role` out for any")]
    NoRoles,
    /// A role that there is not.
    #[error("`{name}` is no role; there are {}", Role::NAMES.join(", "))]
    Role {
        /// Its name.
        name: String,
    },
    /// Layers that are none.
    #[error("{0}")]
    Layers(LayersError),
    /// Bits that no format has.
    #[error("bits from 2 to 8 are needed")]
    Bits,
    /// A floor above the ceiling.
    #[error("the floor of {floor} bits is above the ceiling of {ceiling}")]
    Crossed {
        /// The floor.
        floor: u8,
        /// The ceiling.
        ceiling: u8,
    },
}

impl From<BitsError> for RecipeFault {
    fn from(error: BitsError) -> Self {
        Self::Level(Box::new(error))
    }
}
