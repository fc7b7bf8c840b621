//! Moves elements between a block and a part of it, or a block that it repeats.

/// Walks the elements of a block in order and tells which element of a smaller block each one
/// matches: axes on which the smaller has one element stand still.
pub(super) struct Walk {
    lens: Vec<u64>,
    /// Distance in the small block for one step on each axis; 0 where it stands still.
    strides: Vec<usize>,
    at: Vec<u64>,
    index: usize,
}

impl Walk {
    /// `small` may have fewer axes; they are aligned at the last.
    pub(super) fn new(lens: &[u64], small: &[u64]) -> Self {
        let skip = lens.len() - small.len();
        let mut strides = vec![0; lens.len()];
        let mut stride = 1;
        for axis in (0..small.len()).rev() {
            if small[axis] > 1 {
                strides[skip + axis] = stride;
            }
            stride *= small[axis] as usize;
        }
        Self { lens: lens.to_vec(), strides, at: vec![0; lens.len()], index: 0 }
    }

    /// The element that the next one of the block matches.
    pub(super) fn next(&mut self) -> usize {
        let here = self.index;
        for axis in (0..self.at.len()).rev() {
            self.at[axis] += 1;
            self.index += self.strides[axis];
            if self.at[axis] < self.lens[axis] {
                break;
            }
            self.at[axis] = 0;
            self.index -= self.strides[axis] * self.lens[axis] as usize;
        }
        here
    }
}

/// Fills `out`, with axes of `lens`, by repeating a smaller block of elements of `size` bytes.
pub(super) fn expand(small: &[u8], small_lens: &[u64], lens: &[u64], size: usize, out: &mut [u8]) {
    let mut walk = Walk::new(lens, small_lens);
    for element in out.chunks_exact_mut(size) {
        let from = walk.next() * size;
        element.copy_from_slice(&small[from..from + size]);
    }
}

/// Copies `part`, with axes of `part_lens`, into `out`, with axes of `lens`, at the position `at`.
pub(super) fn insert(part: &[u8], part_lens: &[u64], at: &[u64], lens: &[u64], size: usize, out: &mut [u8]) {
    let Some((&last, outer)) = part_lens.split_last() else {
        out.copy_from_slice(part);
        return;
    };
    let row = last as usize * size;
    let strides = crate::checkpoint::region::strides(lens);
    let rows = outer.iter().product::<u64>();
    for index in 0..rows {
        let mut rest = index;
        let mut to = at[outer.len()];
        for axis in (0..outer.len()).rev() {
            to += (at[axis] + rest % outer[axis]) * strides[axis];
            rest /= outer[axis];
        }
        let (from, to) = (index as usize * row, to as usize * size);
        out[to..to + row].copy_from_slice(&part[from..from + row]);
    }
}

/// Copies the entries of an axis at these positions: `data` is `outer` rows of `axis` entries of
/// `inner` bytes.
pub(super) fn gather(data: &[u8], axis: usize, inner: usize, positions: &[usize], out: &mut [u8]) {
    let rows = data.chunks_exact(axis * inner).zip(out.chunks_exact_mut(positions.len() * inner));
    for (row, out) in rows {
        for (&position, entry) in positions.iter().zip(out.chunks_exact_mut(inner)) {
            entry.copy_from_slice(&row[position * inner..(position + 1) * inner]);
        }
    }
}
