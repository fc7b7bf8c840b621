//! Which format each parameter gets.
//!
//! What predicts further tokens has a format of its own ([`mtp`]) that nothing changes. Else, in order of
//! strength: an override of the user, a rule of a recipe file, the model that is copied, the format of the
//! towers (what sees or hears stays as it is unless asked), what an allocation or a recipe of mlx-lm chose
//! for the module alone, the family's own format for it (a router at 8 bits, as the library's
//! `quant_predicate` says), the format of the run. A format of the family that keeps no more bits than runs
//! have anyway ([`yields`]) gives way to a run of other bits or another mode, and to a target.

use smelt_kernels::{Float, Format, Mode};

use super::rules::{RuleEffect, Ruling, Tally, Verdict};
use super::transcode::{Moved, Not, Transcode, moved};
use super::treatment::{Treatment, treatment};
use super::{Note, Options, Part, Spec, Task, mtp};
use crate::checkpoint::{Checkpoint, DType, Storage};
use crate::error::{PlanError, Result};
use crate::layout::{Graph, Layout, Module, Output, Own, Role};

/// What is to happen with a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It stays as it is.
    Keep,
    /// It is quantized.
    Quantize(Format),
}

impl Choice {
    /// The format; `None` for what stays as it is.
    pub const fn format(self) -> Option<Format> {
        match self {
            Self::Keep => None,
            Self::Quantize(format) => Some(format),
        }
    }
}

/// Refuses a checkpoint whose weights can't be read as floats, or that MLX quantized already.
pub(super) fn refuse_packed(checkpoint: &Checkpoint, options: &Options) -> Result<()> {
    checkpoint.check_storage()?;
    match checkpoint.storage() {
        storage @ Storage::Mlx { .. } if !options.allow_requantize => {
            Err(PlanError::Requantize { storage: storage.describe() }.into())
        }
        _ => Ok(()),
    }
}

/// What was chosen.
pub(super) struct Chosen {
    pub(super) tasks: Vec<Task>,
    /// What the rules came to.
    pub(super) effects: Vec<RuleEffect>,
    /// What happens to the codes of the source.
    pub(super) treatments: Vec<Treatment>,
}

/// One task for each parameter, without its place in a file, and what the rules came to.
pub(super) fn tasks(
    checkpoint: &Checkpoint,
    layout: &mut Layout,
    options: &Options,
    notes: &mut Vec<Note>,
) -> Result<Chosen> {
    let ruling = Ruling::new(options, &layout.outputs);
    let mut choosing = Choosing {
        checkpoint,
        options,
        ruling: &ruling,
        tally: Tally::new(&ruling),
        notes,
        treatments: Vec::new(),
    };
    let (mut tasks, mut verdicts) = (Vec::with_capacity(layout.outputs.len()), Vec::new());
    for output in &layout.outputs {
        let Some(module) = output.module else {
            tasks.push(choosing.task(&mut layout.graph, output, Choice::Keep)?);
            continue;
        };
        let (task, verdict) = choosing.module(&mut layout.graph, output, module)?;
        tasks.push(task);
        if options.like.is_some() {
            verdicts.push((output, verdict));
        }
    }
    let Choosing { tally, treatments, notes, .. } = choosing;
    let (effects, unused) = tally.finish();
    notes.extend(unused);
    if let Some(like) = &options.like {
        notes.extend(like.notes(verdicts.iter().map(|(output, verdict)| (*output, verdict))));
    }
    match notes.iter().find(|note| note.is_fallback()) {
        Some(note) if options.strict => Err(PlanError::Strict { note: note.to_string() }.into()),
        _ => Ok(Chosen { tasks, effects, treatments }),
    }
}

/// The choices of a run, as they are made.
struct Choosing<'a> {
    checkpoint: &'a Checkpoint,
    options: &'a Options,
    ruling: &'a Ruling<'a>,
    tally: Tally<'a>,
    notes: &'a mut Vec<Note>,
    treatments: Vec<Treatment>,
}

impl Choosing<'_> {
    /// The task of a module, and what the rules say of it.
    fn module(&mut self, graph: &mut Graph, output: &Output, module: Module) -> Result<(Task, Verdict)> {
        let options = self.options;
        let verdict = if output.role == Role::Mtp { Verdict::default() } else { self.ruling.of(output) };
        let choice = verdict.choice().unwrap_or_else(|| choose(output, module, options));
        let task = self.task(graph, output, choice)?;
        let free = is_free(output, &verdict, options);
        if free {
            self.ruling.check_bounds(output.module_path(), &verdict)?;
        }
        self.tally.count(&verdict, free, task.bytes());
        Ok((task, verdict))
    }

    /// The task of a module with this choice; its bits are moved where they can be.
    fn task(&mut self, graph: &mut Graph, output: &Output, choice: Choice) -> Result<Task> {
        let options = self.options;
        let moved = transcoded(self.checkpoint, graph, (output, choice), options, self.notes)?;
        let found = moved.as_ref().map(drop).map_err(|not| *not);
        let task = match moved {
            Ok((format, moved)) => {
                Task { moved: Some(moved), ..task(graph, output, format, options, self.notes)? }
            }
            Err(_) => task(graph, output, choice, options, self.notes)?,
        };
        let place = (&*output.name, output.node);
        self.treatments.extend(treatment(self.checkpoint, graph, place, task.format.is_some(), found));
        Ok(task)
    }
}

/// What happens with a module that no rule decides about.
fn choose(output: &Output, module: Module, options: &Options) -> Choice {
    if output.role == Role::Mtp {
        return options.format.and_then(|_| mtp::format()).map_or(Choice::Keep, Choice::Quantize);
    }
    match options.format {
        None => Choice::Keep,
        Some(_) if output.role.is_tower() => options.towers.map_or(Choice::Keep, Choice::Quantize),
        Some(format) => match (options.widths.get(output.module_path()), module.own) {
            (Some(width), _) => Choice::Quantize(width),
            (None, Own::Keep) => Choice::Keep,
            (None, Own::Format(own)) if is_default(own, format) => Choice::Quantize(own),
            (None, Own::Format(_) | Own::Run) => Choice::Quantize(format),
        },
    }
}

/// Whether a format of the family's is only how the library's files are. More bits than a run has by default keep
/// what suffers from fewer (a router); as many or fewer keep nothing, and are of what takes most of the room (experts
/// that come in MXFP4): who asks for other bits or for a size means these.
fn yields(own: Format) -> bool {
    own.bits() <= Mode::Affine.defaults().0
}

/// Whether a module has the family's format in this run, and not that of the run.
fn is_default(own: Format, run: Format) -> bool {
    !yields(own) || (run.mode() == Mode::Affine && run.bits() == own.bits())
}

/// Whether nothing but the format of the run decides about a parameter, so that an allocation may.
pub(super) fn is_free(output: &Output, verdict: &Verdict, options: &Options) -> bool {
    let free = output.module.is_some_and(|module| match module.own {
        Own::Run => true,
        Own::Format(own) => yields(own),
        Own::Keep => false,
    });
    let free = free && !output.role.is_tower() && output.role != Role::Mtp;
    options.format.is_some() && free && verdict.choice().is_none()
}

/// Bytes of a weight of this shape in a format: codes, scales and biases.
pub(super) fn stored_bytes(shape: &[u64], dtype: Float, format: Format) -> u64 {
    let groups = shape.iter().product::<u64>() / format.group_size() as u64;
    let scales = format.scale_bytes(dtype) * if format.has_biases() { 2 } else { 1 };
    groups * (format.code_bytes() + scales) as u64
}

/// The format in which the bits of a parameter are moved, and how; or why they are not, of which a note
/// tells where they could have been.
fn transcoded(
    checkpoint: &Checkpoint,
    graph: &mut Graph,
    (output, choice): (&Output, Choice),
    options: &Options,
    notes: &mut Vec<Note>,
) -> Result<Result<(Choice, Moved), Not>> {
    let Choice::Quantize(asked) = choice else { return Ok(Err(Not::Native)) };
    if options.transcode == Transcode::Never {
        return Ok(Err(Not::Because("so it was asked, by `--transcode never`")));
    }
    let module = output.module_path().to_owned();
    let why = match moved(checkpoint, graph, output.node, asked)? {
        Ok((native, _)) if native.format.has_biases() && is_cast(graph, output, options) => {
            "scales of another dtype are asked for"
        }
        Ok((native, moved)) => {
            if native.format != asked {
                let (format, asked) = (native.format.to_string(), asked.to_string());
                notes.push(Note::Moved { module, format, asked });
            }
            return Ok(Ok((Choice::Quantize(native.format), moved)));
        }
        Err(Not::Native) => return Ok(Err(Not::Native)),
        Err(Not::Because(why)) => why,
    };
    notes.push(Note::NotMoved { module, why: why.to_owned() });
    Ok(Err(Not::Because(why)))
}

/// Whether the dtype that is asked for is another one than the parameter's.
fn is_cast(graph: &Graph, output: &Output, options: &Options) -> bool {
    options.dtype.is_some_and(|dtype| output.cast && dtype != graph.node(output.node).dtype)
}

/// The format in which the bits of a parameter are moved wherever as many bits are asked for as it has.
pub(super) fn native(
    checkpoint: &Checkpoint,
    graph: &mut Graph,
    output: &Output,
    options: &Options,
) -> Option<Format> {
    let most = Format::new(Mode::Affine, 8, 64).filter(|_| options.transcode == Transcode::Auto)?;
    let (native, _) = moved(checkpoint, graph, output.node, most).ok()?.ok()?;
    let cast = native.format.has_biases() && is_cast(graph, output, options);
    (!cast).then_some(native.format)
}

fn task(
    graph: &mut Graph,
    output: &Output,
    choice: Choice,
    options: &Options,
    notes: &mut Vec<Note>,
) -> Result<Task> {
    let mut node = output.node;
    if let Some(dtype) = options.dtype
        && output.cast
        && graph.node(node).dtype.is_floating()
    {
        node = graph
            .cast(node, dtype)
            .map_err(|error| PlanError::Dtype { tensor: output.name.clone(), error })?;
    }
    let (dtype, shape) = (graph.node(node).dtype, graph.node(node).shape.to_vec());
    let format = match choice {
        Choice::Keep => None,
        Choice::Quantize(format) => fitting(output, format, dtype, &shape, notes)?,
    };
    let parts = match format {
        None => vec![part(output.name.clone(), dtype, shape.clone())?],
        Some(format) => quantized_parts(&output.name, format, dtype, &shape)?,
    };
    Ok(Task {
        name: output.name.clone(),
        role: output.role,
        node,
        dtype,
        shape,
        format: format.map(Spec),
        parts,
        moved: None,
        weighed: false,
    })
}

/// The format, unless rows do not divide into its groups: then a note, and the weight stays.
fn fitting(
    output: &Output,
    format: Format,
    dtype: DType,
    shape: &[u64],
    notes: &mut Vec<Note>,
) -> Result<Option<Format>> {
    if dtype.float().is_none() {
        let (tensor, module) = (output.name.clone(), regex::escape(output.module_path()));
        return Err(PlanError::NotFloat { tensor, module, dtype }.into());
    }
    let row = shape.last().copied().unwrap_or(0);
    let group_size = format.group_size() as u64;
    if shape.len() >= 2 && row > 0 && row % group_size == 0 {
        return Ok(Some(format));
    }
    let module = output.module_path().to_owned();
    notes.push(Note::NotDivisible { module, row, group_size });
    Ok(None)
}

/// Weight, scales and biases of a quantized module, as MLX names and shapes them.
fn quantized_parts(name: &str, format: Format, dtype: DType, shape: &[u64]) -> Result<Vec<Part>> {
    let stem = name.strip_suffix("weight").unwrap_or(name);
    let row = shape.last().copied().unwrap_or(0);
    let with_last = |last: u64| {
        let mut shape = shape.to_vec();
        shape.pop();
        shape.push(last);
        shape
    };
    let groups = with_last(row / format.group_size() as u64);
    let scale_dtype = if format.has_biases() { dtype } else { DType::U8 };
    let mut parts = vec![
        part(name.to_owned(), DType::U32, with_last(row * u64::from(format.bits()) / 32))?,
        part(format!("{stem}scales"), scale_dtype, groups.clone())?,
    ];
    if format.has_biases() {
        parts.push(part(format!("{stem}biases"), scale_dtype, groups)?);
    }
    Ok(parts)
}

fn part(name: String, dtype: DType, shape: Vec<u64>) -> Result<Part> {
    let elements = shape.iter().try_fold(1u64, |total, &size| total.checked_mul(size));
    let bytes = elements.and_then(|elements| dtype.bytes(elements));
    match bytes {
        Some(bytes) => Ok(Part { name, dtype, shape, bytes, shard: 0, offset: 0 }),
        None => Err(PlanError::TensorSize { tensor: name }.into()),
    }
}
