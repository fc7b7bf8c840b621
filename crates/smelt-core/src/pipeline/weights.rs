//! The weights of the channels of a block: those of the importance that was given, else of the matrix itself.

use super::columns::Columns;
use super::encode::Place;
use crate::error::Result;
use crate::layout::pull::Puller;
use crate::plan::{Channels, Importance, Method, Plan, Reader, Task};

/// Finds weights, and keeps them for the next block of the same experts.
#[derive(Debug)]
pub(super) struct Weights<'a> {
    plan: &'a Plan,
    reader: Option<Reader<'a>>,
    columns: Columns,
    known: Option<Known>,
}

/// Weights that were read.
#[derive(Debug)]
struct Known {
    module: String,
    /// The first of the experts, and how many.
    experts: (u64, u64),
    channels: Channels,
    /// Whether all experts have these.
    shared: bool,
}

impl<'a> Weights<'a> {
    pub(super) fn new(plan: &'a Plan, importance: Option<&'a Importance>) -> Self {
        Self { plan, reader: importance.map(Importance::reader), columns: Columns::default(), known: None }
    }

    /// The weights for a block, and the place of the block among the experts that have them. `None` where all
    /// columns count the same.
    ///
    /// # Errors
    /// When the source or the importance can't be read.
    pub(super) fn of(
        &mut self,
        puller: Puller<'_>,
        task: &Task,
        place: Place,
    ) -> Result<Option<(&Channels, Place)>> {
        if self.plan.method == Method::Rtn {
            return Ok(None);
        }
        if !task.weighed {
            self.known = None;
            return self.columns.of(puller, task, place);
        }
        self.read(task, place)?;
        let entry = entry(task);
        let known = self.known.as_ref().filter(|known| known.module == task.module());
        Ok(known.map(|known| {
            let before = if known.shared { 0 } else { known.experts.0 * entry };
            (&known.channels, Place { offset: place.offset - before, ..place })
        }))
    }

    /// Reads the weights of the experts that a block touches, unless they are at hand.
    fn read(&mut self, task: &Task, place: Place) -> Result<()> {
        let (entry, module) = (entry(task), task.module());
        let first = place.offset / entry;
        let experts = (first, (place.offset + place.len).div_ceil(entry).saturating_sub(first));
        let same = |known: &Known| known.module == module && (known.shared || known.experts == experts);
        if self.known.as_ref().is_some_and(same) {
            return Ok(());
        }
        self.known = None;
        let Some(reader) = &mut self.reader else { return Ok(()) };
        let read = reader.channels(module, experts.0, experts.1)?;
        self.known =
            read.map(|(channels, shared)| Known { module: module.to_owned(), experts, channels, shared });
        Ok(())
    }
}

/// Elements of an expert, or of the whole matrix.
fn entry(task: &Task) -> u64 {
    let outer = usize::from(task.shape.len() > 2);
    task.shape[outer..].iter().product::<u64>().max(1)
}
