//! The plan: every byte that a run will write, worked out from headers alone.
//!
//! The dry run, the estimate, the execution, the index and the report are this one object. It is
//! data: it serialises, its tasks do not depend on one another, and any subset of them gives the
//! same bytes anywhere. Everything that can be refused is refused while it is made.

pub mod allocate;
pub mod blocks;
mod choose;
mod config;
mod importance;
mod libraries;
mod like;
pub mod measures;
mod memory;
mod method;
mod mtp;
mod note;
pub mod options;
mod recipe;
pub mod rules;
mod shards;
mod spec;
mod totals;
mod transcode;
mod treatment;
mod widths;

use serde::{Deserialize, Serialize};

pub use choose::Choice;
pub(crate) use importance::block_bytes as weight_bytes;
pub use importance::{Channels, Coverage, Importance, ImportanceError, Kind, Reader, Statistics};
pub use like::Like;
pub(crate) use memory::LOOK;
pub use memory::{Memory, Schedule, cut};
pub use method::Method;
pub use mtp::{Apart, FOLDER as MTP_FOLDER, Mtp};
pub use note::Note;
pub use options::Options;
pub use recipe::Recipe;
pub use rules::{Override, RecipeFile, Rule, RuleEffect};
use shards::Files;
pub use shards::{Index, OutputShard, indexes, shard_header};
pub use spec::{RoundingSpec, Spec};
pub use totals::{RoleTotals, Totals};
pub use transcode::{Moved, Transcode};
pub use treatment::{Happens, Treatment};
pub use widths::Widths;

use allocate::{Allocation, BitsError};

use crate::checkpoint::region::{Axis, Region};
use crate::checkpoint::{Checkpoint, DType, LogicalTensor, StoredId};
use crate::error::{LayoutError, PlanError, Result};
use crate::layout::discovered::{self, Trace};
use crate::layout::family::{self, Family};
use crate::layout::{Dropped, Graph, Layout, NodeId, Role};
use crate::source::FileEntry;

/// The version of the plan's JSON.
pub const VERSION: u32 = 1;

/// What a run writes, and from what.
#[derive(Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Version of this format.
    pub version: u32,
    /// Version of smelt that made it.
    pub smelt: String,
    /// The family of the checkpoint.
    pub family: String,
    /// Where the checkpoint is.
    pub source: String,
    /// The tensors of the checkpoint. Source expressions name them by position, or those of
    /// `logical_tensors` where there are any.
    pub source_tensors: Vec<SourceTensor>,
    /// What the stored tensors make up, where not all are plain.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub logical_tensors: Vec<LogicalSource>,
    /// Bytes that reading a block takes beside it, at most.
    pub read_overhead: u64,
    /// The files that hold them.
    pub source_shards: Vec<FileEntry>,
    /// The expressions that the tasks pull.
    pub graph: Graph,
    /// How codes are found.
    pub method: Method,
    /// Which backend's ties are followed.
    pub rounding: RoundingSpec,
    /// Whether NaN and infinity are let through.
    pub allow_nonfinite: bool,
    /// Whether weights that can't be right end the run.
    #[serde(default)]
    pub strict: bool,
    /// The format that the run asks for, or that most modules have where each has its own; `None` to
    /// leave all as it is.
    pub format: Option<Spec>,
    /// What the allocation came to that chose the modules' formats, if one did.
    pub allocation: Option<Allocation>,
    /// What importance weighs the channels, if one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub importance: Option<Coverage>,
    /// The tensors to write, in the order in which they lie in the files.
    pub tasks: Vec<Task>,
    /// What becomes of the codes of the source, for each parameter that is made of codes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub treatments: Vec<Treatment>,
    /// Whether the library is to put the tensors through its `sanitize`, which the files say.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub preimage: bool,
    /// The files to write.
    pub shards: Vec<OutputShard>,
    /// The tensors of the checkpoint that are left out, and why.
    pub dropped: Vec<Dropped>,
    /// What each rule came to: those of the model that is copied, of the recipe, overrides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleEffect>,
    /// What is done differently from what was asked, or worth knowing.
    pub notes: Vec<Note>,
    /// The config to write.
    pub config: String,
    /// What is written apart from the model: layers that predict further tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtp: Option<Apart>,
    /// The files that are copied byte for byte.
    pub side_files: Vec<FileEntry>,
    /// Sums.
    pub totals: Totals,
}

/// A tensor of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceTensor {
    /// Its name.
    pub name: String,
    /// Its dtype.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Which of the source's shards holds it.
    pub shard: u32,
    /// Where it begins in that file.
    pub offset: u64,
}

/// A tensor that is made of stored ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogicalSource {
    /// Its name.
    pub name: String,
    /// Its dtype.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its storage format in words; none where it is stored as it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// The positions in `source_tensors` of what it is made of.
    pub parts: Vec<u32>,
}

/// One parameter to write: pulled, quantized and stored on its own.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Task {
    /// The parameter's name in the target model.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// The expression.
    pub node: NodeId,
    /// Its dtype before quantization.
    pub dtype: DType,
    /// Its shape before quantization.
    pub shape: Vec<u64>,
    /// How it is stored; `None` as it is.
    pub format: Option<Spec>,
    /// The stored tensors: itself, or weight, scales and biases.
    pub parts: Vec<Part>,
    /// Where these come from, if the source has them exactly and nothing is quantized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved: Option<Moved>,
    /// Whether an imported importance weighs its channels.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub weighed: bool,
}

/// A tensor in an output file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its name.
    pub name: String,
    /// Its dtype.
    pub dtype: DType,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its size.
    pub bytes: u64,
    /// Which output file holds it.
    pub shard: u32,
    /// Where it begins, counted from the first byte of the tensors in that file.
    pub offset: u64,
}

impl Part {
    /// Where the elements of a block of the parameter lie in this part, whose rows are shorter.
    pub(crate) fn region(&self, task: &Task, block: &blocks::Block) -> Region {
        let mut region = block.region.clone();
        if let (Some(axis), Some(row), Some(short)) =
            (region.last_mut(), task.shape.last(), self.shape.last())
        {
            let scaled = |at: u64| at * short / (*row).max(1);
            *axis = Axis::range(scaled(axis.start), scaled(axis.len));
        }
        region
    }
}

impl Task {
    /// The path of the module that the parameter belongs to.
    pub fn module(&self) -> &str {
        self.name.strip_suffix(".weight").unwrap_or(&self.name)
    }

    /// Elements of the parameter.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// Bytes that it takes in the output.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }
}

/// The family that a checkpoint belongs to: the user's own, or the one of its `model_type`.
///
/// # Errors
/// [`LayoutError::ModelType`] if smelt has none, [`LayoutError::FinalForm`] if there is nothing to be done.
pub fn family_of<'a>(checkpoint: &Checkpoint, own: Option<&'a Family>) -> Result<&'a Family> {
    if let Some(own) = own {
        return Ok(own);
    }
    let config = checkpoint.config();
    let model_type = config.model_type().ok_or(LayoutError::NoModelType)?;
    family::of_config(config).ok_or_else(|| without_family(model_type).into())
}

/// Why there is no family of a model type.
fn without_family(model_type: &str) -> LayoutError {
    let model_type = model_type.to_owned();
    match libraries::finished(&model_type) {
        Some(why) => LayoutError::FinalForm { model_type, why },
        None => LayoutError::ModelType {
            near: libraries::near(&model_type),
            libraries: libraries::of_type(&model_type),
            model_type,
        },
    }
}

/// Whether a checkpoint sees or hears.
pub fn is_multimodal(checkpoint: &Checkpoint) -> bool {
    let has = |key: &str| checkpoint.config().get(key).is_some_and(serde_json::Value::is_object);
    has("vision_config") || has("audio_config")
}

/// The library that is to load the result: the one asked for, else mlx-vlm for what sees or hears and
/// mlx-lm for the rest, as far as the family describes its model.
fn target_of<'a>(checkpoint: &Checkpoint, family: &'a Family, asked: Option<&'a str>) -> Result<&'a str> {
    let described = |target: &str| family.targets.iter().any(|known| known == target);
    let usual = if is_multimodal(checkpoint) { "mlx-vlm" } else { "mlx-lm" };
    let target = match (asked, &family.targets[..]) {
        (Some(asked), _) => asked,
        (None, [only]) => only,
        (None, all) => libraries::choose(checkpoint.config(), all, usual),
    };
    if described(target) {
        return Ok(target);
    }
    Err(LayoutError::Target {
        family: family.name.clone(),
        target: target.to_owned(),
        known: family.targets.clone(),
    }
    .into())
}

/// A layout with what the plan says of where it comes from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The family's name, or the library that was asked.
    pub name: String,
    /// The layout.
    pub layout: Layout,
    /// The share of its routed experts that a token uses, where it is known.
    pub active_share: Option<f64>,
}

impl Origin {
    /// The layout of a checkpoint by its family.
    ///
    /// # Errors
    /// [`LayoutError::Misfit`] with everything that does not fit, [`LayoutError::Target`] if the family
    /// does not describe the model of the library that is to load the result,
    /// [`LayoutError::NotInLibrary`] or [`LayoutError::ConfigKeys`] if that library loads no model with
    /// such a config.
    pub fn family(checkpoint: &Checkpoint, family: &Family, target: Option<&str>) -> Result<Self> {
        checkpoint.check_storage()?;
        let target = target_of(checkpoint, family, target)?;
        libraries::check(checkpoint.config(), family, target)?;
        let layout = family.layout(checkpoint.config(), checkpoint, target).map_err(|problems| {
            LayoutError::Misfit { family: family.name.clone(), problems: problems.into() }
        })?;
        let active_share = family.active_share(checkpoint.config(), checkpoint).ok().flatten();
        Ok(Self { name: family.name.clone(), layout, active_share })
    }

    /// The layout of a checkpoint as a library was seen to make it.
    ///
    /// # Errors
    /// [`LayoutError::OtherCheckpoint`] if the trace is of another one, [`LayoutError::Discovered`]
    /// with everything that the library refuses or smelt does not compute.
    pub fn discovered(checkpoint: &Checkpoint, trace: &Trace) -> Result<Self> {
        checkpoint.check_storage()?;
        if trace.digest != discovered::digest(checkpoint) {
            return Err(LayoutError::OtherCheckpoint.into());
        }
        let layout = trace.layout(checkpoint).map_err(|problems| LayoutError::Discovered {
            library: trace.library.clone(),
            problems: problems.into(),
        })?;
        Ok(Self { name: format!("discovered from {}", trace.library), layout, active_share: None })
    }
}

/// Refuses to store a library's own parameters where it is known to change them again when it loads them.
///
/// # Errors
/// [`LayoutError::Reloaded`] if it does.
pub fn check_storable(checkpoint: &Checkpoint, library: &str) -> Result<()> {
    let config = checkpoint.config();
    let changes = |family: &&Family| family.preimage.iter().any(|known| known == library);
    match family::of_config(config).filter(changes) {
        None => Ok(()),
        Some(family) => Err(LayoutError::Reloaded {
            library: library.to_owned(),
            model_type: config.model_type().unwrap_or_default().to_owned(),
            family: family.name.clone(),
        }
        .into()),
    }
}

impl Plan {
    /// Plans the conversion of a checkpoint with this layout.
    ///
    /// # Errors
    /// Every refusal that headers allow: see [`crate::Error`].
    pub fn new(checkpoint: &Checkpoint, origin: Origin, options: &Options) -> Result<Self> {
        // Bounds are for what was chosen by a target, which hands over widths.
        match options.rules.iter().find(|rule| rule.is_bound()) {
            Some(rule) if options.widths.is_empty() => {
                Err(BitsError::BoundAlone { rule: rule.to_string() }.into())
            }
            _ => Self::draft(checkpoint, origin, options),
        }
    }

    /// The same where widths are still to be chosen.
    pub(crate) fn draft(checkpoint: &Checkpoint, origin: Origin, options: &Options) -> Result<Self> {
        choose::refuse_packed(checkpoint, options)?;
        let Origin { name, mut layout, active_share } = origin;
        let mut notes = note::left_out(checkpoint);
        notes.extend(note::of_layout(&layout, options.dtype.is_some()));
        notes.extend(config::code(checkpoint.config()));
        mtp::separate(checkpoint, &name, &mut layout, options, &mut notes)?;
        let chosen = choose::tasks(checkpoint, &mut layout, options, &mut notes)?;
        let choose::Chosen { mut tasks, effects: rules, treatments } = chosen;
        notes.extend(note::faults(std::mem::take(&mut layout.faults), &tasks));
        let files = Files { limit: options.shard_bytes, preimage: layout.preimage };
        let shards = shards::place(&mut tasks, files);
        let (model, _) = mtp::parted(&tasks);
        let chosen = if options.widths.is_empty() { None } else { widths::commonest(model) };
        let format = chosen.or(options.format);
        Ok(Self {
            version: VERSION,
            smelt: env!("CARGO_PKG_VERSION").to_owned(),
            family: name,
            source: checkpoint.source().location().to_owned(),
            source_tensors: source_tensors(checkpoint),
            source_shards: source_shards(checkpoint),
            method: options.method,
            rounding: options.rounding.into(),
            allow_nonfinite: options.allow_nonfinite,
            strict: options.strict,
            format: format.map(Spec::from),
            allocation: None,
            importance: None,
            config: config::edited(checkpoint.config(), &layout.config, format, model),
            mtp: mtp::apart(checkpoint.config(), &layout, &tasks),
            side_files: checkpoint.side_files().to_vec(),
            totals: Totals::of(&tasks, &shards, checkpoint, active_share),
            dropped: dropped(checkpoint, layout.dropped),
            logical_tensors: logical_tensors(checkpoint),
            read_overhead: checkpoint.read_overhead(),
            preimage: layout.preimage,
            graph: layout.graph,
            tasks,
            treatments,
            shards,
            rules,
            notes,
        })
    }

    /// The parameters of the model, without what is written apart.
    pub fn model_tasks(&self) -> &[Task] {
        mtp::parted(&self.tasks).0
    }

    /// The parameters that are written apart: those of layers that predict further tokens.
    pub fn mtp_tasks(&self) -> &[Task] {
        mtp::parted(&self.tasks).1
    }

    /// Checks that a checkpoint is the one that this plan was made for, as a plan that was stored
    /// and read again must be before it runs.
    ///
    /// # Errors
    /// [`PlanError::OtherSource`] naming the first tensor that differs.
    pub fn check_source(&self, checkpoint: &Checkpoint) -> Result<()> {
        let found = source_tensors(checkpoint);
        let differs = |(planned, found): &(&SourceTensor, &SourceTensor)| planned != found;
        let pairs = self.source_tensors.iter().zip(&found);
        let first = pairs.clone().find(differs).map(|(planned, _)| planned.name.clone());
        match first {
            None if found.len() == self.source_tensors.len() => Ok(()),
            first => Err(PlanError::OtherSource { tensor: first.unwrap_or_default() }.into()),
        }
    }
}

fn source_tensors(checkpoint: &Checkpoint) -> Vec<SourceTensor> {
    let all = 0..checkpoint.tensors().len() as u32;
    all.map(|id| {
        let tensor = checkpoint.tensor(StoredId(id));
        SourceTensor {
            name: tensor.name.to_string(),
            dtype: tensor.dtype,
            shape: tensor.shape.to_vec(),
            shard: tensor.shard,
            offset: tensor.offset,
        }
    })
    .collect()
}

fn logical_tensors(checkpoint: &Checkpoint) -> Vec<LogicalSource> {
    let all = checkpoint.logical_tensors();
    if all.iter().all(LogicalTensor::is_plain) && checkpoint.unused().is_empty() {
        return Vec::new();
    }
    let entry = |tensor: &LogicalTensor| LogicalSource {
        name: tensor.name.to_string(),
        dtype: tensor.dtype,
        shape: tensor.shape.to_vec(),
        format: tensor.format(),
        parts: tensor.parts().into_iter().map(|part| part.0).collect(),
    };
    all.iter().map(entry).collect()
}

/// What the layout leaves out, and what says nothing of a weight.
fn dropped(checkpoint: &Checkpoint, mut dropped: Vec<Dropped>) -> Vec<Dropped> {
    let unused = checkpoint.unused().iter().map(|(id, why)| Dropped {
        tensor: checkpoint.tensor(*id).name.to_string(),
        why: (*why).to_owned(),
        mtp: false,
    });
    dropped.extend(unused);
    dropped
}

fn source_shards(checkpoint: &Checkpoint) -> Vec<FileEntry> {
    let shards = checkpoint.shards().iter();
    shards.map(|shard| FileEntry { path: shard.path.clone(), size: shard.size }).collect()
}
