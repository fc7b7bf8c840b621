//! How much memory the evaluation of a region needs beside its result.
//!
//! This follows [`super::pull`] step by step and must change with it: the plan sizes its blocks by
//! it, and a property test holds the two together.

use super::graph::{Graph, Node, NodeId, Op};
use super::pull::{
    Part, Place, broadcast_region, byte_len, concat_parts, element_size, inside, narrow, scattered, sliced,
    stack_parts, untransposed,
};
use super::regroup::{Group, regroup};
use crate::checkpoint::region::{Axis, elements, lengths};

/// Bytes of intermediate results that pulling `region` of a node holds at once, at most.
pub fn scratch(graph: &Graph, id: NodeId, region: &[Axis]) -> u64 {
    let node = graph.node(id);
    match &node.op {
        Op::Source(_) | Op::Scalar(_) => 0,
        Op::Stack { axis, inputs } => joined(graph, node, *axis, region, &stack_parts(*axis, inputs, region)),
        Op::Concat { axis, inputs } => {
            joined(graph, node, *axis, region, &concat_parts(graph, *axis, inputs, region))
        }
        Op::Slice { input, axis, start, step } => {
            scratch(graph, *input, &sliced(region, *axis, *start, *step))
        }
        Op::Transpose { input, perm } => {
            byte_len(node, region) + scratch(graph, *input, &untransposed(perm, region))
        }
        Op::Reshape(input) => {
            let groups = regroup(&graph.node(*input).shape, &node.shape, region);
            gathered(graph, *input, &groups)
        }
        Op::Cast(input) => byte_len(graph.node(*input), region) + scratch(graph, *input, region),
        Op::Binary { left, right, .. } => {
            let operand = graph.node(*right);
            let small = broadcast_region(operand, node.shape.len(), region);
            // The operand is widened to f32 once more, see `arith`.
            let widened = 4 * elements(&small);
            let second = byte_len(operand, &small) + scratch(graph, *right, &small).max(widened);
            scratch(graph, *left, region).max(second)
        }
    }
}

/// At least what [`scratch`] says of any region of `count` elements, wherever it lies.
///
/// It takes every part for scattered, so it is used only where asking for each region would take
/// too long.
pub fn bound(graph: &Graph, id: NodeId, count: u64) -> u64 {
    let node = graph.node(id);
    let bytes = count.saturating_mul(element_size(node) as u64);
    let parts = |inputs: &[NodeId]| inputs.iter().map(|&input| bound(graph, input, count)).max().unwrap_or(0);
    match &node.op {
        Op::Source(_) | Op::Scalar(_) => 0,
        Op::Stack { inputs, .. } | Op::Concat { inputs, .. } => bytes + parts(inputs),
        Op::Slice { input, .. } => bound(graph, *input, count),
        Op::Transpose { input, .. } => bytes + bound(graph, *input, count),
        Op::Reshape(input) => {
            // One temporary within another for each group of axes.
            let groups = node.shape.len().min(graph.node(*input).shape.len()) as u64;
            bytes * groups + bound(graph, *input, count)
        }
        Op::Cast(input) => {
            count.saturating_mul(element_size(graph.node(*input)) as u64) + bound(graph, *input, count)
        }
        Op::Binary { left, right, .. } => {
            let operand = graph.node(*right);
            let small = count.min(operand.shape.iter().product());
            let second = small * element_size(operand) as u64;
            bound(graph, *left, count).max(second + bound(graph, *right, small).max(4 * small))
        }
    }
}

/// Whether what a region costs depends on its lengths alone and never on where it lies.
pub fn is_steady(graph: &Graph, id: NodeId) -> bool {
    match &graph.node(id).op {
        Op::Source(_) | Op::Scalar(_) => true,
        Op::Slice { input, .. } | Op::Transpose { input, .. } | Op::Cast(input) => is_steady(graph, *input),
        Op::Binary { left, right, .. } => is_steady(graph, *left) && is_steady(graph, *right),
        // The experts of a stack are made in the same way; parts that are not make a difference.
        Op::Stack { inputs, .. } => {
            is_steady(graph, inputs[0]) && inputs.iter().all(|&input| same_form(graph, inputs[0], input))
        }
        Op::Concat { .. } | Op::Reshape(_) => false,
    }
}

/// Whether two steady expressions differ in nothing but the tensors that they begin with.
fn same_form(graph: &Graph, a: NodeId, b: NodeId) -> bool {
    let same = |a: &NodeId, b: &NodeId| same_form(graph, *a, *b);
    let (left, right) = (graph.node(a), graph.node(b));
    let inputs = match (&left.op, &right.op) {
        (Op::Source(_), Op::Source(_)) | (Op::Scalar(_), Op::Scalar(_)) => true,
        (Op::Slice { input: a, .. }, Op::Slice { input: b, .. }) | (Op::Cast(a), Op::Cast(b)) => same(a, b),
        (Op::Transpose { input: a, perm: p }, Op::Transpose { input: b, perm: q }) => p == q && same(a, b),
        (Op::Binary { left: a, right: c, .. }, Op::Binary { left: b, right: d, .. }) => {
            same(a, b) && same(c, d)
        }
        (Op::Stack { axis: p, inputs: a }, Op::Stack { axis: q, inputs: b }) => {
            p == q && a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        _ => false,
    };
    inputs && left.dtype == right.dtype && left.shape == right.shape
}

fn joined(graph: &Graph, node: &Node, axis: usize, region: &[Axis], parts: &[Part]) -> u64 {
    let place = Place::new(&lengths(region), axis, element_size(node));
    let part = |part: &Part| temporary(&place, part.len) + scratch(graph, part.node, &part.region);
    parts.iter().map(part).max().unwrap_or(0)
}

fn gathered(graph: &Graph, input: NodeId, groups: &[Group]) -> u64 {
    let Some((at, place)) = scattered(groups, element_size(graph.node(input))) else {
        return scratch(graph, input, &inside(groups));
    };
    let pieces = groups[at].pieces.iter();
    pieces
        .map(|piece| temporary(&place, piece.len) + gathered(graph, input, &narrow(groups, at, piece)))
        .max()
        .unwrap_or(0)
}

/// A part that is not contiguous in the result is held apart first.
fn temporary(place: &Place, len: u64) -> u64 {
    if place.outer == 1 { 0 } else { place.outer as u64 * len * place.inner as u64 }
}
