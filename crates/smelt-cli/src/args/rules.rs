//! What can be typed about rules for modules: recipes, and models to copy from.

use std::path::PathBuf;

use clap::ArgGroup;
use smelt_core::plan::Recipe;

use super::bits::BITS;

/// Where formats of single modules come from, besides overrides.
#[derive(Clone, Debug, clap::Args)]
#[command(group = ArgGroup::new("target-of-bits").multiple(true))]
pub(crate) struct RuleArgs {
    /// Use one of mlx-lm's mixed recipes, module for module (`mixed_2_6`, `mixed_3_4`, `mixed_3_6` or
    /// `mixed_4_6`), or a recipe file: a budget and rules for modules, in TOML (docs/bits.md describes it)
    #[arg(help_heading = BITS, long, value_name = "NAME|FILE", group = "target-of-bits", value_parser = recipe)]
    pub(crate) recipe: Option<RecipeArg>,

    /// Store each module as a model has it that MLX quantized already, written by smelt or by another tool
    #[arg(help_heading = BITS, long, value_name = "DIR", group = "budget", conflicts_with = "vision_bits")]
    pub(crate) like: Option<PathBuf>,
}

/// A recipe by its name, or a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RecipeArg {
    Named(Recipe),
    File(PathBuf),
}

fn recipe(text: &str) -> Result<RecipeArg, String> {
    if let Some(recipe) = Recipe::ALL.into_iter().find(|recipe| recipe.name() == text) {
        return Ok(RecipeArg::Named(recipe));
    }
    let path = PathBuf::from(text);
    if path.extension().is_some_and(|extension| extension == "toml") || path.is_file() {
        return Ok(RecipeArg::File(path));
    }
    let known = Recipe::ALL.map(Recipe::name).join(", ");
    Err(format!("it is no recipe of mlx-lm ({known}) and no file"))
}
