//! Products of matrices, such as those of adapters: `W + scale · B A` with a few hundred columns in `B`.
//!
//! `out[i, j] = Σ_k left[i, k] · right[k, j]`, summed in double in the order of `k` and rounded to the dtype
//! at the end. MLX defines no order, and its backends differ; a double sum of products of 24-bit
//! significands is closer to the exact one than any of theirs. Nothing is fused, and the order does not
//! depend on how a matrix is cut, so any region has the bits that it has in the whole.

use smelt_kernels::Float;

use super::compute::{narrow, widen};

/// Columns that are summed at a time: with 256 rows of `right` they stay in a second-level cache.
const TILE: usize = 128;

/// Bytes that a product holds beside its operands, where `inner` elements are summed.
pub(super) const fn held(inner: u64) -> u64 {
    // A tile of `right` in double, one row of `left` in single, and the sums in both.
    let tile = TILE as u64;
    inner * (tile * 8 + 4) + tile * 16
}

/// Fills `out`, row-major with rows of `columns`, with the product of two blocks of a dtype; `inner`
/// elements are summed for each.
pub(super) fn product(
    float: Float,
    (left, right): (&[u8], &[u8]),
    (inner, columns): (usize, usize),
    out: &mut [u8],
) {
    if inner == 0 {
        return out.fill(0);
    }
    let size = float.size();
    let mut sums = [0f64; TILE];
    for start in (0..columns).step_by(TILE) {
        let width = TILE.min(columns - start);
        let tile = tile(float, right, columns, (start, width));
        let rows = out.chunks_exact_mut(columns * size).zip(left.chunks_exact(inner * size));
        for (out, left) in rows {
            let sums = &mut sums[..width];
            sums.fill(0.0);
            for (a, row) in widen(float, left).into_iter().zip(tile.chunks_exact(width)) {
                let a = f64::from(a);
                sums.iter_mut().zip(row).for_each(|(sum, b)| *sum += a * b);
            }
            let rounded: Vec<f32> = sums.iter().map(|&sum| sum as f32).collect();
            narrow(float, &rounded, &mut out[start * size..(start + width) * size]);
        }
    }
}

/// Some columns of a matrix in double, row by row.
fn tile(float: Float, matrix: &[u8], columns: usize, (start, width): (usize, usize)) -> Vec<f64> {
    let size = float.size();
    let rows = matrix.chunks_exact(columns * size);
    rows.flat_map(|row| widen(float, &row[start * size..(start + width) * size])).map(f64::from).collect()
}
