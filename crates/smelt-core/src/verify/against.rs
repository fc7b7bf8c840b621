//! Compares a model with the checkpoint that it was made from, weight by weight.
//!
//! Every parameter is pulled from the source through the family's layout, as `quantize` does, and decoded
//! from the model, block by block. What is not quantized must be the source's value, rounded to the model's
//! dtype. What is quantized must lie within what its format allows, row by row (a wrong expert of 512 is 0.2 %
//! of a tensor, but all of its own rows), and near to what other tensors of its role have in that format.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;
use smelt_kernels::{Float, Format, Mode, convert};

use super::decode::{Buffers, Values, sized};
use super::finding::{Check, Findings};
use super::limits;
use super::model::Model;
use super::parallel::Crew;
use super::parameter::{Parameter, Stored};
use super::sums::{Metrics, Sums};
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::error::Error;
use crate::layout::pool::Pool;
use crate::layout::pull::Puller;
use crate::layout::{Family, Graph, Layout, NodeId, Role, cost};
use crate::pipeline::{Event, Observer};
use crate::plan::Origin;
use crate::plan::blocks::Cut;

/// Bytes of the source in a block. The cut decides the order of the sums, so it is always the same.
const BLOCK: u64 = 2 << 20;

/// Bytes that the intermediate results of a block may take.
pub(super) const SCRATCH: u64 = 16 << 20;

/// Bytes of a worker's buffers: the block of the source, both sides as f32, the stored parts.
pub(super) const WORKER: u64 = 8 * BLOCK + SCRATCH;

/// A tensor this many times worse than the median of its like is an outlier.
const OUTLIER: f64 = 4.0;

/// As many tensors of a kind make a median.
const PEERS: usize = 4;

const AGAIN: &str = "quantize the model again; if it was made by another tool, report it there";

/// How far a parameter is from its source.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// The parameter.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its format, or its dtype if it is not quantized.
    pub format: String,
    /// Its shape.
    pub shape: Vec<u64>,
    /// The error.
    pub metrics: Metrics,
    /// The relative RMSE of the worst row, and which it is (counted over all axes but the last).
    pub worst_row: Option<(f64, u64)>,
}

/// The parameters of one role in one format.
#[derive(Clone, Debug, Serialize)]
pub struct Kind {
    /// The role.
    pub role: Role,
    /// The format.
    pub format: String,
    /// How many.
    pub count: usize,
    /// The median of their relative RMSE.
    pub median: f64,
    /// The largest.
    pub worst: f64,
}

/// A whole comparison.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Comparison {
    /// Every parameter that could be compared, in the order of the family.
    pub tensors: Vec<Compared>,
    /// The same by role and format.
    pub kinds: Vec<Kind>,
}

/// What is compared.
#[derive(Clone, Copy)]
pub(super) struct Against<'a> {
    pub(super) model: &'a Model,
    pub(super) parameters: &'a [(Parameter<'a>, Option<Format>)],
    pub(super) source: &'a Checkpoint,
    pub(super) crew: Crew<'a>,
    pub(super) observer: &'a dyn Observer,
}

/// The layout of the source for the library whose names the model has most of.
pub(super) fn layout(
    source: &Checkpoint,
    family: &Family,
    library: Option<&str>,
    parameters: &[(Parameter<'_>, Option<Format>)],
) -> Result<Layout> {
    if library.is_some() {
        return Origin::family(source, family, library).map(|origin| origin.layout);
    }
    let names: HashSet<&str> = parameters.iter().map(|(parameter, _)| parameter.name).collect();
    let mut best: Option<(usize, Layout)> = None;
    let mut refused = None;
    for library in &family.targets {
        match Origin::family(source, family, Some(library)) {
            Ok(Origin { layout, .. }) => {
                let known =
                    layout.outputs.iter().filter(|output| names.contains(output.name.as_str())).count();
                if best.as_ref().is_none_or(|(most, _)| known > *most) {
                    best = Some((known, layout));
                }
            }
            Err(error) => refused = Some(error),
        }
    }
    match (best, refused) {
        (Some((_, layout)), _) => Ok(layout),
        (None, Some(error)) => Err(error),
        (None, None) => Err(Error::NoModelType),
    }
}

/// A parameter that both sides have.
struct Pair<'a> {
    role: Role,
    node: NodeId,
    /// Whether the value must be the source's.
    exact: bool,
    format: Option<Format>,
    parameter: &'a Parameter<'a>,
    values: Option<Values<'a>>,
    shape: Vec<u64>,
}

impl Against<'_> {
    /// Compares everything that both sides have.
    pub(super) fn run(&self, mut layout: Layout, findings: &mut Findings) -> Result<Comparison> {
        let pairs = self.pairs(&mut layout, findings);
        let sizes: Vec<u64> = pairs.iter().map(|pair| pair.parameter.bytes()).collect();
        let graph = &layout.graph;
        let measured = self.crew.each(&sizes, |index| self.pair(graph, &pairs[index]))?;
        let mut comparison = Comparison::default();
        for (pair, measured) in pairs.iter().zip(measured) {
            tell(pair, &measured, findings);
            comparison.tensors.extend(measured.compared(pair));
        }
        comparison.kinds = kinds(&comparison.tensors);
        outliers(&comparison, &pairs, findings);
        Ok(comparison)
    }

    fn pairs(&self, layout: &mut Layout, findings: &mut Findings) -> Vec<Pair<'_>> {
        let mut ours: HashMap<&str, _> = self
            .parameters
            .iter()
            .map(|(parameter, format)| (parameter.name, (parameter, *format)))
            .collect();
        let mut pairs = Vec::new();
        for output in &layout.outputs {
            let Some((parameter, format)) = ours.remove(output.name.as_str()) else {
                findings.error(Check::Source, &output.name, "the source has it, the model not", AGAIN);
                continue;
            };
            let values = Values::of(self.model, parameter, format);
            let shape = layout.graph.node(output.node).shape.to_vec();
            let found = match (&values, parameter.stored) {
                (Some(values), _) => values.shape(),
                (None, Stored::Plain(tensor)) => tensor.shape.to_vec(),
                (None, Stored::Packed(_)) => {
                    let what = "its format can't be told, so it is not compared";
                    findings.error(Check::Source, parameter.name, what, AGAIN);
                    continue;
                }
            };
            if found != shape {
                let what = format!("its shape is {found:?}, the source gives {shape:?}");
                findings.error(Check::Source, parameter.name, what, AGAIN);
                continue;
            }
            let exact = layout.graph.is_exact(output.node);
            let node = same_dtype(&mut layout.graph, output.node, parameter);
            pairs.push(Pair { role: output.role, node, exact, format, parameter, values, shape });
        }
        for name in ours.keys().collect::<std::collections::BTreeSet<_>>() {
            findings.error(Check::Source, name, "the model has it, nothing in the source gives it", AGAIN);
        }
        pairs
    }

    fn pair(&self, graph: &Graph, pair: &Pair<'_>) -> Result<Measured> {
        let float = graph.node(pair.node).dtype.float();
        let (Some(values), Some(float)) = (&pair.values, float) else {
            return self.bytes(graph, pair);
        };
        let size = float.size();
        let cut = cut(graph, pair.node, &pair.shape, values.unit(), size as u64);
        let ceiling = pair.format.map(limits::ceiling);
        let mut measured = Measured { rows: Rows::new(&pair.shape, ceiling), ..Measured::default() };
        let (mut pool, mut buffers) = (Pool::default(), Buffers::default());
        let (mut pulled, mut x, mut y) = (Vec::new(), Vec::new(), Vec::new());
        let puller = Puller::new(graph, self.source);
        for block in (0..cut.count()).map(|index| cut.block(index)) {
            let len = block.len as usize;
            puller.pull(pair.node, &block.region, sized(&mut pulled, len * size), &mut pool)?;
            convert(float, Float::F32, &pulled, sized(&mut x, len * 4));
            values.read(block.offset, sized(&mut y, len * 4), &mut buffers)?;
            measured.differ |= values.plain_dtype().is_some() && x != y;
            measured.add(block.offset, &x, &y);
            self.observer.on(&Event::Block { bytes: block.len * size as u64 });
        }
        Ok(measured)
    }

    /// What is no float must be equal byte for byte.
    fn bytes(&self, graph: &Graph, pair: &Pair<'_>) -> Result<Measured> {
        let (node, mut measured) = (graph.node(pair.node), Measured { opaque: true, ..Measured::default() });
        let Stored::Plain(tensor) = pair.parameter.stored else { return Ok(measured) };
        if node.dtype != tensor.dtype {
            measured.differ = true;
            return Ok(measured);
        }
        let size = (node.dtype.bits() / 8).max(1);
        let cut = cut(graph, pair.node, &pair.shape, 1, size);
        let (mut pool, mut pulled, mut stored) = (Pool::default(), Vec::new(), Vec::new());
        for block in (0..cut.count()).map(|index| cut.block(index)) {
            let len = (block.len * size) as usize;
            let puller = Puller::new(graph, self.source);
            puller.pull(pair.node, &block.region, sized(&mut pulled, len), &mut pool)?;
            self.model.read(tensor, block.offset * size, sized(&mut stored, len))?;
            measured.differ |= pulled != stored;
            self.observer.on(&Event::Block { bytes: len as u64 });
        }
        Ok(measured)
    }
}

/// The expression rounded to the dtype in which the model keeps it, as the libraries round it.
fn same_dtype(graph: &mut Graph, node: NodeId, parameter: &Parameter<'_>) -> NodeId {
    match parameter.stored {
        Stored::Plain(tensor) if tensor.dtype.float().is_some() && graph.node(node).dtype.is_floating() => {
            graph.cast(node, tensor.dtype).unwrap_or(node)
        }
        _ => node,
    }
}

/// Cuts a parameter into blocks that are the same whatever the memory and the threads.
fn cut(graph: &Graph, node: NodeId, shape: &[u64], unit: u64, size: u64) -> Cut {
    let mut most = (BLOCK / size).max(1);
    loop {
        let cut = Cut::new(shape, unit, most);
        let first = (cut.count() > 0).then(|| cut.block(0));
        let needs = first.map_or(0, |block| {
            if cost::is_steady(graph, node) {
                cost::scratch(graph, node, &block.region)
            } else {
                cost::bound(graph, node, block.len)
            }
        });
        if most == 1 || needs <= SCRATCH {
            return cut;
        }
        most = most.div_ceil(2);
    }
}

/// What was measured of a pair.
#[derive(Debug, Default)]
struct Measured {
    sums: Sums,
    rows: Rows,
    /// Values that are stored as they are differ.
    differ: bool,
    /// It holds no floats.
    opaque: bool,
}

/// Rows, each for itself.
#[derive(Debug, Default)]
struct Rows {
    len: u64,
    /// The square of the relative RMSE that no row should have.
    ceiling: Option<f64>,
    worst: Option<(f64, u64)>,
    /// Rows above the ceiling, and the first of them.
    beyond: u64,
    first: u64,
}

impl Rows {
    fn new(shape: &[u64], ceiling: Option<f64>) -> Self {
        let len = shape.last().copied().unwrap_or(1).max(1);
        Self { len, ceiling: ceiling.map(|ceiling| ceiling * ceiling), ..Self::default() }
    }

    fn note(&mut self, row: u64, sums: &Sums) {
        let floor = limits::FLOOR * sums.count as f64;
        let ratio = sums.error / (sums.energy + floor);
        // Written so that NaN counts.
        if self.worst.is_none_or(|(worst, _)| !(ratio <= worst)) {
            self.worst = Some((ratio, row));
        }
        if self.ceiling.is_some_and(|ceiling| !(ratio <= ceiling)) {
            if self.beyond == 0 {
                self.first = row;
            }
            self.beyond += 1;
        }
    }
}

impl Measured {
    /// Adds a block that begins at an element: whole rows, or a part of one.
    fn add(&mut self, offset: u64, x: &[u8], y: &[u8]) {
        let row_bytes = (self.rows.len * 4) as usize;
        let mut row = offset / self.rows.len;
        for (x, y) in x.chunks(row_bytes).zip(y.chunks(row_bytes)) {
            let sums = Sums::of(x, y);
            self.rows.note(row, &sums);
            self.sums.add(&sums);
            row += 1;
        }
    }

    fn compared(&self, pair: &Pair<'_>) -> Option<Compared> {
        (!self.opaque).then(|| Compared {
            name: pair.parameter.name.to_owned(),
            role: pair.role,
            format: pair.parameter.format_name(pair.format),
            shape: pair.shape.clone(),
            metrics: self.sums.metrics(),
            worst_row: self.rows.worst.map(|(ratio, row)| (ratio.sqrt(), row)),
        })
    }
}

/// Tells what can't be, of one parameter.
fn tell(pair: &Pair<'_>, measured: &Measured, findings: &mut Findings) {
    let name = pair.parameter.name;
    let metrics = measured.sums.metrics();
    let far = format!("relative RMSE {:.3}, cosine {:.3}", metrics.relative_rmse, metrics.cosine);
    let mut error = |what: String| findings.error(Check::Source, name, what, AGAIN);
    match pair.format {
        None if measured.opaque && measured.differ => error("it is not the source's".to_owned()),
        // What MLX leaves open may differ in the last place.
        None if measured.differ && (pair.exact || !(metrics.relative_rmse <= ROUNDED)) => {
            error(format!("it is not quantized, and is not the source's: {far}"));
        }
        Some(format) if measured.rows.beyond > 0 => {
            let rows: u64 = pair.shape.iter().rev().skip(1).product();
            error(format!(
                "{} of {rows} rows, the first {}, are further from the source than {format} can be: {far}",
                measured.rows.beyond,
                place(&pair.shape, measured.rows.first),
            ));
        }
        _ => {}
    }
}

/// The relative error of two roundings to bf16.
const ROUNDED: f64 = 1.0 / 128.0;

/// The place of a row on each axis but the last.
fn place(shape: &[u64], row: u64) -> String {
    let (mut rest, mut places) = (row, Vec::new());
    for size in shape[..shape.len().saturating_sub(1)].iter().rev() {
        places.push((rest % (*size).max(1)).to_string());
        rest /= (*size).max(1);
    }
    places.reverse();
    format!("[{}]", places.join(", "))
}

/// Medians by role and format.
fn kinds(tensors: &[Compared]) -> Vec<Kind> {
    let mut groups: BTreeMap<(Role, &str), Vec<f64>> = BTreeMap::new();
    for tensor in tensors {
        groups.entry((tensor.role, &tensor.format)).or_default().push(tensor.metrics.relative_rmse);
    }
    let kind = |((role, format), mut errors): ((Role, &str), Vec<f64>)| {
        errors.sort_by(f64::total_cmp);
        Kind {
            role,
            format: format.to_owned(),
            count: errors.len(),
            median: errors[errors.len() / 2],
            worst: errors[errors.len() - 1],
        }
    };
    groups.into_iter().map(kind).collect()
}

/// Tells of tensors that are much worse than their like.
fn outliers(comparison: &Comparison, pairs: &[Pair<'_>], findings: &mut Findings) {
    let formats: HashMap<&str, Format> =
        pairs.iter().filter_map(|pair| Some((pair.parameter.name, pair.format?))).collect();
    let told: HashSet<String> = findings.of(Check::Source).map(str::to_owned).collect();
    for tensor in comparison.tensors.iter().filter(|tensor| !told.contains(&tensor.name)) {
        let Some(&format) = formats.get(tensor.name.as_str()) else { continue };
        let of_kind = |kind: &&Kind| kind.role == tensor.role && kind.format == tensor.format;
        let Some(kind) = comparison.kinds.iter().find(of_kind).filter(|kind| kind.count >= PEERS) else {
            continue;
        };
        let error = tensor.metrics.relative_rmse;
        if error > OUTLIER * kind.median && error > 2.0 * limits::usual(format) {
            let what = format!(
                "its relative RMSE is {error:.3}, {:.0} times the median of {} {} tensors in {format}",
                error / kind.median,
                kind.count,
                kind.role
            );
            let add = if format.mode() == Mode::Nvfp4 { Findings::warning } else { Findings::error };
            add(findings, Check::Source, &tensor.name, what, AGAIN);
        }
    }
}
