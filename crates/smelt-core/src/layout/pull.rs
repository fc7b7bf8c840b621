//! Evaluates a region of an expression, reading no more of the checkpoint than the region needs.
//!
//! A region is pushed down through the graph: stacking picks the tensors concerned, slicing and
//! transposing rewrite it, reshaping splits it ([`super::regroup`]). What arrives at the sources is
//! read straight into the caller's buffer wherever the order of elements allows, so a stack of 512
//! experts is 512 reads into one block and exists nowhere else.

use smelt_kernels::{Float, convert};

use super::arith;
use super::graph::{BinaryOp, Graph, Node, NodeId, Op};
use super::permute::permute;
use super::pool::Pool;
use super::regroup::{Group, Piece, regroup};
use crate::checkpoint::TensorId;
use crate::checkpoint::region::{Axis, Region, elements, lengths};
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
            Op::Cast(input) => self.cast(*input, float(node), region, out, pool),
            Op::Scalar(bits) => {
                arith::fill(float(node), f64::from_bits(*bits), out);
                Ok(())
            }
            Op::Binary { op, left, right } => self.binary(*op, (*left, *right), region, out, pool),
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

    fn cast(&self, input: NodeId, to: Float, region: &[Axis], out: &mut [u8], pool: &mut Pool) -> Result<()> {
        let node = self.graph.node(input);
        let mut data = pool.take(byte_len(node, region) as usize);
        self.pull(input, region, &mut data, pool)?;
        convert(float(node), to, &data, out);
        pool.give(data);
        Ok(())
    }

    fn binary(
        &self,
        op: BinaryOp,
        (left, right): (NodeId, NodeId),
        region: &[Axis],
        out: &mut [u8],
        pool: &mut Pool,
    ) -> Result<()> {
        self.pull(left, region, out, pool)?;
        let operand = self.graph.node(right);
        let dtype = float(operand);
        let shape = self.graph.node(left).shape.len();
        let small = broadcast_region(operand, shape, region);
        let mut data = pool.take(byte_len(operand, &small) as usize);
        self.pull(right, &small, &mut data, pool)?;
        arith::apply(op, dtype, out, &lengths(region), &data, &lengths(&small));
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

/// The type that arithmetic is done in.
fn float(node: &Node) -> Float {
    node.dtype.float().expect("arithmetic nodes are made only of bf16, f16 and f32")
}
