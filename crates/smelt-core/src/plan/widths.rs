//! Formats by module, chosen one by one: what an allocation or a recipe hands to the plan.

use std::collections::{BTreeMap, HashMap};

use smelt_kernels::Format;

use super::Task;

/// A format for each module that something chose one for, by the module's path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Widths(BTreeMap<String, Format>);

impl Widths {
    /// The format of a module.
    pub fn get(&self, module: &str) -> Option<Format> {
        self.0.get(module).copied()
    }

    /// Whether none is chosen.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<(String, Format)> for Widths {
    fn from_iter<I: IntoIterator<Item = (String, Format)>>(modules: I) -> Self {
        Self(modules.into_iter().collect())
    }
}

/// The format that most modules have, so that the config needs few entries; the first of equals.
pub(super) fn commonest(tasks: &[Task]) -> Option<Format> {
    most(tasks.iter().filter_map(|task| task.format.as_ref().map(|spec| spec.0)))
}

/// The commonest of some formats; the first of equals.
pub(super) fn most(formats: impl Iterator<Item = Format> + Clone) -> Option<Format> {
    let mut counts: HashMap<Format, usize> = HashMap::new();
    formats.clone().for_each(|format| *counts.entry(format).or_default() += 1);
    let most = counts.values().copied().max()?;
    formats.into_iter().find(|format| counts[format] == most)
}
