//! Two models or checkpoints side by side, tensor by tensor.
//!
//! Parameters are matched by name; a quantized one is read through its scales, so a 4-bit model can be held
//! against an 8-bit one or against the floats. What lies apart from a model, in `mtp/`, is compared as well.
//! Stored bytes are compared first, and values only where they differ. A Hugging Face checkpoint has other
//! names than the model made of it: to compare those two, verify the model against its source.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use serde::Serialize;
use serde_json::Value;
use smelt_kernels::Format;

use super::decode::{Buffers, Values, sized};
use super::finding::Findings;
use super::model::Model;
use super::parallel::Crew;
use super::parameter::Parameter;
use super::sums::{Metrics, Sums};
use super::{against, apart, quantization};
use crate::error::{CheckpointError, Result};
use crate::pipeline::{Event, Observer};
use crate::plan::blocks::Cut;
use crate::plan::{MTP_FOLDER, Memory};
use crate::source::Source;

/// Elements that are compared at once.
const BLOCK: u64 = 1 << 20;

/// Stored bytes that are compared at once.
const PIECE: u64 = 1 << 20;

/// Two models to compare.
#[derive(Clone, Copy)]
pub struct Diff<'a> {
    /// The first.
    pub first: &'a Arc<dyn Source>,
    /// The second.
    pub second: &'a Arc<dyn Source>,
    /// What the comparison may use.
    pub memory: Memory,
    /// Is told how far it is.
    pub observer: &'a dyn Observer,
    /// Ends the comparison when it is set.
    pub stop: &'a AtomicBool,
}

impl std::fmt::Debug for Diff<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Diff")
            .field("first", self.first)
            .field("second", self.second)
            .finish_non_exhaustive()
    }
}

/// How a parameter is stored on one side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Side {
    /// The format, or the dtype of what is not quantized.
    pub format: String,
    /// The shape.
    pub shape: Vec<u64>,
    /// Stored bytes, scales and biases too.
    pub bytes: u64,
}

/// What became of a parameter from the first to the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// The same stored bytes.
    Equal,
    /// Other bytes, but the same values: stored in another format without loss.
    SameValues,
    /// Other values.
    Differs,
    /// Another shape.
    Reshaped,
    /// Other bytes, and no values to compare.
    Opaque,
    /// Only the first has it.
    OnlyFirst,
    /// Only the second has it.
    OnlySecond,
}

/// One parameter on both sides.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// What became of it.
    pub status: Status,
    /// How the first has it.
    pub first: Option<Side>,
    /// How the second has it.
    pub second: Option<Side>,
    /// How far the second is from the first, where values differ.
    pub metrics: Option<Metrics>,
}

/// A key of the config that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ConfigChange {
    /// The path of the key, joined by dots.
    pub key: String,
    /// The value in the first; `None` if it is not there.
    pub first: Option<Value>,
    /// The value in the second.
    pub second: Option<Value>,
}

/// A whole comparison.
#[derive(Clone, Debug, Serialize)]
pub struct Differences {
    /// Every parameter that either has, sorted by name.
    pub tensors: Vec<Entry>,
    /// Keys of config.json that differ.
    pub config: Vec<ConfigChange>,
}

impl Differences {
    /// How many parameters have a status.
    pub fn count(&self, status: Status) -> usize {
        self.tensors.iter().filter(|entry| entry.status == status).count()
    }

    /// Whether the two hold the same bytes and the same config.
    pub fn is_equal(&self) -> bool {
        self.config.is_empty() && self.count(Status::Equal) == self.tensors.len()
    }
}

/// A model, or what lies apart from it, with its parameters.
struct Opened {
    /// What goes before its names.
    folder: &'static str,
    model: Model,
    formats: Vec<Option<Format>>,
}

impl Opened {
    /// A model, and what lies apart from it. What is wrong with them is not asked here.
    fn open(source: &Arc<dyn Source>) -> Result<Vec<Self>> {
        let mut unheard = Findings::default();
        let model = Model::look(Arc::clone(source), &mut unheard)?;
        if model.parameters().is_empty() {
            return Err(
                CheckpointError::NoWeights { location: source.location().to_owned(), other: None }.into()
            );
        }
        let apart = apart::look(&model, &mut unheard)?;
        let apart = apart.map(|model| Self::of(MTP_FOLDER, model, &mut unheard));
        Ok(std::iter::once(Self::of("", model, &mut unheard)).chain(apart).collect())
    }

    fn of(folder: &'static str, model: Model, unheard: &mut Findings) -> Self {
        let formats = quantization::check(&model, &model.parameters(), &|_| None, unheard);
        Self { folder, model, formats }
    }

    fn held(&self) -> impl Iterator<Item = Held<'_>> {
        self.model.parameters().into_iter().zip(&self.formats).map(|(parameter, format)| {
            let name = format!("{}{}", self.folder, parameter.name);
            Held { name, model: &self.model, parameter, format: *format }
        })
    }
}

/// A parameter of one side.
struct Held<'a> {
    name: String,
    model: &'a Model,
    parameter: Parameter<'a>,
    format: Option<Format>,
}

impl<'a> Held<'a> {
    fn values(&self) -> Option<Values<'a>> {
        Values::of(self.model, &self.parameter, self.format)
    }

    fn side(&self) -> Side {
        Side {
            format: self.parameter.format_name(self.format),
            shape: self.parameter.shape(self.format),
            bytes: self.parameter.bytes(),
        }
    }
}

impl Diff<'_> {
    /// Compares the two.
    ///
    /// # Errors
    /// When files can't be read, or when it is stopped.
    pub fn run(&self) -> Result<Differences> {
        let (first, second) = (Opened::open(self.first)?, Opened::open(self.second)?);
        let mut pairs: BTreeMap<String, [Option<Held<'_>>; 2]> = BTreeMap::new();
        for (side, opened) in [&first, &second].into_iter().enumerate() {
            for held in opened.iter().flat_map(Opened::held) {
                let name = held.name.clone();
                pairs.entry(name).or_default()[side] = Some(held);
            }
        }
        let pairs: Vec<_> = pairs.into_iter().collect();
        let bytes = |held: &Option<Held<'_>>| held.as_ref().map_or(0, |held| held.parameter.bytes());
        let sizes: Vec<u64> =
            pairs.iter().map(|(_, [first, second])| bytes(first).min(bytes(second))).collect();
        self.observer.on(&Event::Started { bytes: sizes.iter().sum() });
        let room = self.memory.limit.saturating_sub(super::RESERVE) / against::WORKER;
        let workers = self.memory.threads.min(usize::try_from(room).unwrap_or(usize::MAX)).max(1);
        let crew = Crew { workers, stop: self.stop };
        let tensors = crew.each(&sizes, |index| {
            let (name, [first, second]) = &pairs[index];
            self.observer.on(&Event::Block { bytes: sizes[index] });
            entry(name, first.as_ref(), second.as_ref())
        })?;
        Ok(Differences { tensors, config: config(&first, &second) })
    }
}

fn entry(name: &str, first: Option<&Held<'_>>, second: Option<&Held<'_>>) -> Result<Entry> {
    let (status, metrics) = match (first, second) {
        (Some(first), Some(second)) => compare(first, second)?,
        (Some(_), None) => (Status::OnlyFirst, None),
        (None, _) => (Status::OnlySecond, None),
    };
    let (first, second) = (first.map(Held::side), second.map(Held::side));
    Ok(Entry { name: name.to_owned(), status, first, second, metrics })
}

fn compare(first: &Held<'_>, second: &Held<'_>) -> Result<(Status, Option<Metrics>)> {
    if first.side() == second.side() && same_bytes(first, second)? {
        return Ok((Status::Equal, None));
    }
    if first.parameter.shape(first.format) != second.parameter.shape(second.format) {
        return Ok((Status::Reshaped, None));
    }
    let (Some(ours), Some(theirs)) = (first.values(), second.values()) else {
        return Ok((Status::Opaque, None));
    };
    let sums = sums(&ours, &theirs)?;
    if sums.error == 0.0 {
        Ok((Status::SameValues, None))
    } else {
        Ok((Status::Differs, Some(sums.metrics())))
    }
}

fn same_bytes(first: &Held<'_>, second: &Held<'_>) -> Result<bool> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for (a, b) in first.parameter.tensors().zip(second.parameter.tensors()) {
        if (a.dtype, &a.shape) != (b.dtype, &b.shape) {
            return Ok(false);
        }
        let mut at = 0;
        while at < a.bytes {
            let len = PIECE.min(a.bytes - at) as usize;
            first.model.read(a, at, sized(&mut ours, len))?;
            second.model.read(b, at, sized(&mut theirs, len))?;
            if ours != theirs {
                return Ok(false);
            }
            at += len as u64;
        }
    }
    Ok(true)
}

/// Sums over the values of two parameters of one shape.
fn sums(first: &Values<'_>, second: &Values<'_>) -> Result<Sums> {
    // Group sizes are powers of two: the larger holds the smaller.
    let cut = Cut::new(&first.shape(), first.unit().max(second.unit()), BLOCK);
    let (mut x, mut y) = (Vec::new(), Vec::new());
    let mut buffers = <[Buffers; 2]>::default();
    let mut sums = Sums::default();
    for block in (0..cut.count()).map(|index| cut.block(index)) {
        let len = block.len as usize * 4;
        first.read(block.offset, sized(&mut x, len), &mut buffers[0])?;
        second.read(block.offset, sized(&mut y, len), &mut buffers[1])?;
        sums.add(&Sums::of(&x, &y));
    }
    Ok(sums)
}

/// Keys of the configs that differ, the deepest that say what differs.
fn config(first: &[Opened], second: &[Opened]) -> Vec<ConfigChange> {
    let mut changes = Vec::new();
    for folder in ["", MTP_FOLDER] {
        let value = |of: &[Opened]| {
            let found = of.iter().find(|opened| opened.folder == folder);
            found.and_then(|opened| opened.model.config.as_ref()).map(|config| config.value().clone())
        };
        let (first, second) = (value(first), value(second));
        // A folder that one side lacks is seen by its tensors.
        if folder.is_empty() || (first.is_some() && second.is_some()) {
            walk(folder, first.as_ref(), second.as_ref(), &mut changes);
        }
    }
    changes
}

fn walk(path: &str, first: Option<&Value>, second: Option<&Value>, changes: &mut Vec<ConfigChange>) {
    if first == second {
        return;
    }
    let (Some(Value::Object(ours)), Some(Value::Object(theirs))) = (first, second) else {
        let (first, second) = (first.cloned(), second.cloned());
        changes.push(ConfigChange { key: path.to_owned(), first, second });
        return;
    };
    let added = theirs.keys().filter(|key| !ours.contains_key(*key));
    for key in ours.keys().chain(added) {
        let below = if path.is_empty() || path.ends_with('/') {
            format!("{path}{key}")
        } else {
            format!("{path}.{key}")
        };
        walk(&below, ours.get(key), theirs.get(key), changes);
    }
}
