//! What is measured of a parameter: sums over all of it, and every row for itself.

use super::limits;
use super::sums::Sums;

/// What was measured of a pair.
#[derive(Debug, Default)]
pub(super) struct Measured {
    pub(super) sums: Sums,
    pub(super) rows: Rows,
    /// Values that are stored as they are differ.
    pub(super) differ: bool,
    /// It holds no floats.
    pub(super) opaque: bool,
}

/// Rows, each for itself.
#[derive(Debug, Default)]
pub(super) struct Rows {
    len: u64,
    /// The square of the relative RMSE that no row should have.
    ceiling: Option<f64>,
    pub(super) worst: Option<(f64, u64)>,
    /// Rows above the ceiling, and the first of them.
    pub(super) beyond: u64,
    pub(super) first: u64,
}

impl Rows {
    pub(super) fn new(shape: &[u64], ceiling: Option<f64>) -> Self {
        let len = shape.last().copied().unwrap_or(1).max(1);
        Self { len, ceiling: ceiling.map(|ceiling| ceiling * ceiling), ..Self::default() }
    }

    fn note(&mut self, row: u64, sums: &Sums) {
        let floor = limits::FLOOR * sums.count as f64;
        let ratio = sums.error / (sums.energy + floor);
        // NaN is worse than any number.
        let ratio = if ratio.is_nan() { f64::INFINITY } else { ratio };
        self.note_worst(ratio, row);
        if self.ceiling.is_some_and(|ceiling| ratio > ceiling) {
            if self.beyond == 0 {
                self.first = row;
            }
            self.beyond += 1;
        }
    }

    /// Takes note of a row if it is the worst so far.
    fn note_worst(&mut self, ratio: f64, row: u64) {
        if self.worst.is_none_or(|(worst, _)| ratio > worst) {
            self.worst = Some((ratio, row));
        }
    }
}

impl Measured {
    /// Adds what was measured of the next piece.
    pub(super) fn join(&mut self, next: &Self) {
        self.sums.add(&next.sums);
        self.differ |= next.differ;
        self.opaque |= next.opaque;
        if let Some((ratio, row)) = next.rows.worst {
            self.rows.note_worst(ratio, row);
        }
        if self.rows.beyond == 0 {
            self.rows.first = next.rows.first;
        }
        self.rows.beyond += next.rows.beyond;
    }

    /// Adds a block that begins at an element: whole rows, or a part of one.
    pub(super) fn add(&mut self, offset: u64, x: &[u8], y: &[u8]) {
        let row_bytes = (self.rows.len * 4) as usize;
        let pairs = x.chunks(row_bytes).zip(y.chunks(row_bytes));
        for (row, (x, y)) in (offset / self.rows.len..).zip(pairs) {
            let sums = Sums::of(x, y);
            self.rows.note(row, &sums);
            self.sums.add(&sums);
        }
    }
}
