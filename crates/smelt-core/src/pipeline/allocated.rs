//! From a target to a plan: measures what is not measured yet, and gives out bits.

use std::sync::atomic::AtomicBool;

use super::Observer;
use super::measure::{Measuring, Wanted};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::plan::allocate::{Allocator, Request, Scope, Target};
use crate::plan::measures::{Measures, fingerprint};
use crate::plan::{Importance, Memory, Options, Origin, Plan};

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
}

/// What measuring may use, and whom it tells.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// Weights of input channels.
    pub importance: Option<&'a Importance>,
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
    /// Finds out what there is to decide.
    ///
    /// # Errors
    /// Every refusal of [`Plan::new`], and a target that can't be reached; no weight is read for it.
    pub fn new(
        checkpoint: &'a Checkpoint,
        origin: Origin,
        options: &'a Options,
        request: &'a Request,
    ) -> Result<Self> {
        // What does not fit the format of the run may fit another.
        let lenient = Options { strict: false, ..options.clone() };
        let draft = Plan::draft(checkpoint, origin.clone(), &lenient)?;
        if let Some(note) = draft.notes.iter().find(|note| options.strict && note.is_unused()) {
            return Err(Error::Strict { note: note.to_string() });
        }
        let scope = Scope::new((checkpoint, &origin.layout), &draft, options, request)?;
        request.check(&draft, &scope)?;
        Ok(Self { checkpoint, origin, options, request, draft, scope })
    }

    /// What tells measurements of these weights from others.
    pub fn fingerprint(&self, importance: Option<&Importance>) -> String {
        fingerprint(&self.draft, self.checkpoint, importance.map(Importance::digest))
    }

    /// Measures what `measures` lacks; says whether that was anything.
    ///
    /// # Errors
    /// As [`Measuring::run`]; importance that does not fit.
    pub fn measure(&self, measures: &mut Measures, means: Means<'_>) -> Result<bool> {
        let Means { importance, memory, observer, stop } = means;
        if let Some(importance) = importance {
            importance.check(&self.draft.tasks)?;
        }
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
        let (plan, checkpoint) = (&self.draft, self.checkpoint);
        Measuring { plan, checkpoint, importance, memory, observer, stop }.run(&wanted, measures)?;
        Ok(true)
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
