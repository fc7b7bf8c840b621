//! How much of a plan the importance is for: part of the plan, so that it is shown, stored and compared.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::{Importance, ImportanceError, Kind};
use crate::error::{PlanError, Result};
use crate::layout::Role;
use crate::plan::{Method, Note, Plan, Task};

/// What importance there is for a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    /// The file's name, without its folder.
    pub file: String,
    /// What the file is.
    pub kind: Kind,
    /// BLAKE3 of the file.
    pub digest: String,
    /// Modules that are quantized and have inputs.
    pub modules: u64,
    /// Those of them that the file has weights for.
    pub weighed: u64,
    /// Experts and heads of these that had no input, and get the mean of their layer.
    pub experts_without_data: u64,
    /// Entries of the file that are for no module.
    pub unused_entries: u64,
    /// Bytes that its index takes while the plan is carried out.
    pub held_bytes: u64,
}

impl fmt::Display for Coverage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { weighed, modules, experts_without_data: experts, unused_entries: unused, .. } = self;
        write!(out, "{} ({}): {weighed} of {modules} modules", self.file, self.kind)?;
        write!(out, ", experts without data {experts}, unused entries {unused}")
    }
}

impl Plan {
    /// Has the importance weigh the channels of the modules that it knows, and says so in the plan.
    ///
    /// # Errors
    /// [`ImportanceError::Method`] if the plan only rounds, [`ImportanceError::NothingQuantized`]; where `strict`, a module without weights.
    pub fn weigh(&mut self, importance: &Importance, strict: bool) -> Result<()> {
        if self.method == Method::Rtn {
            return Err(ImportanceError::Method.into());
        }
        let mut coverage = importance.facts();
        let (mut notes, mut unseen) = (Vec::new(), (0, 0));
        for task in &mut self.tasks {
            task.weighed = is_quantized(task) && importance.knows(task.module());
            if task.weighed {
                let experts = importance.unseen(task.module());
                unseen = (unseen.0 + experts, unseen.1 + u64::from(experts > 0));
            } else if !is_quantized(task) || is_looked_up(task) {
                continue;
            } else {
                notes.push(Note::NoImportance { module: task.module().to_owned() });
            }
            coverage.modules += 1;
            coverage.weighed += u64::from(task.weighed);
        }
        if coverage.modules == 0 {
            return Err(ImportanceError::NothingQuantized.into());
        }
        coverage.experts_without_data = unseen.0;
        if unseen.0 > 0 {
            notes.push(Note::ExpertsWithoutData { experts: unseen.0, modules: unseen.1 });
        }
        if let Some(note) = notes.iter().find(|note| strict && note.is_fallback()) {
            return Err(PlanError::Strict { note: note.to_string() }.into());
        }
        self.notes.extend(notes);
        self.importance = Some(coverage);
        Ok(())
    }
}

/// Whether codes are looked for.
fn is_quantized(task: &Task) -> bool {
    task.format.is_some() && task.moved.is_none()
}

/// Whether it is a table, of which no input says which column matters.
fn is_looked_up(task: &Task) -> bool {
    matches!(task.role, Role::Embedding | Role::PerLayerEmbedding | Role::Position)
}
