//! Gives a group back half of what least squares took from it.
//!
//! Codes and a pair of least squared error leave a remainder that is orthogonal to what is stored, so
//! that the stored weights are too short:
//!
//! ```text
//! Σω x x̂ = Σω x̂² = (1 - e) Σω x²        e: the relative error
//! ```
//!
//! The outputs of all rows shrink by the same share, and those of layers behind one another too, while
//! the rest of the error is noise that averages out. At 2 bits `e` is a tenth and more. Therefore
//!
//! ```text
//! ρ = Σω x² / Σω x x̂,   s' = T(s √ρ),   b' = T(b √ρ),   codes as they are
//! ```
//!
//! which adds `e² / 4` to the relative error. All of it (`ρ` for `√ρ`) is too much where only some
//! modules have 2 bits: noise alone makes outputs longer, more so behind a product of two.
//! Measured on trained models of five kinds, half gives 3 to 20 % less divergence in mixtures of 2 bits with more,
//! 1 to 4 % less at 3 bits, and nothing from 4 bits up, where it is left out.

use std::marker::PhantomData;

use crate::Format;
use crate::arch::{Kernel, LANES, Simd};
use crate::float::Element;
use crate::measure::{OfGroup, sum};
use crate::run::GROUPS;

/// The greatest factor that is believed: beyond it a group is hardly like what it was made of.
const MOST: f64 = 1.25;

/// Whether groups of a format are restored.
pub(super) fn applies(format: Format) -> bool {
    format.bits() <= 3
}

/// The factor `√ρ` of a group.
pub(super) struct Factor;

impl OfGroup for Factor {
    type Number = f32;

    #[inline(always)]
    fn of<'a>(
        values: &[f32],
        levels: &[f32],
        weights: impl Iterator<Item = &'a [f32; LANES]>,
        (scale, bias): (f64, f64),
    ) -> f32 {
        let (mut energy, mut overlap) = ([0.0; LANES], [0.0; LANES]);
        let lanes = values.as_chunks::<LANES>().0.iter().zip(levels.as_chunks::<LANES>().0);
        for ((x, v), w) in lanes.zip(weights) {
            for i in 0..LANES {
                let weighted = f64::from(w[i]) * f64::from(x[i]);
                energy[i] += weighted * f64::from(x[i]);
                overlap[i] += weighted * (scale * f64::from(v[i]) + bias);
            }
        }
        let root = (sum(energy) / sum(overlap)).sqrt();
        // Not for NaN, nor where nothing is left of the group.
        if (1.0..=MOST).contains(&root) { root as f32 } else { 1.0 }
    }
}

/// Numbers times their factors, as they would be stored.
pub(super) struct Grow<'a, T> {
    pub(super) factors: &'a [f32; GROUPS],
    pub(super) out: &'a mut [f32; GROUPS],
    pub(super) element: PhantomData<T>,
}

impl<T: Element> Kernel for Grow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for (factor, out) in self.factors.as_chunks().0.iter().zip(self.out.as_chunks_mut().0) {
            let grown = s.mul(s.load(out), s.load(factor));
            s.store(T::round(s, grown), out);
        }
    }
}
