//! Which modules an allocation may choose a format for, among which formats, and which must share one.
//!
//! A weight that the source has in a format of MLX is moved wherever as many bits are asked for as it has, so
//! it has no more to choose from than fewer bits, or itself, without an error.

use std::collections::HashMap;

use smelt_kernels::{Format, Mode};

use super::knapsack::Choice;
use super::layers::layer_of;
use super::prior::{self, Facts};
use super::{LayerPrior, Request};
use crate::checkpoint::Checkpoint;
use crate::layout::{Graph, Layout, Output, Role};
use crate::plan::allocate::BitsError;
use crate::plan::choose::{is_free, native, stored_bytes};
use crate::plan::measures::Measures;
use crate::plan::rules::{Bounds, Ruling};
use crate::plan::{Options, Plan, Task};

/// The smallest group of affine formats, for rows that larger ones do not divide.
const LAST_GROUP: usize = 32;

/// What an allocation decides about.
#[derive(Debug)]
pub struct Scope {
    /// The modules, in the order of the plan's tasks.
    pub modules: Vec<Free>,
    /// Modules that share a format, by their places in `modules`; most are alone.
    units: Vec<Vec<usize>>,
    /// Bytes of everything else in the model.
    pub fixed_bytes: u64,
    /// Whether rules bound some module.
    pub bounded: bool,
    facts: Facts,
}

/// A module whose format is free.
#[derive(Clone, Debug)]
pub struct Free {
    /// Its place in the plan's tasks.
    pub task: usize,
    /// Its path.
    pub module: String,
    /// What it is for.
    pub role: Role,
    /// The formats that it may get.
    pub candidates: Vec<Candidate>,
}

/// A format that a module may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The format that is asked for.
    pub format: Format,
    /// What the module takes then.
    pub bytes: u64,
    /// Whether the module is moved as it is then, in the format of the source and without an error.
    pub exact: bool,
}

impl Scope {
    /// Of a plan that was made of this layout with these options, whatever formats it has.
    ///
    /// # Errors
    /// [`BitsError::NoFormat`] for a module without a format between its bounds.
    pub fn new(
        (checkpoint, layout): (&Checkpoint, &Layout),
        plan: &Plan,
        options: &Options,
        request: &Request,
    ) -> Result<Self, BitsError> {
        let outputs: HashMap<&str, &Output> =
            layout.outputs.iter().map(|output| (output.name.as_str(), output)).collect();
        let mut found = Freedom {
            ruling: Ruling::new(options, &layout.outputs),
            natives: Natives::new(checkpoint, layout, options),
            request,
            bounded: false,
        };
        let (mut modules, mut keys, mut fixed_bytes) = (Vec::new(), Vec::new(), 0);
        for (place, task) in plan.model_tasks().iter().enumerate() {
            let output = outputs.get(task.name.as_str()).copied();
            match output.map(|output| found.module(place, task, output, options)).transpose()?.flatten() {
                Some(module) => {
                    keys.push(output.and_then(unit_key));
                    modules.push(module);
                }
                None => fixed_bytes += task.bytes(),
            }
        }
        let units = units(&mut modules, &keys);
        let bounded = found.bounded;
        Ok(Self { modules, units, fixed_bytes, bounded, facts: facts(&plan.tasks) })
    }

    /// The fewest and the most bytes of tensors that a choice gives.
    pub fn reach(&self) -> (u64, u64) {
        let mut reach = (self.fixed_bytes, self.fixed_bytes);
        for module in &self.modules {
            let sizes = || module.candidates.iter().map(|candidate| candidate.bytes);
            reach.0 += sizes().min().unwrap_or(0);
            reach.1 += sizes().max().unwrap_or(0);
        }
        reach
    }

    /// The loss and size of each unit in each of its formats.
    ///
    /// # Panics
    /// If an error is not measured.
    pub(super) fn items(&self, measures: &Measures, layers: Option<&LayerPrior>) -> Vec<Vec<Choice>> {
        self.units.iter().map(|unit| self.choices(unit, measures, layers)).collect()
    }

    fn choices(&self, unit: &[usize], measures: &Measures, layers: Option<&LayerPrior>) -> Vec<Choice> {
        let first = &self.modules[unit[0]];
        let choice = |index: usize| {
            let members = unit.iter().map(|&place| {
                let module = &self.modules[place];
                let Candidate { format, bytes, exact } = module.candidates[index];
                let measured =
                    || measures.error(&module.module, format).expect("all candidates are measured");
                let error = if exact { 0.0 } else { measured() };
                let layer = layers.map_or(1.0, |prior| prior.factor(&module.module));
                let weight = prior::weight(module.role, layer_of(&module.module), self.facts);
                (bytes, weight * layer * error)
            });
            members.fold(Choice { bytes: 0, loss: 0.0 }, |sum, (bytes, loss)| Choice {
                bytes: sum.bytes + bytes,
                loss: sum.loss + loss,
            })
        };
        (0..first.candidates.len()).map(choice).collect()
    }

    /// The format of each module by the picks of its unit.
    pub(super) fn formats<'a>(&'a self, picks: &'a [usize]) -> impl Iterator<Item = (String, Format)> + 'a {
        let pairs = self.units.iter().zip(picks);
        pairs.flat_map(move |(unit, &pick)| {
            unit.iter().map(move |&place| {
                let module = &self.modules[place];
                (module.module.clone(), module.candidates[pick].format)
            })
        })
    }
}

/// What the tasks tell about the model.
fn facts(tasks: &[Task]) -> Facts {
    let decoder = |task: &&Task| !task.role.is_tower() && !matches!(task.role, Role::Mtp | Role::Other);
    let last = tasks.iter().filter(decoder).filter_map(|task| layer_of(task.module())).max();
    Facts {
        tied: !tasks.iter().any(|task| task.role == Role::Head && task.name.ends_with(".weight")),
        routed: tasks.iter().any(|task| task.role.is_routed()),
        layers: last.map_or(1, |last| last + 1),
    }
}

/// Finds out which modules are free, and among what.
struct Freedom<'a> {
    ruling: Ruling<'a>,
    natives: Natives<'a>,
    request: &'a Request,
    /// Whether rules bound some module that is.
    bounded: bool,
}

impl Freedom<'_> {
    /// A module whose format is free, if this is one.
    fn module(
        &mut self,
        place: usize,
        task: &Task,
        output: &Output,
        options: &Options,
    ) -> Result<Option<Free>, BitsError> {
        let verdict = self.ruling.of(output);
        if !is_free(output, &verdict, options) {
            return Ok(None);
        }
        let wishes = Wishes { bounds: verdict.bounds(), native: self.natives.of(task, output) };
        let Some(module) = free_module(place, task, self.request, &wishes) else { return Ok(None) };
        if module.candidates.is_empty() {
            let rules = self.ruling.bounding(&verdict);
            return Err(BitsError::NoFormat { module: module.module, rules });
        }
        self.bounded |= !wishes.bounds.is_open();
        Ok(Some(module))
    }
}

/// What decides about a module's formats besides its shape and role.
struct Wishes {
    bounds: Bounds,
    /// The format in which it can be moved.
    native: Option<Format>,
}

/// Finds out in which formats modules can be moved.
struct Natives<'a> {
    checkpoint: &'a Checkpoint,
    layout: &'a Layout,
    options: &'a Options,
    /// A graph to make expressions in, once there are any to make.
    graph: Option<Graph>,
}

impl<'a> Natives<'a> {
    fn new(checkpoint: &'a Checkpoint, layout: &'a Layout, options: &'a Options) -> Self {
        Self { checkpoint, layout, options, graph: None }
    }

    /// The format of a module that can be moved. Most that can are moved in the draft already.
    fn of(&mut self, task: &Task, output: &Output) -> Option<Format> {
        if task.moved.is_some() {
            return task.format.as_ref().map(|spec| spec.0);
        }
        let sources = self.layout.graph.sources(output.node);
        if !sources.iter().all(|&id| self.checkpoint.logical(id).native().is_some()) {
            return None;
        }
        let graph = self.graph.get_or_insert_with(|| self.layout.graph.clone());
        native(self.checkpoint, graph, output, self.options)
    }
}

/// A module with its candidates: `None` if no format fits its rows, none of them if no format is within
/// the bounds.
fn free_module(place: usize, task: &Task, request: &Request, wishes: &Wishes) -> Option<Free> {
    let dtype = task.dtype.float()?;
    let row = task.shape.last().copied().filter(|&row| row > 0 && task.shape.len() >= 2)?;
    let mut formats = fitting(&request.formats, row);
    if formats.is_empty() {
        return None;
    }
    let moved = wishes.native.and_then(|native| moved(&request.formats, native, wishes.bounds));
    if moved.is_some() {
        formats.retain(|format| Some(format.bits()) < wishes.native.map(Format::bits));
    }
    wishes.bounds.narrow(&mut formats, if moved.is_some() { 2 } else { prior::floor(task.role) });
    let bytes = |format: Format| stored_bytes(&task.shape, dtype, format);
    let sized = formats.into_iter().map(|format| Candidate { format, bytes: bytes(format), exact: false });
    let exact = moved.zip(wishes.native);
    let exact = exact.map(|(format, native)| Candidate { format, bytes: bytes(native), exact: true });
    let candidates = sized.chain(exact).collect();
    Some(Free { task: place, module: task.module().to_owned(), role: task.role, candidates })
}

/// What to ask for so that a module is moved in its own format: that one, or the fewest bits that are enough.
fn moved(formats: &[Format], native: Format, bounds: Bounds) -> Option<Format> {
    if bounds.ceiling.is_some_and(|most| native.bits() > most) {
        return None;
    }
    let enough = formats.iter().copied().filter(|format| format.bits() >= native.bits());
    let within = enough.filter(|format| bounds.ceiling.is_none_or(|most| format.bits() <= most));
    let own = formats.iter().copied().find(|format| *format == native);
    own.or_else(|| within.min_by_key(|format| format.bits()))
}

/// The formats for rows of this length.
fn fitting(formats: &[Format], row: u64) -> Vec<Format> {
    let divides = |format: &Format| row.is_multiple_of(format.group_size() as u64);
    let mut fitting: Vec<Format> = formats.iter().copied().filter(divides).collect();
    if fitting.is_empty() {
        let affine = formats.iter().filter(|format| format.mode() == Mode::Affine);
        fitting = affine.filter_map(|format| Format::new(Mode::Affine, format.bits(), LAST_GROUP)).collect();
        fitting.retain(divides);
        fitting.dedup();
    }
    fitting
}

/// Modules of one parent that the family puts into one group share a format.
fn unit_key(output: &Output) -> Option<String> {
    let group = output.format_group.as_deref()?;
    let path = output.module_path();
    let parent = path.rsplit_once('.').map_or("", |(parent, _)| parent);
    Some(format!("{parent}.{group}"))
}

/// Joins modules of equal keys, whose candidates become those that all of them have. Where they have none in
/// common each stays alone.
fn units(modules: &mut [Free], keys: &[Option<String>]) -> Vec<Vec<usize>> {
    let mut known: HashMap<&str, usize> = HashMap::new();
    let mut units: Vec<Vec<usize>> = Vec::new();
    for (place, key) in keys.iter().enumerate() {
        let unit = key.as_deref().and_then(|key| known.get(key).copied());
        if let Some(unit) = unit
            && share(modules, &units[unit], place)
        {
            units[unit].push(place);
            continue;
        }
        if let Some(key) = key.as_deref() {
            known.insert(key, units.len());
        }
        units.push(vec![place]);
    }
    units
}

/// Leaves the members of a unit and another module only the formats that they have in common, if any.
fn share(modules: &mut [Free], unit: &[usize], other: usize) -> bool {
    let has = |module: &Free, format: Format| module.candidates.iter().any(|own| own.format == format);
    let first = &modules[unit[0]];
    let common: Vec<Format> = first
        .candidates
        .iter()
        .map(|candidate| candidate.format)
        .filter(|&format| has(&modules[other], format))
        .collect();
    if common.is_empty() {
        return false;
    }
    for &place in unit.iter().chain([&other]) {
        let own = std::mem::take(&mut modules[place].candidates);
        let sized = common.iter().filter_map(|&format| own.iter().find(|known| known.format == format));
        modules[place].candidates = sized.copied().collect();
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn affine(bits: u8, group: usize) -> Format {
        Format::new(Mode::Affine, bits, group).unwrap()
    }

    /// The formats for rows of this length, with the usual floor.
    fn allowed(formats: &[Format], row: u64, floor: u8) -> Vec<Format> {
        let mut fitting = fitting(formats, row);
        Bounds::default().narrow(&mut fitting, floor);
        fitting
    }

    #[test]
    fn rows_decide_about_groups_and_floors_about_bits() {
        let formats = super::super::candidates();
        assert_eq!(allowed(&formats, 512, 2).len(), 12);
        assert_eq!(allowed(&formats, 192, 2).len(), 6);
        let narrow = allowed(&formats, 96, 2);
        assert!(narrow.len() == 6 && narrow.iter().all(|format| format.group_size() == 32));
        assert_eq!(allowed(&formats, 100, 2), []);
        assert_eq!(allowed(&formats, 64, 8), [affine(8, 64)]);
        // Where eight bits are not among the formats, the most there is.
        assert_eq!(allowed(&[affine(3, 64), affine(4, 64)], 64, 8), [affine(4, 64)]);
    }

    #[test]
    fn a_unit_has_the_formats_that_all_its_members_have() {
        let candidate = |format: Format| Candidate { format, bytes: u64::from(format.bits()), exact: false };
        let module = |candidates: &[Format]| Free {
            task: 0,
            module: String::new(),
            role: Role::AttentionLatent,
            candidates: candidates.iter().map(|&format| candidate(format)).collect(),
        };
        let all =
            [module(&[affine(2, 64), affine(3, 64)]), module(&[affine(4, 64)]), module(&[affine(3, 64)])];
        let (a, other) = (Some("a".to_owned()), Some("b".to_owned()));
        let mut modules = all.to_vec();
        assert_eq!(units(&mut modules, &[a.clone(), None, a.clone()]), [vec![0, 2], vec![1]]);
        assert_eq!(modules[0].candidates, [candidate(affine(3, 64))]);
        let mut modules = all.to_vec();
        assert_eq!(units(&mut modules, &[a.clone(), a, other]).len(), 3);
    }

    #[test]
    fn bounds_are_firm_and_usual_floors_are_not() {
        let bits = |formats: &[Format]| formats.iter().map(|format| format.bits()).collect::<Vec<_>>();
        let narrowed = |floor, ceiling, usual| {
            let mut formats = [2, 3, 4, 6, 8].map(|bits| affine(bits, 64)).to_vec();
            Bounds { floor, ceiling }.narrow(&mut formats, usual);
            bits(&formats)
        };
        assert_eq!(narrowed(None, None, 4), [4, 6, 8]);
        assert_eq!(narrowed(Some(3), None, 8), [3, 4, 6, 8]);
        assert_eq!(narrowed(None, Some(3), 8), [3]);
        assert_eq!(narrowed(Some(5), Some(5), 2), [0u8; 0]);
        assert_eq!(narrowed(Some(4), Some(6), 2), [4, 6]);
    }

    #[test]
    fn a_weight_of_the_sources_own_format_asks_for_it_or_for_enough() {
        let native = Format::new(Mode::Mxfp4, 4, 32).unwrap();
        let open = Bounds::default();
        let usual = super::super::candidates();
        assert_eq!(moved(&usual, native, open).unwrap().bits(), 4);
        assert_eq!(moved(&[affine(3, 64), native, affine(4, 64)], native, open), Some(native));
        assert_eq!(moved(&[affine(3, 64)], native, open), None);
        assert_eq!(moved(&usual, native, Bounds { floor: None, ceiling: Some(3) }), None);
        assert_eq!(moved(&usual, native, Bounds { floor: Some(6), ceiling: None }).unwrap().bits(), 4);
    }
}
