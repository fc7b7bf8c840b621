//! Which format each parameter gets.
//!
//! In order of strength: an override of the user, the format of the towers (what sees or hears stays
//! as it is unless asked), what an allocation or a recipe chose for the module alone, the family's own
//! format for it (a router at 8 bits, as the library's `quant_predicate` says), the format of the run.

use smelt_kernels::{Float, Format};

use super::transcode::{Moved, Not, Transcode, moved};
use super::{Note, Options, Part, Spec, Task};
use crate::checkpoint::{Checkpoint, DType, Storage};
use crate::error::{Error, Result};
use crate::layout::{Graph, Layout, Module, Output, Own};

/// What is to happen with a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It stays as it is.
    Keep,
    /// It is quantized.
    Quantize(Format),
}

/// Refuses a checkpoint whose weights can't be read as floats, or that MLX quantized already.
pub(super) fn refuse_packed(checkpoint: &Checkpoint, options: &Options) -> Result<()> {
    checkpoint.check_storage()?;
    match checkpoint.storage() {
        storage @ Storage::Mlx { .. } if !options.allow_requantize => {
            Err(Error::Requantize { storage: storage.describe() })
        }
        _ => Ok(()),
    }
}

/// One task for each parameter, without its place in a file.
pub(super) fn tasks(
    checkpoint: &Checkpoint,
    layout: &mut Layout,
    options: &Options,
    notes: &mut Vec<Note>,
) -> Result<Vec<Task>> {
    let mut hits = vec![false; options.overrides.len()];
    let mut tasks = Vec::with_capacity(layout.outputs.len());
    for output in &layout.outputs {
        let choice = output.module.map_or(Choice::Keep, |module| choose(output, module, options, &mut hits));
        let given = if options.transcode == Transcode::Auto { Some(checkpoint) } else { None };
        let moved = transcoded(given, &mut layout.graph, output, choice, options, notes);
        tasks.push(match moved {
            Some((format, moved)) => {
                Task { moved: Some(moved), ..task(&mut layout.graph, output, format, options, notes)? }
            }
            None => task(&mut layout.graph, output, choice, options, notes)?,
        });
    }
    let unused = options.overrides.iter().zip(hits).filter(|(_, hit)| !hit);
    notes.extend(unused.map(|(rule, _)| Note::OverrideUnused { text: rule.to_string() }));
    match notes.iter().find(|note| note.is_fallback()) {
        Some(note) if options.strict => Err(Error::Strict { note: note.to_string() }),
        _ => Ok(tasks),
    }
}

fn choose(output: &Output, module: Module, options: &Options, hits: &mut [bool]) -> Choice {
    let path = path(output);
    let mut choice = match options.format {
        None => Choice::Keep,
        Some(_) if output.role.is_tower() => options.towers.map_or(Choice::Keep, Choice::Quantize),
        Some(format) => match (options.widths.get(path), module.own) {
            (Some(width), _) => Choice::Quantize(width),
            (None, Own::Run) => Choice::Quantize(format),
            (None, Own::Format(own)) => Choice::Quantize(own),
            (None, Own::Keep) => Choice::Keep,
        },
    };
    for (rule, hit) in options.overrides.iter().zip(hits) {
        if rule.pattern.is_match(path) {
            *hit = true;
            choice = rule.format.map_or(Choice::Keep, Choice::Quantize);
        }
    }
    choice
}

/// Whether nothing but the format of the run decides about a parameter, so that an allocation may.
pub(super) fn is_free(output: &Output, options: &Options) -> bool {
    let free = output.module.is_some_and(|module| module.own == Own::Run) && !output.role.is_tower();
    let overridden = || options.overrides.iter().any(|rule| rule.pattern.is_match(path(output)));
    options.format.is_some() && free && !overridden()
}

/// Bytes of a weight of this shape in a format: codes, scales and biases.
pub(super) fn stored_bytes(shape: &[u64], dtype: Float, format: Format) -> u64 {
    let groups = shape.iter().product::<u64>() / format.group_size() as u64;
    let scales = format.scale_bytes(dtype) * if format.has_biases() { 2 } else { 1 };
    groups * (format.code_bytes() + scales) as u64
}

/// The path of a parameter's module.
fn path(output: &Output) -> &str {
    output.name.strip_suffix(".weight").unwrap_or(&output.name)
}

/// The format in which the bits of a parameter are moved, if they are.
fn transcoded(
    checkpoint: Option<&Checkpoint>,
    graph: &mut Graph,
    output: &Output,
    choice: Choice,
    options: &Options,
    notes: &mut Vec<Note>,
) -> Option<(Choice, Moved)> {
    let (Some(checkpoint), Choice::Quantize(asked)) = (checkpoint, choice) else {
        return None;
    };
    let cast = options.dtype.filter(|dtype| output.cast && *dtype != graph.node(output.node).dtype);
    let module = output.name.strip_suffix(".weight").unwrap_or(&output.name).to_owned();
    let why = match moved(checkpoint, graph, output.node, asked) {
        Ok((native, _)) if native.format.has_biases() && cast.is_some() => {
            "scales of another dtype are asked for"
        }
        Ok((native, moved)) => {
            if native.format != asked {
                let (format, asked) = (native.format.to_string(), asked.to_string());
                notes.push(Note::Moved { module, format, asked });
            }
            return Some((Choice::Quantize(native.format), moved));
        }
        Err(Not::Native) => return None,
        Err(Not::Because(why)) => why,
    };
    notes.push(Note::NotMoved { module, why: why.to_owned() });
    None
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
        node =
            graph.cast(node, dtype).map_err(|error| Error::Dtype { tensor: output.name.clone(), error })?;
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
        return Err(Error::NotFloat { tensor: output.name.clone(), dtype });
    }
    let row = shape.last().copied().unwrap_or(0);
    let group_size = format.group_size() as u64;
    if shape.len() >= 2 && row > 0 && row % group_size == 0 {
        return Ok(Some(format));
    }
    let module = output.name.strip_suffix(".weight").unwrap_or(&output.name).to_owned();
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
        None => Err(Error::TensorSize { tensor: name }),
    }
}
