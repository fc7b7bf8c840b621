//! Recipe files: a budget, the formats to choose from, and rules, in TOML.
//!
//! ```toml
//! schema = 1
//! description = "Attention stays precise, the middle of the stack is cheap"
//! target_bpw = 4.2
//! formats = ["3/64", "4/64", "6/64", "8/64"]
//!
//! [[rule]]
//! role = ["attention-key", "attention-value"]
//! floor = 6
//! reason = "long contexts"
//!
//! [[rule]]
//! match = "down_proj$"
//! layers = "0-1,-1"
//! format = "8/64"
//! ```
//!
//! All that can be wrong with a file alone is found when it is parsed, each with its line and column; the budget
//! stands for the options of the same names.

mod fault;
mod schema;

use regex::Regex;
use smelt_kernels::{Format, Mode};
use toml::Spanned;

pub use fault::{RecipeError, RecipeFault};

use super::{Action, Finder, Place, Rule, over};
use crate::layout::Role;
use crate::plan::Choice;
use crate::plan::allocate::{Level, parse_candidate};
use schema::{FileToml, Names, RuleToml, Size};

/// The version of the format.
pub const SCHEMA: u32 = 1;

/// Bits that a floor or a ceiling may have.
const BITS: std::ops::RangeInclusive<u8> = 2..=8;

/// A recipe file that was read.
#[derive(Clone, Debug)]
pub struct RecipeFile {
    /// What it is for, in the words of who wrote it.
    pub description: Option<String>,
    /// How much the result may take, with the place where that stands.
    pub budget: Option<(Budget, Place)>,
    /// Formats to choose from, with the place where they stand.
    pub formats: Option<(Vec<Format>, Place)>,
    /// The rules, in order.
    pub rules: Vec<Rule>,
}

/// How much a result may take, each as the options of the same names.
#[derive(Clone, Debug, PartialEq)]
pub enum Budget {
    /// `target_bpw`.
    BitsPerWeight(f64),
    /// `target_size`, in bytes.
    Size(u64),
    /// `fit`, and `context` where it is given.
    Fit {
        /// Memory of the machine, in bytes.
        memory: u64,
        /// Tokens.
        context: Option<u64>,
    },
    /// `level`.
    Level(Level),
    /// `bits`, `group_size` and `mode`: one format throughout.
    Plain(Format),
}

impl Budget {
    /// Whether bits are given out by it, so that floors and ceilings mean something.
    pub fn is_target(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Level(level) => !level.is_plain(),
            _ => true,
        }
    }
}

impl RecipeFile {
    /// Parses a recipe; `file` is what errors call it.
    ///
    /// # Errors
    /// [`RecipeError`] with the first thing that is wrong, and where.
    pub fn parse(file: &str, text: &str) -> Result<Self, RecipeError> {
        let reader = Reader { file, text };
        let toml: FileToml = toml::from_str(text).map_err(|error| reader.toml(&error))?;
        if *toml.schema.get_ref() != SCHEMA {
            let found = *toml.schema.get_ref();
            return Err(reader.error(&toml.schema, RecipeFault::Schema { found }));
        }
        let budget = reader.budget(&toml)?;
        let formats = toml.formats.as_ref().map(|formats| reader.formats(formats)).transpose()?;
        let rules: Vec<Rule> = toml.rule.iter().map(|rule| reader.rule(rule)).collect::<Result<_, _>>()?;
        let recipe = Self { description: toml.description, budget, formats, rules };
        recipe.check_target()?;
        Ok(recipe)
    }

    /// Formats to choose from and bounds mean nothing beside a budget that is no target.
    fn check_target(&self) -> Result<(), RecipeError> {
        if self.budget.as_ref().is_none_or(|(budget, _)| budget.is_target()) {
            return Ok(());
        }
        let bound = self.rules.iter().find(|rule| rule.is_bound()).and_then(|rule| rule.place.clone());
        match self.formats.as_ref().map(|(_, place)| place.clone()).or(bound) {
            None => Ok(()),
            Some(place) => Err(RecipeError::new(place, RecipeFault::NoTarget)),
        }
    }
}

/// The text of a file, for places in it.
struct Reader<'a> {
    file: &'a str,
    text: &'a str,
}

impl Reader<'_> {
    fn place(&self, offset: usize) -> Place {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line = before.rsplit('\n').next().unwrap_or_default();
        Place {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: line.chars().count() + 1,
        }
    }

    fn error<T>(&self, value: &Spanned<T>, fault: RecipeFault) -> RecipeError {
        RecipeError::new(self.place(value.span().start), fault)
    }

    fn toml(&self, error: &toml::de::Error) -> RecipeError {
        let offset = error.span().map_or(0, |span| span.start);
        let what = error.message().trim().replace('\n', ", ");
        RecipeError::new(self.place(offset), RecipeFault::Toml { what })
    }

    /// The one budget of a file, if it has one.
    fn budget(&self, toml: &FileToml) -> Result<Option<(Budget, Place)>, RecipeError> {
        let given = toml.budgets();
        if let [(first, _), (second, at), ..] = given[..] {
            return Err(RecipeError::new(self.place(at), RecipeFault::TwoBudgets { first, second }));
        }
        if let (Some(context), None) = (&toml.context, &toml.fit) {
            return Err(self.error(context, RecipeFault::ContextAlone));
        }
        let budget = if let Some(bits) = &toml.target_bpw {
            let sane = |bits: &f64| bits.is_finite() && *bits > 0.0;
            let fault = || self.error(bits, RecipeFault::NotPositive);
            Some(*bits.get_ref()).filter(sane).map(Budget::BitsPerWeight).ok_or_else(fault)?
        } else if let Some(size) = &toml.target_size {
            Budget::Size(self.size(size)?)
        } else if let Some(memory) = &toml.fit {
            let context = toml.context.as_ref().map(|context| *context.get_ref());
            Budget::Fit { memory: self.size(memory)?, context }
        } else if let Some(level) = &toml.level {
            Budget::Level(
                level.get_ref().parse().map_err(|error| self.error(level, RecipeFault::from(error)))?,
            )
        } else if toml.bits.is_some() || toml.group_size.is_some() || toml.mode.is_some() {
            Budget::Plain(self.plain(toml)?)
        } else {
            return Ok(None);
        };
        Ok(given.first().map(|(_, at)| (budget, self.place(*at))))
    }

    fn size(&self, size: &Spanned<Size>) -> Result<u64, RecipeError> {
        size.get_ref().bytes().ok_or_else(|| self.error(size, RecipeFault::Size))
    }

    /// The format of a run; what is not given is the mode's.
    fn plain(&self, toml: &FileToml) -> Result<Format, RecipeError> {
        let mode = match &toml.mode {
            None => Mode::Affine,
            Some(name) => Mode::from_name(name.get_ref())
                .ok_or_else(|| self.error(name, RecipeFault::Mode { name: name.get_ref().clone() }))?,
        };
        let (bits, group_size) = mode.defaults();
        let bits = toml.bits.as_ref().map_or(bits, |bits| *bits.get_ref());
        let group_size = toml.group_size.as_ref().map_or(group_size, |size| *size.get_ref());
        Format::new(mode, bits, group_size).ok_or_else(|| {
            let why = crate::plan::options::unknown(mode, bits, group_size);
            let at = toml.budgets().first().map_or(0, |(_, at)| *at);
            RecipeError::new(self.place(at), RecipeFault::Format { why })
        })
    }

    fn formats(&self, list: &Spanned<Vec<Spanned<String>>>) -> Result<(Vec<Format>, Place), RecipeError> {
        let mut formats = Vec::new();
        for text in list.get_ref() {
            let format = self.candidate(text)?;
            if formats.contains(&format) {
                return Err(self.error(text, RecipeFault::Twice { format: text.get_ref().clone() }));
            }
            formats.push(format);
        }
        if formats.is_empty() {
            return Err(self.error(list, RecipeFault::NoFormats));
        }
        Ok((formats, self.place(list.span().start)))
    }

    fn candidate(&self, text: &Spanned<String>) -> Result<Format, RecipeError> {
        parse_candidate(text.get_ref()).map_err(|why| self.error(text, RecipeFault::Format { why }))
    }

    fn rule(&self, rule: &Spanned<RuleToml>) -> Result<Rule, RecipeError> {
        let toml = rule.get_ref();
        let finder = self.finder(rule)?;
        let action = self.action(rule)?;
        Ok(Rule {
            text: format!("{}: {action}", toml.words()),
            finder,
            action,
            reason: toml.reason.clone(),
            place: Some(self.place(rule.span().start)),
        })
    }

    fn finder(&self, rule: &Spanned<RuleToml>) -> Result<Finder, RecipeError> {
        let toml = rule.get_ref();
        if toml.pattern.is_none() && toml.role.is_none() && toml.layers.is_none() {
            return Err(self.error(rule, RecipeFault::NoCondition));
        }
        let pattern = toml.pattern.as_ref().map(|pattern| {
            let fault = |why: regex::Error| RecipeFault::Pattern { why: over::no_pattern(&why) };
            Regex::new(pattern.get_ref()).map_err(|why| self.error(pattern, fault(why)))
        });
        let layers = toml.layers.as_ref().map(|layers| {
            layers.get_ref().parse().map_err(|error| self.error(layers, RecipeFault::Layers(error)))
        });
        Ok(Finder {
            pattern: pattern.transpose()?,
            roles: toml.role.as_ref().map_or_else(|| Ok(Vec::new()), |roles| self.roles(roles))?,
            layers: layers.transpose()?,
        })
    }

    fn roles(&self, names: &Spanned<Names>) -> Result<Vec<Role>, RecipeError> {
        let names_of = names.get_ref().all();
        if names_of.is_empty() {
            return Err(self.error(names, RecipeFault::NoRoles));
        }
        let role = |name: &String| {
            Role::from_name(name).ok_or_else(|| self.error(names, RecipeFault::Role { name: name.clone() }))
        };
        names_of.iter().map(role).collect()
    }

    fn action(&self, rule: &Spanned<RuleToml>) -> Result<Action, RecipeError> {
        let toml = rule.get_ref();
        let bits = |bits: &Option<Spanned<u8>>| match bits {
            Some(bits) if !BITS.contains(bits.get_ref()) => Err(self.error(bits, RecipeFault::Bits)),
            bits => Ok(bits.as_ref().map(|bits| *bits.get_ref())),
        };
        let (floor, ceiling) = (bits(&toml.floor)?, bits(&toml.ceiling)?);
        match (&toml.format, floor, ceiling) {
            (None, None, None) => Err(self.error(rule, RecipeFault::NoAction)),
            (None, Some(floor), Some(ceiling)) if floor > ceiling => {
                Err(self.error(rule, RecipeFault::Crossed { floor, ceiling }))
            }
            (None, floor, ceiling) => Ok(Action::Bound { floor, ceiling }),
            (Some(format), None, None) if format.get_ref() == "keep" => Ok(Action::Set(Choice::Keep)),
            (Some(format), None, None) => Ok(Action::Set(Choice::Quantize(self.candidate(format)?))),
            (Some(format), ..) => Err(self.error(format, RecipeFault::FormatAndBound)),
        }
    }
}

#[cfg(test)]
mod tests;
