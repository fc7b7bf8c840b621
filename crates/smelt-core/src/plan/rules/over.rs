//! `--override`: a rule in one word of a command line.

use std::fmt;

use regex::Regex;
use smelt_kernels::{Format, Mode};

use super::{Action, Finder, Rule};
use crate::error::{Error, PlanError, Result};
use crate::plan::Choice;
use crate::plan::options::unknown;

/// A format for the modules whose path a pattern finds.
#[derive(Clone, Debug)]
pub struct Override(pub(in crate::plan) Rule);

impl Override {
    /// Parses `REGEX=BITS[:GROUP[:MODE]]`, `REGEX=MODE` or `REGEX=keep`. The part behind the last
    /// `=` is the format; what it leaves out is as in `base`, or as MLX has it by default where
    /// the mode differs.
    ///
    /// # Errors
    /// [`PlanError::Override`], which says what is wrong.
    pub fn parse(text: &str, base: Option<Format>) -> Result<Self> {
        let error = |why: String| Error::Plan(PlanError::Override { text: text.to_owned(), why });
        let (pattern, choice) = text
            .rsplit_once('=')
            .ok_or_else(|| error("there is no `=` between pattern and format".to_owned()))?;
        let format = match choice {
            "keep" => None,
            choice => Some(parse_format(choice, base).map_err(error)?),
        };
        let pattern = Regex::new(pattern).map_err(|why| error(no_pattern(&why)))?;
        Ok(Self(Rule {
            finder: Finder { pattern: Some(pattern), ..Finder::default() },
            action: Action::Set(format.map_or(Choice::Keep, Choice::Quantize)),
            reason: None,
            place: None,
            text: text.to_owned(),
        }))
    }
}

impl fmt::Display for Override {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0.text)
    }
}

/// Why a pattern is none, in a line: the parser draws a picture first.
pub(super) fn no_pattern(why: &regex::Error) -> String {
    let text = why.to_string();
    let last = text.lines().last().unwrap_or_default();
    format!("the pattern is no regular expression: {}", last.trim_start_matches("error: "))
}

fn parse_format(text: &str, base: Option<Format>) -> Result<Format, String> {
    if let Some(mode) = Mode::from_name(text) {
        let (bits, group) = mode.defaults();
        return Format::new(mode, bits, group).ok_or_else(|| unknown(mode, bits, group));
    }
    let mut parts = text.split(':');
    let bits = number(parts.next().unwrap_or_default(), "bits")?;
    let group = parts.next().map(|group| number(group, "a group size")).transpose()?;
    let mode = match parts.next() {
        None => Mode::Affine,
        Some(name) => Mode::from_name(name).ok_or_else(|| format!("`{name}` is no mode"))?,
    };
    if parts.next().is_some() {
        return Err("a format has at most three parts: BITS:GROUP:MODE".to_owned());
    }
    let like_base = base.filter(|base| base.mode() == mode).map(Format::group_size);
    let group = group.or(like_base).unwrap_or(mode.defaults().1);
    let bits = u8::try_from(bits).unwrap_or(u8::MAX);
    Format::new(mode, bits, group).ok_or_else(|| unknown(mode, bits, group))
}

fn number(text: &str, what: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("`{text}` is not {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> String {
        match Override::parse(text, Format::new(Mode::Affine, 4, 32)) {
            Ok(Override(rule)) => format!("{} {}", rule.finder.pattern.unwrap(), rule.action),
            Err(Error::Plan(PlanError::Override { why, .. })) => why,
            Err(other) => other.to_string(),
        }
    }

    #[test]
    fn an_override_takes_what_it_leaves_out_from_the_run() {
        assert_eq!(parsed("down_proj=6"), "down_proj 6-bit g32");
        assert_eq!(parsed("down_proj=6:128"), "down_proj 6-bit g128");
        assert_eq!(parsed("a=b=8:64:affine"), "a=b 8-bit g64");
        assert_eq!(parsed("lm_head=mxfp8"), "lm_head mxfp8");
        assert_eq!(parsed("lm_head=4:32:mxfp4"), "lm_head mxfp4");
        assert_eq!(parsed("embed=keep"), "embed keep");
    }

    #[test]
    fn a_bad_override_says_why() {
        assert_eq!(parsed("down_proj"), "there is no `=` between pattern and format");
        assert_eq!(
            parsed("x=7"),
            "mode affine has 2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128, not 7 bits in groups of 32"
        );
        assert_eq!(parsed("x=four"), "`four` is not bits");
        assert_eq!(parsed("x=4:64:int"), "`int` is no mode");
        assert!(parsed("(=4").contains("unclosed group"));
    }
}
