//! Different ways to write one expression are one node.

use smelt_core::checkpoint::{DType, TensorId};
use smelt_core::layout::graph::{BinaryOp, Graph, NodeId, Op, OpError};

fn source(graph: &mut Graph, shape: &[u64]) -> NodeId {
    graph.source(TensorId(0), DType::BF16, shape)
}

#[test]
fn equal_expressions_are_one_node() {
    let mut graph = Graph::default();
    let a = source(&mut graph, &[4, 6]);
    let once = graph.transpose(a, &[1, 0]).unwrap();
    let again = source(&mut graph, &[4, 6]);
    assert_eq!(graph.transpose(again, &[1, 0]).unwrap(), once);
    assert_eq!(graph.len(), 2);
}

#[test]
fn transposes_compose_and_vanish() {
    let mut graph = Graph::default();
    let a = source(&mut graph, &[2, 3, 5]);
    let rolled = graph.transpose(a, &[1, 2, 0]).unwrap();
    assert_eq!(*graph.node(rolled).shape, [3, 5, 2]);
    let twice = graph.transpose(rolled, &[1, 2, 0]).unwrap();
    assert_eq!(*graph.node(twice).shape, [5, 2, 3]);
    assert_eq!(graph.transpose(a, &[2, 0, 1]).unwrap(), twice);
    assert!(matches!(&graph.node(twice).op, Op::Transpose { input, .. } if *input == a));
    assert_eq!(graph.transpose(twice, &[1, 2, 0]).unwrap(), a);
    assert_eq!(graph.transpose(a, &[0, 1, 2]).unwrap(), a);
}

#[test]
fn slices_compose_and_vanish() {
    let mut graph = Graph::default();
    let a = source(&mut graph, &[20, 3]);
    assert_eq!(graph.slice(a, 0, 0, 20, 1).unwrap(), a);
    // 2, 5, 8, 11, 14, 17 and of these 5, 11, 17.
    let outer = graph.slice(a, 0, 2, 20, 3).unwrap();
    let inner = graph.slice(outer, 0, 1, 6, 2).unwrap();
    assert_eq!(graph.node(inner).op, Op::Slice { input: a, axis: 0, start: 5, step: 6 });
    assert_eq!(*graph.node(inner).shape, [3, 3]);
    let other_axis = graph.slice(outer, 1, 1, 2, 1).unwrap();
    assert!(matches!(graph.node(other_axis).op, Op::Slice { input, .. } if input == outer));
}

#[test]
fn a_reshape_of_a_reshape_is_one_and_back_is_none() {
    let mut graph = Graph::default();
    let a = source(&mut graph, &[4, 6]);
    let flat = graph.reshape(a, &[24]).unwrap();
    let cube = graph.reshape(flat, &[2, 2, 6]).unwrap();
    assert_eq!(graph.node(cube).op, Op::Reshape(a));
    assert_eq!(graph.reshape(cube, &[4, 6]).unwrap(), a);
}

#[test]
fn joining_one_part_and_casting_to_the_same_are_nothing() {
    let mut graph = Graph::default();
    let a = source(&mut graph, &[4, 6]);
    assert_eq!(graph.concat(1, &[a]).unwrap(), a);
    assert_eq!(graph.cast(a, DType::BF16).unwrap(), a);
    let stacked = graph.stack(0, &[a]).unwrap();
    assert_eq!(*graph.node(stacked).shape, [1, 4, 6], "a stack of one still has the new axis");
}

#[test]
fn a_node_survives_the_json_of_the_graph() {
    let mut graph = Graph::default();
    let a = source(&mut graph, &[4, 6]);
    let third = graph.scalar(1.0 / 3.0, DType::BF16);
    let sum = graph.binary(BinaryOp::Mul, a, third).unwrap();
    let json = serde_json::to_string(&graph).unwrap();
    let read: Graph = serde_json::from_str(&json).unwrap();
    assert_eq!(read.node(sum), graph.node(sum));
    assert_eq!(read.node(third), graph.node(third), "to the last bit");
}

#[test]
fn what_does_not_fit_is_refused_with_its_shapes() {
    let mut graph = Graph::default();
    let a = source(&mut graph, &[4, 6]);
    let b = graph.source(TensorId(1), DType::BF16, &[4, 5]);
    let packed = graph.source(TensorId(2), DType::F8E4M3, &[4, 6]);
    let shown = |result: Result<NodeId, OpError>| result.unwrap_err().to_string();
    assert_eq!(
        shown(graph.stack(0, &[a, b])),
        "part 1 has shape [4, 5] and dtype BF16 where the first has [4, 6] and BF16"
    );
    assert_eq!(shown(graph.stack(0, &[])), "there is nothing to join");
    assert_eq!(shown(graph.stack(3, &[a])), "axis 3 of a tensor of shape [4, 6]");
    assert_eq!(
        shown(graph.concat(0, &[a, b])),
        "part 1 has shape [4, 5] and dtype BF16 where the first has [4, 6] and BF16"
    );
    assert_eq!(shown(graph.concat(2, &[a, b])), "axis 2 of a tensor of shape [4, 6]");
    assert_eq!(shown(graph.slice(a, 1, 2, 7, 1)), "elements 2..7 of axis 1 of a tensor of shape [4, 6]");
    assert_eq!(shown(graph.slice(a, 1, 2, 2, 1)), "elements 2..2 of axis 1 of a tensor of shape [4, 6]");
    assert!(matches!(graph.slice(a, 1, 0, 2, 0), Err(OpError::OutOfRange { .. })));
    assert_eq!(shown(graph.transpose(a, &[0, 0])), "[0, 0] does not permute the axes of shape [4, 6]");
    assert_eq!(shown(graph.reshape(a, &[5, 5])), "shape [4, 6] does not reshape to [5, 5]");
    assert!(matches!(graph.reshape(a, &[u64::MAX, 2]), Err(OpError::Reshape { .. })));
    assert_eq!(shown(graph.cast(packed, DType::F32)), "no such operation on dtype F8_E4M3");
    assert_eq!(
        shown(graph.binary(BinaryOp::Add, a, packed)),
        "[4, 6] (BF16) and [4, 6] (F8_E4M3) do not go together"
    );
    assert_eq!(shown(graph.binary(BinaryOp::Add, packed, packed)), "no such operation on dtype F8_E4M3");
    assert_eq!(
        shown(graph.binary(BinaryOp::Add, a, b)),
        "[4, 6] (BF16) and [4, 5] (BF16) do not go together"
    );
}
