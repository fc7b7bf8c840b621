//! How far one tensor is from another, in sums that do not depend on who adds them up.
//!
//! ```text
//! relative RMSE  sqrt(Σ (x - y)² / Σ x²)        SQNR  10 log10(Σ x² / Σ (x - y)²) dB
//! cosine         Σ x y / sqrt(Σ x² Σ y²)        maximum  max |x - y|
//! ```
//!
//! Elements are widened to f32 and their products to f64, where they are exact. Each row is summed in four
//! lanes, element `i` in lane `i mod 4`, and the lanes and rows are added in order.

use serde::Serialize;

const LANES: usize = 4;

/// Sums over pairs of elements: `x` of the source, `y` of the model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Sums {
    pub(super) count: u64,
    /// Σ (x - y)²
    pub(super) error: f64,
    /// Σ x²
    pub(super) energy: f64,
    /// Σ y²
    other: f64,
    /// Σ x y
    dot: f64,
    /// max |x - y|
    largest: f64,
}

impl Sums {
    /// Of two rows of f32, little endian and equally long.
    pub(super) fn of(x: &[u8], y: &[u8]) -> Self {
        let mut lanes = [[0.0f64; LANES]; 4];
        let mut largest = [0.0f64; LANES];
        let (xs, x_rest) = x.as_chunks::<{ 4 * LANES }>();
        let (ys, y_rest) = y.as_chunks::<{ 4 * LANES }>();
        for (x, y) in xs.iter().zip(ys) {
            step(&mut lanes, &mut largest, &quad(x), &quad(y));
        }
        if !x_rest.is_empty() {
            let (mut x_last, mut y_last) = ([0; 4 * LANES], [0; 4 * LANES]);
            x_last[..x_rest.len()].copy_from_slice(x_rest);
            y_last[..y_rest.len()].copy_from_slice(y_rest);
            step(&mut lanes, &mut largest, &quad(&x_last), &quad(&y_last));
        }
        let [error, energy, other, dot] = lanes.map(|lane| lane.iter().sum());
        let largest = largest.into_iter().fold(0.0, larger);
        Self { count: x.len() as u64 / 4, error, energy, other, dot, largest }
    }

    /// Adds the sums of what follows.
    pub(super) fn add(&mut self, next: &Self) {
        self.count += next.count;
        self.error += next.error;
        self.energy += next.energy;
        self.other += next.other;
        self.dot += next.dot;
        self.largest = larger(self.largest, next.largest);
    }

    pub(super) fn metrics(&self) -> Metrics {
        let equal = self.error == 0.0;
        let rms = |sum: f64| (sum / self.count.max(1) as f64).sqrt();
        let both = (self.energy * self.other).sqrt();
        Metrics {
            relative_rmse: if equal { 0.0 } else { (self.error / self.energy).sqrt() },
            sqnr_db: (!equal).then(|| 10.0 * (self.energy / self.error).log10()),
            cosine: if both > 0.0 { self.dot / both } else { f64::from(u8::from(equal)) },
            max_error: self.largest,
            rmse: rms(self.error),
            rms: rms(self.energy),
        }
    }
}

/// The larger one; NaN wins, so that it is seen.
fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b <= a { a } else { b }
}

fn quad(bytes: &[u8; 4 * LANES]) -> [f64; LANES] {
    let elements = bytes.as_chunks::<4>().0;
    std::array::from_fn(|lane| f64::from(f32::from_le_bytes(elements[lane])))
}

#[inline]
fn step(sums: &mut [[f64; LANES]; 4], largest: &mut [f64; LANES], x: &[f64; LANES], y: &[f64; LANES]) {
    for lane in 0..LANES {
        let difference = x[lane] - y[lane];
        sums[0][lane] += difference * difference;
        sums[1][lane] += x[lane] * x[lane];
        sums[2][lane] += y[lane] * y[lane];
        sums[3][lane] += x[lane] * y[lane];
        let distance = difference.abs();
        largest[lane] = if largest[lane] >= distance { largest[lane] } else { distance };
    }
}

/// How far a tensor is from its source.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Metrics {
    /// `sqrt(Σ (x - y)² / Σ x²)`, 0 for equal tensors.
    pub relative_rmse: f64,
    /// Signal to noise in decibels; `None` for equal tensors.
    pub sqnr_db: Option<f64>,
    /// The cosine of the angle between the two, as vectors.
    pub cosine: f64,
    /// The largest difference of two elements.
    pub max_error: f64,
    /// Root mean square of the differences.
    pub rmse: f64,
    /// Root mean square of the source.
    pub rms: f64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    proptest! {
        #[test]
        fn sums_are_those_of_the_definitions(pairs in prop::collection::vec((-2f32..2.0, -2f32..2.0), 0..40)) {
            let (x, y): (Vec<f32>, Vec<f32>) = pairs.iter().copied().unzip();
            let sums = Sums::of(&bytes(&x), &bytes(&y));
            let sum = |of: fn(f64, f64) -> f64| pairs.iter().map(|&(x, y)| of(x.into(), y.into())).sum::<f64>();
            let near = |a: f64, b: f64| (a - b).abs() <= 1e-12 * (1.0 + b.abs());
            prop_assert!(near(sums.error, sum(|x, y| (x - y) * (x - y))));
            prop_assert!(near(sums.energy, sum(|x, _| x * x)));
            prop_assert!(near(sums.dot, sum(|x, y| x * y)));
            let largest = pairs.iter().map(|&(x, y)| (f64::from(x) - f64::from(y)).abs()).fold(0.0, f64::max);
            prop_assert_eq!(sums.largest, largest);
            prop_assert_eq!(sums.count, pairs.len() as u64);
        }
    }

    #[test]
    fn equal_opposite_and_broken() {
        let (x, minus) = (bytes(&[1.0, -2.0, 3.0]), bytes(&[-1.0, 2.0, -3.0]));
        let equal = Sums::of(&x, &x).metrics();
        assert_eq!((equal.relative_rmse, equal.sqnr_db, equal.max_error), (0.0, None, 0.0));
        let opposite = Sums::of(&x, &minus).metrics();
        assert_eq!((opposite.relative_rmse, opposite.max_error), (2.0, 6.0));
        assert!((opposite.cosine + 1.0).abs() < 1e-15 && (equal.cosine - 1.0).abs() < 1e-15);
        let broken = Sums::of(&x, &bytes(&[1.0, f32::NAN, 3.0])).metrics();
        assert!(broken.relative_rmse.is_nan() && broken.max_error.is_nan());
        let of_zero = Sums::of(&bytes(&[0.0]), &bytes(&[0.5])).metrics();
        assert!(of_zero.relative_rmse.is_infinite());
    }
}
