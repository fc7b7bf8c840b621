//! What can be wrong with a wish about bits.

use std::path::PathBuf;

/// Why bits can't be given out as asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BitsError {
    /// A target that no choice of formats reaches.
    #[error(
        "{asked} can't be reached: {}this model takes from {least} to {most}",
        if *.bounded { "with the floors and ceilings of the recipe " } else { "" }
    )]
    Unreachable {
        /// What was asked for.
        asked: String,
        /// The least that it takes.
        least: String,
        /// The most that it takes.
        most: String,
        /// Whether rules narrow the range.
        bounded: bool,
    },
    /// An option about how a target chooses, without one.
    #[error("`{option}` says how a target chooses, but neither recipe nor command line gives a target")]
    OptionAlone {
        /// The option.
        option: String,
    },
    /// A floor or ceiling without a target.
    #[error("rule {rule} bounds what a target chooses, but there is none; give one, such as `--target-bpw`")]
    BoundAlone {
        /// The rule.
        rule: String,
    },
    /// A floor above the ceiling of another rule.
    #[error("`{module}`: the floor of rule {floor} is above the ceiling of rule {ceiling}")]
    Contradiction {
        /// The module.
        module: String,
        /// The rule with the floor.
        floor: String,
        /// The rule with the ceiling.
        ceiling: String,
    },
    /// Bounds between which there is no format to choose from.
    #[error("`{module}`: none of the formats to choose from fits rule {rules}")]
    NoFormat {
        /// The module.
        module: String,
        /// The rules that bound it.
        rules: String,
    },
    /// A recipe file that is not valid.
    #[error(transparent)]
    File(#[from] crate::plan::rules::RecipeError),
    /// A model to copy from that MLX did not quantize.
    #[error("`{model}` is no model that MLX quantized, whose formats could be copied: it holds {storage}")]
    NotLike {
        /// The model.
        model: String,
        /// What it is.
        storage: String,
    },
    /// No module whose format is free to choose.
    #[error("no module is left to choose a format for: all are kept, overridden or fixed by the family")]
    NothingFree,
    /// A list of formats that can't be understood.
    #[error("formats `{text}`: {why}")]
    Formats {
        /// As given.
        text: String,
        /// What is wrong.
        why: String,
    },
    /// A level that there is not.
    #[error(
        "`{text}` is no level; there are {known}, each also with a trailing `e` where an importance matrix is given"
    )]
    Level {
        /// As given.
        text: String,
        /// Those that there are.
        known: String,
    },
    /// A level of the `e` kind without an importance matrix.
    #[error(
        "level `{level}` weighs errors by an importance matrix, but none is given; `{plain}` does without"
    )]
    NeedsImportance {
        /// The level.
        level: String,
        /// The same without the `e`.
        plain: String,
    },
    /// A recipe of mlx-lm for a model that it refuses.
    #[error("the recipe `{recipe}` does not fit this model: {why}")]
    Recipe {
        /// The recipe.
        recipe: &'static str,
        /// Why.
        why: String,
    },
    /// Less memory than the context alone takes.
    #[error(
        "of {memory} a model may use {usable}, but {reserve} are set aside for a context of {tokens} tokens; shorten it with `--context`"
    )]
    NoRoom {
        /// Memory of the machine.
        memory: String,
        /// What of it a model may use.
        usable: String,
        /// What is set aside.
        reserve: String,
        /// Tokens of context.
        tokens: u64,
    },
    /// A file of measurements that can't be read.
    #[error("cannot read the measurements `{file}`: {why}")]
    Measures {
        /// The file.
        file: PathBuf,
        /// Why.
        why: String,
    },
}
