//! What error a format can have, and what it usually has.
//!
//! **Ceiling.** With affine codes an element is off by at most half a step, `range / (2 (2^bits - 1))`, and a
//! group of `n` holds at least one element of half the range: the relative RMSE of a group, and so of a
//! row, is at most `sqrt(n) / (2^bits - 1)`. Zero lies on the grid, so no element is off by more than itself and
//! the error is never above 1. A quarter more leaves room for the ends that snapping moves, and for scales rounded to a
//! half. E2M1 in steps of a power of two stays below 0.55, E4M3 below 0.35 (scales rounded down, as MLX had
//! them before 0.32.2, saturate); an nvfp4 scale may underflow, so that format may lose a group whole.
//! Better grids than these only have smaller errors.
//!
//! **Usual** is the relative RMSE on normally distributed weights.

use smelt_kernels::{Format, Mode};

/// The relative RMSE of a row above which it can't be the source in this format.
pub(super) fn ceiling(format: Format) -> f64 {
    match format.mode() {
        Mode::Affine => (1.25 * (format.group_size() as f64).sqrt() / levels(format) + 0.04).min(1.05),
        Mode::Mxfp4 => 0.55,
        Mode::Mxfp8 => 0.35,
        Mode::Nvfp4 => 1.05,
    }
}

/// The relative RMSE of normally distributed weights.
pub(super) fn usual(format: Format) -> f64 {
    match format.mode() {
        // 0.091 for 4 bits in groups of 64; the range of a group grows with its size.
        Mode::Affine => 0.091 * 15.0 / levels(format) * (format.group_size() as f64 / 64.0).powf(0.15),
        Mode::Mxfp4 => 0.118,
        Mode::Mxfp8 => 0.027,
        Mode::Nvfp4 => 0.1,
    }
}

/// Steps of the grid.
fn levels(format: Format) -> f64 {
    f64::from((1u32 << format.bits()) - 1)
}

/// Squared error of an element below which it is the floor of MLX's scales (1e-7) and no sign of anything.
pub(super) const FLOOR: f64 = 1.5e-14;
