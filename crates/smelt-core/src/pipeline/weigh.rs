//! What the weights of each parameter amount to, gathered while they pass through.
//!
//! A scale that is misread leaves a file in perfect order and a model that talks nonsense. Its weights
//! are off by orders of magnitude, though, so a few numbers of each parameter tell ([`super::outlier`]).
//! They are the same however the work is cut: the largest weight and the zeros are so by nature, squares
//! are summed as integers ([`Squares`]), of a large parameter at places that depend on it alone.

use serde::{Deserialize, Serialize};
use smelt_kernels::{Float, Format, Squares, Stored, dequantize, extent};

use super::encode::{Place, Sizes};
use super::sample::stretches;

/// What the weights of a parameter amount to, before quantization.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Weighed {
    /// The largest magnitude.
    pub largest: f32,
    /// Root of the mean square, of a large parameter on a thirty-second of its weights.
    pub rms: f32,
    /// Weights that are 0.
    pub zeros: u64,
}

/// Parameters of at most this many elements are looked at whole.
const WHOLE: u64 = 1 << 18;

/// Stored weights that are decoded at a time: whole groups of any size.
const DECODED: u64 = 1 << 12;

/// What has passed through of a parameter.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    largest: f32,
    zeros: u64,
    squares: Squares,
}

impl Tally {
    /// Adds a block of a parameter of `elements` in all; says whether all of it is finite.
    pub(super) fn add(&mut self, dtype: Float, elements: u64, place: Place, block: &[u8]) -> bool {
        let extent = extent(dtype, block);
        self.widen(extent.largest, extent.zeros);
        if elements <= WHOLE {
            self.squares.add(dtype, block);
            return extent.largest.is_finite();
        }
        for (start, end) in stretches(place) {
            self.squares.add(dtype, &block[start as usize * dtype.size()..end as usize * dtype.size()]);
        }
        extent.largest.is_finite()
    }

    /// Adds a block that is stored in a format of MLX; says whether all that it stands for is finite.
    pub(super) fn add_stored(
        &mut self,
        (format, dtype): (Format, Float),
        elements: u64,
        place: Place,
        parts: Stored<'_>,
    ) -> bool {
        let (each, group) = (Sizes::of_group(format, dtype), format.group_size() as u64);
        let mut values = vec![0; DECODED as usize * dtype.size()];
        let mut finite = true;
        for start in (0..place.len).step_by(DECODED as usize) {
            let len = DECODED.min(place.len - start);
            let groups = (start / group) as usize..((start + len) / group) as usize;
            let codes = &parts.codes[groups.start * each.codes..groups.end * each.codes];
            let scales = &parts.scales[groups.start * each.scales..groups.end * each.scales];
            let biases = &parts.biases[groups.start * each.biases..groups.end * each.biases];
            let values = &mut values[..len as usize * dtype.size()];
            dequantize(format, dtype, codes, scales, biases, values);
            finite &= self.add(dtype, elements, Place { offset: place.offset + start, len }, values);
        }
        finite
    }

    /// Adds what another has of the same parameter.
    pub(super) fn merge(&mut self, other: &Self) {
        self.widen(other.largest, other.zeros);
        self.squares.merge(&other.squares);
    }

    fn widen(&mut self, largest: f32, zeros: u64) {
        // Once NaN, always NaN.
        self.largest = if largest > self.largest || largest.is_nan() { largest } else { self.largest };
        self.zeros += zeros;
    }

    /// The sums of a parameter whose weights are all finite.
    pub(super) fn finish(&self) -> Option<Weighed> {
        let rms = self.squares.mean().sqrt() as f32;
        self.largest.is_finite().then_some(Weighed { largest: self.largest, rms, zeros: self.zeros })
    }
}
