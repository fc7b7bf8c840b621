//! Compares a model with the checkpoint that it was made from, weight by weight.
//!
//! Every parameter is pulled from the source through the family's layout, as `quantize` does, and decoded
//! from the model, block by block. What is not quantized must be the source's value, rounded to the model's
//! dtype. What is quantized must lie within what its format allows, row by row (a wrong expert of 512 is 0.2 %
//! of a tensor, but all of its own rows), and near to what other tensors of its role have in that format.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;

use smelt_kernels::{Float, Format, convert};

use super::decode::{Buffers, Values, sized};
use super::finding::{Check, Findings};
use super::limits;
use super::measured::{Measured, Rows};
use super::model::Model;
use super::parallel::Crew;
use super::parameter::{Parameter, Stored};
use super::verdict::{Comparison, compared, kinds, outliers, tell};
use crate::Result;
use crate::checkpoint::Checkpoint;
use crate::error::LayoutError;
use crate::layout::pool::Pool;
use crate::layout::pull::Puller;
use crate::layout::{Family, Graph, Layout, NodeId, Role, cost};
use crate::pipeline::{Event, Observer};
use crate::plan::Origin;
use crate::plan::blocks::Cut;

/// Bytes of the source in a block. The cut decides the order of the sums, so it is always the same.
const BLOCK: u64 = 2 << 20;

/// Blocks that one worker takes at once: few enough that the last ones are shared out too.
const PIECE: u64 = 16;

/// Bytes that the intermediate results of a block may take.
pub(super) const SCRATCH: u64 = 16 << 20;

/// Bytes of a worker's buffers: the block of the source, both sides as f32, the stored parts.
pub(super) const WORKER: u64 = 8 * BLOCK + SCRATCH;

pub(super) const AGAIN: &str = "quantize the model again; if it was made by another tool, report it there";

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
        (None, None) => Err(LayoutError::NoModelType.into()),
    }
}

/// The layout of the model, then that of what can lie apart from it.
pub(super) fn parted(source: &Checkpoint, family: &Family, model: Layout) -> Result<Vec<Layout>> {
    let mut apart = model.clone();
    apart.outputs.clear();
    apart
        .separate_mtp(source)
        .map_err(|problems| LayoutError::Misfit { family: family.name.clone(), problems: problems.into() })?;
    Ok(vec![model, apart])
}

/// A parameter that both sides have.
pub(super) struct Pair<'a> {
    pub(super) role: Role,
    node: NodeId,
    /// Whether the value must be the source's.
    pub(super) exact: bool,
    pub(super) format: Option<Format>,
    pub(super) parameter: &'a Parameter<'a>,
    values: Option<Values<'a>>,
    pub(super) shape: Vec<u64>,
    cut: Cut,
}

impl Pair<'_> {
    /// The pieces in which it is worked on, of at least one block each.
    fn pieces(&self, index: usize) -> impl Iterator<Item = (usize, Range<u64>)> {
        let count = self.cut.count();
        let starts = (0..count.max(1)).step_by(PIECE as usize);
        starts.map(move |start| (index, start..(start + PIECE).min(count)))
    }
}

impl Against<'_> {
    /// Compares everything that both sides have.
    pub(super) fn run(&self, mut layout: Layout, findings: &mut Findings) -> Result<Comparison> {
        let pairs = self.pairs(&mut layout, findings);
        let pieces: Vec<_> = pairs.iter().enumerate().flat_map(|(index, pair)| pair.pieces(index)).collect();
        let sizes: Vec<u64> = pieces.iter().map(|(_, blocks)| blocks.end - blocks.start).collect();
        let graph = &layout.graph;
        let parts = self.crew.each(&sizes, |at| {
            let (index, blocks) = &pieces[at];
            self.piece(graph, &pairs[*index], blocks.clone())
        })?;
        let mut measured: Vec<_> = pairs.iter().map(|_| Measured::default()).collect();
        for ((index, _), part) in pieces.iter().zip(&parts) {
            measured[*index].join(part);
        }
        let mut comparison = Comparison::default();
        for (pair, measured) in pairs.iter().zip(measured) {
            tell(pair, &measured, findings);
            comparison.tensors.extend(compared(pair, &measured));
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
            let size = (layout.graph.node(node).dtype.bits() / 8).max(1);
            let unit = values.as_ref().map_or(1, Values::unit);
            let cut = cut(&layout.graph, node, &shape, unit, size);
            pairs.push(Pair { role: output.role, node, exact, format, parameter, values, shape, cut });
        }
        for name in ours.keys().collect::<BTreeSet<_>>() {
            findings.error(Check::Source, name, "the model has it, nothing in the source gives it", AGAIN);
        }
        pairs
    }

    /// Measures some blocks of a pair.
    fn piece(&self, graph: &Graph, pair: &Pair<'_>, blocks: Range<u64>) -> Result<Measured> {
        let dtype = graph.node(pair.node).dtype;
        let (Some(values), Some(float)) = (&pair.values, dtype.float()) else {
            return self.bytes(graph, pair, blocks);
        };
        let (size, plain) = (float.size(), values.plain_dtype().is_some());
        let ceiling = pair.format.map(limits::ceiling);
        let mut measured = Measured { rows: Rows::new(&pair.shape, ceiling), ..Measured::default() };
        let (mut pool, mut buffers) = (Pool::default(), Buffers::default());
        let (mut pulled, mut x, mut y) = (Vec::new(), Vec::new(), Vec::new());
        let puller = Puller::new(graph, self.source);
        for block in blocks.map(|index| pair.cut.block(index)) {
            let len = block.len as usize;
            puller.pull(pair.node, &block.region, sized(&mut pulled, len * size), &mut pool)?;
            convert(float, Float::F32, &pulled, sized(&mut x, len * 4));
            values.read(block.offset, sized(&mut y, len * 4), &mut buffers)?;
            measured.differ |= plain && x != y;
            measured.add(block.offset, &x, &y);
            self.observer.on(&Event::Block { bytes: block.len * if plain { size as u64 } else { 2 } });
        }
        Ok(measured)
    }

    /// What is no float must be equal byte for byte.
    fn bytes(&self, graph: &Graph, pair: &Pair<'_>, blocks: Range<u64>) -> Result<Measured> {
        let (node, mut measured) = (graph.node(pair.node), Measured { opaque: true, ..Measured::default() });
        let Stored::Plain(tensor) = pair.parameter.stored else { return Ok(measured) };
        if node.dtype != tensor.dtype {
            measured.differ = true;
            return Ok(measured);
        }
        let size = (node.dtype.bits() / 8).max(1);
        let (mut pool, mut pulled, mut stored) = (Pool::default(), Vec::new(), Vec::new());
        for block in blocks.map(|index| pair.cut.block(index)) {
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
