//! The format of its own that a family gives a module: a mode, and bits and group size where that mode has several.

use smelt_kernels::{Format, Mode};

use super::syntax::Expr;
use super::value::{Env, Value, ValueError};
use crate::layout::Own;

/// How a family says in which format a module is stored.
#[derive(Debug)]
pub struct FormatRule {
    /// The name of the mode, affine where nothing is said; null stands for the format of the run.
    mode: Option<Expr>,
    /// Bits and group size, those of the mode where nothing is said; null bits are the format of the run.
    size: Option<(Expr, Expr)>,
}

/// Why a family can't ask for a format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Said of a parameter that is not quantized at all.
    #[error("`bits`, `group_size`, `mode`, `quantize` and `format_group` are for a `module`")]
    Module,
    /// A format for what is never quantized.
    #[error("`quantize = false` goes alone, without a format")]
    Never,
    /// Half of a format.
    #[error("`bits` and `group_size` go together")]
    Half,
    /// Affine codes of any width.
    #[error("the mode affine needs `bits` and `group_size`")]
    Open,
    /// A mode that MLX does not have.
    #[error("MLX has no mode `{0}`, only affine, mxfp4, mxfp8 and nvfp4")]
    Mode(String),
    /// Bits or a group size that the mode does not have.
    #[error("MLX has no {mode} format of {bits} bits in groups of {group}")]
    Size {
        /// The mode.
        mode: Mode,
        /// The bits.
        bits: i64,
        /// The group size.
        group: i64,
    },
}

impl FormatRule {
    /// The rule of these keys, where any is given. What does not depend on the config is looked at here.
    pub(super) fn new(
        mode: Option<Expr>,
        bits: Option<Expr>,
        group_size: Option<Expr>,
    ) -> Result<Option<Self>, FormatError> {
        let size = match (bits, group_size) {
            (Some(bits), Some(group)) => Some((bits, group)),
            (None, None) if mode.is_none() => return Ok(None),
            (None, None) => None,
            _ => return Err(FormatError::Half),
        };
        let rule = Self { mode, size };
        rule.check()?;
        Ok(Some(rule))
    }

    fn check(&self) -> Result<(), FormatError> {
        let mode = match &self.mode {
            None => Mode::Affine,
            Some(Expr::Text(name)) if name.places().is_empty() => named(&name.to_string())?,
            Some(_) => return Ok(()),
        };
        match &self.size {
            Some((Expr::Int(bits), Expr::Int(group))) => format(mode, Some((*bits, *group))).map(drop),
            Some(_) => Ok(()),
            None => format(mode, None).map(drop),
        }
    }

    /// How the module is stored on a checkpoint.
    ///
    /// # Errors
    /// [`ValueError`], also where the format is none of MLX.
    pub(super) fn of(&self, env: &Env<'_>) -> Result<Own, ValueError> {
        let Some(mode) = self.mode(env)? else { return Ok(Own::Run) };
        let size = match &self.size {
            None => None,
            Some((bits, _)) if env.eval(bits)? == Value::Null => return Ok(Own::Run),
            Some((bits, group)) => Some((env.size(bits)?.cast_signed(), env.size(group)?.cast_signed())),
        };
        Ok(Own::Format(format(mode, size)?))
    }

    fn mode(&self, env: &Env<'_>) -> Result<Option<Mode>, ValueError> {
        let Some(mode) = &self.mode else { return Ok(Some(Mode::Affine)) };
        match env.eval(mode)? {
            Value::Null => Ok(None),
            Value::Text(name) => Ok(Some(named(&name)?)),
            other => Err(other.not("the name of a mode", "`mode`")),
        }
    }
}

fn named(name: &str) -> Result<Mode, FormatError> {
    Mode::from_name(name).ok_or_else(|| FormatError::Mode(name.to_owned()))
}

/// The format of a mode: with these bits in groups of this size, or the only one that it has.
fn format(mode: Mode, size: Option<(i64, i64)>) -> Result<Format, FormatError> {
    let Some((bits, group)) = size else {
        let (bits, group) = mode.defaults();
        return Format::new(mode, bits, group).filter(|_| mode != Mode::Affine).ok_or(FormatError::Open);
    };
    let known = u8::try_from(bits).ok().zip(usize::try_from(group).ok());
    let known = known.and_then(|(bits, group)| Format::new(mode, bits, group));
    known.ok_or(FormatError::Size { mode, bits, group })
}
