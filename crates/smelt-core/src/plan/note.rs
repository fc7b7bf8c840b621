//! What a user should know about a plan: everything that is not exactly as asked, nothing else.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Task;
use crate::checkpoint::{Checkpoint, INDEX};
use crate::layout::{Fault, Layout};

/// Something that is done differently from what was asked, or is worth knowing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Note {
    /// A module stays in its float type because its rows do not divide into groups.
    NotDivisible {
        /// The module.
        module: String,
        /// Elements of a row.
        row: u64,
        /// The group size asked for.
        group_size: u64,
    },
    /// An override that no module matches.
    OverrideUnused {
        /// The override as given.
        text: String,
    },
    /// A rule of a recipe file that no module matches.
    RuleUnused {
        /// The rule in short.
        rule: String,
        /// Its line.
        line: usize,
        /// Whether it is a floor or ceiling, which finds only what a target chooses for.
        bound: bool,
    },
    /// A model to copy from that has none of the modules.
    LikeUnused {
        /// The model.
        model: String,
    },
    /// Modules that the model to copy from does not have; they are stored as without it, in its commonest format.
    LikeMissing {
        /// The model.
        model: String,
        /// The modules.
        modules: Vec<String>,
    },
    /// Quantized modules that only the model to copy from has.
    LikeSpare {
        /// The model.
        model: String,
        /// The modules.
        modules: Vec<String>,
    },
    /// A module that is stored in the source's format, because that is exact.
    Moved {
        /// The module.
        module: String,
        /// The format.
        format: String,
        /// The format that was asked for.
        asked: String,
    },
    /// A module in a format that MLX has, which is quantized again all the same.
    NotMoved {
        /// The module.
        module: String,
        /// The reason.
        why: String,
    },
    /// Layers that predict further tokens are wanted, and the checkpoint has none.
    NoMtp,
    /// Tensors that by their names predict further tokens, of which the layout does not say how they are stored.
    MtpUnknown {
        /// How many.
        tensors: u64,
        /// The first.
        first: String,
    },
    /// A module without weights in the importance that was given.
    NoImportance {
        /// The module.
        module: String,
    },
    /// Experts that the text of the importance never reached.
    ExpertsWithoutData {
        /// How many.
        experts: u64,
        /// In how many modules.
        modules: u64,
    },
    /// Parameters that are computed with sums of floats, exponentials or logarithms: MLX leaves their last bits
    /// open (they differ between its backends), smelt computes them in double.
    OpenBits {
        /// The parameters.
        parameters: Vec<String>,
    },
    /// The library was asked which parameters `--dtype` leaves, and failed.
    CastUnknown {
        /// The library's error.
        why: String,
    },
    /// Code of the model's own that the config names, for loaders to run.
    Code {
        /// The file.
        file: String,
        /// Whether the config still names it, because no library has a model of the type.
        kept: bool,
    },
    /// A quantized module that the library can't run so, though its own rules quantize it.
    LibraryFault {
        /// The module.
        module: String,
        /// What the library does.
        what: String,
    },
    /// A file of the source that is neither read nor copied.
    FileLeftOut {
        /// Its path in the source.
        path: String,
        /// The reason.
        why: String,
    },
}

impl Note {
    /// Whether the result differs from what was asked, which `--strict` does not allow.
    pub const fn is_fallback(&self) -> bool {
        matches!(
            self,
            Self::NotDivisible { .. }
                | Self::LikeMissing { .. }
                | Self::NoMtp
                | Self::MtpUnknown { .. }
                | Self::NoImportance { .. }
        ) || self.is_unused()
    }

    /// Whether a rule finds nothing, whatever formats are chosen.
    pub const fn is_unused(&self) -> bool {
        matches!(self, Self::OverrideUnused { .. } | Self::RuleUnused { .. } | Self::LikeUnused { .. })
    }
}

impl fmt::Display for Note {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDivisible { module, row, group_size } => write!(
                out,
                "`{module}` is not quantized: its rows of {row} do not divide into groups of {group_size}"
            ),
            Self::OverrideUnused { text } => {
                write!(out, "override `{text}` matches no module that can be quantized")
            }
            Self::RuleUnused { rule, line, bound } => {
                let what = if *bound { "that a target chooses for" } else { "that can be quantized" };
                write!(out, "rule `{rule}` (line {line} of the recipe) matches no module {what}")
            }
            Self::LikeUnused { model } => write!(out, "`{model}` has none of the modules of this model"),
            Self::LikeMissing { model, modules } => {
                write!(out, "{} not in `{model}`", some_are(modules, "stored in the usual format:"))
            }
            Self::LikeSpare { model, modules } => {
                write!(out, "{} in `{model}` alone", some_are(modules, "quantized"))
            }
            Self::Moved { module, format, asked } => {
                write!(out, "`{module}` is moved as {format} bit by bit, not quantized as {asked}")
            }
            Self::NotMoved { module, why } => {
                write!(out, "`{module}` is decoded and quantized again: {why}")
            }
            Self::NoMtp => out.write_str(
                "the checkpoint has no layers that predict further tokens, so `--mtp separate` writes none",
            ),
            Self::MtpUnknown { tensors, first } => write!(
                out,
                "`--mtp separate` leaves out `{first}`{}: the family does not say how it is stored",
                match tensors {
                    1 => String::new(),
                    more => format!(" and {} more", more - 1),
                }
            ),
            Self::NoImportance { module } => {
                write!(out, "`{module}` has no importance in the file; its own columns weigh it")
            }
            Self::ExpertsWithoutData { experts, modules } => write!(
                out,
                "{experts} experts in {modules} modules have no data in the importance; they get the mean of their layer"
            ),
            Self::OpenBits { parameters } => {
                let what = "computed in double: MLX leaves the last bits open";
                out.write_str(&some_are(parameters, what))
            }
            Self::CastUnknown { why } => write!(
                out,
                "`--dtype` applies to every parameter, because the library fails when it is asked which to leave: {why}"
            ),
            Self::Code { file, kept } => write!(out, "{}", code(file, *kept)),
            Self::LibraryFault { module, what } => write!(
                out,
                "`{module}` is quantized as the library's rules say, but {what}; `--override {module}=keep` leaves it as it is"
            ),
            Self::FileLeftOut { path, why } => write!(out, "`{path}` is left out: {why}"),
        }
    }
}

/// What happens with code that the config names.
fn code(file: &str, kept: bool) -> String {
    let what = if kept {
        "since no library has a model of the type, `model_file` stays: read the file before you load the result"
    } else {
        "`model_file` is taken out, since the libraries have a model of the type"
    };
    format!("config.json names `{file}` for loaders to run as the model's code; {what}")
}

/// Names that are given in a line.
const NAMED: usize = 3;

/// `a`, `b`, `c` and 3 more are this.
fn some_are(names: &[String], what: &str) -> String {
    let shown: Vec<String> = names.iter().take(NAMED).map(|name| format!("`{name}`")).collect();
    let more = match names.len().checked_sub(NAMED) {
        None | Some(0) => String::new(),
        Some(more) => format!(" and {more} more"),
    };
    let verb = if names.len() == 1 { "is" } else { "are" };
    format!("{}{more} {verb} {what}", shown.join(", "))
}

/// A note for each file of the source that does not reach the output. That the index is written anew
/// surprises nobody.
pub(super) fn left_out(checkpoint: &Checkpoint) -> Vec<Note> {
    let files = checkpoint.left_out().iter().filter(|file| file.path != INDEX);
    files.map(|file| Note::FileLeftOut { path: file.path.clone(), why: file.why.to_owned() }).collect()
}

/// What a layout leaves to say about its numbers; casts matter only if there are any.
pub(super) fn of_layout(layout: &Layout, casts: bool) -> impl Iterator<Item = Note> {
    let open = layout.outputs.iter().filter(|output| !layout.graph.is_exact(output.node));
    let parameters: Vec<String> = open.map(|output| output.name.clone()).collect();
    let open = (!parameters.is_empty()).then_some(Note::OpenBits { parameters });
    let fault = layout.cast_fault.clone().filter(|_| casts);
    open.into_iter().chain(fault.map(|why| Note::CastUnknown { why }))
}

/// The faults of a library that the modules which are quantized meet.
pub(super) fn faults(faults: Vec<Fault>, tasks: &[Task]) -> impl Iterator<Item = Note> {
    let quantized = |module: &str| tasks.iter().any(|task| task.format.is_some() && task.module() == module);
    let met = faults.into_iter().filter(move |fault| quantized(&fault.module));
    met.map(|Fault { module, what }| Note::LibraryFault { module, what })
}
