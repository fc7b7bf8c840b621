//! Eight groups side by side: a vector holds the elements of one place, a lane is a group.
//!
//! So every sum of a group runs down one lane in the order of its elements, whatever groups are
//! beside it: no reduction across lanes, and the same bits for any cut between groups.

use crate::arch::LANES;

/// Elements of the largest group.
const MOST: usize = 128;

/// Values and weights of eight groups.
pub(super) struct Batch {
    values: [[f32; LANES]; MOST],
    weights: [[f32; LANES]; MOST],
}

impl Batch {
    pub(super) fn new() -> Self {
        Self { values: [[0.0; LANES]; MOST], weights: [[0.0; LANES]; MOST] }
    }

    /// The values of up to eight groups; zeros in the lanes that are left.
    #[inline(always)]
    pub(super) fn values(&mut self, from: &[f32], group_size: usize) -> &[[f32; LANES]] {
        fill(&mut self.values, from, group_size)
    }

    /// The same with their weights.
    #[inline(always)]
    pub(super) fn both(
        &mut self,
        values: &[f32],
        weights: &[f32],
        group_size: usize,
    ) -> (&[[f32; LANES]], &[[f32; LANES]]) {
        (fill(&mut self.values, values, group_size), fill(&mut self.weights, weights, group_size))
    }
}

#[inline(always)]
fn fill<'a>(to: &'a mut [[f32; LANES]; MOST], from: &[f32], group_size: usize) -> &'a [[f32; LANES]] {
    let to = &mut to[..group_size];
    for lane in 0..LANES {
        match from.get(lane * group_size..(lane + 1) * group_size) {
            Some(group) => to.iter_mut().zip(group).for_each(|(to, x)| to[lane] = *x),
            None => to.iter_mut().for_each(|to| to[lane] = 0.0),
        }
    }
    to
}
