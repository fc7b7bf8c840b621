//! Cuts a tensor into blocks that are worked on one at a time.
//!
//! A block is a region that is contiguous in row-major order, so it is written at one offset. Cuts
//! fall between groups only: every group is independent, so the cut decides about memory and
//! never about bytes.

use crate::checkpoint::region::{Axis, Region};

/// How a tensor is cut.
#[derive(Clone, Debug)]
pub struct Cut {
    shape: Vec<u64>,
    /// The axis that is cut; the axes before it are walked, those behind it are whole.
    axis: usize,
    /// Elements of that axis in a block.
    chunk: u64,
    /// Elements behind that axis.
    inner: u64,
}

/// A block of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Block {
    /// The region.
    pub region: Region,
    /// Elements of the tensor before it.
    pub offset: u64,
    /// Elements in it.
    pub len: u64,
}

impl Cut {
    /// Cuts a tensor into blocks of at most `most` elements, or of a single `unit` of the last axis
    /// where that is more. `unit` divides the last axis.
    pub fn new(shape: &[u64], unit: u64, most: u64) -> Self {
        let mut axis = shape.len().saturating_sub(1);
        let mut inner = 1;
        while axis > 0 && inner * shape[axis] <= most {
            inner *= shape[axis];
            axis -= 1;
        }
        let step = if axis + 1 == shape.len() { unit } else { 1 };
        // Of an empty tensor `inner` may be 0; it has no blocks, whatever their size.
        let chunk = (most / inner.max(1) / step * step).max(step);
        Self { shape: shape.to_vec(), axis, chunk, inner }
    }

    /// How many blocks there are.
    pub fn count(&self) -> u64 {
        match self.shape.get(self.axis) {
            None => 1,
            Some(_) if self.shape.contains(&0) => 0,
            Some(size) => self.shape[..self.axis].iter().product::<u64>() * size.div_ceil(self.chunk),
        }
    }

    /// The block at `index`, counted in row-major order.
    pub fn block(&self, index: u64) -> Block {
        let Some(&size) = self.shape.get(self.axis) else {
            return Block { region: Vec::new(), offset: 0, len: 1 };
        };
        let across = size.div_ceil(self.chunk);
        let (row, start) = (index / across, index % across * self.chunk);
        let len = self.chunk.min(size - start);
        let mut region = self.outer(row);
        region.push(Axis::range(start, len));
        region.extend(self.shape[self.axis + 1..].iter().map(|&size| Axis::range(0, size)));
        Block { region, offset: (row * size + start) * self.inner, len: len * self.inner }
    }

    /// The positions on the axes before the cut one.
    fn outer(&self, mut row: u64) -> Region {
        let mut region = Vec::with_capacity(self.shape.len());
        for &size in self.shape[..self.axis].iter().rev() {
            region.push(Axis::point(row % size));
            row /= size;
        }
        region.reverse();
        region
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::region::{elements, runs};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_follow_one_another_and_are_contiguous(
            mut shape in prop::collection::vec(prop_oneof![9 => 1..7u64, 1 => Just(0)], 0..4), unit in 1..4u64, most in 1..200u64,
        ) {
            if let Some(last) = shape.last_mut() {
                *last *= unit;
            }
            let cut = Cut::new(&shape, unit, most);
            let mut next = 0;
            for block in (0..cut.count()).map(|index| cut.block(index)) {
                prop_assert_eq!(block.offset, next);
                prop_assert_eq!(block.len, elements(&block.region));
                prop_assert!(block.len <= most.max(unit));
                prop_assert!(shape.is_empty() || block.len % unit == 0);
                let listed: Vec<_> = runs(&shape, &block.region).collect();
                prop_assert_eq!(listed.len(), 1);
                prop_assert_eq!(listed[0].start, block.offset);
                next += block.len;
            }
            prop_assert_eq!(next, shape.iter().product::<u64>());
        }
    }
}
