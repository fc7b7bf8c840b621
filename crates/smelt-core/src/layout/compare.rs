//! Compares two layouts of one checkpoint, such as a family's with a discovered one.

use std::collections::{HashMap, HashSet};
use std::fmt;

use super::catalog::Catalog;
use super::compute::number;
use super::graph::{Graph, NodeId, Op};
use super::pool::Pool;
use super::pull::{Puller, Tensors};
use super::{Layout, Output};
use crate::checkpoint::TensorId;
use crate::checkpoint::region::{self, Axis};
use crate::error::Result;
use crate::layout::op::Node;

/// Something in which two layouts differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Only the first has the parameter.
    Spare(String),
    /// Only the second has the parameter.
    Lacking(String),
    /// It is made in another way.
    Expression {
        /// The parameter.
        name: String,
        /// How the first makes it.
        first: String,
        /// How the second makes it.
        second: String,
    },
    /// It is quantized in another way, or not cast like it.
    Treatment {
        /// The parameter.
        name: String,
        /// What the first does.
        first: String,
        /// What the second does.
        second: String,
    },
}

impl fmt::Display for Difference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spare(name) => write!(out, "`{name}` is not a parameter"),
            Self::Lacking(name) => write!(out, "`{name}` is lacking"),
            Self::Expression { name, first, second } => {
                write!(out, "`{name}` is {first}, not {second}")
            }
            Self::Treatment { name, first, second } => write!(out, "`{name}` is {first}, not {second}"),
        }
    }
}

/// Everything in which `first` differs from `second`, in the order of its parameters.
pub fn differences(first: &Layout, second: &Layout) -> Vec<Difference> {
    let theirs: HashMap<&str, &Output> =
        second.outputs.iter().map(|output| (output.name.as_str(), output)).collect();
    let ours: HashSet<&str> = first.outputs.iter().map(|output| output.name.as_str()).collect();
    let casts = first.cast_fault.is_none() && second.cast_fault.is_none();
    let mut equal = Equality { first: &first.graph, second: &second.graph, casts, known: HashSet::new() };
    let mut found = Vec::new();
    for output in &first.outputs {
        match theirs.get(output.name.as_str()) {
            None => found.push(Difference::Spare(output.name.clone())),
            Some(other) => found.extend(equal.compare(output, other)),
        }
    }
    let lacking = second.outputs.iter().filter(|output| !ours.contains(output.name.as_str()));
    found.extend(lacking.map(|output| Difference::Lacking(output.name.clone())));
    found
}

struct Equality<'a> {
    first: &'a Graph,
    second: &'a Graph,
    /// Whether both know which parameters are cast.
    casts: bool,
    /// Pairs that were found to be equal.
    known: HashSet<(NodeId, NodeId)>,
}

impl Equality<'_> {
    fn compare(&mut self, a: &Output, b: &Output) -> Vec<Difference> {
        let name = || a.name.clone();
        let mut found = Vec::new();
        if !self.equal(a.node, b.node) {
            let (first, second) = (show(self.first, a.node, 0), show(self.second, b.node, 0));
            found.push(Difference::Expression { name: name(), first, second });
        }
        let (first, second) = (treatment(a, self.casts), treatment(b, self.casts));
        if first != second {
            found.push(Difference::Treatment { name: name(), first, second });
        }
        found
    }

    fn equal(&mut self, a: NodeId, b: NodeId) -> bool {
        if self.known.contains(&(a, b)) {
            return true;
        }
        let (left, right) = (self.first.node(a), self.second.node(b));
        let same_inputs = left.op.inputs().count() == right.op.inputs().count();
        let same = same_node(left, right)
            && same_inputs
            && left.op.inputs().zip(right.op.inputs()).all(|(a, b)| self.equal(a, b))
            || self.same_constant(a, b);
        if same {
            self.known.insert((a, b));
        }
        same
    }
}

impl Equality<'_> {
    /// Whether two nodes that need no tensor have the same numbers, however they come by them: a table
    /// that a library works out by itself arrives as bytes, a family writes down how it is made.
    fn same_constant(&self, a: NodeId, b: NodeId) -> bool {
        let (left, right) = (self.first.node(a), self.second.node(b));
        let alike = left.dtype == right.dtype && left.shape == right.shape;
        alike && constant(self.first, a).is_some_and(|bytes| Some(bytes) == constant(self.second, b))
    }
}

/// Larger tables are not worked out for a comparison.
const CONSTANT: u64 = 1 << 20;

/// The bytes of a node that needs no tensor.
fn constant(graph: &Graph, id: NodeId) -> Option<Vec<u8>> {
    let node = graph.node(id);
    let elements: u64 = node.shape.iter().product();
    if elements > CONSTANT || !graph.sources(id).is_empty() {
        return None;
    }
    let region = region::whole(&node.shape);
    let mut bytes = vec![0; node.dtype.bytes(elements)? as usize];
    Puller::new(graph, &NoTensors).pull(id, &region, &mut bytes, &mut Pool::default()).ok()?;
    Some(bytes)
}

/// The tensors of a constant.
struct NoTensors;

impl Tensors for NoTensors {
    fn read_region(&self, _: TensorId, _: &[Axis], _: &mut [u8]) -> Result<()> {
        unreachable!("a constant has no tensors")
    }
}

/// Tells layouts apart in a few digits: the same for every parameter made and treated in the same way
/// from tensors of the same names, in any order.
pub fn fingerprint(layout: &Layout, catalog: &dyn Catalog) -> String {
    let mut known = HashMap::new();
    let mut lines: Vec<String> = layout
        .outputs
        .iter()
        .map(|output| {
            let value = node_hash(&layout.graph, output.node, catalog, &mut known).to_hex();
            format!("{} {value} {}", output.name, treatment(output, true))
        })
        .collect();
    lines.sort_unstable();
    blake3::hash(lines.join("\n").as_bytes()).to_hex()[..16].to_owned()
}

fn node_hash(
    graph: &Graph,
    id: NodeId,
    catalog: &dyn Catalog,
    known: &mut HashMap<NodeId, blake3::Hash>,
) -> blake3::Hash {
    if let Some(hash) = known.get(&id) {
        return *hash;
    }
    let node = graph.node(id);
    let mut hasher = blake3::Hasher::new();
    match node.op {
        Op::Source(tensor) => hasher.update(catalog.info(tensor).name.as_bytes()),
        _ => hasher.update(format!("{:?}", node.op.without_inputs()).as_bytes()),
    };
    hasher.update(format!(" {} {:?}", node.dtype, node.shape).as_bytes());
    for input in node.op.inputs() {
        hasher.update(node_hash(graph, input, catalog, known).as_bytes());
    }
    let hash = hasher.finalize();
    known.insert(id, hash);
    hash
}

/// Whether two nodes are the same but for their inputs. A number is what the node's dtype makes of
/// it: 0.3 is the same bf16 whether it was written with three digits or sixteen.
fn same_node(a: &Node, b: &Node) -> bool {
    let same_op = match (&a.op, &b.op) {
        (Op::Scalar(left), Op::Scalar(right)) => {
            number(a.dtype, f64::from_bits(*left)) == number(b.dtype, f64::from_bits(*right))
        }
        (left, right) => left.without_inputs() == right.without_inputs(),
    };
    a.dtype == b.dtype && a.shape == b.shape && same_op
}

/// What happens with a parameter, in words; of casts if `casts`.
fn treatment(output: &Output, casts: bool) -> String {
    let cast = if output.cast || !casts { "" } else { ", never cast" };
    match output.module {
        None => format!("not quantized{cast}"),
        Some(module) => match module.own {
            super::Own::Run => format!("quantized{cast}"),
            super::Own::Keep => format!("not quantized by default{cast}"),
            super::Own::Format(format) => format!("quantized to {format}{cast}"),
        },
    }
}

/// Deeper expressions, and more inputs, are not written out.
const SHOWN: usize = 6;

fn show(graph: &Graph, id: NodeId, depth: usize) -> String {
    let node = graph.node(id);
    if depth > SHOWN {
        return "…".to_owned();
    }
    if let Op::Source(tensor) = node.op {
        return format!("#{}", tensor.0);
    }
    let mut inputs: Vec<String> =
        node.op.inputs().take(2).map(|input| show(graph, input, depth + 1)).collect();
    if node.op.inputs().count() > inputs.len() {
        inputs.push("…".to_owned());
    }
    let own = format!("{:?}", node.op.without_inputs());
    format!("{own}({}) {:?}", inputs.join(", "), node.shape)
}
