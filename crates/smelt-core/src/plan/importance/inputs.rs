//! Which tensors of the checkpoint have the same input as a parameter: those whose last axis is its last axis.

use crate::checkpoint::TensorId;
use crate::layout::graph::Op;
use crate::layout::{Graph, NodeId};

/// The tensors whose channels a parameter's channels are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Inputs {
    /// One for all of it: rows of any number of tensors with one input, of which the first is named.
    Shared(TensorId),
    /// One for each entry of its first axis.
    Each(Vec<TensorId>),
}

/// Those of a parameter, if its channels are ones of the checkpoint.
pub(super) fn inputs(graph: &Graph, id: NodeId) -> Option<Inputs> {
    let node = graph.node(id);
    let last = node.shape.len().checked_sub(1)?;
    let within = |axis: usize| 0 < axis && axis < last;
    match &node.op {
        Op::Stack { axis: 0, inputs } => {
            let each: Option<Vec<TensorId>> = inputs.iter().map(|&input| source(graph, input)).collect();
            each.map(Inputs::Each)
        }
        Op::Cast(input) => inputs(graph, *input),
        Op::Slice { input, axis, .. } if within(*axis) => inputs(graph, *input),
        Op::Concat { axis, inputs: parts } if within(*axis) => inputs(graph, *parts.first()?),
        _ => source(graph, id).map(Inputs::Shared),
    }
}

/// The first tensor that a node has its last axis from. Stacked tensors have inputs of their own.
fn source(graph: &Graph, id: NodeId) -> Option<TensorId> {
    let node = graph.node(id);
    let last = node.shape.len().checked_sub(1)?;
    let same = |input: &NodeId| graph.node(*input).shape.last() == node.shape.last();
    match &node.op {
        Op::Source(tensor) => Some(*tensor),
        Op::Cast(input) | Op::Unary { input, .. } => source(graph, *input),
        Op::Slice { input, axis, .. } if *axis < last => source(graph, *input),
        Op::Concat { axis, inputs } if *axis < last => source(graph, *inputs.first()?),
        Op::Transpose { input, perm } if perm.last() == Some(&last) => source(graph, *input),
        Op::Reshape(input) if same(input) => source(graph, *input),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::DType;

    #[test]
    fn channels_are_followed_to_the_tensors_that_have_them() {
        let mut graph = Graph::default();
        let [a, b, c] = [0, 1, 2].map(|id| graph.source(TensorId(id), DType::BF16, &[6, 4]));
        let fused = graph.concat(0, &[a, b]).unwrap();
        assert_eq!(inputs(&graph, fused), Some(Inputs::Shared(TensorId(0))));
        let part = graph.slice(c, 0, 2, 4, 1).unwrap();
        assert_eq!(inputs(&graph, part), Some(Inputs::Shared(TensorId(2))));
        let heads = graph.reshape(c, &[2, 3, 4]).unwrap();
        assert_eq!(inputs(&graph, heads), Some(Inputs::Shared(TensorId(2))));
        let turned = graph.transpose(heads, &[0, 2, 1]).unwrap();
        assert_eq!(inputs(&graph, turned), None);
        let experts = graph.stack(0, &[a, b, c]).unwrap();
        let each = Some(Inputs::Each([0, 1, 2].map(TensorId).to_vec()));
        assert_eq!(inputs(&graph, experts), each);
        let half = graph.slice(experts, 1, 0, 3, 1).unwrap();
        assert_eq!(inputs(&graph, half), each);
        let beside = graph.concat(1, &[a, b]).unwrap();
        assert_eq!(inputs(&graph, beside), None);
    }
}
