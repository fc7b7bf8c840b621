//! Which entries of a file are for which modules of a plan.
//!
//! A module is looked for by its own path, then by the names of the checkpoint's tensors with the same input, then by
//! llama.cpp's names. An entry that has the name and not the sizes is of another model.

use std::collections::{HashMap, HashSet};

use super::entry::Entry;
use super::inputs::{Inputs, inputs};
use super::names::{Called, Names, Tiles};
use super::rows::Rows;
use super::{ImportanceError, Statistics};
use crate::checkpoint::{Config, TensorId};
use crate::error::Result;
use crate::layout::graph::Op;
use crate::layout::{Graph, NodeId};
use crate::plan::{Plan, Task};

/// What a multimodal model has its language model under.
const LANGUAGE_MODEL: &str = "language_model.";

/// An entry, and how many rows it is taken to have: a flat one does not say.
pub(super) type Key = (u32, u64);

/// Where the weights of a module's channels are.
#[derive(Clone, Debug)]
pub(super) struct Weighing {
    pub(super) parts: Parts,
    pub(super) width: u64,
    pub(super) tiles: Option<Tiles>,
}

/// The entries of a module.
#[derive(Clone, Debug)]
pub(super) enum Parts {
    /// One row for all of it.
    Shared(u32),
    /// A row of one entry for each expert, of this many.
    Rows(u32, u64),
    /// An entry of its own for each expert, if there is one.
    Each(Box<[Option<u32>]>),
}

impl Parts {
    /// Entries of the module's first axis with weights of their own, or 1.
    pub(super) fn rows(&self) -> u64 {
        match self {
            Self::Shared(_) => 1,
            Self::Rows(_, rows) => *rows,
            Self::Each(each) => each.len() as u64,
        }
    }

    /// The entry and row of an expert.
    pub(super) fn row(&self, expert: u64) -> Option<(Key, u64)> {
        match self {
            Self::Shared(entry) => Some(((*entry, 1), 0)),
            Self::Rows(entry, rows) => Some(((*entry, *rows), expert)),
            Self::Each(each) => each[expert as usize].map(|entry| ((entry, 1), 0)),
        }
    }

    /// The entries, with how many rows each has.
    fn entries(&self) -> impl Iterator<Item = Key> {
        let (one, each): (Option<Key>, &[Option<u32>]) = match self {
            Self::Shared(entry) => (Some((*entry, 1)), &[]),
            Self::Rows(entry, rows) => (Some((*entry, *rows)), &[]),
            Self::Each(each) => (None, each),
        };
        one.into_iter().chain(each.iter().flatten().map(|&entry| (entry, 1)))
    }
}

/// What was found for a plan.
#[derive(Debug, Default)]
pub(super) struct Bound {
    pub(super) modules: HashMap<String, Weighing>,
    pub(super) rows: HashMap<Key, Rows>,
    /// Entries that are for no module.
    pub(super) unused: Vec<String>,
}

/// Finds the entries of every module, and reads each of them once.
pub(super) fn bind(statistics: &Statistics, plan: &Plan, config: &Config) -> Result<Bound> {
    let finder = Finder { statistics, plan, names: Names::of(config) };
    let mut bound = Bound::default();
    for task in plan.tasks.iter().filter(|task| may_have(task)) {
        if let Some(found) = finder.find(task)? {
            bound.modules.insert(task.module().to_owned(), found);
        }
    }
    if bound.modules.is_empty() {
        return Err(finder.nothing().into());
    }
    let used: HashSet<Key> = bound.modules.values().flat_map(|found| found.parts.entries()).collect();
    let mut order: Vec<Key> = used.into_iter().collect();
    order.sort_unstable();
    let of: HashSet<u32> = order.iter().map(|(entry, _)| *entry).collect();
    for key in order {
        let survey = Rows::survey(&statistics.file, &statistics.entries[key.0 as usize], key.1)?;
        bound.rows.insert(key, survey);
    }
    let unused = statistics.entries.iter().enumerate();
    let unused = unused.filter(|(place, _)| !of.contains(&(*place as u32)));
    bound.unused = unused.map(|(_, entry)| entry.name.clone()).collect();
    let Bound { modules, rows, .. } = &mut bound;
    modules.retain(|_, found| (0..found.parts.rows()).any(|row| knows(rows, &found.parts, row)));
    Ok(bound)
}

/// Whether there is data for an expert.
pub(super) fn knows(rows: &HashMap<Key, Rows>, parts: &Parts, expert: u64) -> bool {
    parts.row(expert).is_some_and(|(key, row)| rows[&key].knows(row as usize))
}

/// Whether a parameter is a matrix that inputs are multiplied by, or a stack of such.
fn may_have(task: &Task) -> bool {
    task.name.ends_with(".weight") && matches!(task.shape.len(), 2 | 3) && task.dtype.float().is_some()
}

/// Whether a parameter is a tensor of the checkpoint, of whatever dtype.
fn is_whole(graph: &Graph, node: NodeId) -> bool {
    match graph.node(node).op {
        Op::Source(_) => true,
        Op::Cast(input) => is_whole(graph, input),
        _ => false,
    }
}

struct Finder<'a> {
    statistics: &'a Statistics,
    plan: &'a Plan,
    names: Names<'a>,
}

impl Finder<'_> {
    fn find(&self, task: &Task) -> Result<Option<Weighing>> {
        let path = task.module();
        let short = path.strip_prefix(LANGUAGE_MODEL).unwrap_or(path);
        for name in [path, short, &format!("{LANGUAGE_MODEL}{path}")] {
            if let Some(entry) = self.entry(name) {
                return self.one(entry, task, None).map(Some);
            }
        }
        if let Some(found) = self.by_tensors(task)? {
            return Ok(Some(found));
        }
        let Some(Called { names, optional, tiles }) = self.names.of_task(task) else { return Ok(None) };
        let Some(entry) = names.iter().find_map(|name| self.entry(name)) else { return Ok(None) };
        match self.one(entry, task, tiles) {
            Err(_) if optional => Ok(None),
            found => found.map(Some),
        }
    }

    fn entry(&self, name: &str) -> Option<u32> {
        self.statistics.by_name.get(name).copied()
    }

    fn at(&self, entry: u32) -> &Entry {
        &self.statistics.entries[entry as usize]
    }

    /// By the names of the checkpoint's tensors.
    fn by_tensors(&self, task: &Task) -> Result<Option<Weighing>> {
        match inputs(&self.plan.graph, task.node) {
            None => Ok(None),
            Some(Inputs::Shared(tensor)) => {
                let Some(entry) = self.of_tensor(tensor) else { return Ok(None) };
                match self.one(entry, task, None) {
                    // A part of a tensor may have other inputs than the module that the tensor is of.
                    Err(_) if !is_whole(&self.plan.graph, task.node) => Ok(None),
                    found => found.map(Some),
                }
            }
            Some(Inputs::Each(tensors)) => {
                let each: Box<[Option<u32>]> =
                    tensors.into_iter().map(|tensor| self.of_tensor(tensor)).collect();
                if each.iter().all(Option::is_none) {
                    return Ok(None);
                }
                let width = *task.shape.last().unwrap_or(&0);
                for &entry in each.iter().flatten() {
                    let found = self.at(entry);
                    if (found.rows, found.width) != (1, width) {
                        return Err(self.other(found, task).into());
                    }
                }
                Ok(Some(Weighing { parts: Parts::Each(each), width, tiles: None }))
            }
        }
    }

    /// The entry for the module of a tensor.
    fn of_tensor(&self, tensor: TensorId) -> Option<u32> {
        let index = tensor.0 as usize;
        let name = match self.plan.logical_tensors.get(index) {
            Some(tensor) => &tensor.name,
            None => &self.plan.source_tensors.get(index)?.name,
        };
        self.entry(name.strip_suffix(".weight").unwrap_or(name))
    }

    /// One entry for a task, if its sizes are the task's.
    fn one(&self, place: u32, task: &Task, tiles: Option<Tiles>) -> Result<Weighing> {
        let entry = self.at(place);
        let width = *task.shape.last().unwrap_or(&0);
        let experts = if task.shape.len() > 2 { task.shape[0] } else { 1 };
        let unfolds = entry.flat && width > 0 && entry.width.is_multiple_of(width);
        let (rows, channels) = if unfolds { (entry.width / width, width) } else { (entry.rows, entry.width) };
        if channels != width || (rows != 1 && rows != experts) {
            return Err(self.other(entry, task).into());
        }
        let parts = if rows == 1 { Parts::Shared(place) } else { Parts::Rows(place, rows) };
        Ok(Weighing { parts, width, tiles })
    }

    fn other(&self, entry: &Entry, task: &Task) -> ImportanceError {
        ImportanceError::OtherModel {
            file: self.statistics.file.name.clone(),
            entry: entry.name.as_str().into(),
            found: (entry.rows, entry.width),
            module: task.module().into(),
            shape: task.shape.as_slice().into(),
        }
    }

    fn nothing(&self) -> ImportanceError {
        let modules: Vec<&Task> = self.plan.tasks.iter().filter(|task| may_have(task)).collect();
        ImportanceError::NothingMatches {
            file: self.statistics.file.name.clone(),
            entries: self.statistics.entries.len(),
            entry: self.statistics.names().next().unwrap_or_default().to_owned(),
            modules: modules.len(),
            module: modules.first().map_or("", |task| task.module()).to_owned(),
        }
    }
}
