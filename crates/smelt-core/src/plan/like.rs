//! The formats of a model that MLX has quantized already, for another to be stored in the same way.
//!
//! What its tensors say holds: a module with scales has the format of its shapes and of the config's
//! entry, one without them stays as it is. So models of any tool serve, whatever they write into the config.

use std::collections::{BTreeMap, BTreeSet};

use smelt_kernels::{Format, Mode};

use super::allocate::BitsError;
use super::rules::Verdict;
use super::{Choice, Note};
use crate::checkpoint::{Checkpoint, LogicalTensor, Storage};
use crate::error::Result;
use crate::layout::Output;

/// mlx-vlm has the modules of a language model below this, mlx-lm often not.
const LANGUAGE: &str = "language_model.";

/// Formats by module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Like {
    name: String,
    common: Format,
    modules: BTreeMap<String, Choice>,
}

impl Like {
    /// The formats of a model, which is called `name` in notes.
    ///
    /// # Errors
    /// [`BitsError::NotLike`] if MLX did not quantize it; what is wrong with how its weights are stored.
    pub fn of(checkpoint: &Checkpoint, name: &str) -> Result<Self> {
        let Storage::Mlx { mode, bits, group_size } = checkpoint.storage() else {
            let (model, storage) = (name.to_owned(), checkpoint.storage().describe());
            return Err(BitsError::NotLike { model, storage }.into());
        };
        checkpoint.check_storage()?;
        let modules: BTreeMap<String, Choice> = checkpoint.logical_tensors().iter().map(entry).collect();
        let declared = declared(mode.as_deref(), bits, group_size);
        let common = declared.or_else(|| commonest(&modules)).ok_or_else(|| BitsError::NotLike {
            model: name.to_owned(),
            storage: "plain floats".to_owned(),
        })?;
        Ok(Self { name: name.to_owned(), common, modules })
    }

    /// The name of the model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The format of most modules, which those get that the model does not have.
    pub fn common(&self) -> Format {
        self.common
    }

    /// What the model does with a module, if it has it.
    pub fn choice(&self, module: &str) -> Option<Choice> {
        Some(self.modules[self.key(module)?])
    }

    /// The model's own path of a module, with or without the name of the language model in front.
    fn key(&self, module: &str) -> Option<&str> {
        let known = |path: &str| self.modules.get_key_value(path).map(|(key, _)| key.as_str());
        known(module)
            .or_else(|| known(module.strip_prefix(LANGUAGE)?))
            .or_else(|| known(&format!("{LANGUAGE}{module}")))
    }

    /// Notes on modules that only one of the two models has. What a later rule decides is not missed.
    pub(super) fn notes<'a>(&self, outputs: impl Iterator<Item = (&'a Output, &'a Verdict)>) -> Vec<Note> {
        let (mut used, mut missing) = (BTreeSet::new(), Vec::new());
        for (output, verdict) in outputs {
            match self.key(output.module_path()) {
                Some(key) => drop(used.insert(key)),
                None if verdict.choice().is_none() => missing.push(output.module_path().to_owned()),
                None => {}
            }
        }
        let quantized = self.modules.iter().filter(|(_, choice)| **choice != Choice::Keep);
        let spare: Vec<String> =
            quantized.filter(|(key, _)| !used.contains(key.as_str())).map(|(key, _)| key.clone()).collect();
        let model = || self.name.clone();
        let missing = (!missing.is_empty()).then(|| Note::LikeMissing { model: model(), modules: missing });
        let spare = (!spare.is_empty()).then(|| Note::LikeSpare { model: model(), modules: spare });
        missing.into_iter().chain(spare).collect()
    }
}

/// A tensor's module with its format.
fn entry(tensor: &LogicalTensor) -> (String, Choice) {
    let module = tensor.name.strip_suffix(".weight").unwrap_or(&tensor.name).to_owned();
    (module, tensor.native().map_or(Choice::Keep, |native| Choice::Quantize(native.format)))
}

/// The format at the top of the config's block.
fn declared(mode: Option<&str>, bits: Option<u64>, group_size: Option<u64>) -> Option<Format> {
    let mode = mode.map_or(Some(Mode::Affine), Mode::from_name)?;
    Format::new(mode, u8::try_from(bits?).ok()?, usize::try_from(group_size?).ok()?)
}

/// The format of most modules; of equals the one of the first module.
fn commonest(modules: &BTreeMap<String, Choice>) -> Option<Format> {
    let formats = || modules.values().filter_map(|choice| choice.format());
    super::widths::most(formats())
}
