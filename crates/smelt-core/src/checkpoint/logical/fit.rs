//! How scales lie on a weight: by the shapes of both, and by what the config declares.

use super::grid::{Grid, Kind};
use super::matrices;
use super::rules::{Packed, Part, Rule};
use crate::checkpoint::{StoredId, StoredTensor};

impl Packed<'_> {
    /// How scales lie on a weight of this shape.
    pub(super) fn grid(&self, (id, scale): Part<'_>, shape: &[u64], limits: Limits) -> Rule<Grid> {
        let wanted = "F32, BF16, F16, F8_E8M0 or U8";
        let kind = Kind::of(scale.dtype).ok_or_else(|| self.dtype(scale, wanted))?;
        if kind == Kind::Narrow && limits.group.is_none() {
            return Err(self.dtype(scale, wanted));
        }
        let (lead, rows, cols) = matrices(shape);
        let count = scale.shape.iter().product::<u64>();
        let make = |block: (u64, u64), size: (u64, u64), for_each| {
            Ok(Grid { id, kind, block, size, for_each, turned: false })
        };
        if let Some(group) = limits.group {
            if group == 0 {
                return Err(self.shape(scale, format!("fewer groups than its {cols} columns")));
            }
            let size = (rows, cols.div_ceil(group));
            // One scale for each row may have lost its axis.
            if count == lead * size.0 * size.1 && matrices_of(&scale.shape, size.1) == (lead, size.0, size.1)
            {
                return make((1, group), size, true);
            }
            let last = [size.0, size.1];
            return Err(self.shape(scale, format!("{:?}", [lead_of(shape), &last].concat())));
        }
        if let Some((high, wide)) = limits.block {
            let size = (rows.div_ceil(high), cols.div_ceil(wide));
            if scale.shape.len() == shape.len() && matrices(&scale.shape) == (lead, size.0, size.1) {
                return make((high, wide), size, true);
            }
            let last = [size.0, size.1];
            let wanted = [lead_of(shape), &last].concat();
            return Err(self.shape(scale, format!("{wanted:?}, as weight_block_size is [{high}, {wide}]")));
        }
        if count == 1 {
            return make((rows.max(1), cols.max(1)), (1, 1), false);
        }
        let (scale_lead, high, wide) = matrices(&scale.shape);
        if *scale.shape == [rows] && shape.len() == 2 {
            return make((1, cols), (rows, 1), true);
        }
        if scale.shape.len() + 1 >= shape.len() && count == lead && lead > 1 {
            return make((rows, cols), (1, 1), true);
        }
        let unclear =
            || self.shape(scale, "one number, one a row, or blocks that the config declares".to_owned());
        if scale.shape.len() != shape.len() || scale_lead != lead {
            return Err(unclear());
        }
        let side = |size: u64, count: u64| match count {
            1 => Some(size),
            count if count == size => Some(1),
            count if size.div_ceil(128) == count => Some(128),
            count if size.div_ceil(32) == count => Some(32),
            _ => None,
        };
        match (side(rows, high), side(cols, wide)) {
            (Some(rows), Some(cols)) => make((rows.max(1), cols.max(1)), (high, wide), true),
            _ => Err(unclear()),
        }
    }

    pub(super) fn scale_words(&self, grid: &Grid, scale: &StoredTensor) -> String {
        let (high, wide) = grid.block;
        let what = match grid.size {
            (1, 1) if self.declared.block.is_none() => "a scale for all".to_owned(),
            (_, 1) if high == 1 => "a scale a row".to_owned(),
            _ => format!("scales for {high}×{wide}"),
        };
        let kind = if grid.kind == Kind::Power { "powers of two" } else { scale.dtype.name() };
        format!("{what}, {kind}")
    }
}

/// What is known of the block that a scale counts for.
#[derive(Clone, Copy)]
pub(super) struct Limits {
    pub(super) block: Option<(u64, u64)>,
    /// Columns of one row.
    pub(super) group: Option<u64>,
}

/// A single F32 for all.
pub(super) fn scalar(id: StoredId) -> Grid {
    let kind = Kind::Float(smelt_kernels::Float::F32);
    Grid { id, kind, block: (1, 1), size: (1, 1), for_each: false, turned: false }
}

/// As [`matrices`], where rows of a single number may be given without their axis.
fn matrices_of(shape: &[u64], cols: u64) -> (u64, u64, u64) {
    match shape {
        [rows] if cols == 1 => (1, *rows, 1),
        shape => matrices(shape),
    }
}

/// The axes before the last two.
fn lead_of(shape: &[u64]) -> &[u64] {
    &shape[..shape.len().saturating_sub(2)]
}
