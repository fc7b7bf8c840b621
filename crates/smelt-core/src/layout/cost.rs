//! How much memory the evaluation of a region needs beside its result.
//!
//! This follows [`super::pull`] step by step and must change with it: the plan sizes its blocks by
//! it, and a property test holds the two together.

use super::graph::{Graph, Node, NodeId, Op};
use super::pull::{
    Part, Place, broadcast_region, byte_len, concat_parts, element_size, inside, narrow, recast, scattered,
    sliced, stack_parts, taken, unpadded, unreduced, unrepeated, untransposed,
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
