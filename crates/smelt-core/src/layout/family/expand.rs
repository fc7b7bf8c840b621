//! Writes a family out for one checkpoint: every parameter with its expression, every tensor of
//! the checkpoint used, left out by a rule, or an error.

use std::collections::HashSet;

use super::file::{DropRule, Family, Group, ModuleRule, TensorRule};
use super::syntax::Expr;
use super::template::Template;
use super::tensor::{Maker, TensorError, indices};
use super::value::{Env, Facts, Value, ValueError};
use crate::checkpoint::{Config, TensorId};
use crate::layout::catalog::Catalog;
use crate::layout::graph::Graph;
use crate::layout::{Dropped, Fault, Layout, Module, MtpRules, Output, Own, Problem};

/// Expands `family` for a checkpoint with this config and these tensors.
///
/// # Errors
/// Every problem that was found, not only the first.
pub(super) fn expand(
    family: &Family,
    config: &Config,
    catalog: &dyn Catalog,
    target: &str,
) -> Result<Layout, Vec<Problem>> {
    let facts = Facts::new(config, catalog, target, &family.lets, &family.indices);
    let env = Env::new(&facts);
    let mut expansion = Expansion {
        family,
        env,
        catalog,
        target,
        graph: Graph::default(),
        outputs: Vec::new(),
        towers: HashSet::new(),
        claimed: vec![false; catalog.count() as usize],
        problems: Vec::new(),
    };
    expansion.sections();
    expansion.finish()
}

struct Expansion<'a> {
    family: &'a Family,
    env: Env<'a>,
    catalog: &'a dyn Catalog,
    target: &'a str,
    graph: Graph,
    outputs: Vec<Output>,
    /// Modules of the model that hold a tower or a part of one, by the first part of their names.
    towers: HashSet<String>,
    /// Which tensors of the checkpoint some rule asks for.
    claimed: Vec<bool>,
    problems: Vec<Problem>,
}

/// Rules that follow one another and begin with the same index: they are written out together,
/// layer by layer, so that what a model uses together lies together in the files.
type Section<'a> = (Option<&'a str>, Vec<(&'a Group, &'a TensorRule)>);

impl<'a> Expansion<'a> {
    fn sections(&mut self) {
        for (index, rules) in sections(self.family) {
            match index {
                None => rules.iter().for_each(|(group, rule)| self.rule(group, rule, &[])),
                Some(index) => self.section(index, &rules),
            }
        }
    }

    fn section(&mut self, index: &'a str, rules: &[(&'a Group, &'a TensorRule)]) {
        let env = self.env;
        let Some(values) = self.values(index, &rules[0].1.name.to_string(), &env) else {
            return;
        };
        for value in values {
            for (group, rule) in rules {
                self.rule(group, rule, &[(index, value)]);
            }
        }
    }

    /// What an index runs over. One that nothing defines on this checkpoint (no experts in a dense
    /// variant) is only a problem where a rule needs it.
    fn values(&mut self, index: &str, rule: &str, env: &Env<'_>) -> Option<Vec<u64>> {
        indices(&self.family.indices, index, env)
            .map_err(|error| {
                let missing = matches!(error, ValueError::Missing(_) | ValueError::Place(_));
                let rule = if missing { rule.to_owned() } else { format!("index.{index}") };
                self.problems.push(Problem::Value { rule, error });
            })
            .ok()
    }

    /// Writes a rule out for these indices and every value of the others in its name.
    fn rule(&mut self, group: &'a Group, rule: &'a TensorRule, bound: &[(&'a str, u64)]) {
        let open = index_places(self.family, rule).find(|place| !bound.iter().any(|(name, _)| name == place));
        let Some(place) = open else {
            self.parameter(group, rule, bound);
            return;
        };
        let env = self.env.with(bound);
        let Some(values) = self.values(place, &rule.name.to_string(), &env) else {
            return;
        };
        for value in values {
            let mut bound = bound.to_vec();
            bound.push((place, value));
            self.rule(group, rule, &bound);
        }
    }

    fn parameter(&mut self, group: &Group, rule: &TensorRule, bound: &[(&str, u64)]) {
        let env = self.env.with(bound);
        let Ok(name) = env.fill(&rule.name) else {
            return;
        };
        let made =
            holds(group.when.as_ref(), &env).and_then(|group| Ok(group && holds(rule.when.as_ref(), &env)?));
        match made {
            Ok(false) => {}
            Ok(true) => match self.parameter_of(name, rule, &env) {
                Ok(output) => self.outputs.push(output),
                Err(problem) => self.problems.push(problem),
            },
            Err(error) => self.problems.push(Problem::Value { rule: name, error }),
        }
    }

    fn parameter_of(&mut self, name: String, rule: &TensorRule, env: &Env<'_>) -> Result<Output, Problem> {
        if rule.role.is_tower() {
            self.towers.insert(top(&name).to_owned());
        }
        self.output(name, rule, env)
    }

    fn output(&mut self, name: String, rule: &TensorRule, env: &Env<'_>) -> Result<Output, Problem> {
        let (catalog, indices) = (self.catalog, &self.family.indices);
        let mut maker = Maker { graph: &mut self.graph, catalog, indices, claimed: &mut self.claimed };
        let node = match maker.make(&rule.from, env) {
            Ok(node) => node,
            Err(TensorError::Missing(tensor)) => return Err(Problem::Missing { output: name, tensor }),
            Err(error) => return Err(Problem::Tensor { output: name, error }),
        };
        if let Some(shape) = &rule.shape {
            let expected = shape.iter().map(|size| env.size(size)).collect::<Result<Vec<_>, _>>();
            let expected = expected.map_err(|error| Problem::Value { rule: name.clone(), error })?;
            let found = &self.graph.node(node).shape;
            if **found != *expected {
                return Err(Problem::Shape { output: name, found: found.to_vec(), expected });
            }
        }
        let treated = treatment(rule, env);
        let (module, cast, format_group) =
            treated.map_err(|error| Problem::Value { rule: name.clone(), error })?;
        Ok(Output { name, node, role: rule.role, module, cast, format_group })
    }

    /// mlx-vlm leaves out what sees or hears where a checkpoint has no tensor of it: a module of the
    /// model of which nothing at all can be made does not lack.
    fn forgive_towers(&mut self) {
        if self.target != "mlx-vlm" {
            return;
        }
        let made: HashSet<&str> = self.outputs.iter().map(|output| top(&output.name)).collect();
        let Self { problems, towers, .. } = self;
        problems.retain(|problem| match problem {
            Problem::Missing { output, .. } => made.contains(top(output)) || !towers.contains(top(output)),
            _ => true,
        });
    }

    /// Accounts for every tensor of the checkpoint, and works out what the config has to say.
    fn finish(mut self) -> Result<Layout, Vec<Problem>> {
        self.forgive_towers();
        let Self { family, env, catalog, graph, outputs, claimed, mut problems, .. } = self;
        let mtp = mtp_rules(family, &env);
        let preimage = family.preimage.iter().any(|library| library == self.target);
        let mut layout = Layout { graph, outputs, mtp, preimage, ..Layout::default() };
        let patterns: Vec<Template> = family.drops.iter().map(|rule| env.pattern(&rule.pattern)).collect();
        for id in (0..catalog.count()).filter(|&id| !claimed[id as usize]).map(TensorId) {
            let name = catalog.info(id).name;
            match dropping(&family.drops, &patterns, name, &env) {
                Ok(Some(rule)) => {
                    let DropRule { why, mtp, .. } = rule;
                    layout.dropped.push(Dropped { tensor: name.to_owned(), why: why.clone(), mtp: *mtp });
                }
                // With other problems this is often only their echo, but it may be their cause.
                Ok(None) => problems.push(Problem::Unclaimed { tensor: name.to_owned() }),
                Err(error) => problems.push(Problem::Value { rule: name.to_owned(), error }),
            }
        }
        for rule in &family.faults {
            let module = rule.module.as_ref().map(|module| env.fill(module)).transpose();
            let what = rule.what.clone();
            match (holds(rule.when.as_ref(), &env), module) {
                (Ok(false), _) => {}
                (Ok(true), Ok(None)) => problems.push(Problem::Library { message: what }),
                (Ok(true), Ok(Some(module))) => layout.faults.push(Fault { module, what }),
                (Err(error), _) | (_, Err(error)) => {
                    problems.push(Problem::Value { rule: "fault".to_owned(), error });
                }
            }
        }
        for (key, expr) in &family.config {
            match env.eval(expr) {
                Ok(Value::Null) => {}
                Ok(value) => layout.config.push((key.clone(), value.into_json())),
                Err(error) => problems.push(Problem::Value { rule: format!("config.{key}"), error }),
            }
        }
        if problems.is_empty() { Ok(layout) } else { Err(problems) }
    }
}

/// What is stored of layers that predict further tokens, with the family's texts filled in.
fn mtp_rules(family: &Family, env: &Env<'_>) -> MtpRules {
    let filled = |forms: &[Template]| forms.iter().map(|form| env.pattern(form)).collect();
    let MtpRules { model_type, dense, keep, experts } = &family.mtp;
    MtpRules {
        model_type: model_type.clone(),
        dense: filled(dense),
        keep: filled(keep),
        experts: experts.clone(),
    }
}

/// The first part of a parameter's name: the module of the model that it belongs to.
pub(super) fn top(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

type Treatment = (Option<Module>, bool, Option<String>);

/// How a parameter is quantized, whether it is cast, and whose format it shares.
fn treatment(rule: &TensorRule, env: &Env<'_>) -> Result<Treatment, ValueError> {
    let module = rule.module.as_ref().map(|module| module_of(module, env)).transpose()?;
    let group = rule.format_group.as_ref().map(|group| env.fill(group)).transpose()?;
    Ok((module, holds(rule.cast.as_ref(), env)?, group))
}

/// The module of a rule on this checkpoint.
pub(super) fn module_of(rule: &ModuleRule, env: &Env<'_>) -> Result<Module, ValueError> {
    let own = match &rule.format {
        _ if !holds(rule.quantize.as_ref(), env)? => Own::Keep,
        None => Own::Run,
        Some(format) => format.of(env)?,
    };
    Ok(Module { class: rule.class, own })
}

fn sections(family: &Family) -> Vec<Section<'_>> {
    let mut sections: Vec<Section<'_>> = Vec::new();
    let rules = family.groups.iter().flat_map(|group| group.tensors.iter().map(move |rule| (group, rule)));
    for (group, rule) in rules {
        let index = index_places(family, rule).next();
        match sections.last_mut() {
            Some((last, rules)) if *last == index => rules.push((group, rule)),
            _ => sections.push((index, vec![(group, rule)])),
        }
    }
    sections
}

/// The places of a rule's name that run over an index; the others hold texts.
fn index_places<'a>(family: &'a Family, rule: &'a TensorRule) -> impl Iterator<Item = &'a str> {
    rule.name.places().into_iter().filter(|place| family.indices.contains_key(*place))
}

fn holds(when: Option<&Expr>, env: &Env<'_>) -> Result<bool, ValueError> {
    when.map_or(Ok(true), |when| env.truth(when))
}

fn dropping<'a>(
    drops: &'a [DropRule],
    patterns: &[Template],
    name: &str,
    env: &Env<'_>,
) -> Result<Option<&'a DropRule>, ValueError> {
    for (rule, pattern) in drops.iter().zip(patterns) {
        if let Some(bound) = pattern.matches(name)
            && holds(rule.when.as_ref(), &env.with(&bound))?
        {
            return Ok(Some(rule));
        }
    }
    Ok(None)
}
