//! Which parameters a family's model has, without the checkpoint that they were made from.
//!
//! A finished model no longer holds the tensors that a family's conditions ask for (`has(…)`, `any(…)`):
//! it holds what was made of them. So the conditions are worked out from the config as far as it goes,
//! and each question about tensors that is left is an unknown, one for all parameters that depend on
//! it. The parameters themselves answer it: what most of them say (present or not) is taken to hold, and
//! the few that say otherwise are missing or spare. A parameter whose condition stays open may be there
//! or not.

use std::collections::{BTreeMap, HashMap, HashSet};

use indexmap::IndexMap;

use super::expand::{module_of, top};
use super::file::{Family, Group, TensorRule};
use super::syntax::{Expr, Operator};
use super::template::Template;
use super::value::{Env, Facts};
use crate::checkpoint::{Config, TensorId};
use crate::layout::catalog::{Catalog, Info};
use crate::layout::{Module, Own, Role};

/// A parameter that a model has or may have.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Its dimensions; `None` for one that the config does not tell.
    pub shape: Option<Vec<Option<u64>>>,
    /// What it is for.
    pub role: Role,
    /// The module whose weight it is, if that can be quantized.
    pub module: Option<Module>,
    /// Whether a model without it does not load.
    pub required: bool,
}

/// The parameters of a model, as its family has them.
#[derive(Debug, Default)]
pub struct Expectation {
    /// By name; of a name with several shapes each.
    pub parameters: BTreeMap<String, Vec<Expected>>,
    /// Forms of names that may be there in any number, because the config does not say how many.
    open: Vec<Template>,
    /// Forms of names that the loader leaves out.
    dropped: Vec<Template>,
    /// Keys of the config that say something else than the tensors, with the value that they should have.
    pub config: Vec<(String, serde_json::Value)>,
}

impl Expectation {
    /// Whether a name has one of the forms of which nobody knows how many there are.
    pub fn may_have(&self, name: &str) -> bool {
        self.open.iter().any(|form| form.matches(name).is_some())
    }

    /// mlx-vlm loads a model without what sees or hears, if nothing at all of it is there.
    fn forgive_towers(&mut self, present: &dyn Fn(&str) -> bool) {
        let names = self.parameters.keys().filter(|name| present(name.as_str()));
        let there: HashSet<String> = names.map(|name| top(name).to_owned()).collect();
        let tower = |(name, all): (&String, &Vec<Expected>)| {
            all.iter().any(|expected| expected.role.is_tower()).then(|| top(name).to_owned())
        };
        let towers: HashSet<String> = self.parameters.iter().filter_map(tower).collect();
        let absent = |name: &str| towers.contains(top(name)) && !there.contains(top(name));
        for (_, all) in self.parameters.iter_mut().filter(|(name, _)| absent(name)) {
            for expected in all {
                expected.required = false;
            }
        }
    }

    /// Whether the loader leaves out a tensor of this name.
    pub fn leaves_out(&self, name: &str) -> bool {
        self.dropped.iter().any(|form| form.matches(name).is_some())
    }
}

/// Nothing: conditions are worked out without a checkpoint.
struct Nothing;

impl Catalog for Nothing {
    fn count(&self) -> u32 {
        0
    }

    fn find(&self, _name: &str) -> Option<TensorId> {
        None
    }

    fn info(&self, _id: TensorId) -> Info<'_> {
        unreachable!("it has no tensors")
    }
}

impl Family {
    /// The parameters of a model with this config for a library, given which names are `present` in it.
    pub fn expected(&self, config: &Config, target: &str, present: &dyn Fn(&str) -> bool) -> Expectation {
        let facts = Facts::new(config, &Nothing, target, &self.lets, &self.indices);
        let env = Env::new(&facts);
        let mut found = Expectation::default();
        let mut candidates = Vec::new();
        for group in &self.groups {
            for rule in &group.tensors {
                let all = Candidates { family: self, group, rule };
                if !all.write_out(&env, &mut Vec::new(), &mut candidates) {
                    found.open.push(env.pattern(&rule.name));
                }
            }
        }
        let answers = Answers::of(self, &env, &candidates, present);
        for candidate in &candidates {
            let required = match answers.form(&candidate.rule_form(), &env.with(&candidate.bound)) {
                Form::Known(false) => continue,
                Form::Known(true) => true,
                _ => false,
            };
            let expected = candidate.expected(self, &env, required);
            found.parameters.entry(candidate.name.clone()).or_default().push(expected);
        }
        if target == "mlx-vlm" {
            found.forgive_towers(present);
        }
        found.dropped = self.drops.iter().map(|rule| env.pattern(&rule.pattern)).collect();
        found.config = changed_keys(self, config, &env);
        found
    }
}

/// Keys of the config that the family sets, where the config has another value.
fn changed_keys(family: &Family, config: &Config, env: &Env<'_>) -> Vec<(String, serde_json::Value)> {
    let sure = family.config.iter().filter(|(_, expr)| !asks(expr, &family.lets, &mut HashSet::new()));
    let values = sure.filter_map(|(key, expr)| Some((key.clone(), env.eval(expr).ok()?.into_json())));
    values.filter(|(key, value)| !value.is_null() && config.get(key) != Some(value)).collect()
}

/// A rule, to be written out for all values of its indices.
struct Candidates<'a> {
    family: &'a Family,
    group: &'a Group,
    rule: &'a TensorRule,
}

/// A rule for certain values of its indices.
struct Candidate<'a> {
    group: &'a Group,
    rule: &'a TensorRule,
    bound: Vec<(&'a str, u64)>,
    name: String,
}

impl<'a> Candidates<'a> {
    /// Adds the parameters of the rule; `false` if an index has no end.
    fn write_out(
        &self,
        env: &Env<'_>,
        bound: &mut Vec<(&'a str, u64)>,
        out: &mut Vec<Candidate<'a>>,
    ) -> bool {
        let places = self.rule.name.places().into_iter();
        let open = places
            .filter(|place| self.family.indices.contains_key(*place))
            .find(|place| !bound.iter().any(|(name, _)| name == place));
        let Some(place) = open else {
            let name = env.with(bound).fill(&self.rule.name);
            let (group, rule, bound) = (self.group, self.rule, bound.clone());
            return name.map(|name| out.push(Candidate { group, rule, bound, name })).is_ok();
        };
        let Ok(values) = env.with(bound).indices(&self.family.indices[place]) else {
            return false;
        };
        values.into_iter().all(|value| {
            bound.push((place, value));
            let fine = self.write_out(env, bound, out);
            bound.pop();
            fine
        })
    }
}

impl Candidate<'_> {
    /// The condition under which it exists.
    fn rule_form(&self) -> Vec<&Expr> {
        self.group.when.iter().chain(&self.rule.when).collect()
    }

    fn expected(&self, family: &Family, env: &Env<'_>, required: bool) -> Expected {
        let env = env.with(&self.bound);
        let size = |expr: &Expr| {
            let sure = !asks(expr, &family.lets, &mut HashSet::new());
            sure.then(|| env.size(expr).ok()).flatten()
        };
        let shape = self.rule.shape.as_ref();
        // A format that depends on the source's tensors is not known any more.
        let module = self
            .rule
            .module
            .as_ref()
            .map(|rule| module_of(rule, &env).unwrap_or(Module { class: rule.class, own: Own::Run }));
        Expected {
            shape: shape.map(|sizes| sizes.iter().map(size).collect()),
            role: self.rule.role,
            module,
            required,
        }
    }
}

/// What a condition comes to without a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    /// It holds or not.
    Known(bool),
    /// It is the answer to a question about tensors, or its contrary.
    Question { key: String, contrary: bool },
    /// It depends on several answers, or can't be worked out.
    Open,
}

impl Form {
    fn not(self) -> Self {
        match self {
            Self::Known(value) => Self::Known(!value),
            Self::Question { key, contrary } => Self::Question { key, contrary: !contrary },
            Self::Open => Self::Open,
        }
    }

    /// Both of them, where `neutral` is what changes nothing: true for `and`, false for `or`.
    fn join(self, other: Self, neutral: bool) -> Self {
        match (self, other) {
            (Self::Known(value), other) | (other, Self::Known(value)) => {
                if value == neutral {
                    other
                } else {
                    Self::Known(value)
                }
            }
            (a, b) if a == b => a,
            _ => Self::Open,
        }
    }
}

/// The answers that the parameters of a model give.
struct Answers<'a> {
    lets: &'a IndexMap<String, Expr>,
    indices: &'a IndexMap<String, Expr>,
    known: HashMap<String, bool>,
}

/// Answers lead to others, but never through many steps.
const ROUNDS: usize = 4;

impl<'a> Answers<'a> {
    fn of(
        family: &'a Family,
        env: &Env<'_>,
        candidates: &[Candidate<'_>],
        present: &dyn Fn(&str) -> bool,
    ) -> Self {
        let mut answers = Self { lets: &family.lets, indices: &family.indices, known: HashMap::new() };
        for _ in 0..ROUNDS {
            // How many parameters say yes, how many no.
            let mut votes: HashMap<String, [u64; 2]> = HashMap::new();
            for candidate in candidates {
                let form = answers.form(&candidate.rule_form(), &env.with(&candidate.bound));
                if let Form::Question { key, contrary } = form {
                    let yes = present(&candidate.name) != contrary;
                    votes.entry(key).or_default()[usize::from(!yes)] += 1;
                }
            }
            if votes.is_empty() {
                break;
            }
            answers.known.extend(votes.into_iter().map(|(key, [yes, no])| (key, yes >= no)));
        }
        answers
    }

    /// What conditions come to that must all hold.
    fn form(&self, conditions: &[&Expr], env: &Env<'_>) -> Form {
        let forms = conditions.iter().map(|expr| self.one(expr, env, &mut Vec::new()));
        forms.fold(Form::Known(true), |all, form| all.join(form, true))
    }

    fn one<'e>(&'e self, expr: &'e Expr, env: &Env<'_>, inside: &mut Vec<&'e str>) -> Form {
        if !asks(expr, self.lets, &mut inside.iter().map(|name| (*name).to_owned()).collect()) {
            return env.truth(expr).map_or(Form::Open, Form::Known);
        }
        match expr {
            Expr::Not(inner) => self.one(inner, env, inside).not(),
            Expr::Binary(op @ (Operator::And | Operator::Or), a, b) => {
                let (a, b) = (self.one(a, env, inside), self.one(b, env, inside));
                a.join(b, *op == Operator::And)
            }
            Expr::Call(name, args) if name == "if" && args.len() == 3 => {
                match self.one(&args[0], env, inside) {
                    Form::Known(true) => self.one(&args[1], env, inside),
                    Form::Known(false) => self.one(&args[2], env, inside),
                    _ => Form::Open,
                }
            }
            Expr::Name(name) if self.lets.contains_key(name) => {
                inside.push(name);
                let form = self.one(&self.lets[name], env, inside);
                inside.pop();
                form
            }
            question => self.question(question, env),
        }
    }

    fn question(&self, expr: &Expr, env: &Env<'_>) -> Form {
        let matters = |index: &str| expr.mentions(&|name| name == index, self.lets, 0);
        let bound: Vec<_> = env
            .bound()
            .iter()
            .filter(|(index, _)| self.indices.contains_key(*index) && matters(index))
            .collect();
        let key = format!("{expr:?} {bound:?}");
        match self.known.get(&key) {
            Some(&answer) => Form::Known(answer),
            None => Form::Question { key, contrary: false },
        }
    }
}

/// Whether an expression, or a value that it uses, asks for tensors. `seen` holds the values on the way.
fn asks(expr: &Expr, lets: &IndexMap<String, Expr>, seen: &mut HashSet<String>) -> bool {
    let named = |name: &str, seen: &mut HashSet<String>| {
        lets.get(name).is_some_and(|expr| seen.insert(name.to_owned()) && asks(expr, lets, seen))
    };
    match expr {
        Expr::Int(_) | Expr::Float(_) => false,
        Expr::Text(template) => template.places().into_iter().any(|place| named(place, seen)),
        Expr::Name(name) => named(name, seen),
        Expr::Call(name, _) if matches!(name.as_str(), "has" | "any" | "dim" | "ndim" | "dtype") => true,
        Expr::List(items) | Expr::Call(_, items) => items.iter().any(|item| asks(item, lets, seen)),
        Expr::Negate(inner) | Expr::Not(inner) | Expr::Member(inner, _) => asks(inner, lets, seen),
        Expr::Item(a, b) | Expr::Binary(_, a, b) => asks(a, lets, seen) || asks(b, lets, seen),
    }
}
