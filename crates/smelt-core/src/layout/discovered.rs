//! Layouts discovered from the user's own installed library.
//!
//! [`PROGRAM`] is a Python program that runs the real `load_model` on fake tensors and writes down
//! what happens to them. This module asks it ([`request`]) and reads its answer ([`Trace`]): every
//! operation is made again with the constructors of [`Graph`], so a discovered layout and a
//! family's have one form and can be compared. What smelt does not compute is refused by name for
//! the parameters that need it; nothing is guessed.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use smelt_kernels::{Format, Mode};

use super::catalog::Catalog;
use super::graph::{BinaryOp, Graph, NodeId, OpError, ReduceOp, UnaryOp};
use super::{Dropped, Layout, Module, ModuleClass, Output, Own, Problem, Role};
use crate::checkpoint::{Checkpoint, DType, LogicalTensor};

/// The tracer, for the user's interpreter: a request on its standard input, the trace on its
/// standard output.
pub const PROGRAM: &str = include_str!("../../python/discover.py");

/// The version of the trace that this module reads.
const VERSION: u64 = 1;

/// Side files that a library may read while it loads a model are small.
const SIDE_LIMIT: u64 = 1 << 20;

/// What a library does to a checkpoint, as the tracer writes it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Trace {
    /// Version of this format.
    pub version: u64,
    /// `mlx-lm` or `mlx-vlm`.
    #[serde(default)]
    pub library: String,
    /// Versions of Python, mlx and the library.
    #[serde(default)]
    pub versions: BTreeMap<String, Value>,
    /// Of which checkpoint: see [`digest`].
    #[serde(default)]
    pub digest: String,
    #[serde(default)]
    nodes: Vec<TraceNode>,
    #[serde(default)]
    outputs: Vec<(String, usize)>,
    #[serde(default)]
    dropped: Vec<String>,
    #[serde(default)]
    model: Option<TraceModel>,
    /// What the library said if it could not load the checkpoint.
    #[serde(default)]
    pub error: Option<LibraryError>,
}

/// An exception of the library.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LibraryError {
    /// The kind of exception.
    pub kind: String,
    /// Its message.
    pub message: String,
    /// While it did what.
    #[serde(default, rename = "where")]
    pub stage: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct TraceNode {
    op: String,
    #[serde(default, rename = "in")]
    inputs: Vec<usize>,
    dtype: DType,
    shape: Vec<u64>,
    #[serde(flatten)]
    attributes: BTreeMap<String, Value>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct TraceModel {
    #[serde(default)]
    missing: Vec<Value>,
    #[serde(default)]
    extra: Vec<Value>,
    #[serde(default)]
    mismatched: Vec<Value>,
    #[serde(default)]
    modules: Vec<TraceModule>,
    #[serde(default)]
    keep_dtype: Vec<String>,
    #[serde(default)]
    keep_dtype_error: Option<String>,
    #[serde(default)]
    skipped: Vec<String>,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

#[derive(Debug, Serialize, Deserialize)]
struct TraceModule {
    path: String,
    class: String,
    #[serde(default)]
    predicate: Value,
    #[serde(flatten)]
    rest: BTreeMap<String, Value>,
}

/// What the tracer is asked: the config, and the tensors of each file with dtypes and shapes.
///
/// It is told of the logical tensors and nothing of the quantization of the source, so that the
/// library makes of a quantized checkpoint what it makes of the original.
pub fn request(checkpoint: &Checkpoint, library: &str) -> Value {
    let mut files: BTreeMap<&str, BTreeMap<&str, Value>> = BTreeMap::new();
    for tensor in checkpoint.logical_tensors() {
        let shard = checkpoint.tensor(tensor.parts()[0]).shard;
        let entry = json!([tensor.dtype.name(), tensor.shape]);
        files.entry(&checkpoint.shards()[shard as usize].path).or_default().insert(&tensor.name, entry);
    }
    let is_json = |path: &str| path.rsplit_once('.').is_some_and(|(_, ending)| ending == "json");
    let small = checkpoint.side_files().iter().filter(|file| file.size <= SIDE_LIMIT && is_json(&file.path));
    let side: BTreeMap<&str, String> = small
        .filter_map(|file| {
            let bytes = crate::source::read_entry(&**checkpoint.source(), file, SIDE_LIMIT).ok()?;
            Some((file.path.as_str(), String::from_utf8(bytes).ok()?))
        })
        .collect();
    let config = plain_config(checkpoint);
    json!({ "library": library, "config": config, "files": files, "index": files.len() > 1, "side": side })
}

/// The config without what it says of the source's quantization.
fn plain_config(checkpoint: &Checkpoint) -> Value {
    let mut config = checkpoint.config().value().clone();
    if checkpoint.logical_tensors().iter().all(LogicalTensor::is_plain) {
        return config;
    }
    let keys = ["quantization", "quantization_config", "compression_config"];
    let remove = |block: Option<&mut Value>| {
        if let Some(block) = block.and_then(Value::as_object_mut) {
            for key in keys {
                block.remove(key);
            }
        }
    };
    remove(config.get_mut("text_config"));
    remove(Some(&mut config));
    config
}

/// Tells checkpoints apart by config and headers: a layout holds for this one alone.
pub fn digest(checkpoint: &Checkpoint) -> String {
    let mut hash = blake3::Hasher::new();
    hash.update(checkpoint.config().text().as_bytes());
    for tensor in checkpoint.tensors() {
        let line = format!("\n{} {} {:?}", tensor.name, tensor.dtype.name(), tensor.shape);
        hash.update(line.as_bytes());
    }
    hash.finalize().to_hex().to_string()
}

impl Trace {
    /// The layout of the checkpoint that was traced.
    ///
    /// # Errors
    /// What the library refuses, and every operation that smelt does not compute.
    pub fn layout(&self, catalog: &dyn Catalog) -> Result<Layout, Vec<Problem>> {
        self.layout_of(Graph::default(), &|graph, name| {
            let id = catalog.find(name)?;
            let info = catalog.info(id);
            Some(graph.source(id, info.dtype, info.shape))
        })
    }

    /// The layout made of what `leaf` gives for the tensors that were traced, in a graph that holds these.
    pub(super) fn layout_of(&self, graph: Graph, leaf: &Leaf<'_>) -> Result<Layout, Vec<Problem>> {
        if self.version != VERSION {
            let message = format!("the layout has version {}, smelt reads {VERSION}", self.version);
            return Err(vec![Problem::Library { message }]);
        }
        let model = self.model.as_ref().ok_or_else(|| vec![self.refusal()])?;
        let mut problems = model.refusals();
        let mut maker = Maker { graph, leaf, made: Vec::with_capacity(self.nodes.len()) };
        for node in &self.nodes {
            let made = maker.make(node);
            maker.made.push(made);
        }
        let facts = Facts::of(model);
        let mut outputs = Vec::with_capacity(self.outputs.len());
        for (name, node) in &self.outputs {
            match maker.made.get(*node) {
                Some(Ok(node)) => outputs.push(facts.output(name, *node)),
                Some(Err(why)) => {
                    problems.push(Problem::NotComputed { output: name.clone(), why: why.clone() });
                }
                None => problems.push(Problem::Library { message: format!("`{name}` has no value") }),
            }
        }
        let why = format!("{} does not use it", self.library);
        let dropped = self
            .dropped
            .iter()
            .map(|tensor| Dropped { tensor: tensor.clone(), why: why.clone(), mtp: false })
            .collect();
        if problems.is_empty() {
            let cast_fault = model.keep_dtype_error.clone();
            Ok(Layout { graph: maker.graph, outputs, dropped, cast_fault, ..Layout::default() })
        } else {
            Err(problems)
        }
    }

    fn refusal(&self) -> Problem {
        let message = match &self.error {
            Some(error) => format!("{}: {}", error.kind, error.message),
            None => "the trace holds no model".to_owned(),
        };
        Problem::Library { message: format!("{} {message}", self.library) }
    }
}

impl TraceModel {
    /// The library's own strict load would refuse the result.
    fn refusals(&self) -> Vec<Problem> {
        let kinds = [
            ("lacks the parameter", &self.missing),
            ("has no such parameter", &self.extra),
            ("wants another shape", &self.mismatched),
        ];
        let list = kinds.into_iter().flat_map(|(what, names)| names.iter().map(move |name| (what, name)));
        list.map(|(what, name)| Problem::Library { message: format!("strict loading {what}: {name}") })
            .collect()
    }
}

/// What the model says of its parameters.
struct Facts<'a> {
    modules: HashMap<&'a str, Module>,
    keep_dtype: HashSet<&'a str>,
}

impl<'a> Facts<'a> {
    fn of(model: &'a TraceModel) -> Self {
        let skipped: HashSet<&str> = model.skipped.iter().map(String::as_str).collect();
        let modules = model.modules.iter().map(|module| {
            let own = if skipped.contains(module.path.as_str()) { Own::Keep } else { own(&module.predicate) };
            (module.path.as_str(), Module { class: class(&module.class), own })
        });
        let keep_dtype = model.keep_dtype.iter().map(String::as_str).collect();
        Self { modules: modules.collect(), keep_dtype }
    }

    fn output(&self, name: &str, node: NodeId) -> Output {
        let module = name.strip_suffix(".weight").and_then(|path| self.modules.get(path)).copied();
        Output {
            format_group: None,
            name: name.to_owned(),
            node,
            role: Role::of_name(name, module.is_some()),
            module,
            cast: !self.keep_dtype.contains(name),
        }
    }
}

fn class(name: &str) -> ModuleClass {
    match name {
        "Linear" => ModuleClass::Linear,
        "Embedding" => ModuleClass::Embedding,
        "SwitchLinear" => ModuleClass::SwitchLinear,
        "MultiLinear" => ModuleClass::MultiLinear,
        _ => ModuleClass::Other,
    }
}

/// The answer of a `quant_predicate`: whether, or in which format.
fn own(predicate: &Value) -> Own {
    let Value::Object(format) = predicate else {
        return if *predicate == Value::Bool(false) { Own::Keep } else { Own::Run };
    };
    // Groups for rows that those of the run do not divide; all else is the run's.
    if format.contains_key("fallback_group_size") && !format.contains_key("bits") {
        return Own::Run;
    }
    let mode = format.get("mode").and_then(Value::as_str).and_then(Mode::from_name).unwrap_or(Mode::Affine);
    let number = |key: &str| format.get(key).and_then(Value::as_u64);
    let (bits, group_size) = mode.defaults();
    let bits = number("bits").and_then(|bits| u8::try_from(bits).ok()).unwrap_or(bits);
    let group_size = number("group_size").map_or(group_size, |size| size as usize);
    Format::new(mode, bits, group_size).map_or(Own::Run, Own::Format)
}

/// What stands for the tensor of this name.
pub(super) type Leaf<'a> = dyn Fn(&mut Graph, &str) -> Option<NodeId> + 'a;

/// Makes the nodes of a trace; one that can't be made says why.
struct Maker<'a> {
    graph: Graph,
    leaf: &'a Leaf<'a>,
    made: Vec<Result<NodeId, String>>,
}

impl Maker<'_> {
    fn make(&mut self, node: &TraceNode) -> Result<NodeId, String> {
        let inputs = node.inputs.iter().map(|&input| self.input(input)).collect::<Result<Vec<_>, _>>()?;
        let made = self.operation(node, &inputs)?.map_err(|error| format!("{}: {error}", node.op))?;
        let result = self.graph.node(made);
        if *result.shape == *node.shape && result.dtype == node.dtype {
            return Ok(made);
        }
        Err(format!(
            "{} gives {:?} {} where the library has {:?} {}",
            node.op, result.shape, result.dtype, node.shape, node.dtype
        ))
    }

    fn input(&self, index: usize) -> Result<NodeId, String> {
        self.made.get(index).cloned().unwrap_or_else(|| Err("an operand that comes later".to_owned()))
    }

    /// The node of an operation: not made where smelt has no such operation, an error where the
    /// parts do not fit.
    fn operation(&mut self, node: &TraceNode, inputs: &[NodeId]) -> Result<Result<NodeId, OpError>, String> {
        let graph = &mut self.graph;
        let made = match (node.op.as_str(), inputs) {
            ("source", []) => return self.source(node),
            ("stack", parts) => graph.stack(node.index("axis")?, parts),
            ("concat", parts) => graph.concat(node.index("axis")?, parts),
            ("slice", &[input]) => return self.slice(node, input),
            ("transpose", &[input]) => graph.transpose(input, &node.indices("perm")?),
            ("reshape", &[input]) => graph.reshape(input, &node.shape),
            ("cast", &[input]) => graph.cast(input, node.dtype),
            ("bitcast", &[input]) => graph.bitcast(input, node.dtype),
            ("from_fp8", &[input]) => graph.from_fp8(input, node.dtype),
            ("scalar", []) => Ok(graph.scalar(node.number("value")?, node.dtype)),
            ("full", []) => {
                let value = graph.scalar(node.number("value")?, node.dtype);
                graph.broadcast(value, &node.shape)
            }
            ("const", []) => graph.constant(&node.data()?, node.dtype, &node.shape),
            ("broadcast", &[input]) => graph.broadcast(input, &node.shape),
            ("repeat", &[input]) => graph.repeat(input, node.index("axis")?, node.index("count")? as u64),
            ("pad", &[input]) => {
                graph.pad(input, &node.sizes("low")?, &node.sizes("high")?, node.number("value")?)
            }
            ("matmul", &[left, right]) => graph.matmul(left, right),
            ("take", &[input, indices]) => graph.take(input, node.index("axis")?, indices),
            ("where", &[test, yes, no]) => return self.choose(&node.shape, test, yes, no),
            ("sum", &[input]) => return self.reduce(node, ReduceOp::Sum, input),
            ("norm", &[input]) => return self.reduce(node, ReduceOp::Norm, input),
            (name, &[input]) => match unary(node.function().unwrap_or(name)) {
                Some(op) => graph.unary(op, input),
                None => return Err(node.unknown()),
            },
            (name, &[left, right]) => match binary(node.function().unwrap_or(name)) {
                Some(op) => return self.binary(op, left, right),
                None => return Err(node.unknown()),
            },
            _ => return Err(node.unknown()),
        };
        Ok(made)
    }

    /// A tensor of the checkpoint. MLX reads types that it does not know as plain bytes.
    fn source(&mut self, node: &TraceNode) -> Result<Result<NodeId, OpError>, String> {
        let name = node.attributes.get("name").and_then(Value::as_str).unwrap_or_default();
        let source = (self.leaf)(&mut self.graph, name);
        let source = source.ok_or_else(|| format!("`{name}` is not in the checkpoint"))?;
        Ok(self.graph.bitcast(source, node.dtype))
    }

    /// One slice after another, axis by axis.
    fn slice(&mut self, node: &TraceNode, mut input: NodeId) -> Result<Result<NodeId, OpError>, String> {
        let (start, len, step) = (node.sizes("start")?, node.sizes("len")?, node.sizes("step")?);
        for (axis, ((start, len), step)) in start.into_iter().zip(len).zip(step).enumerate() {
            let last = len.saturating_sub(1).checked_mul(step).and_then(|last| last.checked_add(start));
            let end = last.and_then(|last| last.checked_add(1)).ok_or("a slice beyond any tensor")?;
            match self.graph.slice(input, axis, start, end, step) {
                Ok(sliced) => input = sliced,
                error => return Ok(error),
            }
        }
        Ok(Ok(input))
    }

    fn choose(
        &mut self,
        shape: &[u64],
        test: NodeId,
        yes: NodeId,
        no: NodeId,
    ) -> Result<Result<NodeId, OpError>, String> {
        let mut parts = [test, yes, no];
        for part in &mut parts {
            *part = self.graph.broadcast(*part, shape).map_err(|error| error.to_string())?;
        }
        Ok(self.graph.choose(parts[0], parts[1], parts[2]))
    }

    fn reduce(
        &mut self,
        node: &TraceNode,
        op: ReduceOp,
        input: NodeId,
    ) -> Result<Result<NodeId, OpError>, String> {
        if op == ReduceOp::Norm
            && node.attributes.get("ord").is_some_and(|ord| *ord != json!(2) && !ord.is_null())
        {
            return Err(node.unknown());
        }
        let reduced = self.graph.reduce(op, input, &node.indices("axes")?);
        Ok(reduced.and_then(|reduced| self.graph.reshape(reduced, &node.shape)))
    }

    /// MLX broadcasts both sides; here the right one is broadcast to the left.
    fn binary(
        &mut self,
        op: BinaryOp,
        left: NodeId,
        right: NodeId,
    ) -> Result<Result<NodeId, OpError>, String> {
        let shape = joint_shape(&self.graph.node(left).shape, &self.graph.node(right).shape);
        let left = self.graph.broadcast(left, &shape).map_err(|error| error.to_string())?;
        Ok(self.graph.binary(op, left, right))
    }
}

/// The shape to which two shapes broadcast, aligned at the last axis.
pub(super) fn joint_shape(a: &[u64], b: &[u64]) -> Vec<u64> {
    let rank = a.len().max(b.len());
    let size = |shape: &[u64], axis: usize| (axis + shape.len()).checked_sub(rank).map_or(1, |at| shape[at]);
    (0..rank).map(|axis| size(a, axis).max(size(b, axis))).collect()
}

fn unary(name: &str) -> Option<UnaryOp> {
    Some(match name {
        "negative" => UnaryOp::Negative,
        "abs" => UnaryOp::Abs,
        "square" => UnaryOp::Square,
        "floor" => UnaryOp::Floor,
        "sqrt" => UnaryOp::Sqrt,
        "log2" => UnaryOp::Log2,
        "exp" => UnaryOp::Exp,
        "sigmoid" => UnaryOp::Sigmoid,
        _ => return None,
    })
}

fn binary(name: &str) -> Option<BinaryOp> {
    Some(match name {
        "add" => BinaryOp::Add,
        "subtract" => BinaryOp::Sub,
        "multiply" => BinaryOp::Mul,
        "divide" => BinaryOp::Div,
        "maximum" => BinaryOp::Max,
        "minimum" => BinaryOp::Min,
        "left_shift" => BinaryOp::Shl,
        "right_shift" => BinaryOp::Shr,
        "and" | "bitwise_and" => BinaryOp::And,
        "or" | "bitwise_or" => BinaryOp::Or,
        "equal" => BinaryOp::Equal,
        "not_equal" => BinaryOp::Unequal,
        "less" => BinaryOp::Less,
        "less_equal" => BinaryOp::LessEqual,
        "greater" => BinaryOp::Greater,
        "greater_equal" => BinaryOp::GreaterEqual,
        _ => return None,
    })
}

impl TraceNode {
    fn unknown(&self) -> String {
        format!("smelt does not compute `{}`", self.function().unwrap_or(&self.op))
    }

    fn function(&self) -> Option<&str> {
        self.attributes.get("fn").and_then(Value::as_str)
    }

    fn attribute<T: serde::de::DeserializeOwned>(&self, key: &str) -> Result<T, String> {
        let value = self.attributes.get(key).cloned().unwrap_or_default();
        serde_json::from_value(value).map_err(|error| format!("{}: `{key}`: {error}", self.op))
    }

    fn index(&self, key: &str) -> Result<usize, String> {
        self.attribute(key)
    }

    fn indices(&self, key: &str) -> Result<Vec<usize>, String> {
        self.attribute(key)
    }

    fn sizes(&self, key: &str) -> Result<Vec<u64>, String> {
        self.attribute(key)
    }

    fn number(&self, key: &str) -> Result<f64, String> {
        match self.attributes.get(key) {
            Some(Value::Bool(value)) => Ok(f64::from(u8::from(*value))),
            // JSON has no NaN and no infinities: they come as the words that Rust reads as well.
            Some(Value::String(text)) => {
                text.parse().map_err(|_| format!("{}: `{text}` is no number", self.op))
            }
            _ => self.attribute(key),
        }
    }

    /// The bytes of a constant, which are base64 in the trace.
    fn data(&self) -> Result<Vec<u8>, String> {
        let text: String = self.attribute("data")?;
        base64(&text).ok_or_else(|| format!("{}: `data` is not base64", self.op))
    }
}

/// Decodes base64 with padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').bytes().map(|byte| {
        Some(u32::from(match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        }))
    });
    let digits = digits.collect::<Option<Vec<u32>>>()?;
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for chunk in digits.chunks(4) {
        let value = chunk.iter().fold(0, |value, digit| value << 6 | digit) << (6 * (4 - chunk.len()));
        bytes.extend(&value.to_be_bytes()[1..chunk.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_every_length() {
        let cases = [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")];
        for (text, bytes) in cases {
            assert_eq!(base64(text).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        assert_eq!(base64("a b"), None);
    }

    #[test]
    fn what_a_predicate_answers() {
        let format = |mode, bits, size| Format::new(mode, bits, size).map_or(Own::Run, Own::Format);
        assert_eq!(own(&json!(true)), Own::Run);
        assert_eq!(own(&json!(false)), Own::Keep);
        assert_eq!(own(&json!({ "bits": 8 })), format(Mode::Affine, 8, 64));
        let floating = json!({ "bits": 8, "group_size": 32, "mode": "mxfp8" });
        assert_eq!(own(&floating), format(Mode::Mxfp8, 8, 32));
        assert_eq!(own(&json!({ "fallback_group_size": 32 })), Own::Run);
    }

    #[test]
    fn shapes_broadcast_to_their_union() {
        assert_eq!(joint_shape(&[4, 1], &[3, 1, 5]), [3, 4, 5]);
        assert_eq!(joint_shape(&[], &[2]), [2]);
    }
}
