//! Recipes and models to copy from: what a file says becomes the options of the same names.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::bail;
use smelt_core::plan::allocate::BitsError;
use smelt_core::plan::rules::{Budget, Place, RecipeError, RecipeFault, RecipeFile};
use smelt_core::plan::{Like, Recipe, Rule};
use smelt_core::{Error, PlanError};
use smelt_kernels::Format;

use crate::args::{FormatList, ModeArg, PlanArgs, RecipeArg};

/// What is asked for, whether typed or in a file.
pub(crate) struct Wish {
    /// The options, with the budget of the recipe file.
    pub(crate) args: PlanArgs,
    /// The rules of the recipe file.
    pub(crate) rules: Vec<Rule>,
    /// The model to copy from.
    pub(crate) like: Option<Like>,
}

impl Wish {
    /// Reads the files that the options name.
    pub(crate) fn of(args: &PlanArgs) -> anyhow::Result<Self> {
        let mut wish = Self { args: args.clone(), rules: Vec::new(), like: None };
        match &args.rules_of.recipe {
            None => {}
            Some(RecipeArg::Named(recipe)) => refuse_more(*recipe, args)?,
            Some(RecipeArg::File(path)) => wish.take_up(read(path)?)?,
        }
        wish.like = args.rules_of.like.as_deref().map(like).transpose()?;
        Ok(wish)
    }

    /// The recipe of mlx-lm that is asked for, if one is.
    pub(crate) fn named(&self) -> Option<Recipe> {
        match &self.args.rules_of.recipe {
            Some(RecipeArg::Named(recipe)) => Some(*recipe),
            _ => None,
        }
    }

    /// Takes over what a file says; what is typed as well is refused.
    fn take_up(&mut self, recipe: RecipeFile) -> Result<(), Error> {
        if let Some((budget, place)) = recipe.budget {
            if let Some(option) = budgets(&self.args).first() {
                return Err(given_twice(place, option));
            }
            self.spend(&budget);
        }
        if let Some((formats, place)) = recipe.formats {
            if self.args.bits_of.formats.is_some() {
                return Err(given_twice(place, "--formats"));
            }
            if !self.has_target() {
                return Err(at(place, RecipeFault::FormatsAlone));
            }
            self.args.bits_of.formats = Some(FormatList(formats));
        }
        if let Some(option) = choices(&self.args).first().filter(|_| !self.has_target()) {
            return Err(BitsError::OptionAlone { option: (*option).to_owned() }.into());
        }
        self.rules = recipe.rules;
        Ok(())
    }

    fn spend(&mut self, budget: &Budget) {
        let bits = &mut self.args.bits_of;
        match *budget {
            Budget::BitsPerWeight(target) => bits.target_bpw = Some(target),
            Budget::Size(size) => bits.target_size = Some(size),
            Budget::Fit { memory, context } => (bits.fit, bits.context) = (Some(memory), context),
            Budget::Level(level) => bits.level = Some(level),
            Budget::Plain(format) => self.format(format),
        }
    }

    fn format(&mut self, format: Format) {
        self.args.mode = Some(ModeArg::of(format.mode()));
        self.args.bits = Some(format.bits());
        self.args.group_size = Some(format.group_size());
    }

    /// Whether bits are to be given out.
    fn has_target(&self) -> bool {
        let bits = &self.args.bits_of;
        let level = bits.level.is_some_and(|level| !level.is_plain());
        bits.target_bpw.is_some() || bits.target_size.is_some() || bits.fit.is_some() || level
    }
}

/// The name of what is done by rules, for the name of an output.
pub(crate) fn suffix(args: &PlanArgs) -> Option<OsString> {
    match (&args.rules_of.recipe, &args.rules_of.like) {
        (Some(RecipeArg::Named(recipe)), _) => Some(recipe.name().into()),
        (Some(RecipeArg::File(path)), _) => path.file_stem().map(OsString::from),
        (None, Some(model)) => {
            let mut name = OsString::from("like-");
            name.push(super::model_name(model).ok()?);
            Some(name)
        }
        (None, None) => None,
    }
}

/// A recipe of mlx-lm decides about all modules.
fn refuse_more(recipe: Recipe, args: &PlanArgs) -> anyhow::Result<()> {
    let more = budgets(args).into_iter().filter(|option| *option != "--group-size").chain(choices(args));
    match more.into_iter().next() {
        Some(option) => bail!("the recipe `{}` cannot be used with `{option}`", recipe.name()),
        None => Ok(()),
    }
}

/// The options given that say how much the result may take.
fn budgets(args: &PlanArgs) -> Vec<&'static str> {
    let bits = &args.bits_of;
    let all = [
        ("--bits", args.bits.is_some()),
        ("--group-size", args.group_size.is_some()),
        ("--mode", args.mode.is_some()),
        ("--target-bpw", bits.target_bpw.is_some()),
        ("--target-size", bits.target_size.is_some()),
        ("--fit", bits.fit.is_some()),
        ("--level", bits.level.is_some()),
        ("--like", args.rules_of.like.is_some()),
    ];
    all.into_iter().filter(|(_, given)| *given).map(|(option, _)| option).collect()
}

/// The options given that say how a target chooses.
fn choices(args: &PlanArgs) -> Vec<&'static str> {
    let bits = &args.bits_of;
    let all = [
        ("--formats", bits.formats.is_some()),
        ("--sensitivity-map", bits.sensitivity_map.is_some()),
        ("--measures", bits.measures.is_some()),
    ];
    all.into_iter().filter(|(_, given)| *given).map(|(option, _)| option).collect()
}

fn read(path: &Path) -> Result<RecipeFile, Error> {
    let file = path.display().to_string();
    let text =
        fs::read_to_string(path).map_err(|source| PlanError::RecipeFile { file: file.clone(), source })?;
    Ok(RecipeFile::parse(&file, &text).map_err(BitsError::from)?)
}

fn like(model: &Path) -> anyhow::Result<Like> {
    let checkpoint = super::open(model)?;
    Ok(Like::of(&checkpoint, &super::model_name(model)?.to_string_lossy())?)
}

fn given_twice(place: Place, option: &'static str) -> Error {
    at(place, RecipeFault::GivenTwice { option })
}

fn at(place: Place, fault: RecipeFault) -> Error {
    BitsError::from(RecipeError::new(place, fault)).into()
}
