//! Logical tensors: what a model computes with, made of what a checkpoint stores.
//!
//! Publishers store a weight as codes, scales, second scales and zero points, each in their own way.
//! Behind this module there are floats with names and shapes and nothing else: `pair`
//! finds out from headers and config alone which stored tensors make up which weight, and refuses what
//! is missing, spare or contradictory; a [`Recipe`] says how to decode, and is carried out by region.
//! A decoded copy exists nowhere but in the block that asked for it.

mod codes;
mod declared;
mod decode;
mod exact;
mod fit;
mod grid;
mod integers;
mod mlx;
mod native;
mod pair;
mod problem;
mod repack;
mod rules;

use smelt_kernels::{Code, Format};

pub use native::{Native, Part, Proof};
pub use problem::StorageProblem;

pub(super) use declared::Declared;
pub(super) use decode::region;
pub(super) use native::region as part_region;
pub(super) use pair::{Pairing, pair};

use super::{DType, StoredId};
use codes::Codes;
use grid::Grid;

/// A tensor as a layout sees it.
#[derive(Clone, Debug)]
pub struct LogicalTensor {
    /// Its name.
    pub name: Box<str>,
    /// Its dtype; a float where it is decoded.
    pub dtype: DType,
    /// Its shape.
    pub shape: Box<[u64]>,
    /// What it is made of.
    pub recipe: Recipe,
}

/// How a logical tensor is made of stored ones.
#[derive(Clone, Debug)]
pub enum Recipe {
    /// As it is stored.
    Plain(StoredId),
    /// Codes times scales, in a format of another tool.
    Scaled(Box<Scaled>),
    /// MLX's own formats.
    Mlx(Box<Mlx>),
}

/// `(value of code - zero) * scale`, see [`smelt_kernels::scaled`].
#[derive(Clone, Debug)]
pub struct Scaled {
    /// The format in words.
    pub(super) words: String,
    pub(super) code: Code,
    pub(super) codes: Codes,
    pub(super) scales: Grid,
    /// A scale on the scales.
    pub(super) second: Option<Second>,
    pub(super) zero: Zero,
    /// Which group each column belongs to, where groups are not neighbours.
    pub(super) order: Option<StoredId>,
    /// A tensor that holds the shape once more.
    pub(super) shape: Option<StoredId>,
}

/// The scale on the scales.
#[derive(Clone, Debug)]
pub(super) struct Second {
    pub(super) grid: Grid,
    /// Whether it divides them.
    pub(super) divides: bool,
}

/// Zero points.
#[derive(Clone, Debug)]
pub(super) enum Zero {
    /// The same for all.
    Same(f32),
    /// Stored as integers, one for each group, to which `plus` is added.
    Stored { codes: Codes, signed: bool, plus: f32 },
}

/// Codes, scales and biases of MLX.
#[derive(Clone, Debug)]
pub struct Mlx {
    /// The format.
    pub format: Format,
    /// `weight`.
    pub codes: StoredId,
    /// `scales`.
    pub scales: StoredId,
    /// `biases`, of affine formats.
    pub biases: Option<StoredId>,
}

impl LogicalTensor {
    /// The stored tensors that it is made of, the one with the codes first.
    pub fn parts(&self) -> Vec<StoredId> {
        match &self.recipe {
            Recipe::Plain(id) => vec![*id],
            Recipe::Mlx(mlx) => {
                [Some(mlx.codes), Some(mlx.scales), mlx.biases].into_iter().flatten().collect()
            }
            Recipe::Scaled(scaled) => {
                let zero = match &scaled.zero {
                    Zero::Stored { codes, .. } => Some(codes.id),
                    Zero::Same(_) => None,
                };
                let second = scaled.second.as_ref().map(|second| second.grid.id);
                let more = [Some(scaled.scales.id), second, zero, scaled.order, scaled.shape];
                [scaled.codes.id].into_iter().chain(more.into_iter().flatten()).collect()
            }
        }
    }

    /// The storage format in words; `None` for what is stored as it is.
    pub fn format(&self) -> Option<String> {
        match &self.recipe {
            Recipe::Plain(_) => None,
            Recipe::Scaled(scaled) => Some(scaled.words.clone()),
            Recipe::Mlx(mlx) => Some(format!("MLX {}", mlx.format)),
        }
    }

    /// Whether it is stored as floats.
    pub fn is_plain(&self) -> bool {
        matches!(self.recipe, Recipe::Plain(_))
    }
}

/// A shape as a stack of matrices: how many, rows, columns.
pub(super) fn matrices(shape: &[u64]) -> (u64, u64, u64) {
    match shape {
        [] => (1, 1, 1),
        [cols] => (1, 1, *cols),
        [lead @ .., rows, cols] => (lead.iter().product(), *rows, *cols),
    }
}
