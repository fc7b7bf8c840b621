//! Products of matrices, such as those of adapters: `W + scale · B A` with a few hundred columns in `B`.
//!
//! `out[i, j] = Σ_k left[i, k] · right[k, j]`, summed in double in the order of `k` and rounded to the dtype
//! at the end. MLX defines no order, and its backends differ; a double sum of products of 24-bit
//! significands is closer to the exact one than any of theirs. Nothing is fused, and the order does not
//! depend on how a matrix is cut, so any region has the bits that it has in the whole.
//!
//! A few rows by a few columns are summed at once, so that sums stay in registers; columns are taken in
//! tiles that stay in a cache while all rows pass.

use smelt_kernels::Float;

use super::compute::{narrow, widen};

/// Rows and columns whose sums are held in registers.
const ROWS: usize = 2;
const COLUMNS: usize = 8;

/// Columns of a tile: with 256 rows of `right` it fits a second-level cache.
const TILE: usize = 128;

/// Bytes that a product holds beside its operands, where `inner` elements are summed.
pub(super) const fn held(inner: u64) -> u64 {
    // A tile of `right` in double, a row of it and of `left` on the way, rows of `left`, and results.
    let (tile, rows) = (TILE as u64, ROWS as u64);
    inner * (tile * 8 + 4 + rows * 8) + tile * (8 + rows * 4)
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
    for start in (0..columns).step_by(TILE) {
        let width = TILE.min(columns - start);
        let panels = panels(float, right, columns, (start, width));
        let blocks = out.chunks_mut(ROWS * columns * size).zip(left.chunks(ROWS * inner * size));
        for (out, left) in blocks {
            let rows = paired(&widen(float, left), inner);
            let sums: Vec<_> = panels.chunks_exact(inner).map(|panel| summed(&rows, panel)).collect();
            for (row, out) in out.chunks_exact_mut(columns * size).enumerate() {
                let rounded: Vec<f32> =
                    sums.iter().flat_map(|sums| sums[row]).take(width).map(|sum| sum as f32).collect();
                narrow(float, &rounded, &mut out[start * size..(start + width) * size]);
            }
        }
    }
}

/// The sums of some rows and the columns of a panel.
fn summed(rows: &[[f64; ROWS]], panel: &[[f64; COLUMNS]]) -> [[f64; COLUMNS]; ROWS] {
    let mut sums = [[0.0; COLUMNS]; ROWS];
    for (a, b) in rows.iter().zip(panel) {
        for (sums, a) in sums.iter_mut().zip(a) {
            sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += a * b);
        }
    }
    sums
}

/// Rows side by side, one element of each at a time; a missing one is 0.
fn paired(rows: &[f32], inner: usize) -> Vec<[f64; ROWS]> {
    let element = |row: usize, k: usize| rows.get(row * inner + k).copied().map_or(0.0, f64::from);
    (0..inner).map(|k| std::array::from_fn(|row| element(row, k))).collect()
}

/// Some columns of a matrix in double: a few at a time, row by row; behind the last one stand zeros.
fn panels(
    float: Float,
    matrix: &[u8],
    columns: usize,
    (start, width): (usize, usize),
) -> Vec<[f64; COLUMNS]> {
    let (size, inner) = (float.size(), matrix.len() / (columns * float.size()));
    let mut panels = vec![[0.0; COLUMNS]; width.div_ceil(COLUMNS) * inner];
    for (k, row) in matrix.chunks_exact(columns * size).enumerate() {
        let wide = widen(float, &row[start * size..(start + width) * size]);
        for (panel, part) in wide.chunks(COLUMNS).enumerate() {
            let place = panels[panel * inner + k].iter_mut();
            place.zip(part).for_each(|(place, &value)| *place = f64::from(value));
        }
    }
    panels
}
