//! Random graphs, made together with the value of each node as [`crate::naive`] has it.

#![expect(clippy::unnecessary_wraps, reason = "every way to make a node has one signature")]

use proptest::prelude::*;
use smelt_core::Result;
use smelt_core::checkpoint::region::Axis;
use smelt_core::checkpoint::{DType, TensorId};
use smelt_core::layout::graph::{BinaryOp, Graph, NodeId, ReduceOp, UnaryOp};
use smelt_core::layout::pull::Tensors;

use crate::naive::{self, Tensor};

/// Larger results are not made: what goes wrong goes wrong on small ones.
const MOST_ELEMENTS: u64 = 1200;

const MOST_AXES: usize = 4;

const DTYPES: [DType; 3] = [DType::BF16, DType::F16, DType::F32];

/// Arrays in the place of a checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Arrays(Vec<Tensor>);

impl Tensors for Arrays {
    fn read_region(&self, tensor: TensorId, region: &[Axis], out: &mut [u8]) -> Result<()> {
        let part = self.0[tensor.0 as usize].region(region);
        let size = part.dtype.bits() as usize / 8;
        for (place, bits) in out.chunks_exact_mut(size).zip(&part.bits) {
            place.copy_from_slice(&bits.to_le_bytes()[..size]);
        }
        Ok(())
    }
}

/// A graph with the value of every node.
#[derive(Debug, Default)]
pub(crate) struct Case {
    pub(crate) graph: Graph,
    pub(crate) arrays: Arrays,
    pub(crate) nodes: Vec<(NodeId, Tensor)>,
}

/// Endless choices out of a short list of random numbers.
#[derive(Clone, Debug)]
pub(crate) struct Dice {
    rolls: Vec<u32>,
    next: usize,
}

impl Dice {
    /// A number below `sides`, which is at least 1.
    pub(crate) fn roll(&mut self, sides: u64) -> u64 {
        let roll = self.rolls[self.next % self.rolls.len()];
        self.next += 1;
        // Rolls repeat after a while; mixing the count in keeps them from going in step.
        u64::from(roll.wrapping_add((self.next / self.rolls.len()) as u32 * 7919)) % sides
    }

    fn pick<T: Clone>(&mut self, from: &[T]) -> T {
        from[self.roll(from.len() as u64) as usize].clone()
    }

    /// Positions on an axis: a start, a step and as many as fit or fewer.
    pub(crate) fn axis(&mut self, size: u64) -> Axis {
        let (start, step) = (self.roll(size), 1 + self.roll(3));
        let len = 1 + self.roll((size - start).div_ceil(step));
        Axis { start, len, step }
    }
}

pub(crate) fn dice() -> impl Strategy<Value = Dice> {
    prop::collection::vec(any::<u32>(), 24..120).prop_map(|rolls| Dice { rolls, next: 0 })
}

impl Case {
    pub(crate) fn new(dice: &mut Dice, steps: usize) -> Self {
        let mut case = Self::default();
        for _ in 0..3 {
            case.source(dice);
        }
        for _ in 0..steps {
            case.step(dice);
        }
        case
    }

    fn source(&mut self, dice: &mut Dice) {
        let axes = 1 + dice.roll(3);
        let shape: Vec<u64> = (0..axes).map(|_| 1 + dice.roll(6)).collect();
        let dtype = dice.pick(&DTYPES);
        let tensor =
            Tensor::from_fn(dtype, &shape, |_| naive::narrow(dtype, dice.roll(4001) as f32 / 250.0 - 8.0));
        let id = TensorId(self.arrays.0.len() as u32);
        let node = self.graph.source(id, dtype, &shape);
        self.arrays.0.push(tensor.clone());
        self.nodes.push((node, tensor));
    }

    fn step(&mut self, dice: &mut Dice) {
        // The newest nodes are taken more often, so that expressions grow deep.
        let recent = self.nodes.len().saturating_sub(3);
        let (id, value) =
            if dice.roll(3) > 0 { dice.pick(&self.nodes[recent..]) } else { dice.pick(&self.nodes) };
        let made = match dice.roll(17) {
            0 => self.stack(dice, id, &value),
            1 => self.concat(dice, id, &value),
            2 => self.slice(dice, id, &value),
            3 => self.transpose(dice, id, &value),
            4 | 5 => self.reshape(dice, id, &value),
            6 => self.cast(dice, id, &value),
            7 => self.unary(dice, id, &value),
            8 => self.pad(dice, id, &value),
            9 => self.repeat(dice, id, &value),
            10 => self.broadcast(dice, id, &value),
            11 => self.take(dice, id, &value),
            12 => self.bitcast(dice, id, &value),
            13 => self.smaller(dice, id, &value),
            14 => self.reduce(dice, id, &value),
            15 => self.matmul(dice, id, &value),
            _ => self.binary(dice, id, &value),
        };
        self.nodes.extend(made.filter(|(_, value)| value.bits.len() as u64 <= MOST_ELEMENTS));
    }

    fn like(&self, value: &Tensor, axis: Option<usize>) -> Vec<(NodeId, Tensor)> {
        let same = |other: &Tensor| {
            other.dtype == value.dtype
                && other.shape.len() == value.shape.len()
                && (0..value.shape.len()).all(|i| Some(i) == axis || other.shape[i] == value.shape[i])
        };
        self.nodes.iter().filter(|(_, other)| same(other)).cloned().collect()
    }

    fn stack(&mut self, dice: &mut Dice, id: NodeId, value: &Tensor) -> Option<(NodeId, Tensor)> {
        if value.shape.len() >= MOST_AXES {
            return None;
        }
        let (others, axis) = (self.like(value, None), dice.roll(value.shape.len() as u64 + 1) as usize);
        let mut parts = vec![(id, value.clone())];
        parts.extend((0..dice.roll(3)).map(|_| dice.pick(&others)));
        let (ids, values): (Vec<_>, Vec<_>) = parts.iter().map(|(id, value)| (*id, value)).unzip();
        Some((self.graph.stack(axis, &ids).unwrap(), naive::stack(axis, &values)))
    }

    fn concat(&mut self, dice: &mut Dice, id: NodeId, value: &Tensor) -> Option<(NodeId, Tensor)> {
        let axis = dice.roll(value.shape.len() as u64) as usize;
        let others = self.like(value, Some(axis));
        let mut parts: Vec<_> = (0..=dice.roll(2)).map(|_| dice.pick(&others)).collect();
        parts.insert(dice.roll(2) as usize, (id, value.clone()));
        let (ids, values): (Vec<_>, Vec<_>) = parts.iter().map(|(id, value)| (*id, value)).unzip();
        Some((self.graph.concat(axis, &ids).unwrap(), naive::concat(axis, &values)))
    }

    fn slice(&mut self, dice: &mut Dice, id: NodeId, value: &Tensor) -> Option<(NodeId, Tensor)> {
        let axis = dice.roll(value.shape.len() as u64) as usize;
        let (start, step) = (dice.roll(value.shape[axis]), 1 + dice.roll(3));
        let end = start + 1 + dice.roll(value.shape[axis] - start);
        let node = self.graph.slice(id, axis, start, end, step).unwrap();
        Some((node, naive::slice(value, axis, start, end, step)))
    }

    fn transpose(&mut self, dice: &mut Dice, id: NodeId, value: &Tensor) -> Option<(NodeId, Tensor)> {
        let mut left: Vec<usize> = (0..value.shape.len()).collect();
        let mut perm = Vec::new();
        while !left.is_empty() {
            perm.push(left.remove(dice.roll(left.len() as u64) as usize));
        }
        Some((self.graph.transpose(id, &perm).unwrap(), naive::transpose(value, &perm)))
    }

    /// Splits and joins axes: any shape with the same prime factors, in any order.
    fn reshape(&mut self, dice: &mut Dice, id: NodeId, value: &Tensor) -> Option<(NodeId, Tensor)> {
        let mut shape = vec![1; 1 + dice.roll(MOST_AXES as u64) as usize];
        let mut rest = value.bits.len() as u64;
        let sorted = dice.roll(2) == 0;
        let mut at = 0;
        for prime in [7, 5, 3, 2] {
            while rest.is_multiple_of(prime) {
                rest /= prime;
                at = if sorted {
                    (at + dice.roll(2) as usize).min(shape.len() - 1)
                } else {
                    dice.roll(shape.len() as u64) as usize
                };
                shape[at] *= prime;
            }
        }
        shape[0] *= rest;
        Some((self.graph.reshape(id, &shape).unwrap(), naive::reshape(value, &shape)))
    }

    fn cast(&mut self, dice: &mut Dice, id: NodeId, value: &Tensor) -> Option<(NodeId, Tensor)> {
        let dtype = dice.pick(&DTYPES);
        Some((self.graph.cast(id, dtype).unwrap(), naive::cast(value, dtype)))
    }

    /// With a matrix of fitting rows, which a transposition of the matrix itself always is.
    fn matmul(&mut self, dice: &mut Dice, id: NodeId, value: &Tensor) -> Option<(NodeId, Tensor)> {
        let &[_, inner] = &value.shape[..] else { return None };
        let fits =
            |other: &Tensor| other.dtype == value.dtype && other.shape.len() == 2 && other.shape[0] == inner;
        let mut fitting: Vec<_> = self.nodes.iter().filter(|(_, other)| fits(other)).cloned().collect();
        fitting.push((self.graph.transpose(id, &[1, 0]).unwrap(), naive::transpose(value, &[1, 0])));
        let (other, right) = dice.pick(&fitting);
        Some((self.graph.matmul(id, other).unwrap(), naive::matmul(value, &right)))
    }

    fn unary(&mut self, dice: &mut Dice, id: NodeId, value: &Tensor) -> Option<(NodeId, Tensor)> {
        let op =
            dice.pick(&[UnaryOp::Negative, UnaryOp::Abs, UnaryOp::Square, UnaryOp::Floor, UnaryOp::Sqrt]);
        Some((self.graph.unary(op, id).unwrap(), naive::unary(op, value)))
    }

    fn pad(&mut self, dice: &mut Dice, id: NodeId, value: &Tensor) -> Option<(NodeId, Tensor)> {
        let mut side = || value.shape.iter().map(|_| dice.roll(3)).collect::<Vec<_>>();
        let (low, high) = (side(), side());
        let number = dice.roll(9) as f64 - 4.0;
        Some((self.graph.pad(id, &low, &high, number).unwrap(), naive::pad(value, &low, &high, number)))
    }

    fn repeat(&mut self, dice: &mut Dice, id: NodeId, value: &Tensor) -> Option<(NodeId, Tensor)> {
        let (axis, count) = (dice.roll(value.shape.len() as u64) as usize, 1 + dice.roll(3));
        Some((self.graph.repeat(id, axis, count).unwrap(), naive::repeat(value, axis, count)))
    }

    fn broadcast(&mut self, dice: &mut Dice, id: NodeId, value: &Tensor) -> Option<(NodeId, Tensor)> {
        let mut shape: Vec<u64> =
            value.shape.iter().map(|&size| if size == 1 { 1 + dice.roll(3) } else { size }).collect();
        if shape.len() < MOST_AXES {
            shape.insert(0, 1 + dice.roll(3));
        }
        Some((self.graph.broadcast(id, &shape).unwrap(), naive::broadcast(value, &shape)))
    }

    fn take(&mut self, dice: &mut Dice, id: NodeId, value: &Tensor) -> Option<(NodeId, Tensor)> {
        if value.shape.len() >= MOST_AXES {
            return None;
        }
        let axis = dice.roll(value.shape.len() as u64) as usize;
        let size = value.shape[axis];
        let (rows, columns) = (1 + dice.roll(2), 1 + dice.roll(4));
        let mut row = || (0..columns).map(|_| dice.roll(2 * size) as i32 - size as i32).collect();
        let indices: Vec<Vec<i32>> = (0..rows).map(|_| row()).collect();
        let bytes: Vec<u8> = indices.iter().flatten().flat_map(|index| index.to_le_bytes()).collect();
        let list = self.graph.constant(&bytes, DType::I32, &[rows, columns]).unwrap();
        Some((self.graph.take(id, axis, list).unwrap(), naive::take(value, axis, &indices)))
    }

    fn bitcast(&mut self, dice: &mut Dice, id: NodeId, value: &Tensor) -> Option<(NodeId, Tensor)> {
        let dtype = dice.pick(&DTYPES);
        let bits = value.shape.last()? * value.dtype.bits();
        // The bits of a NaN are nobody's promise, and another dtype would show them.
        if value.bits.iter().any(|&bits| naive::widen(value.dtype, bits).is_nan()) {
            return None;
        }
        let node = self.graph.bitcast(id, dtype);
        assert_eq!(node.is_ok(), bits.is_multiple_of(dtype.bits()));
        Some((node.ok()?, naive::bitcast(value, dtype)))
    }

    fn smaller(&mut self, dice: &mut Dice, id: NodeId, value: &Tensor) -> Option<(NodeId, Tensor)> {
        let others = self.like(value, None);
        let (other, operand) = dice.pick(&others);
        let test = self.graph.binary(BinaryOp::Less, other, id).unwrap();
        Some((self.graph.choose(test, other, id).unwrap(), naive::smaller(value, &operand)))
    }

    fn reduce(&mut self, dice: &mut Dice, id: NodeId, value: &Tensor) -> Option<(NodeId, Tensor)> {
        let op = dice.pick(&[ReduceOp::Sum, ReduceOp::Norm]);
        let axes: Vec<usize> = (0..value.shape.len()).filter(|_| dice.roll(2) == 0).collect();
        Some((self.graph.reduce(op, id, &axes).unwrap(), naive::reduce(op, value, &axes)))
    }

    fn binary(&mut self, dice: &mut Dice, id: NodeId, value: &Tensor) -> Option<(NodeId, Tensor)> {
        let op = dice.pick(&[BinaryOp::Add, BinaryOp::Sub, BinaryOp::Mul, BinaryOp::Div, BinaryOp::Max]);
        let (right, operand) = self.operand(dice, value);
        Some((self.graph.binary(op, id, right).unwrap(), naive::binary(op, value, &operand)))
    }

    /// A number, or a tensor of the same shape with some axes cut to one and the first ones gone.
    fn operand(&mut self, dice: &mut Dice, value: &Tensor) -> (NodeId, Tensor) {
        if dice.roll(3) == 0 {
            let number = dice.roll(100) as f64 / 16.0 - 3.0;
            return (self.graph.scalar(number, value.dtype), naive::scalar(number, value.dtype));
        }
        let others = self.like(value, None);
        let (mut id, mut operand) = dice.pick(&others);
        let gone = dice.roll(value.shape.len() as u64) as usize;
        for axis in 0..value.shape.len() {
            if axis < gone || dice.roll(2) == 0 {
                let at = dice.roll(value.shape[axis]);
                id = self.graph.slice(id, axis, at, at + 1, 1).unwrap();
                operand = naive::slice(&operand, axis, at, at + 1, 1);
            }
        }
        let shape = operand.shape[gone..].to_vec();
        (self.graph.reshape(id, &shape).unwrap(), naive::reshape(&operand, &shape))
    }
}
