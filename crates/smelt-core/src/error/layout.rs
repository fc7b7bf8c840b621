//! What can stand between a checkpoint and the model of a library.

use std::io;

use super::Problems;
use super::listed::listed;
use crate::layout::family::FamilyError;

/// Why a checkpoint can't be laid out as a library's model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// A model type that no family covers.
    #[error(
        "smelt has no family for the model type `{model_type}`{}; {}; `--family` takes a family file of your \
         own (see CONTRIBUTING.md)",
        hint(.near), discovery(.libraries)
    )]
    ModelType {
        /// The `model_type` of config.json.
        model_type: String,
        /// Types of like names that are known.
        near: Vec<String>,
        /// Libraries that have a model of the type, with their versions.
        libraries: Vec<String>,
    },
    /// A model whose checkpoints are as they must be loaded.
    #[error("checkpoints of the type `{model_type}` are finished: {why}")]
    FinalForm {
        /// The `model_type` of config.json.
        model_type: String,
        /// Why nothing can be made of them.
        why: &'static str,
    },
    /// A config that does not say what model it is of.
    #[error(
        "config.json has no `model_type`, by which smelt finds the family; `--family` takes a family file \
         of your own (see CONTRIBUTING.md)"
    )]
    NoModelType,
    /// A family file that does not parse.
    #[error("the family file `{file}` is not valid")]
    Family {
        /// The file.
        file: String,
        /// What is wrong.
        source: FamilyError,
    },
    /// A family file that can't be read.
    #[error("cannot read the family file `{file}`")]
    FamilyFile {
        /// The file.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A checkpoint that does not fit its family.
    #[error("the checkpoint does not fit the family `{family}`:{problems}")]
    Misfit {
        /// The family.
        family: String,
        /// Everything that does not fit.
        problems: Problems,
    },
    /// A family that says nothing of the library that is to load the result.
    #[error(
        "the family `{family}` describes the model of {}, not of {target}; give `--target {}`",
        .known.join(" and "), .known.first().map_or("", String::as_str)
    )]
    Target {
        /// The family.
        family: String,
        /// The library asked for.
        target: String,
        /// Those that it describes.
        known: Vec<String>,
    },
    /// Parameters that a library would change again if it loaded them.
    #[error(
        "{library} changes its own parameters of a `{model_type}` when it loads them, so its layout can't be stored; \
         without `--discover` and `--layout` the family `{family}` writes what it loads"
    )]
    Reloaded {
        /// The library.
        library: String,
        /// The model type.
        model_type: String,
        /// The family that knows.
        family: String,
    },
    /// A config that lacks what the library that is to load the result can't do without.
    #[error(
        "{library} does not load a model of type `{model_type}` whose config.json has no {}{}; take the \
         config.json that the model was published with, or add {}",
        listed(.keys, "and"),
        .writer.as_deref().map_or_else(String::new, |writer| format!(" (transformers {writer} wrote this one)")),
        if .keys.len() == 1 { "the key" } else { "the keys" }
    )]
    ConfigKeys {
        /// The library with its version of which that is known.
        library: String,
        /// The model type.
        model_type: String,
        /// The keys that lack.
        keys: Vec<String>,
        /// The version of transformers that wrote the config, if it says so.
        writer: Option<String>,
    },
    /// A model type of which the library that is to load the result has no model.
    #[error("{library} has no model of type `{model_type}`{}", .other.as_deref().map_or_else(String::new, |other| {
        format!("; {other} has: give `--target {}`", other.split(' ').next().unwrap_or(other))
    }))]
    NotInLibrary {
        /// The library with its version of which that is known.
        library: String,
        /// The model type.
        model_type: String,
        /// Another library that has one, with its version.
        other: Option<String>,
    },
    /// A layout that was discovered on another checkpoint.
    #[error(
        "the layout was discovered on another checkpoint: config or headers differ; run `smelt discover` again"
    )]
    OtherCheckpoint,
    /// A checkpoint that the library does not load, or in a way that smelt can't follow.
    #[error("the layout that {library} makes of the checkpoint can't be used:{problems}")]
    Discovered {
        /// The library.
        library: String,
        /// Everything that stands against it.
        problems: Problems,
    },
}

/// Which known names are like one that is not.
fn hint(names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!(" (did you mean {}?)", listed(names, "or")) }
}

/// Who can say how a model of an unknown type is laid out.
fn discovery(libraries: &[String]) -> String {
    match libraries {
        [] => "neither library has a model of it in the versions that smelt knows; if yours has, `--discover` asks \
               it"
            .to_owned(),
        some => format!("{} has a model of it: `--discover` asks the one installed", some.join(" and ")),
    }
}
