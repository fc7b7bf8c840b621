//! Generalises a layout of one checkpoint into a family file, for a person to review.
//!
//! Numbers in names become indices, equal parameters become one rule, numbers that equal a value of
//! config.json become that value. What was guessed is marked `# review`. The file is a draft of the
//! architecture made from one example: expanding it on the same checkpoint must give the same
//! layout, which the caller checks; that it holds for others is for the reviewer to see.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use indexmap::IndexMap;
use serde_json::Value;
use smelt_kernels::Mode;

use super::catalog::Catalog;
use super::graph::{BinaryOp, Graph, NodeId, Op, ReduceOp, UnaryOp};
use super::{Layout, ModuleClass, Output, Own};
use crate::checkpoint::{Config, DType, TensorId};

/// Writes the family file of a layout.
pub fn learn(layout: &Layout, config: &Config, catalog: &dyn Catalog, target: &str) -> String {
    let numbers = Numbers::of(config);
    let mut names = Names::default();
    for output in &layout.outputs {
        names.see(&output.name);
    }
    let mut rules: IndexMap<Rule, Vec<Vec<u64>>> = IndexMap::new();
    for output in &layout.outputs {
        let (rule, indices) = Writer { layout, catalog, names: &names, numbers: &numbers }.rule(output);
        rules.entry(rule).or_default().push(indices);
    }
    let experts = expert_ranges(layout);
    let mut text = head(config, target);
    text.push_str(&indices(&names, &experts, &numbers));
    text.push_str(&groups(&rules, &names, config));
    text.push_str(&drops(layout));
    text
}

fn head(config: &Config, target: &str) -> String {
    let model_type = config.model_type().unwrap_or("unknown");
    format!(
        "# Learnt from one checkpoint: see each line marked `review` before trusting it with another.\n\
         name = \"{model_type}\"\ntitle = \"{model_type}\"\nmodel_types = [\"{model_type}\"]\n\
         targets = [\"{target}\"]\n\n"
    )
}

/// The indices in the names of parameters: for each form of what stands before a number, its name
/// and how far it runs.
#[derive(Debug, Default)]
struct Names {
    /// Form before the number (`model.layers.`) → (name, range).
    forms: IndexMap<String, (String, u64)>,
}

impl Names {
    /// Takes note of the numbers in a name.
    fn see(&mut self, name: &str) {
        let mut form = String::new();
        for part in name.split('.') {
            if let Ok(value) = part.parse::<u64>() {
                let index = self.index(&form, value);
                let _ = write!(form, "{{{index}}}.");
            } else {
                let _ = write!(form, "{part}.");
            }
        }
    }

    fn index(&mut self, form: &str, value: u64) -> String {
        let taken: BTreeSet<String> = self.forms.values().map(|(name, _)| name.clone()).collect();
        let entry = self.forms.entry(form.to_owned()).or_insert_with(|| {
            let base = singular(form.trim_end_matches('.').rsplit('.').next().unwrap_or("index"));
            let numbered = (2..).map(|count| format!("{base}{count}"));
            let free = std::iter::once(base.clone()).chain(numbered).find(|name| !taken.contains(name));
            (free.unwrap_or(base), 0)
        });
        entry.1 = entry.1.max(value + 1);
        entry.0.clone()
    }

    /// A name with its indices in braces, and their values.
    fn split(&self, name: &str) -> (String, Vec<(String, u64)>) {
        let (mut form, mut bound) = (String::new(), Vec::new());
        for part in name.split('.') {
            match (part.parse::<u64>(), self.forms.get(&form)) {
                (Ok(value), Some((index, _))) => {
                    bound.push((index.clone(), value));
                    let _ = write!(form, "{{{index}}}.");
                }
                _ => {
                    let _ = write!(form, "{part}.");
                }
            }
        }
        form.pop();
        (form, bound)
    }
}

/// `layers` → `layer`, `h` stays.
fn singular(word: &str) -> String {
    let stem = word.strip_suffix('s').filter(|stem| stem.len() > 1).unwrap_or(word);
    let plain: String = stem.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
    if plain.starts_with(|c: char| c.is_ascii_alphabetic()) { plain } else { format!("index_{plain}") }
}

/// Numbers of the config by their values, the most telling name first.
struct Numbers {
    names: BTreeMap<u64, Vec<String>>,
}

/// Config keys that shapes are usually made of, in the order in which they are taken.
const TELLING: [&str; 11] = [
    "hidden_size",
    "vocab_size",
    "intermediate_size",
    "moe_intermediate_size",
    "head_dim",
    "num_experts",
    "n_routed_experts",
    "num_local_experts",
    "num_attention_heads",
    "num_key_value_heads",
    "depth",
];

impl Numbers {
    fn of(config: &Config) -> Self {
        let mut names: BTreeMap<u64, Vec<String>> = BTreeMap::new();
        collect(config.value(), "", &mut names);
        let rank = |name: &String| {
            let last = name.rsplit('.').next().unwrap_or(name);
            TELLING.iter().position(|known| *known == last).unwrap_or(TELLING.len())
        };
        for list in names.values_mut() {
            list.sort_by_key(rank);
        }
        Self { names }
    }

    /// The name of a number, and whether another would do as well. Small numbers name nothing.
    fn name(&self, value: u64) -> Option<(&str, bool)> {
        let names = self.names.get(&value).filter(|_| value > 3)?;
        names.first().map(|name| (name.as_str(), names.len() > 1))
    }

    /// The number by a name that speaks of an index (`expert`: `num_experts`), or by any other.
    fn write_index(&self, index: &str, value: u64) -> (String, bool) {
        let fitting = self.names.get(&value).and_then(|names| names.iter().find(|name| name.contains(index)));
        fitting.map_or_else(|| self.write(value), |name| (name.clone(), false))
    }

    /// The number by name, or itself.
    fn write(&self, value: u64) -> (String, bool) {
        self.name(value)
            .map_or_else(|| (value.to_string(), value > 3), |(name, doubt)| (name.to_owned(), doubt))
    }
}

fn collect(value: &Value, path: &str, names: &mut BTreeMap<u64, Vec<String>>) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                collect(value, &path, names);
            }
        }
        Value::Number(number) => {
            if let Some(value) = number.as_u64() {
                names.entry(value).or_default().push(path.to_owned());
            }
        }
        _ => {}
    }
}

/// One line of the file, without when it holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Rule {
    name: String,
    /// The names of the indices in `name`.
    places: Vec<String>,
    keys: String,
    review: bool,
}

struct Writer<'a> {
    layout: &'a Layout,
    catalog: &'a dyn Catalog,
    names: &'a Names,
    numbers: &'a Numbers,
}

impl Writer<'_> {
    /// The rule of a parameter and the values of its indices.
    fn rule(&self, output: &Output) -> (Rule, Vec<u64>) {
        let (name, bound) = self.names.split(&output.name);
        let mut review = false;
        let shape: Vec<String> = self
            .layout
            .graph
            .node(output.node)
            .shape
            .iter()
            .map(|&size| {
                let (text, doubt) = self.numbers.write(size);
                review |= doubt;
                text
            })
            .collect();
        let mut keys = format!("shape = \"{}\"", shape.join(", "));
        let from = self.expression(output.node, &bound);
        if from != format!("\"{name}\"") {
            let _ = write!(keys, ", from = '{from}'");
        }
        keys.push_str(&treatment(output));
        let (places, values) = bound.into_iter().unzip();
        (Rule { name, places, keys, review }, values)
    }

    /// An expression in the syntax of families, with these indices in the names of its tensors.
    fn expression(&self, id: NodeId, bound: &[(String, u64)]) -> String {
        let graph = &self.layout.graph;
        let node = graph.node(id);
        let inner = |input: NodeId| self.expression(input, bound);
        match &node.op {
            Op::Source(tensor) => format!("\"{}\"", self.source(*tensor, bound)),
            Op::Stack { axis: 0, inputs } => self.stack(inputs, bound),
            Op::Concat { axis, inputs } => {
                let parts: Vec<String> = inputs.iter().map(|&input| inner(input)).collect();
                format!("concat({axis}, {})", parts.join(", "))
            }
            Op::Slice { input, axis, start, step } => {
                let end = start + (node.shape[*axis] - 1) * step + 1;
                let step = if *step == 1 { String::new() } else { format!(", {step}") };
                format!("slice({}, {axis}, {start}, {end}{step})", inner(*input))
            }
            Op::Transpose { input, perm } => {
                let perm: Vec<String> = perm.iter().map(usize::to_string).collect();
                format!("transpose({}, {})", inner(*input), perm.join(", "))
            }
            Op::Reshape(input) => format!("reshape({}, {:?})", inner(*input), node.shape),
            Op::Cast(input) => format!("cast({}, \"{}\")", inner(*input), lower(node.dtype)),
            Op::Bitcast(input) => format!("bitcast({}, \"{}\")", inner(*input), lower(node.dtype)),
            Op::FromFp8(input) => format!("from_fp8({}, \"{}\")", inner(*input), lower(node.dtype)),
            Op::Unary { op, input } => format!("{}({})", unary(*op), inner(*input)),
            Op::Broadcast(input) => match scalar(graph, *input) {
                Some(number) => format!("full({:?}, {number:?}, \"{}\")", node.shape, lower(node.dtype)),
                None => format!("broadcast({}, {:?})", inner(*input), node.shape),
            },
            Op::Pad { input, low, value: 0 } => {
                let before = &graph.node(*input).shape;
                let sides = low.iter().zip(before).zip(&node.shape).enumerate();
                sides.filter(|(_, ((_, before), after))| before != after).fold(
                    inner(*input),
                    |text, (axis, ((low, before), after))| {
                        format!("pad({text}, {axis}, {low}, {})", after - before - low)
                    },
                )
            }
            Op::Repeat { input, axis, count } => format!("repeat({}, {axis}, {count})", inner(*input)),
            Op::Reduce { op, input, axes } if axes.len() == 1 => {
                let op = if *op == ReduceOp::Sum { "sum" } else { "norm" };
                format!("{op}({}, {})", inner(*input), axes[0])
            }
            Op::Matmul { left, right } => format!("matmul({}, {})", inner(*left), inner(*right)),
            Op::Binary { op, left, right } => {
                let operand =
                    |id| scalar(graph, id).map_or_else(|| inner(id), |number| format!("{number:?}"));
                let (left, right) = (operand(*left), operand(*right));
                match (binary(*op), op) {
                    (Some(op), _) => format!("({left} {op} {right})"),
                    (None, BinaryOp::Max) => format!("max({left}, {right})"),
                    (None, BinaryOp::Min) => format!("min({left}, {right})"),
                    (None, _) => "unknown()".to_owned(),
                }
            }
            // No syntax for it: the check on the same checkpoint names the parameter.
            _ => "unknown()".to_owned(),
        }
    }

    /// The name of a tensor with the parameter's indices in the place of the same numbers.
    fn source(&self, tensor: TensorId, bound: &[(String, u64)]) -> String {
        let mut left = bound.to_vec();
        let parts = self.catalog.info(tensor).name.split('.').map(|part| {
            let value = part.parse::<u64>().ok();
            match left.iter().position(|(_, index)| Some(*index) == value) {
                Some(at) => format!("{{{}}}", left.remove(at).0),
                None => part.to_owned(),
            }
        });
        parts.collect::<Vec<_>>().join(".")
    }

    /// A stack over an index where its parts differ in one running number, else one after another.
    fn stack(&self, inputs: &[NodeId], bound: &[(String, u64)]) -> String {
        let parts: Vec<String> = inputs.iter().map(|&input| self.expression(input, bound)).collect();
        if let Some((head, tail)) = running(&parts) {
            return format!("stack({EXPERT}, {head}{{{EXPERT}}}{tail})");
        }
        format!("stack({})", parts.join(", "))
    }
}

/// The index over which stacks run.
const EXPERT: &str = "expert";

/// What stands before and behind the number in which texts differ, if it counts from 0.
fn running(parts: &[String]) -> Option<(&str, &str)> {
    let (first, second) = (parts.first()?, parts.get(1)?);
    let same = first.bytes().zip(second.bytes()).take_while(|(a, b)| a == b).count();
    let (head, rest) = first.split_at_checked(same)?;
    let tail = rest.strip_prefix('0')?;
    let counts = parts.iter().enumerate().all(|(at, part)| *part == format!("{head}{at}{tail}"));
    counts.then_some((head, tail))
}

/// How many parts the stacks of a layout have: the ranges of `expert`.
fn expert_ranges(layout: &Layout) -> BTreeSet<u64> {
    let nodes = layout.outputs.iter().map(|output| output.node);
    let mut found = BTreeSet::new();
    for node in nodes {
        stacks(&layout.graph, node, &mut found);
    }
    found
}

fn stacks(graph: &Graph, id: NodeId, found: &mut BTreeSet<u64>) {
    let op = &graph.node(id).op;
    if let Op::Stack { inputs, .. } = op {
        found.insert(inputs.len() as u64);
        return;
    }
    op.inputs().for_each(|input| stacks(graph, input, found));
}

fn treatment(output: &Output) -> String {
    let mut keys = String::new();
    if let Some(module) = output.module {
        let class = match module.class {
            ModuleClass::Other => ModuleClass::Linear,
            class => class,
        };
        let _ = write!(keys, ", module = \"{class:?}\"");
        match module.own {
            Own::Run => {}
            Own::Keep => keys.push_str(", quantize = false"),
            Own::Format(format) if format.mode() == Mode::Affine => {
                let _ = write!(keys, ", bits = {}, group_size = {}", format.bits(), format.group_size());
            }
            Own::Format(format) => {
                let _ = write!(keys, ", mode = \"{}\"", format.mode());
            }
        }
    }
    let _ = write!(keys, ", role = \"{}\"", output.role);
    if !output.cast {
        keys.push_str(", cast = false");
    }
    keys
}

fn lower(dtype: DType) -> String {
    dtype.name().to_lowercase()
}

fn unary(op: UnaryOp) -> &'static str {
    match op {
        UnaryOp::Negative => "negative",
        UnaryOp::Square => "square",
        UnaryOp::Sqrt => "sqrt",
        UnaryOp::Sigmoid => "sigmoid",
        UnaryOp::Abs => "abs",
        UnaryOp::Floor => "floor",
        UnaryOp::Exp => "exp",
        UnaryOp::Log2 => "log2",
    }
}

fn binary(op: BinaryOp) -> Option<char> {
    Some(match op {
        BinaryOp::Add => '+',
        BinaryOp::Sub => '-',
        BinaryOp::Mul => '*',
        BinaryOp::Div => '/',
        _ => return None,
    })
}

fn scalar(graph: &Graph, id: NodeId) -> Option<f64> {
    match graph.node(id).op {
        Op::Scalar(bits) => Some(f64::from_bits(bits)),
        _ => None,
    }
}

fn indices(names: &Names, experts: &BTreeSet<u64>, numbers: &Numbers) -> String {
    let mut text = String::from("[index]\n");
    let ranges = names.forms.values().map(|(name, range)| (name.as_str(), *range));
    let stacked = experts.iter().next_back().map(|&range| (EXPERT, range));
    for (name, range) in ranges.chain(stacked) {
        let (value, doubt) = numbers.write_index(name, range);
        let review = if doubt { "  # review" } else { "" };
        let _ = writeln!(text, "{name} = \"{value}\"{review}");
    }
    text.push('\n');
    text
}

/// The rules, each group under the condition that its indices show.
fn groups(rules: &IndexMap<Rule, Vec<Vec<u64>>>, names: &Names, config: &Config) -> String {
    let mut text = String::new();
    let mut last: Option<(String, bool)> = None;
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for (rule, values) in rules {
        let when = condition(rule, values, names, config);
        // One group can't hold a name twice.
        let fresh = seen.insert(&rule.name);
        let here = (when.clone(), fresh);
        if last.as_ref() != Some(&here) || !fresh {
            let _ = writeln!(text, "{}[[group]]", if last.is_some() { "\n" } else { "" });
            if !when.is_empty() {
                let _ = writeln!(text, "when = '{when}'  # review");
            }
            text.push_str("[group.tensors]\n");
            last = Some(here);
        }
        let review = if rule.review { "  # review" } else { "" };
        let _ = writeln!(text, "\"{}\" = {{ {} }}{review}", rule.name, rule.keys);
    }
    text
}

/// When a rule holds, from the values of its indices; empty where it holds for all.
fn condition(rule: &Rule, values: &[Vec<u64>], names: &Names, config: &Config) -> String {
    let held: BTreeSet<&[u64]> = values.iter().map(Vec::as_slice).collect();
    combinations(&rule.places, &held, names, config)
}

/// Says which values these indices have together: each by itself where every combination occurs, else
/// the first with what the others have beside it.
fn combinations(places: &[String], held: &BTreeSet<&[u64]>, names: &Names, config: &Config) -> String {
    let Some((place, rest)) = places.split_first() else {
        return String::new();
    };
    let mut tails: BTreeMap<u64, BTreeSet<&[u64]>> = BTreeMap::new();
    for values in held {
        tails.entry(values[0]).or_default().insert(&values[1..]);
    }
    let mut alike: IndexMap<&BTreeSet<&[u64]>, BTreeSet<u64>> = IndexMap::new();
    for (value, tail) in &tails {
        alike.entry(tail).or_default().insert(*value);
    }
    let range = names.forms.values().find(|(name, _)| name == place).map_or(0, |(_, range)| *range);
    let several = alike.len() > 1;
    let parts = alike.into_iter().map(|(tail, firsts)| {
        let all = firsts.len() as u64 == range;
        let first = if all { String::new() } else { subset(place, &firsts, range, config) };
        let others = combinations(rest, tail, names, config);
        let both = [first, others].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>();
        // `and` binds closer than `or`.
        both.iter().map(|part| bracketed(part)).collect::<Vec<_>>().join(" and ")
    });
    let parts = parts.collect::<Vec<_>>();
    if several { parts.join(" or ") } else { parts.concat() }
}

/// A condition that may stand beside an `and`.
fn bracketed(part: &str) -> String {
    if part.contains(" or ") { format!("({part})") } else { part.to_owned() }
}

/// Names some of the values of an index: by a list of the config that tells kinds, as a range, or
/// one by one.
fn subset(place: &str, held: &BTreeSet<u64>, range: u64, config: &Config) -> String {
    if let Some((list, kind)) = kinds(held, range, config) {
        return format!("{list}[{place}] == {kind}");
    }
    let (first, last) = (held.first().copied().unwrap_or(0), held.last().copied().unwrap_or(0));
    if last - first + 1 != held.len() as u64 {
        let list: Vec<String> = held.iter().map(u64::to_string).collect();
        return format!("{place} in [{}]", list.join(", "));
    }
    match (first, last + 1 == range) {
        (0, _) => format!("{place} < {}", last + 1),
        (_, true) => format!("{place} >= {first}"),
        (_, false) => format!("{place} >= {first} and {place} <= {last}"),
    }
}

/// A list of the config as long as the index runs whose entries are alike exactly for these values.
fn kinds(held: &BTreeSet<u64>, range: u64, config: &Config) -> Option<(String, String)> {
    let mut lists = Vec::new();
    find_lists(config.value(), "", range, &mut lists);
    lists.into_iter().find_map(|(path, items)| {
        let kind = items.get(*held.first()? as usize)?;
        let alike = items.iter().enumerate().all(|(at, item)| (item == kind) == held.contains(&(at as u64)));
        (alike && !kind.is_array() && !kind.is_object()).then(|| (path, kind.to_string()))
    })
}

fn find_lists<'a>(value: &'a Value, path: &str, len: u64, found: &mut Vec<(String, &'a Vec<Value>)>) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                find_lists(value, &path, len, found);
            }
        }
        Value::Array(items) if items.len() as u64 == len => found.push((path.to_owned(), items)),
        _ => {}
    }
}

/// Rules for what is left out: numbers become places.
fn drops(layout: &Layout) -> String {
    let form = |name: &str| {
        let mut count = 0;
        let parts = name.split('.').map(|part| {
            if part.parse::<u64>().is_err() {
                return part.to_owned();
            }
            count += 1;
            format!("{{n{count}}}")
        });
        parts.collect::<Vec<_>>().join(".")
    };
    let forms: IndexMap<String, &str> =
        layout.dropped.iter().map(|dropped| (form(&dropped.tensor), dropped.why.as_str())).collect();
    let mut text = String::new();
    for (form, why) in forms {
        let _ = write!(text, "\n[[drop]]\ntensors = \"{form}\"  # review\nwhy = \"{why}\"\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use smelt_kernels::Format;

    use super::*;
    use crate::layout::{Module, Role};

    #[test]
    fn formats_as_families_write_them() {
        let keys = |mode, bits, size| {
            let own = Format::new(mode, bits, size).map_or(Own::Keep, Own::Format);
            let module = Some(Module { class: ModuleClass::SwitchLinear, own });
            let (name, role) = ("w.weight".to_owned(), Role::Router);
            treatment(&Output { name, node: NodeId(0), role, module, cast: true, format_group: None })
        };
        let ends = |own: &str| format!(", module = \"SwitchLinear\", {own}, role = \"router\"");
        assert_eq!(keys(Mode::Affine, 8, 64), ends("bits = 8, group_size = 64"));
        assert_eq!(keys(Mode::Mxfp4, 4, 32), ends("mode = \"mxfp4\""));
        assert_eq!(keys(Mode::Nvfp4, 4, 16), ends("mode = \"nvfp4\""));
        assert_eq!(keys(Mode::Affine, 7, 64), ends("quantize = false"));
    }
}
