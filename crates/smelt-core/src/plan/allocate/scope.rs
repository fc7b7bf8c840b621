//! Which modules an allocation may choose a format for, among which formats, and which must share one.

use std::collections::HashMap;

use smelt_kernels::{Format, Mode};

use super::knapsack::Choice;
use super::layers::layer_of;
use super::prior::{self, Facts};
use super::{LayerPrior, Request};
use crate::layout::{Layout, Output, Role};
use crate::plan::choose::{is_free, stored_bytes};
use crate::plan::measures::Measures;
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
    /// The formats that it may get, with what it takes in each.
    pub candidates: Vec<(Format, u64)>,
}

impl Scope {
    /// Of a plan that was made of this layout with these options, whatever formats it has.
    pub fn new(plan: &Plan, layout: &Layout, options: &Options, request: &Request) -> Self {
        let outputs: HashMap<&str, &Output> =
            layout.outputs.iter().map(|output| (output.name.as_str(), output)).collect();
        let (mut modules, mut keys, mut fixed_bytes) = (Vec::new(), Vec::new(), 0);
        for (place, task) in plan.model_tasks().iter().enumerate() {
            let output = outputs.get(task.name.as_str()).copied();
            let free = output.filter(|output| is_free(output, options));
            match free.and_then(|output| Some((output, free_module(place, task, request)?))) {
                None => fixed_bytes += task.bytes(),
                Some((output, module)) => {
                    keys.push(unit_key(output));
                    modules.push(module);
                }
            }
        }
        let units = units(&mut modules, &keys);
        Self { modules, units, fixed_bytes, facts: facts(&plan.tasks) }
    }

    /// The fewest and the most bytes of tensors that a choice gives.
    pub fn reach(&self) -> (u64, u64) {
        let mut reach = (self.fixed_bytes, self.fixed_bytes);
        for module in &self.modules {
            let sizes = || module.candidates.iter().map(|(_, bytes)| *bytes);
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
                let (format, bytes) = module.candidates[index];
                let error = measures.error(&module.module, format).expect("all candidates are measured");
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
                (module.module.clone(), module.candidates[pick].0)
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

fn free_module(place: usize, task: &Task, request: &Request) -> Option<Free> {
    let dtype = task.dtype.float()?;
    let row = task.shape.last().copied().filter(|&row| row > 0 && task.shape.len() >= 2)?;
    let formats = allowed(&request.formats, row, prior::floor(task.role));
    let sized = formats.into_iter().map(|format| (format, stored_bytes(&task.shape, dtype, format)));
    let candidates: Vec<(Format, u64)> = sized.collect();
    let module = task.module().to_owned();
    (!candidates.is_empty()).then_some(Free { task: place, module, role: task.role, candidates })
}

/// The formats for rows of this length, those below the floor left out as long as others are there.
fn allowed(formats: &[Format], row: u64, floor: u8) -> Vec<Format> {
    let divides = |format: &Format| row.is_multiple_of(format.group_size() as u64);
    let mut fitting: Vec<Format> = formats.iter().copied().filter(divides).collect();
    if fitting.is_empty() {
        let affine = formats.iter().filter(|format| format.mode() == Mode::Affine);
        fitting = affine.filter_map(|format| Format::new(Mode::Affine, format.bits(), LAST_GROUP)).collect();
        fitting.retain(divides);
        fitting.dedup();
    }
    let most = fitting.iter().map(|format| format.bits()).max().unwrap_or(0);
    fitting.retain(|format| format.bits() >= floor.min(most));
    fitting
}

/// Modules of one parent that the family puts into one group share a format.
fn unit_key(output: &Output) -> Option<String> {
    let group = output.format_group.as_deref()?;
    let path = output.name.strip_suffix(".weight").unwrap_or(&output.name);
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
    let has = |module: &Free, format: Format| module.candidates.iter().any(|(own, _)| *own == format);
    let first = &modules[unit[0]];
    let common: Vec<Format> = first
        .candidates
        .iter()
        .map(|(format, _)| *format)
        .filter(|&format| has(&modules[other], format))
        .collect();
    if common.is_empty() {
        return false;
    }
    for &place in unit.iter().chain([&other]) {
        let own = std::mem::take(&mut modules[place].candidates);
        let sized = common.iter().filter_map(|&format| own.iter().find(|(known, _)| *known == format));
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
        let module = |candidates: &[Format]| Free {
            task: 0,
            module: String::new(),
            role: Role::AttentionLatent,
            candidates: candidates.iter().map(|&format| (format, u64::from(format.bits()))).collect(),
        };
        let all =
            [module(&[affine(2, 64), affine(3, 64)]), module(&[affine(4, 64)]), module(&[affine(3, 64)])];
        let (a, other) = (Some("a".to_owned()), Some("b".to_owned()));
        let mut modules = all.to_vec();
        assert_eq!(units(&mut modules, &[a.clone(), None, a.clone()]), [vec![0, 2], vec![1]]);
        assert_eq!(modules[0].candidates, [(affine(3, 64), 3)]);
        let mut modules = all.to_vec();
        assert_eq!(units(&mut modules, &[a.clone(), a, other]).len(), 3);
    }
}
