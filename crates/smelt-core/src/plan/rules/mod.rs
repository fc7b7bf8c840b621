//! Rules: what a recipe file, `--override` and `--like` say about modules.
//!
//! All three are entries of one list, the weakest first: the model that is copied, the rules of the
//! recipe file in their order, the overrides in theirs. The last entry that finds a module and sets its format
//! decides; of floors and ceilings, which bound what a target may choose, the last of each kind
//! holds. A module is found by its path, by its role and by its layer, never by guesses from names.

mod bounds;
mod effect;
pub mod file;
mod layers;
mod over;

use std::fmt;

use regex::Regex;
use serde::{Deserialize, Serialize};

pub use bounds::Bounds;
pub use effect::RuleEffect;
pub(super) use effect::Tally;
pub use file::{Budget, RecipeError, RecipeFault, RecipeFile};
pub(super) use layers::Stacks;
pub use layers::{Layers, LayersError};
pub use over::Override;

use super::Options;
use super::choose::Choice;
use super::like::Like;
use crate::layout::{Output, Role};

/// Where a rule comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleSource {
    /// The formats of another model.
    Like,
    /// A recipe file.
    Recipe,
    /// `--override`.
    Override,
}

impl fmt::Display for RuleSource {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(match self {
            Self::Like => "like",
            Self::Recipe => "recipe",
            Self::Override => "override",
        })
    }
}

/// A place in a recipe file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file, as it was named.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The character in it, from 1.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "`{}`, line {}, column {}", self.file, self.line, self.column)
    }
}

/// Which modules a rule is about: those that all of its conditions hold for.
#[derive(Clone, Debug, Default)]
pub struct Finder {
    /// Searched for anywhere in the module's path.
    pub pattern: Option<Regex>,
    /// One of these is the module's role; any is, where there are none.
    pub roles: Vec<Role>,
    /// The layer is among these.
    pub layers: Option<Layers>,
}

impl Finder {
    fn finds(&self, output: &Output, stacks: &Stacks) -> bool {
        let path = output.module_path();
        (self.roles.is_empty() || self.roles.contains(&output.role))
            && self.layers.as_ref().is_none_or(|layers| stacks.among(path, layers))
            && self.pattern.as_ref().is_none_or(|pattern| pattern.is_match(path))
    }
}

/// What a rule does with the modules that it finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stores them so.
    Set(Choice),
    /// Bounds the bits that a target may choose for them.
    Bound {
        /// The fewest.
        floor: Option<u8>,
        /// The most.
        ceiling: Option<u8>,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(Choice::Keep) => out.write_str("keep"),
            Self::Set(Choice::Quantize(format)) => format.fmt(out),
            Self::Bound { floor: Some(floor), ceiling: Some(ceiling) } => {
                write!(out, "{floor} to {ceiling} bits")
            }
            Self::Bound { floor: Some(floor), .. } => write!(out, "at least {floor} bits"),
            Self::Bound { ceiling: Some(ceiling), .. } => write!(out, "at most {ceiling} bits"),
            Self::Bound { .. } => out.write_str("any bits"),
        }
    }
}

/// A rule about modules.
#[derive(Clone, Debug)]
pub struct Rule {
    /// Which modules.
    pub finder: Finder,
    /// What becomes of them.
    pub action: Action,
    /// Why, in the words of who wrote it.
    pub reason: Option<String>,
    /// Where it stands, if in a file.
    pub place: Option<Place>,
    /// The rule in short, for plans and messages.
    pub text: String,
}

impl Rule {
    /// Whether it bounds what a target chooses, and so means nothing without one.
    pub fn is_bound(&self) -> bool {
        matches!(self.action, Action::Bound { .. })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            None => write!(out, "`{}`", self.text),
            Some(place) => write!(out, "`{}` ({place})", self.text),
        }
    }
}

/// One entry of the list.
#[derive(Clone, Copy, Debug)]
enum Entry<'a> {
    Like(&'a Like),
    Rule(RuleSource, &'a Rule),
}

impl Entry<'_> {
    /// What it does with a module, if it finds it.
    fn action(&self, output: &Output, stacks: &Stacks) -> Option<Action> {
        match self {
            Self::Like(like) => like.choice(output.module_path()).map(Action::Set),
            Self::Rule(_, rule) => rule.finder.finds(output, stacks).then_some(rule.action),
        }
    }
}

/// All rules of a run, ready for the modules of one layout.
#[derive(Debug)]
pub(super) struct Ruling<'a> {
    entries: Vec<Entry<'a>>,
    stacks: Stacks,
}

/// What the rules say of a module.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict {
    /// The entries that find it.
    matched: Vec<usize>,
    /// The entry that decides, and how.
    set: Option<(usize, Choice)>,
    /// Entries whose floor and ceiling hold, with them.
    floor: Option<(usize, u8)>,
    ceiling: Option<(usize, u8)>,
}

impl Verdict {
    /// What is to happen with the module, if a rule says.
    pub(super) fn choice(&self) -> Option<Choice> {
        self.set.map(|(_, choice)| choice)
    }

    /// The bits between which a target may choose.
    pub(super) fn bounds(&self) -> Bounds {
        Bounds { floor: self.floor.map(|(_, bits)| bits), ceiling: self.ceiling.map(|(_, bits)| bits) }
    }
}

impl<'a> Ruling<'a> {
    pub(super) fn new(options: &'a Options, outputs: &[Output]) -> Self {
        let like = options.like.iter().map(Entry::Like);
        let recipe = options.rules.iter().map(|rule| Entry::Rule(RuleSource::Recipe, rule));
        let overrides = options.overrides.iter().map(|over| Entry::Rule(RuleSource::Override, &over.0));
        let entries: Vec<Entry<'_>> = like.chain(recipe).chain(overrides).collect();
        Self { entries, stacks: Stacks::of(outputs) }
    }

    /// What the rules say of a module.
    pub(super) fn of(&self, output: &Output) -> Verdict {
        let mut verdict = Verdict::default();
        for (index, entry) in self.entries.iter().enumerate() {
            let Some(action) = entry.action(output, &self.stacks) else { continue };
            verdict.matched.push(index);
            match action {
                Action::Set(choice) => verdict.set = Some((index, choice)),
                Action::Bound { floor, ceiling } => {
                    verdict.floor = floor.map(|bits| (index, bits)).or(verdict.floor);
                    verdict.ceiling = ceiling.map(|bits| (index, bits)).or(verdict.ceiling);
                }
            }
        }
        verdict
    }

    /// The rule of an entry, in words.
    fn words(&self, index: usize) -> String {
        match &self.entries[index] {
            Entry::Like(like) => format!("`--like {}`", like.name()),
            Entry::Rule(_, rule) => rule.to_string(),
        }
    }
}
