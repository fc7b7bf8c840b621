//! How a region of a reshaped tensor lies in the tensor before the reshape.
//!
//! Axes are matched in the smallest groups that hold equally many elements on both sides:
//! `[heads · (nope + v), rank]` and `[heads, nope + v, rank]` make the groups
//! `{0} = {0, 1}` and `{1} = {2}`. Within a group a region is a list of stretches in row-major
//! order, and each stretch is a few boxes of the other side; groups do not mix.

use crate::checkpoint::region::{Axis, Region, Run, boxes, elements, runs};

/// A part of a group's elements that is one box before the reshape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Elements of the group's region that come before it.
    pub(super) offset: u64,
    /// Elements that it holds.
    pub(super) len: u64,
    /// Where they lie before the reshape: one [`Axis`] for each axis of the group there.
    pub(super) inside: Region,
}

/// The pieces of one group, in the order of the region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) pieces: Vec<Piece>,
    /// Elements of the region in this group.
    pub(super) elements: u64,
}

/// Splits a `region` of a tensor of shape `after` into the groups and pieces in which it lies in
/// the same tensor under the shape `before`. Both shapes hold equally many elements, not none.
pub(super) fn regroup(before: &[u64], after: &[u64], region: &[Axis]) -> Vec<Group> {
    let mut groups = Vec::new();
    let (mut b, mut a) = (0, 0);
    while b < before.len() || a < after.len() {
        let (b_end, a_end) = next_group(before, after, b, a);
        groups.push(group(&before[b..b_end], &after[a..a_end], &region[a..a_end]));
        (b, a) = (b_end, a_end);
    }
    groups
}

/// The ends of the smallest group that begins at these axes; what remains joins the last one.
fn next_group(before: &[u64], after: &[u64], b: usize, a: usize) -> (usize, usize) {
    let (mut b_end, mut a_end) = (b, a);
    let (mut have_b, mut have_a) = (1, 1);
    loop {
        if have_b <= have_a && b_end < before.len() {
            have_b *= before[b_end];
            b_end += 1;
        } else if a_end < after.len() {
            have_a *= after[a_end];
            a_end += 1;
        }
        let rest_is_ones = |shape: &[u64]| shape.iter().all(|&size| size == 1);
        if have_a == have_b {
            if rest_is_ones(&before[b_end..]) && rest_is_ones(&after[a_end..]) {
                return (before.len(), after.len());
            }
            if b_end > b && a_end > a {
                return (b_end, a_end);
            }
        }
    }
}

fn group(before: &[u64], after: &[u64], region: &[Axis]) -> Group {
    let elements = elements(region);
    if let Some(inside) = stepped(before, after, region) {
        return Group { pieces: vec![Piece { offset: 0, len: elements, inside }], elements };
    }
    let mut pieces = Vec::new();
    let mut offset = 0;
    for run in joined(runs(after, region)) {
        for inside in boxes(before, run.start, run.len) {
            let len = crate::checkpoint::region::elements(&inside);
            pieces.push(Piece { offset, len, inside });
            offset += len;
        }
    }
    Group { pieces, elements }
}

/// Every `step`-th element of a flat axis is one [`Axis`]: a stride-2 split needs no pieces.
fn stepped(before: &[u64], after: &[u64], region: &[Axis]) -> Option<Region> {
    if before.len() != 1 {
        return None;
    }
    let mut all = runs(after, region).filter(|run| run.len > 0);
    let first = all.next().filter(|run| run.len == 1)?;
    let second = all.next()?;
    let step = second.start.checked_sub(first.start)?;
    let mut last = second;
    let even = second.len == 1
        && all.all(|run| {
            let follows = run.len == 1 && run.start == last.start + step;
            last = run;
            follows
        });
    even.then(|| vec![Axis { start: first.start, len: elements(region), step }])
}

/// Joins stretches that touch.
fn joined(runs: impl Iterator<Item = Run>) -> Vec<Run> {
    let mut out: Vec<Run> = Vec::new();
    for run in runs {
        match out.last_mut() {
            Some(last) if last.start + last.len == run.start => last.len += run.len,
            _ => out.push(run),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::region::whole;

    #[test]
    fn heads_of_a_flat_projection_are_row_ranges() {
        // [4 heads · 6, 8] seen as [4, 6, 8]: the first two rows of heads 1 and 2.
        let region = vec![Axis::range(1, 2), Axis::range(0, 2), Axis::range(0, 8)];
        let groups = regroup(&[24, 8], &[4, 6, 8], &region);
        assert_eq!(groups.len(), 2);
        let rows: Vec<_> = groups[0].pieces.iter().map(|piece| piece.inside[0]).collect();
        assert_eq!(rows, [Axis::range(6, 2), Axis::range(12, 2)]);
        assert_eq!(groups[1].pieces[0].inside, whole(&[8]));
    }

    #[test]
    fn a_split_axis_asked_for_whole_is_one_piece() {
        let groups = regroup(&[24, 8], &[4, 6, 8], &whole(&[4, 6, 8]));
        assert!(groups.iter().all(|group| group.pieces.len() == 1));
    }

    #[test]
    fn ones_join_a_neighbour() {
        let groups = regroup(&[5, 1], &[1, 5, 1, 1], &whole(&[1, 5, 1, 1]));
        let inside: Vec<_> = groups.iter().flat_map(|g| g.pieces[0].inside.clone()).collect();
        assert_eq!(inside, whole(&[5, 1]));
    }
}
