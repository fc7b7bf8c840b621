//! Families: what smelt knows of model architectures, as data.
//!
//! Each file of `families/` is embedded in the library; a user's own file is read the same way.

mod expand;
mod expected;
mod file;
mod format;
mod syntax;
mod template;
mod tensor;
mod value;

use std::sync::OnceLock;

pub use expected::{Expectation, Expected};
pub use file::{DropRule, Experts, Family, FamilyError, FaultRule, Group, ModuleRule, TensorRule};
pub use format::{FormatError, FormatRule};
pub use syntax::{Expr, Operator, SyntaxError};
pub use template::{Template, TemplateError};
pub use tensor::TensorError;
pub use value::{Env, Facts, Value, ValueError};

use super::{Layout, Problem};
use crate::checkpoint::Config;
use crate::layout::catalog::Catalog;

include!(concat!(env!("OUT_DIR"), "/families.rs"));

/// The families that are part of smelt, sorted by name.
///
/// # Panics
/// If an embedded file does not parse, which the tests rule out.
pub fn all() -> impl ExactSizeIterator<Item = &'static Family> {
    (0..FILES.len()).map(parsed)
}

/// An embedded family; it is parsed when it is first asked for, as most never are.
fn parsed(index: usize) -> &'static Family {
    static PARSED: OnceLock<Vec<OnceLock<Family>>> = OnceLock::new();
    let cells = PARSED.get_or_init(|| FILES.iter().map(|_| OnceLock::new()).collect());
    cells[index].get_or_init(|| {
        let (name, text) = FILES[index];
        Family::parse(text).unwrap_or_else(|error| panic!("families/{name}: {error}"))
    })
}

/// The text of the family file of this name.
pub fn text(name: &str) -> Option<&'static str> {
    let file = format!("{name}.toml");
    FILES.iter().find(|(known, _)| *known == file).map(|(_, text)| *text)
}

/// The family of a config: by its `model_type`, and by its `architectures` where families of one type
/// differ in these.
pub fn of_config(config: &Config) -> Option<&'static Family> {
    let model_type = config.model_type()?;
    // Only files in which the word stands at all are worth parsing.
    let quoted = format!("\"{model_type}\"");
    let candidates = (0..FILES.len()).filter(|&index| FILES[index].1.contains(&quoted)).map(parsed);
    choose(candidates, model_type, config)
}

/// The family that names an architecture of the config, else the one that names none.
fn choose<'a>(
    families: impl Iterator<Item = &'a Family>,
    model_type: &str,
    config: &Config,
) -> Option<&'a Family> {
    let names = config.get("architectures").and_then(serde_json::Value::as_array);
    let has = |known: &String| names.is_some_and(|names| names.iter().any(|name| name == known));
    let of_type = families.filter(|family| family.model_types.iter().any(|known| known == model_type));
    let fits =
        of_type.filter(|family| family.architectures.is_empty() || family.architectures.iter().any(has));
    fits.max_by_key(|family| !family.architectures.is_empty())
}

impl Family {
    /// The layout of a checkpoint of this family.
    ///
    /// # Errors
    /// Everything that does not fit.
    pub fn layout(
        &self,
        config: &Config,
        catalog: &dyn Catalog,
        target: &str,
    ) -> Result<Layout, Vec<Problem>> {
        expand::expand(self, config, catalog, target)
    }

    /// The share of its routed experts that a token uses, where there are any.
    ///
    /// # Errors
    /// [`ValueError`] if the config has no sensible numbers.
    pub fn active_share(&self, config: &Config, catalog: &dyn Catalog) -> Result<Option<f64>, ValueError> {
        let Some(experts) = &self.experts else {
            return Ok(None);
        };
        let facts = Facts::new(config, catalog, "", &self.lets, &self.indices);
        let env = Env::new(&facts);
        let (active, total) = (env.size(&experts.active)?, env.size(&experts.total)?);
        Ok((total > 0).then(|| active as f64 / total as f64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family(name: &str, rest: &str) -> Family {
        Family::parse(&format!("name = \"{name}\"\ntitle = \"\"\nmodel_types = [\"one\"]\n{rest}")).unwrap()
    }

    #[test]
    fn architectures_tell_families_of_one_type_apart() {
        let families = [family("plain", ""), family("classifier", "architectures = [\"A\", \"B\"]")];
        let chosen = |config: &str| {
            let config = Config::parse("config.json", config.as_bytes()).unwrap();
            choose(families.iter(), config.model_type()?, &config).map(|family| family.name.as_str())
        };
        assert_eq!(chosen(r#"{"model_type": "one"}"#), Some("plain"));
        assert_eq!(chosen(r#"{"model_type": "one", "architectures": ["C"]}"#), Some("plain"));
        assert_eq!(chosen(r#"{"model_type": "one", "architectures": ["C", "B"]}"#), Some("classifier"));
        assert_eq!(chosen(r#"{"model_type": "two"}"#), None);
    }
}
