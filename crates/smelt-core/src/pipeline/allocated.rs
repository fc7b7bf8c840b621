//! From a target to a plan: measures what is not measured yet, and gives out bits.

use std::sync::atomic::AtomicBool;

use super::Observer;
use super::measure::{Measuring, Wanted};
use crate::checkpoint::Checkpoint;
use crate::error::{PlanError, Result};
use crate::plan::allocate::{Allocator, Request, Scope, Target};
use crate::plan::measures::{Measures, fingerprint};
use crate::plan::{Importance, Memory, Options, Origin, Plan, Statistics};

/// How often a plan is made anew because files came out larger than the headers of the last one let expect.
const ROUNDS: usize = 8;

/// A plan whose widths are to be chosen.
#[derive(Debug)]
pub struct Allocating<'a> {
    checkpoint: &'a Checkpoint,
    origin: Origin,
    options: &'a Options,
    request: &'a Request,
    /// A plan of the same modules, in the format of the run.
    draft: Plan,
    scope: Scope,
    importance: Option<Importance>,
}

/// What measuring may use, and whom it tells.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// Memory and threads.
    pub memory: Memory,
    /// Is told what happens.
    pub observer: &'a dyn Observer,
    /// Stops it when it is set.
    pub stop: &'a AtomicBool,
}

impl std::fmt::Debug for Means<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Means").field("memory", &self.memory).finish_non_exhaustive()
    }
}

impl<'a> Allocating<'a> {
    /// Finds out what there is to decide, with the importance that is to weigh errors if there is one.
    ///
    /// # Errors
    /// Every refusal of [`Plan::new`], a target that can't be reached, and importance of another model; no weight
    /// is read for it.
    pub fn new(
        checkpoint: &'a Checkpoint,
        origin: Origin,
        options: &'a Options,
        request: &'a Request,
        statistics: Option<Statistics>,
    ) -> Result<Self> {
        // What does not fit the format of the run may fit another.
        let lenient = Options { strict: false, ..options.clone() };
        let mut draft = Plan::draft(checkpoint, origin.clone(), &lenient)?;
        if let Some(note) = draft.notes.iter().find(|note| options.strict && note.is_unused()) {
            return Err(PlanError::Strict { note: note.to_string() }.into());
        }
        let scope = Scope::new((checkpoint, &origin.layout), &draft, options, request)?;
        request.check(&draft, &scope)?;
        let importance =
            statistics.map(|all| Importance::new(all, &draft, checkpoint.config())).transpose()?;
        if let Some(importance) = &importance {
            draft.weigh(importance, false)?;
            // Also of what the format of the run does not fit, but another one may.
            for free in &scope.modules {
                draft.tasks[free.task].weighed = importance.knows(&free.module);
            }
        }
        Ok(Self { checkpoint, origin, options, request, draft, scope, importance })
    }

    /// What tells measurements of these weights from others.
    pub fn fingerprint(&self) -> String {
        fingerprint(&self.draft, self.checkpoint)
    }

    /// Measures what `measures` lacks; says whether that was anything.
    ///
    /// # Errors
    /// As [`Measuring::run`].
    pub fn measure(&self, measures: &mut Measures, means: Means<'_>) -> Result<bool> {
        let Means { memory, observer, stop } = means;
        let lacking = self.scope.modules.iter().filter_map(|module| {
            let inexact = module.candidates.iter().filter(|candidate| !candidate.exact);
            let lacks = |format: &_| measures.error(&module.module, *format).is_none();
            let formats: Vec<_> = inexact.map(|candidate| candidate.format).filter(lacks).collect();
            (!formats.is_empty()).then_some(Wanted { task: module.task, formats })
        });
        let wanted: Vec<Wanted> = lacking.collect();
        if wanted.is_empty() {
            return Ok(false);
        }
        let (plan, checkpoint, importance) = (&self.draft, self.checkpoint, self.importance.as_ref());
        Measuring { plan, checkpoint, importance, memory, observer, stop }.run(&wanted, measures)?;
        Ok(true)
    }

    /// The importance, for the run.
    pub fn into_importance(self) -> Option<Importance> {
        self.importance
    }

    /// The plan of least predicted loss within the target.
    ///
    /// # Errors
    /// As [`Plan::new`], and a target that is missed by the bytes of headers alone.
    ///
    /// # Panics
    /// If something is not measured.
    pub fn plan(&self, measures: &Measures) -> Result<Plan> {
        let parameters = self.draft.totals.parameters;
        let allocator = Allocator::new(&self.scope, self.request, measures, parameters);
        let mut budget = self.request.budget(&self.draft);
        for _ in 0..ROUNDS {
            let Some((widths, allocation)) = allocator.solve(budget) else { break };
            let options = Options { widths, ..self.options.clone() };
            let mut plan = Plan::new(self.checkpoint, self.origin.clone(), &options)?;
            plan.allocation = Some(allocation);
            if let Some(importance) = &self.importance {
                plan.weigh(importance, options.strict)?;
            }
            let over = match self.request.target {
                Target::FileBytes(most) => plan.totals.file_bytes.saturating_sub(most),
                _ => 0,
            };
            if over == 0 {
                return Ok(plan);
            }
            // Below what it took, so that the next choice is another one.
            budget = plan.totals.tensor_bytes.saturating_sub(over);
        }
        Err(self.request.unreachable(&self.draft, &self.scope).into())
    }
}
