//! Boxes cut out of a tensor: a range with a step on each axis.
//!
//! Everything that is pulled through a layout is asked for as a region, because a region is the
//! largest thing that slicing, stacking, transposing and reshaping map to a region again, or to
//! a few. [`runs`] turns one into the contiguous stretches that a file can be asked for.

/// The elements `start`, `start + step`, … of one axis, `len` of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Axis {
    /// The first element.
    pub start: u64,
    /// How many elements.
    pub len: u64,
    /// The distance from one to the next, at least 1.
    pub step: u64,
}

impl Axis {
    /// `len` neighbouring elements from `start` on.
    pub const fn range(start: u64, len: u64) -> Self {
        Self { start, len, step: 1 }
    }

    /// The element at `at`, alone.
    pub const fn point(at: u64) -> Self {
        Self::range(at, 1)
    }

    /// Whether these are all of an axis of `size` elements.
    pub const fn is_full(self, size: u64) -> bool {
        self.start == 0 && self.len == size && (self.step == 1 || size <= 1)
    }

    /// The part of these that lies in `[low, low + size)`: how many come before it, and the part
    /// itself, counted from `low`. `None` if there is no such part.
    pub fn within(self, low: u64, size: u64) -> Option<(u64, Self)> {
        let before = if low > self.start { (low - self.start).div_ceil(self.step) } else { 0 };
        let upto = (low + size).saturating_sub(self.start).div_ceil(self.step).min(self.len);
        (before < upto).then(|| {
            let start = self.start + before * self.step - low;
            (before, Self { start, len: upto - before, step: self.step })
        })
    }
}

/// One [`Axis`] for each axis of a tensor, outermost first.
pub type Region = Vec<Axis>;

/// The region that holds all of a tensor of this shape.
pub fn whole(shape: &[u64]) -> Region {
    shape.iter().map(|&size| Axis::range(0, size)).collect()
}

/// The number of elements in a region.
pub fn elements(region: &[Axis]) -> u64 {
    region.iter().map(|axis| axis.len).product()
}

/// The lengths of a region's axes: the shape of the tensor that it cuts out.
pub fn lengths(region: &[Axis]) -> Vec<u64> {
    region.iter().map(|axis| axis.len).collect()
}

/// A stretch of neighbouring elements, in row-major order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Index of the first element within the tensor.
    pub start: u64,
    /// Elements.
    pub len: u64,
}

/// The stretches that make up `region` of a tensor of this shape, in the region's order.
///
/// Axes that are taken whole are joined to the one before them, so a block of whole rows is a
/// single run.
pub fn runs<'a>(shape: &'a [u64], region: &'a [Axis]) -> impl Iterator<Item = Run> + 'a {
    let (split, run) = innermost_run(shape, region);
    let outer = &region[..split];
    let strides = strides(shape);
    let count = if elements(region) == 0 { 0 } else { elements(outer) };
    let base = region[split..].iter().zip(&strides[split..]).map(|(a, s)| a.start * s).sum::<u64>();
    (0..count).map(move |index| {
        let start = base + offset_of(outer, &strides, index);
        Run { start, len: run }
    })
}

/// Where the joined inner axes begin, and how many elements they hold.
fn innermost_run(shape: &[u64], region: &[Axis]) -> (usize, u64) {
    let mut split = shape.len();
    let mut run = 1;
    while split > 0 {
        let (axis, size) = (region[split - 1], shape[split - 1]);
        if axis.step != 1 && axis.len > 1 {
            break;
        }
        split -= 1;
        run *= axis.len;
        if !axis.is_full(size) {
            break;
        }
    }
    (split, run)
}

/// The element distance between neighbours on each axis of a row-major tensor.
pub fn strides(shape: &[u64]) -> Vec<u64> {
    let mut strides = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * shape[axis];
    }
    strides
}

/// The offset of the `index`-th combination of positions on the outer axes.
fn offset_of(outer: &[Axis], strides: &[u64], mut index: u64) -> u64 {
    let mut offset = 0;
    for (axis, stride) in outer.iter().zip(strides).rev() {
        offset += (axis.start + index % axis.len * axis.step) * stride;
        index /= axis.len;
    }
    offset
}

/// Cuts the elements `[start, start + len)` of a row-major tensor of this shape into regions, in
/// order, as few as possible.
pub fn boxes(shape: &[u64], start: u64, len: u64) -> Vec<Region> {
    let mut found = Vec::new();
    if len > 0 {
        cut(shape, start, start + len, &mut Vec::new(), &mut found);
    }
    found
}

fn cut(shape: &[u64], low: u64, high: u64, prefix: &mut Region, found: &mut Vec<Region>) {
    let Some((&_size, inner)) = shape.split_first() else {
        found.push(prefix.clone());
        return;
    };
    let row: u64 = inner.iter().product();
    let (first, last) = (low / row, high / row);
    if low.is_multiple_of(row) && high.is_multiple_of(row) {
        push_rows(first, last - first, inner, prefix, found);
        return;
    }
    if low / row == (high - 1) / row {
        descend(first, low % row, high - first * row, inner, prefix, found);
        return;
    }
    let mut next = first;
    if !low.is_multiple_of(row) {
        descend(first, low % row, row, inner, prefix, found);
        next += 1;
    }
    push_rows(next, last - next, inner, prefix, found);
    if !high.is_multiple_of(row) {
        descend(last, 0, high % row, inner, prefix, found);
    }
}

fn push_rows(first: u64, count: u64, inner: &[u64], prefix: &Region, found: &mut Vec<Region>) {
    if count > 0 {
        let mut region = prefix.clone();
        region.push(Axis::range(first, count));
        region.extend(whole(inner));
        found.push(region);
    }
}

fn descend(at: u64, low: u64, high: u64, inner: &[u64], prefix: &mut Region, found: &mut Vec<Region>) {
    prefix.push(Axis::point(at));
    cut(inner, low, high, prefix, found);
    prefix.pop();
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every element index of a region, one at a time.
    fn indices(shape: &[u64], region: &[Axis]) -> Vec<u64> {
        let strides = strides(shape);
        (0..elements(region)).map(|index| offset_of(region, &strides, index)).collect()
    }

    fn axis(size: u64) -> impl Strategy<Value = Axis> {
        (0..size, 1..=3u64).prop_flat_map(move |(start, step)| {
            (1..=(size - start).div_ceil(step)).prop_map(move |len| Axis { start, len, step })
        })
    }

    fn shaped() -> impl Strategy<Value = (Vec<u64>, Region)> {
        prop::collection::vec(1..6u64, 0..4).prop_flat_map(|shape| {
            let axes: Vec<_> = shape.iter().map(|&size| axis(size)).collect();
            (Just(shape), axes)
        })
    }

    proptest! {
        #[test]
        fn runs_hold_the_elements_of_the_region((shape, region) in shaped()) {
            let listed: Vec<u64> =
                runs(&shape, &region).flat_map(|run| run.start..run.start + run.len).collect();
            prop_assert_eq!(listed, indices(&shape, &region));
        }

        #[test]
        fn boxes_hold_the_elements_of_the_interval(
            shape in prop::collection::vec(1..5u64, 1..4), a in 0..200u64, b in 0..200u64,
        ) {
            let total: u64 = shape.iter().product();
            let (low, high) = (a.min(b) % (total + 1), a.max(b) % (total + 1));
            let (low, high) = (low.min(high), low.max(high));
            let listed: Vec<u64> = boxes(&shape, low, high - low)
                .iter().flat_map(|region| indices(&shape, region)).collect();
            prop_assert_eq!(listed, (low..high).collect::<Vec<_>>());
        }

        #[test]
        fn a_part_within_bounds_is_what_filtering_gives(
            axis in axis(40), low in 0..40u64, size in 1..40u64,
        ) {
            let all: Vec<u64> = (0..axis.len).map(|i| axis.start + i * axis.step).collect();
            let kept: Vec<u64> = all.iter().filter(|&&at| low <= at && at < low + size)
                .map(|at| at - low).collect();
            let part = axis.within(low, size);
            let listed = part.map_or(vec![], |(_, part)| {
                (0..part.len).map(|i| part.start + i * part.step).collect()
            });
            prop_assert_eq!(&listed, &kept);
            if let Some((before, _)) = part {
                prop_assert_eq!(before, all.iter().filter(|&&at| at < low).count() as u64);
            }
        }
    }
}
