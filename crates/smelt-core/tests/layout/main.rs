//! Expressions pulled by region against the same expressions evaluated whole.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod canonical;
mod naive;
mod random;

use proptest::prelude::*;
use smelt_core::checkpoint::region::{Axis, Region, whole};
use smelt_core::checkpoint::{DType, TensorId};
use smelt_core::layout::graph::NodeId;
use smelt_core::layout::pool::Pool;
use smelt_core::layout::pull::Puller;
use smelt_core::layout::{Graph, Role, cost};
use smelt_core::plan::blocks::Cut;
use smelt_core::plan::{Spec, Task, cut};
use smelt_kernels::{Format, Mode};

use naive::Tensor;
use random::{Case, dice};

/// Pulls a region and checks value and memory.
fn check(case: &Case, node: NodeId, value: &Tensor, region: &[Axis]) -> Result<(), TestCaseError> {
    let expected = value.region(region);
    let mut out = vec![0xAA; expected.bits.len() * value.dtype.bits() as usize / 8];
    let mut pool = Pool::default();
    Puller::new(&case.graph, &case.arrays).pull(node, region, &mut out, &mut pool).unwrap();
    let found = Tensor::from_bytes(value.dtype, &expected.shape, &out);
    prop_assert_eq!(found.bytes(), expected.bytes(), "{:?} of {:?}", region, case.graph.node(node));
    let promised = cost::scratch(&case.graph, node, region);
    prop_assert!(promised <= cost::bound(&case.graph, node, expected.bits.len() as u64));
    prop_assert!(pool.peak() as u64 <= promised, "{} bytes, promised {}", pool.peak(), promised);
    Ok(())
}

/// A task that stores a node as it is, or quantized.
fn task(case: &Case, node: NodeId, format: Option<Format>) -> Task {
    let found = case.graph.node(node);
    Task {
        name: "w".to_owned(),
        role: Role::Other,
        node,
        dtype: found.dtype,
        shape: found.shape.to_vec(),
        format: format.map(Spec),
        parts: Vec::new(),
        weighed: false,
        moved: None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn any_region_is_cut_out_of_the_whole(mut dice in dice(), steps in 1..10usize) {
        let case = Case::new(&mut dice, steps);
        for (node, value) in &case.nodes {
            check(&case, *node, value, &whole(&value.shape))?;
            for _ in 0..3 {
                let region: Region = value.shape.iter().map(|&size| dice.axis(size)).collect();
                check(&case, *node, value, &region)?;
            }
        }
    }

    #[test]
    fn blocks_one_after_another_are_the_whole(mut dice in dice(), steps in 1..10usize, most in 1..80u64) {
        let case = Case::new(&mut dice, steps);
        let mut pool = Pool::default();
        for (node, value) in &case.nodes {
            let size = value.dtype.bits() / 8;
            let mut all = vec![0xAA; value.bits.len() * size as usize];
            let cut = Cut::new(&value.shape, 1, most);
            for block in (0..cut.count()).map(|index| cut.block(index)) {
                let out = &mut all[(block.offset * size) as usize..][..(block.len * size) as usize];
                // One pool for all, as a worker has it: what a buffer held before must not show.
                Puller::new(&case.graph, &case.arrays).pull(*node, &block.region, out, &mut pool).unwrap();
            }
            prop_assert_eq!(Tensor::from_bytes(value.dtype, &value.shape, &all).bytes(), value.bytes());
        }
    }

    /// The share of a worker holds every block, not only the first and the last: parts of a
    /// concatenation may cost differently.
    #[test]
    fn no_block_takes_more_than_its_share(mut dice in dice(), steps in 1..10usize, share in 16..1000u64) {
        let case = Case::new(&mut dice, steps);
        for (node, value) in &case.nodes {
            let task = task(&case, *node, None);
            let steady = cost::is_steady(&case.graph, *node);
            let cut = cut(&case.graph, &task, share);
            for block in (0..cut.count()).map(|index| cut.block(index)) {
                let bytes = block.len * value.dtype.bits() / 8 + cost::scratch(&case.graph, *node, &block.region);
                prop_assert!(bytes <= share || block.len == 1, "{} of {}", bytes, share);
                let first = cost::scratch(&case.graph, *node, &cut.block(0).region);
                let here = cost::scratch(&case.graph, *node, &block.region);
                prop_assert!(!steady || here <= first, "{} after {} at first", here, first);
            }
        }
    }
}

/// The parts in the middle of a concatenation may be the dear ones.
#[test]
fn blocks_in_the_middle_count() {
    let mut graph = Graph::default();
    let plain = graph.source(TensorId(0), DType::BF16, &[64, 32]);
    let turned = graph.source(TensorId(1), DType::BF16, &[32, 64]);
    let turned = graph.transpose(turned, &[1, 0]).unwrap();
    let node = graph.concat(0, &[plain, turned, plain]).unwrap();
    let case = Case { graph, ..Case::default() };
    let share = 1024;
    let cut = cut(&case.graph, &task(&case, node, None), share);
    for block in (0..cut.count()).map(|index| cut.block(index)) {
        let bytes = block.len * 2 + cost::scratch(&case.graph, node, &block.region);
        assert!(bytes <= share, "{bytes} bytes at {}", block.offset);
    }
}

#[test]
fn a_cut_leaves_groups_whole() {
    let mut case = Case::default();
    let node = case.graph.source(TensorId(0), DType::F32, &[3, 96]);
    let task = task(&case, node, Format::new(Mode::Affine, 4, 32));
    let cut = cut(&case.graph, &task, 1);
    assert_eq!(cut.count(), 9, "a group is the least, however small the share");
    assert!((0..9).all(|index| cut.block(index).len == 32));
}

#[test]
fn an_empty_tensor_has_no_blocks() {
    for shape in [&[0][..], &[4, 0], &[0, 4], &[2, 0, 3]] {
        assert_eq!(Cut::new(shape, 1, 10).count(), 0, "{shape:?}");
    }
}
