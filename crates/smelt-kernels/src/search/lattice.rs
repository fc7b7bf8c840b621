//! The step of the lattice that the values of a group may lie on.
//!
//! Weights that were trained for four bits, or decoded from another quantized format, are whole multiples
//! of one step, seen from the least of them; but they need not use the first and the last code, so no
//! window need fit them. Euclid's algorithm finds the step:
//!
//! ```text
//! g = range
//! for each w:  r = w - least;  while (r = |r - g round(r / g)|) > tolerance:  g, r = r, g
//! count = round(range / g),  step = range / count       if count <= n
//! ```
//!
//! The tolerance, an eighth of the smallest step that `n` codes allow, takes in what rounding to bf16
//! does to a lattice of up to 6 bits; one whose values are exact is found exactly at any width. Values that
//! lie on no lattice make `g` too small within a few elements, and the search ends there.

use crate::arch::{LANES, Simd};
use crate::float::absolute;

/// The step for each lane, NaN where there is none; `None` if no lane has one.
#[inline(always)]
pub(super) fn lattice<S: Simd>(
    s: S,
    values: &[[f32; LANES]],
    least: S::F,
    range: S::F,
    levels: S::F,
) -> Option<S::F> {
    let tolerance = s.div(range, s.mul(levels, s.splat(8.0)));
    let most = s.add(levels, s.splat(0.5));
    let mut step = range;
    for x in values {
        let mut rest = remainder(s, s.sub(s.load(x), least), step);
        loop {
            let more = s.less(tolerance, rest);
            if !any(s, more) {
                break;
            }
            let next = remainder(s, step, rest);
            (step, rest) = (s.select(more, step, rest), s.select(more, rest, next));
        }
        // Once false, this stays false for a lane, so leaving here does not show in its result.
        if !any(s, s.less(s.round_even(s.div(range, step)), most)) {
            return None;
        }
    }
    let count = s.round_even(s.div(range, step));
    let found = s.less(count, most);
    Some(s.select(found, s.splat(f32::NAN), s.div(range, count)))
}

/// The distance of `a` to the nearest multiple of `step`.
#[inline(always)]
fn remainder<S: Simd>(s: S, a: S::F, step: S::F) -> S::F {
    absolute(s, s.sub(a, s.mul(step, s.round_even(s.div(a, step)))))
}

/// Whether a mask is set in any lane.
#[inline(always)]
fn any<S: Simd>(s: S, mask: S::I) -> bool {
    s.greatest32(s.shr(mask, 31)) != 0
}
