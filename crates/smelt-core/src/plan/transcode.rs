//! Moves bits instead of quantizing, where the target format holds the source exactly.
//!
//! A weight whose storage MLX has as well ([`LogicalTensor::native`](crate::checkpoint::LogicalTensor))
//! is a few tensors whose rows are shorter: words of codes, scales, biases. An expression that keeps rows
//! whole (stacks of experts, the even rows of a fused projection, exchanged axes that bring the groups
//! back to the last) means the same for each of them, so it is made again over them as its *twins*.
//! Where it cuts into rows or computes, there is no twin, and the weight is decoded and quantized.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use smelt_kernels::Format;

use crate::checkpoint::logical::{Native, Part, Proof};
use crate::checkpoint::{Checkpoint, TensorId};
use crate::error::Error;
use crate::layout::graph::{Graph, NodeId, Op};

/// What becomes of weights that are stored in a format that MLX has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transcode {
    /// Their bits are moved where as many bits are asked for as they have.
    #[default]
    Auto,
    /// They are decoded and quantized like others.
    Never,
}

/// A parameter whose stored tensors are expressions of their own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Moved {
    /// One for each part: codes, scales and, of affine formats, biases.
    pub nodes: Vec<NodeId>,
}

/// Why bits are not moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Not {
    /// The source is not stored in a format of MLX.
    Native,
    /// For a reason worth telling.
    Because(&'static str),
}

/// The format of a parameter whose bits can be moved, and how. Where headers do not tell, scales are read.
///
/// # Errors
/// What reading them can meet.
pub(super) fn moved(
    checkpoint: &Checkpoint,
    graph: &mut Graph,
    node: NodeId,
    asked: Format,
) -> Result<Result<(Native, Moved), Not>, Error> {
    let made = by_headers(checkpoint, graph, node, asked);
    let Ok((Native { proof: Proof::Data, .. }, _)) = made else { return Ok(made) };
    for id in graph.sources(node) {
        if let Some(why) = checkpoint.inexact(id)? {
            return Ok(Err(Not::Because(why)));
        }
    }
    Ok(made)
}

/// What can be moved as far as headers tell.
fn by_headers(
    checkpoint: &Checkpoint,
    graph: &mut Graph,
    node: NodeId,
    asked: Format,
) -> Result<(Native, Moved), Not> {
    let sources = graph.sources(node);
    let mut natives = sources.iter().map(|&id| checkpoint.logical(id).native());
    let mut native = natives.next().flatten().ok_or(Not::Native)?;
    for other in natives {
        let same = |other: &Native| other.format == native.format && other.dtype == native.dtype;
        let other = other.filter(same).ok_or(Not::Because("it is made of weights in different formats"))?;
        if other.proof == Proof::Data {
            native.proof = Proof::Data;
        }
    }
    if asked.bits() < native.format.bits() {
        return Err(Not::Because("fewer bits are asked for than the source has"));
    }
    let parts = if native.format.has_biases() { &Part::ALL[..] } else { &Part::ALL[..2] };
    let twin = |part: &Part| {
        let mut twins = Twins { checkpoint, graph, part: *part, made: HashMap::new() };
        twins.of(node).filter(|twin| !twin.turned).map(|twin| twin.node)
    };
    let nodes: Option<Vec<NodeId>> = parts.iter().map(twin).collect();
    let nodes = nodes.ok_or(Not::Because("the layout cuts into its groups"))?;
    Ok((native, Moved { nodes }))
}

/// The twin of an expression.
#[derive(Clone, Copy)]
struct Twin {
    node: NodeId,
    /// Whether it has the last two axes exchanged, against the expression.
    turned: bool,
}

struct Twins<'a> {
    checkpoint: &'a Checkpoint,
    graph: &'a mut Graph,
    part: Part,
    made: HashMap<NodeId, Option<Twin>>,
}

impl Twins<'_> {
    fn of(&mut self, id: NodeId) -> Option<Twin> {
        if let Some(made) = self.made.get(&id) {
            return *made;
        }
        let made = self.make(id);
        self.made.insert(id, made);
        made
    }

    fn make(&mut self, id: NodeId) -> Option<Twin> {
        let node = self.graph.node(id).clone();
        let rank = node.shape.len();
        match &node.op {
            Op::Source(tensor) => self.source(*tensor),
            Op::Slice { input, axis, start, step } => {
                let twin = self.of(*input)?;
                let end = start + (node.shape[*axis] - 1) * step + 1;
                let axis = across(*axis, rank, twin.turned)?;
                let node = self.graph.slice(twin.node, axis, *start, end, *step).ok()?;
                Some(Twin { node, ..twin })
            }
            Op::Stack { axis, inputs } => {
                let (nodes, turned) = self.all(inputs)?;
                // A new axis between or behind the exchanged ones would part them.
                if *axis + if turned { 2 } else { 1 } > rank - 1 {
                    return None;
                }
                Some(Twin { node: self.graph.stack(*axis, &nodes).ok()?, turned })
            }
            Op::Concat { axis, inputs } => {
                let (nodes, turned) = self.all(inputs)?;
                let axis = across(*axis, rank, turned)?;
                Some(Twin { node: self.graph.concat(axis, &nodes).ok()?, turned })
            }
            Op::Transpose { input, perm } => {
                let twin = self.of(*input)?;
                self.transposed(twin, perm)
            }
            Op::Reshape(input) => {
                let twin = self.of(*input).filter(|twin| !twin.turned)?;
                if self.graph.node(*input).shape.last() != node.shape.last() {
                    return None;
                }
                let mut shape = node.shape.to_vec();
                *shape.last_mut()? = *self.graph.node(twin.node).shape.last()?;
                Some(Twin { node: self.graph.reshape(twin.node, &shape).ok()?, turned: false })
            }
            _ => None,
        }
    }

    fn source(&mut self, tensor: TensorId) -> Option<Twin> {
        let logical = self.checkpoint.logical(tensor);
        let native = logical.native()?;
        let id = self.checkpoint.part_id(tensor, self.part);
        let shape = native.shape_of(self.part, &logical.shape);
        let node = self.graph.source(id, native.dtype_of(self.part), &shape);
        Some(Twin { node, turned: native.turned })
    }

    /// The twins of several expressions, all the same way round.
    fn all(&mut self, inputs: &[NodeId]) -> Option<(Vec<NodeId>, bool)> {
        let twins: Vec<Twin> = inputs.iter().map(|&input| self.of(input)).collect::<Option<_>>()?;
        let turned = twins.first()?.turned;
        let same = twins.iter().all(|twin| twin.turned == turned);
        same.then(|| (twins.iter().map(|twin| twin.node).collect(), turned))
    }

    /// Permutes the axes such that the groups stay on the twin's last.
    fn transposed(&mut self, twin: Twin, perm: &[usize]) -> Option<Twin> {
        let rank = perm.len();
        let mut perm: Vec<usize> = perm.iter().map(|&axis| turn(axis, rank, twin.turned)).collect();
        let turned = perm[rank - 1] != rank - 1;
        if turned {
            perm.swap(rank - 2, rank - 1);
        }
        if perm[rank - 1] != rank - 1 {
            return None;
        }
        Some(Twin { node: self.graph.transpose(twin.node, &perm).ok()?, turned })
    }
}

/// An axis where the last two are exchanged.
fn turn(axis: usize, rank: usize, turned: bool) -> usize {
    match rank.wrapping_sub(axis) {
        1 if turned => rank - 2,
        2 if turned => rank - 1,
        _ => axis,
    }
}

/// The twin's axis, unless it is the one along which the groups lie.
fn across(axis: usize, rank: usize, turned: bool) -> Option<usize> {
    let axis = turn(axis, rank, turned);
    (axis + 1 != rank).then_some(axis)
}
