//! Evaluates a region of an expression, reading no more of the checkpoint than the region needs.
//!
//! A region is pushed down through the graph: stacking picks the tensors concerned, slicing and
//! transposing rewrite it, reshaping splits it (see `regroup`). What arrives at the sources is
//! read straight into the caller's buffer wherever the order of elements allows, so a stack of 512
//! experts is 512 reads into one block and exists nowhere else.

use super::compute;
use super::graph::{Graph, Node, NodeId, Op};
use super::permute::permute;
use super::pool::Pool;
use super::product::product;
use super::regroup::{Group, Piece, regroup};
use super::spread;
use crate::checkpoint::region::{Axis, Region, elements, lengths, runs};
use crate::checkpoint::{DType, TensorId};
use crate::error::Result;

/// Whatever can hand out regions of source tensors: a checkpoint, or a test's arrays.
pub trait Tensors: Sync {
    /// Fills `out` with a region of a tensor, row-major, in the tensor's own dtype.
    ///
    /// # Errors
    /// When the tensor can't be read.
    fn read_region(&self, tensor: TensorId, region: &[Axis], out: &mut [u8]) -> Result<()>;
}

/// Evaluates expressions of a graph over the tensors of a checkpoint.
#[derive(Clone, Copy)]
pub struct Puller<'a> {
    graph: &'a Graph,
    tensors: &'a dyn Tensors,
}

impl std::fmt::Debug for Puller<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Puller").field("graph", &self.graph.len()).finish_non_exhaustive()
    }
}

impl<'a> Puller<'a> {
    /// Over `graph`, whose sources are `tensors`.
    pub fn new(graph: &'a Graph, tensors: &'a dyn Tensors) -> Self {
        Self { graph, tensors }
    }

    /// Fills `out` with a region of a node, row-major, in the node's dtype. Intermediate results
    /// are held in `pool`, never more of them than [`super::cost::scratch`] says.
    ///
    /// # Errors
    /// When a source can't be read.
    ///
    /// # Panics
    /// If `out` is not as long as the region.
    pub fn pull(&self, id: NodeId, region: &[Axis], out: &mut [u8], pool: &mut Pool) -> Result<()> {
        let node = self.graph.node(id);
        debug_assert_eq!(out.len() as u64, byte_len(node, region));
        match &node.op {
            Op::Source(tensor) => self.tensors.read_region(*tensor, region, out),
            Op::Stack { axis, inputs } => {
                self.join(node, *axis, region, stack_parts(*axis, inputs, region), out, pool)
            }
            Op::Concat { axis, inputs } => {
                let parts = concat_parts(self.graph, *axis, inputs, region);
                self.join(node, *axis, region, parts, out, pool)
            }
            Op::Slice { input, axis, start, step } => {
                self.pull(*input, &sliced(region, *axis, *start, *step), out, pool)
            }
            Op::Transpose { input, perm } => self.transpose(*input, perm, region, out, pool),
            Op::Reshape(input) => {
                let groups = regroup(&self.graph.node(*input).shape, &node.shape, region);
                self.gather(*input, &groups, out, pool)
            }
            Op::Cast(input) => {
                let from = self.graph.node(*input).dtype;
                self.through(*input, region, out, pool, |data, out| {
                    compute::cast(from, node.dtype, data, out);
                })
            }
            Op::FromFp8(input) => {
                let to = node.dtype.float().expect("fp8 is decoded to floats only");
                self.through(*input, region, out, pool, |data, out| compute::from_fp8(to, data, out))
            }
            Op::Scalar(bits) => {
                fill(node.dtype, *bits, out);
                Ok(())
            }
            Op::Const(data) => {
                constant(data, node, region, out);
                Ok(())
            }
            Op::Unary { op, input } => {
                self.pull(*input, region, out, pool)?;
                compute::unary(*op, node.dtype, out);
                Ok(())
            }
            Op::Bitcast(input) => self.bitcast(node, *input, region, out, pool),
            Op::Broadcast(input) => {
                let small = broadcast_region(self.graph.node(*input), node.shape.len(), region);
                self.through(*input, &small, out, pool, |data, out| {
                    spread::expand(data, &lengths(&small), &lengths(region), element_size(node), out);
                })
            }
            Op::Repeat { input, axis, count } => {
                self.repeat(node, *input, (*axis, *count), region, out, pool)
            }
            Op::Pad { input, low, value } => {
                fill(node.dtype, *value, out);
                let Some((at, inner)) = unpadded(&self.graph.node(*input).shape, low, region) else {
                    return Ok(());
                };
                self.through(*input, &inner, out, pool, |data, out| {
                    spread::insert(data, &lengths(&inner), &at, &lengths(region), element_size(node), out);
                })
            }
            Op::Take { input, axis, indices } => {
                self.take(node, (*input, *axis, *indices), region, out, pool)
            }
            Op::Where { test, yes, no } => self.choose((*test, *yes, *no), region, out, pool),
            Op::Reduce { op, input, axes } => {
                let inner = unreduced(&self.graph.node(*input).shape, axes, region);
                self.through(*input, &inner, out, pool, |data, out| {
                    compute::reduce(*op, node.dtype, data, &lengths(&inner), axes, out);
                })
            }
            Op::Matmul { left, right } => self.product((*left, *right), region, out, pool),
            Op::Binary { op, left, right } => {
                let dtype = self.graph.node(*left).dtype;
                let operand = self.operand(*right, node.shape.len(), region, pool)?;
                self.through(*left, region, out, pool, |data, out| {
                    compute::binary(*op, dtype, data, &operand, out);
                })?;
                pool.give(operand);
                Ok(())
            }
        }
    }

    /// Puts parts one after another along `axis` of the region.
    fn join(
        &self,
        node: &Node,
        axis: usize,
        region: &[Axis],
        parts: Vec<Part>,
        out: &mut [u8],
        pool: &mut Pool,
    ) -> Result<()> {
        let place = Place::new(&lengths(region), axis, element_size(node));
        for part in parts {
            self.pull_into(&place, part.offset, part.len, out, pool, |this, out, pool| {
                this.pull(part.node, &part.region, out, pool)
            })?;
        }
        Ok(())
    }

    /// Runs `fill` on the part of `out` at `offset` of the place's axis: in place where that part
    /// is contiguous, through a temporary where it is not.
    fn pull_into(
        &self,
        place: &Place,
        offset: u64,
        len: u64,
        out: &mut [u8],
        pool: &mut Pool,
        fill: impl FnOnce(&Self, &mut [u8], &mut Pool) -> Result<()>,
    ) -> Result<()> {
        let (offset, len) = (offset as usize * place.inner, len as usize * place.inner);
        if place.outer == 1 {
            return fill(self, &mut out[offset..offset + len], pool);
        }
        let mut part = pool.take(place.outer * len);
        fill(self, &mut part, pool)?;
        for (row, piece) in out.chunks_exact_mut(place.axis * place.inner).zip(part.chunks_exact(len)) {
            row[offset..offset + len].copy_from_slice(piece);
        }
        pool.give(part);
        Ok(())
    }

    fn transpose(
        &self,
        input: NodeId,
        perm: &[usize],
        region: &[Axis],
        out: &mut [u8],
        pool: &mut Pool,
    ) -> Result<()> {
        let inner = untransposed(perm, region);
        let mut data = pool.take(out.len());
        self.pull(input, &inner, &mut data, pool)?;
        permute(&data, &lengths(&inner), perm, element_size(self.graph.node(input)), out);
        pool.give(data);
        Ok(())
    }

    /// Collects the pieces of a reshaped region, one group with several pieces after the other.
    fn gather(&self, input: NodeId, groups: &[Group], out: &mut [u8], pool: &mut Pool) -> Result<()> {
        let Some((at, place)) = scattered(groups, element_size(self.graph.node(input))) else {
            return self.pull(input, &inside(groups), out, pool);
        };
        for piece in &groups[at].pieces {
            let narrowed = narrow(groups, at, piece);
            self.pull_into(&place, piece.offset, piece.len, out, pool, |this, out, pool| {
                this.gather(input, &narrowed, out, pool)
            })?;
        }
        Ok(())
    }

    /// Pulls a region of another node into a temporary and makes `out` of it.
    fn through(
        &self,
        input: NodeId,
        region: &[Axis],
        out: &mut [u8],
        pool: &mut Pool,
        make: impl FnOnce(&[u8], &mut [u8]),
    ) -> Result<()> {
        let mut data = pool.take(byte_len(self.graph.node(input), region) as usize);
        self.pull(input, region, &mut data, pool)?;
        make(&data, out);
        pool.give(data);
        Ok(())
    }

    /// The right side of an operation, repeated to the region.
    fn operand(&self, id: NodeId, rank: usize, region: &[Axis], pool: &mut Pool) -> Result<Vec<u8>> {
        let node = self.graph.node(id);
        let small = broadcast_region(node, rank, region);
        let size = element_size(node);
        let mut operand = pool.take(elements(region) as usize * size);
        self.through(id, &small, &mut operand, pool, |data, out| {
            spread::expand(data, &lengths(&small), &lengths(region), size, out);
        })?;
        Ok(operand)
    }

    fn bitcast(
        &self,
        node: &Node,
        input: NodeId,
        region: &[Axis],
        out: &mut [u8],
        pool: &mut Pool,
    ) -> Result<()> {
        let from = self.graph.node(input);
        if element_size(from) == element_size(node) {
            return self.pull(input, region, out, pool);
        }
        let (inner, skip) = recast(element_size(from), element_size(node), region);
        self.through(input, &inner, out, pool, |data, out| {
            let (last, size) = (region[region.len() - 1], element_size(node));
            let row = data.len() / (out.len() / (last.len as usize * size)).max(1);
            for (data, out) in data.chunks_exact(row).zip(out.chunks_exact_mut(last.len as usize * size)) {
                for (index, element) in out.chunks_exact_mut(size).enumerate() {
                    let at = skip + index * last.step as usize * size;
                    element.copy_from_slice(&data[at..at + size]);
                }
            }
        })
    }

    fn repeat(
        &self,
        node: &Node,
        input: NodeId,
        (axis, count): (usize, u64),
        region: &[Axis],
        out: &mut [u8],
        pool: &mut Pool,
    ) -> Result<()> {
        let inner = unrepeated(axis, count, region);
        let along = region[axis];
        let position = |i| (along.start + i * along.step) / count - inner[axis].start;
        let positions: Vec<usize> = (0..along.len).map(|i| position(i) as usize).collect();
        let place = Place::new(&lengths(&inner), axis, element_size(node));
        self.through(input, &inner, out, pool, |data, out| {
            spread::gather(data, place.axis, place.inner, &positions, out);
        })
    }

    fn take(
        &self,
        node: &Node,
        (input, axis, indices): (NodeId, usize, NodeId),
        region: &[Axis],
        out: &mut [u8],
        pool: &mut Pool,
    ) -> Result<()> {
        let (table, list) = (self.graph.node(input), self.graph.node(indices));
        let (inner, wanted) = taken(table, axis, list.shape.len(), region);
        let mut data = pool.take(byte_len(list, &wanted) as usize);
        self.pull(indices, &wanted, &mut data, pool)?;
        let size = table.shape[axis];
        // As in MLX a negative position counts from the end; one outside is brought inside.
        let place_of =
            |at: i128| if at < 0 { at + i128::from(size) } else { at }.clamp(0, i128::from(size) - 1);
        let positions: Vec<usize> =
            compute::integers(list.dtype, &data).into_iter().map(|at| place_of(at) as usize).collect();
        pool.give(data);
        let place = Place::new(&lengths(&inner), axis, element_size(node));
        self.through(input, &inner, out, pool, |data, out| {
            spread::gather(data, place.axis, place.inner, &positions, out);
        })
    }

    fn choose(
        &self,
        (test, yes, no): (NodeId, NodeId, NodeId),
        region: &[Axis],
        out: &mut [u8],
        pool: &mut Pool,
    ) -> Result<()> {
        self.pull(yes, region, out, pool)?;
        let mut condition = pool.take(byte_len(self.graph.node(test), region) as usize);
        self.pull(test, region, &mut condition, pool)?;
        let size = element_size(self.graph.node(yes));
        self.through(no, region, out, pool, |no, out| compute::choose(&condition, out, no, size))?;
        pool.give(condition);
        Ok(())
    }

    fn product(
        &self,
        (left, right): (NodeId, NodeId),
        region: &[Axis],
        out: &mut [u8],
        pool: &mut Pool,
    ) -> Result<()> {
        let node = self.graph.node(left);
        let float = node.dtype.float().expect("matrices of floats are multiplied only");
        let [rows, columns] = factors(node.shape[1], region);
        let mut data = pool.take(byte_len(node, &rows) as usize);
        self.pull(left, &rows, &mut data, pool)?;
        let lens = (node.shape[1] as usize, region[1].len as usize);
        self.through(right, &columns, out, pool, |right, out| product(float, (&data, right), lens, out))?;
        pool.give(data);
        Ok(())
    }
}

/// A part of a joined region: which node fills it, and with which of its elements.
pub(super) struct Part {
    pub(super) node: NodeId,
    pub(super) region: Region,
    /// Position along the joined axis, and length on it.
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// One part for each stacked tensor that the region meets.
pub(super) fn stack_parts(axis: usize, inputs: &[NodeId], region: &[Axis]) -> Vec<Part> {
    let mut inner = region.to_vec();
    let along = inner.remove(axis);
    (0..along.len)
        .map(|offset| Part {
            node: inputs[(along.start + offset * along.step) as usize],
            region: inner.clone(),
            offset,
            len: 1,
        })
        .collect()
}

/// One part for each joined tensor that the region meets.
pub(super) fn concat_parts(graph: &Graph, axis: usize, inputs: &[NodeId], region: &[Axis]) -> Vec<Part> {
    let mut low = 0;
    let mut parts = Vec::new();
    for &node in inputs {
        let size = graph.node(node).shape[axis];
        if let Some((offset, along)) = region[axis].within(low, size) {
            let mut region = region.to_vec();
            region[axis] = along;
            parts.push(Part { node, region, offset, len: along.len });
        }
        low += size;
    }
    parts
}

/// The region of a slice's input.
pub(super) fn sliced(region: &[Axis], axis: usize, start: u64, step: u64) -> Region {
    let mut inner = region.to_vec();
    let along = inner[axis];
    inner[axis] = Axis { start: start + along.start * step, len: along.len, step: along.step * step };
    inner
}

/// The region of a transpose's input.
pub(super) fn untransposed(perm: &[usize], region: &[Axis]) -> Region {
    let mut inner = region.to_vec();
    for (to, &from) in perm.iter().enumerate() {
        inner[from] = region[to];
    }
    inner
}

/// The region of an operand that is broadcast to a tensor of `rank` axes.
pub(super) fn broadcast_region(operand: &Node, rank: usize, region: &[Axis]) -> Region {
    let skip = rank - operand.shape.len();
    let pick = |(&size, &axis): (&u64, &Axis)| if size == 1 { Axis::point(0) } else { axis };
    operand.shape.iter().zip(&region[skip..]).map(pick).collect()
}

/// Where a region meets the inside of a padded tensor: at which position of the region, and which
/// elements of the tensor. `None` where it lies in the border alone.
pub(super) fn unpadded(shape: &[u64], low: &[u64], region: &[Axis]) -> Option<(Vec<u64>, Region)> {
    let inside = region.iter().zip(shape.iter().zip(low));
    inside
        .map(|(axis, (&size, &low))| axis.within(low, size))
        .collect::<Option<Vec<_>>>()
        .map(|found| found.into_iter().unzip())
}

/// The region of a reduction's input: the reduced axes whole.
pub(super) fn unreduced(shape: &[u64], axes: &[usize], region: &[Axis]) -> Region {
    let whole = |(axis, &along): (usize, &Axis)| {
        if axes.contains(&axis) { Axis::range(0, shape[axis]) } else { along }
    };
    region.iter().enumerate().map(whole).collect()
}

/// The regions of the two matrices that a region of their product is made of, where `inner` elements are
/// summed.
pub(super) fn factors(inner: u64, region: &[Axis]) -> [Region; 2] {
    let whole = Axis::range(0, inner);
    [vec![region[0], whole], vec![whole, region[1]]]
}

/// The region of a repetition's input that holds every element of the region.
pub(super) fn unrepeated(axis: usize, count: u64, region: &[Axis]) -> Region {
    let mut inner = region.to_vec();
    let along = region[axis];
    let (first, last) = (along.start / count, (along.start + (along.len - 1) * along.step) / count);
    inner[axis] = Axis::range(first, last - first + 1);
    inner
}

/// The regions of a table and of the positions in it.
pub(super) fn taken(table: &Node, axis: usize, rank: usize, region: &[Axis]) -> (Region, Region) {
    let mut inner = region.to_vec();
    let wanted = inner.splice(axis..axis + rank, [Axis::range(0, table.shape[axis])]).collect();
    (inner, wanted)
}

/// The region before a change of element size from `from` to `to` bytes that covers the region, and
/// how many bytes of each row come before the region's first element.
pub(super) fn recast(from: usize, to: usize, region: &[Axis]) -> (Region, usize) {
    let mut inner = region.to_vec();
    let (from, to) = (from as u64, to as u64);
    if let Some(last) = inner.last_mut() {
        let (first, end) = (last.start * to, (last.start + (last.len - 1) * last.step + 1) * to);
        *last = Axis::range(first / from, end.div_ceil(from) - first / from);
        return (inner, (first % from) as usize);
    }
    (inner, 0)
}

/// Fills a block with one number.
fn fill(dtype: DType, bits: u64, out: &mut [u8]) {
    let number = compute::number(dtype, f64::from_bits(bits));
    out.chunks_exact_mut(number.len()).for_each(|element| element.copy_from_slice(&number));
}

/// Copies a region of a tensor that is at hand whole.
fn constant(data: &[u8], node: &Node, region: &[Axis], out: &mut [u8]) {
    let size = element_size(node);
    let mut filled = 0;
    for run in runs(&node.shape, region) {
        let (from, len) = (run.start as usize * size, run.len as usize * size);
        out[filled..filled + len].copy_from_slice(&data[from..from + len]);
        filled += len;
    }
}

/// The first group that has several pieces, and where those go.
pub(super) fn scattered(groups: &[Group], size: usize) -> Option<(usize, Place)> {
    let at = groups.iter().position(|group| group.pieces.len() > 1)?;
    let lens: Vec<u64> = groups.iter().map(|group| group.elements).collect();
    Some((at, Place::new(&lens, at, size)))
}

/// The groups with only one `piece` of the group `at`, whose others are not copied first: a group
/// may have thousands.
pub(super) fn narrow(groups: &[Group], at: usize, piece: &Piece) -> Vec<Group> {
    let alone = || Group {
        pieces: vec![Piece { offset: 0, len: piece.len, inside: piece.inside.clone() }],
        elements: piece.len,
    };
    let groups = groups.iter().enumerate();
    groups.map(|(index, group)| if index == at { alone() } else { group.clone() }).collect()
}

/// The region of groups that have a single piece each.
pub(super) fn inside(groups: &[Group]) -> Region {
    groups.iter().flat_map(|group| group.pieces.iter().flat_map(|piece| piece.inside.clone())).collect()
}

/// A row-major block seen as `outer` rows of `axis` entries of `inner` bytes.
pub(super) struct Place {
    pub(super) outer: usize,
    axis: usize,
    pub(super) inner: usize,
}

impl Place {
    pub(super) fn new(lens: &[u64], axis: usize, element: usize) -> Self {
        Self {
            outer: lens[..axis].iter().product::<u64>() as usize,
            axis: lens[axis] as usize,
            inner: lens[axis + 1..].iter().product::<u64>() as usize * element,
        }
    }
}

/// Bytes of one element of a node's result.
pub(super) fn element_size(node: &Node) -> usize {
    node.dtype.bits() as usize / 8
}

/// Bytes of a region of a node's result.
pub(super) fn byte_len(node: &Node, region: &[Axis]) -> u64 {
    elements(region) * element_size(node) as u64
}
