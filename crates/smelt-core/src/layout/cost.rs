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
