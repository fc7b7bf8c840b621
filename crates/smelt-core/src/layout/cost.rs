//! How much memory the evaluation of a region needs beside its result.
//!
//! This follows [`super::pull`] step by step and must change with it: the plan sizes its blocks by
//! it, and a property test holds the two together.

use super::graph::{Graph, Node, NodeId, Op};
use super::product::held;
use super::pull::{
    Part, Place, broadcast_region, byte_len, concat_parts, element_size, factors, inside, narrow, recast,
    scattered, sliced, stack_parts, taken, unpadded, unreduced, unrepeated, untransposed,
};
use super::regroup::{Group, regroup};
use crate::checkpoint::region::{Axis, elements, lengths};

/// Bytes that the evaluation holds for a position, widened and as an index.
const POSITION: u64 = 24;

/// Bytes of intermediate results that pulling `region` of a node holds at once, at most.
pub fn scratch(graph: &Graph, id: NodeId, region: &[Axis]) -> u64 {
    let node = graph.node(id);
    match &node.op {
        Op::Source(_) | Op::Scalar(_) | Op::Const(_) => 0,
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
        Op::Cast(input) | Op::FromFp8(input) => through(graph, *input, region),
        Op::Unary { input, .. } => scratch(graph, *input, region),
        Op::Bitcast(input) => {
            let from = element_size(graph.node(*input));
            if from == element_size(node) {
                return scratch(graph, *input, region);
            }
            through(graph, *input, &recast(from, element_size(node), region).0)
        }
        Op::Broadcast(input) => {
            through(graph, *input, &broadcast_region(graph.node(*input), node.shape.len(), region))
        }
        Op::Repeat { input, axis, count } => {
            region[*axis].len * POSITION + through(graph, *input, &unrepeated(*axis, *count, region))
        }
        Op::Pad { input, low, .. } => unpadded(&graph.node(*input).shape, low, region)
            .map_or(0, |(_, inner)| through(graph, *input, &inner)),
        Op::Take { input, axis, indices } => {
            let (table, list) = (graph.node(*input), graph.node(*indices));
            let (inner, wanted) = taken(table, *axis, list.shape.len(), region);
            // The positions are widened on the way.
            let positions = elements(&wanted) * POSITION;
            positions + through(graph, *indices, &wanted).max(through(graph, *input, &inner))
        }
        Op::Where { test, yes, no } => {
            let condition = byte_len(graph.node(*test), region);
            let rest = scratch(graph, *test, region).max(through(graph, *no, region));
            scratch(graph, *yes, region).max(condition + rest)
        }
        Op::Reduce { input, axes, .. } => {
            through(graph, *input, &unreduced(&graph.node(*input).shape, axes, region))
        }
        Op::Matmul { left, right } => {
            let node = graph.node(*left);
            let [rows, columns] = factors(node.shape[1], region);
            let after = byte_len(node, &rows) + through(graph, *right, &columns) + held(node.shape[1]);
            after.max(through(graph, *left, &rows))
        }
        Op::Binary { left, right, .. } => {
            let operand = graph.node(*right);
            let small = broadcast_region(operand, node.shape.len(), region);
            let held = elements(region) * element_size(operand) as u64;
            held + through(graph, *right, &small).max(through(graph, *left, region))
        }
    }
}

/// A region of another node that is held while something is made of it.
fn through(graph: &Graph, input: NodeId, region: &[Axis]) -> u64 {
    byte_len(graph.node(input), region) + scratch(graph, input, region)
}

/// At least what [`scratch`] says of any region of `count` elements, wherever it lies.
///
/// It takes every part for scattered and every input for held at once, so it is used only where
/// asking for each region would take too long.
pub fn bound(graph: &Graph, id: NodeId, count: u64) -> u64 {
    let node = graph.node(id);
    let own = match &node.op {
        // One temporary within another for each group of axes.
        Op::Reshape(_) => count * node.shape.len() as u64 * element_size(node) as u64,
        Op::Stack { .. } | Op::Concat { .. } => count * element_size(node) as u64,
        Op::Binary { right, .. } => count * element_size(graph.node(*right)) as u64,
        Op::Take { .. } | Op::Repeat { .. } => count * POSITION,
        Op::Matmul { left, .. } => held(graph.node(*left).shape[1]),
        _ => 0,
    };
    let input = |input: NodeId| {
        let count = input_count(graph, node, input, count);
        count * element_size(graph.node(input)) as u64 + bound(graph, input, count)
    };
    match &node.op {
        // Only one part is worked on at a time.
        Op::Stack { .. } | Op::Concat { .. } => own + node.op.inputs().map(input).max().unwrap_or(0),
        _ => own + node.op.inputs().map(input).sum::<u64>(),
    }
}

/// The most elements of an input that `count` elements of a node are computed from.
fn input_count(graph: &Graph, node: &Node, input: NodeId, count: u64) -> u64 {
    let from = graph.node(input);
    let needed = match &node.op {
        Op::Reduce { axes, .. } => {
            axes.iter().fold(count, |count, &axis| count.saturating_mul(from.shape[axis]))
        }
        // A row of the left one and a column of the right one for each element.
        Op::Matmul { left, .. } => count.saturating_mul(graph.node(*left).shape[1]),
        Op::Take { input: table, axis, .. } if *table == input => count.saturating_mul(from.shape[*axis]),
        // What lies between the elements of a stepped region is pulled as well.
        Op::Repeat { axis, .. } => count.saturating_mul(from.shape[*axis]),
        Op::Bitcast(_) if element_size(from) != element_size(node) => {
            count.saturating_mul(from.shape.last().copied().unwrap_or(1))
        }
        _ => count,
    };
    needed.min(from.shape.iter().product())
}

/// Whether what a region costs depends on its lengths alone and never on where it lies.
pub fn is_steady(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let own = match &node.op {
        Op::Concat { .. } | Op::Reshape(_) | Op::Repeat { .. } | Op::Pad { .. } => false,
        Op::Bitcast(input) => element_size(graph.node(*input)) == element_size(node),
        // The experts of a stack are made in the same way; parts that are not make a difference.
        Op::Stack { inputs, .. } => inputs.iter().all(|&input| same_form(graph, inputs[0], input)),
        _ => true,
    };
    own && match &node.op {
        Op::Stack { inputs, .. } => is_steady(graph, inputs[0]),
        op => op.inputs().all(|input| is_steady(graph, input)),
    }
}

/// Whether two expressions differ in nothing but the tensors that they begin with.
fn same_form(graph: &Graph, a: NodeId, b: NodeId) -> bool {
    let (left, right) = (graph.node(a), graph.node(b));
    let same_op = std::mem::discriminant(&left.op) == std::mem::discriminant(&right.op);
    a == b
        || same_op
            && left.dtype == right.dtype
            && left.shape == right.shape
            && left.op.inputs().count() == right.op.inputs().count()
            && left.op.inputs().zip(right.op.inputs()).all(|(a, b)| same_form(graph, a, b))
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
