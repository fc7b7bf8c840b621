//! Names of llama.cpp for the inputs of modules, by a table that is data: `names.toml`.

use std::sync::LazyLock;

use serde::Deserialize;
use serde_json::Value;

use crate::checkpoint::Config;
use crate::layout::Role;
use crate::plan::Task;
use crate::plan::allocate::layer_of;

static TABLE: LazyLock<Table> =
    LazyLock::new(|| toml::from_str(include_str!("names.toml")).expect("the table is tested"));

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    input: Vec<Rule>,
}

/// What modules of some roles have as input.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    roles: Vec<Role>,
    #[serde(default)]
    modules: Vec<String>,
    #[serde(default)]
    models: Vec<String>,
    names: Vec<String>,
    #[serde(default = "yes")]
    block: bool,
    #[serde(default)]
    optional: bool,
    tiled: Option<[String; 2]>,
}

fn yes() -> bool {
    true
}

/// The names for one checkpoint.
#[derive(Debug)]
pub(super) struct Names<'a> {
    config: &'a Config,
}

/// What a module's input is called.
#[derive(Debug)]
pub(super) struct Called {
    /// From the best on.
    pub(super) names: Vec<String>,
    /// Whether what does not fit is as if it were not there.
    pub(super) optional: bool,
    /// The order of the channels there, if it is another.
    pub(super) tiles: Option<Tiles>,
}

/// Channels that lie as `[heads of a group, groups, size]` in the file and as `[groups, heads of a group, size]` in the
/// checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiles {
    groups: usize,
    heads: usize,
}

impl<'a> Names<'a> {
    pub(super) fn of(config: &'a Config) -> Self {
        Self { config }
    }

    /// What the input of a task's module is called, if there is a name for it.
    pub(super) fn of_task(&self, task: &Task) -> Option<Called> {
        let path = task.module();
        if path.split('.').any(|part| part.starts_with("mtp")) {
            return None;
        }
        let last = path.rsplit('.').next().unwrap_or(path);
        let rule = TABLE.input.iter().find(|rule| self.fits(rule, task.role, last))?;
        let layer = if rule.block { Some(layer_of(path)?) } else { None };
        let name = |name: &String| layer.map_or_else(|| name.clone(), |layer| format!("blk.{layer}.{name}"));
        let tiles = rule.tiled.as_ref().and_then(|keys| self.tiles(keys));
        Some(Called { names: rule.names.iter().map(name).collect(), optional: rule.optional, tiles })
    }

    fn fits(&self, rule: &Rule, role: Role, last: &str) -> bool {
        let model = |wanted: &String| self.model_types().any(|known| known.starts_with(wanted.as_str()));
        rule.roles.contains(&role)
            && (rule.modules.is_empty() || rule.modules.iter().any(|module| module == last))
            && (rule.models.is_empty() || rule.models.iter().any(model))
    }

    fn model_types(&self) -> impl Iterator<Item = &str> {
        ["model_type", "text_config.model_type"]
            .into_iter()
            .filter_map(|key| self.config.get(key).and_then(Value::as_str))
    }

    /// None where each group has one head: both orders are the same.
    fn tiles(&self, [groups, heads]: &[String; 2]) -> Option<Tiles> {
        let number = |key: &String| {
            let found = self.config.get(&format!("text_config.{key}")).or_else(|| self.config.get(key));
            usize::try_from(found?.as_u64()?).ok()
        };
        let (groups, all) = (number(groups)?, number(heads)?);
        let heads = all.checked_div(groups)?;
        (heads > 1 && heads * groups == all).then_some(Tiles { groups, heads })
    }
}

impl Tiles {
    /// Brings channels into the checkpoint's order; those of another number stay.
    pub(super) fn undo(self, row: &mut [f32]) {
        let Self { groups, heads } = self;
        if !row.len().is_multiple_of(groups * heads) {
            return;
        }
        let (size, tiled) = (row.len() / (groups * heads), row.to_vec());
        for (place, head) in row.chunks_exact_mut(size).enumerate() {
            let (group, within) = (place / heads, place % heads);
            head.copy_from_slice(&tiled[(within * groups + group) * size..][..size]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiled_heads_come_back_in_groups() {
        // Two groups of three heads of two channels; a channel's value is its place in the checkpoint.
        let mut tiled = Vec::new();
        for head in 0..3u8 {
            for group in 0..2u8 {
                tiled.extend((0..2u8).map(|channel| f32::from((group * 3 + head) * 2 + channel)));
            }
        }
        Tiles { groups: 2, heads: 3 }.undo(&mut tiled);
        assert_eq!(tiled, (0..12u8).map(f32::from).collect::<Vec<_>>());
    }

    #[test]
    fn a_rule_is_reached_by_each_of_its_roles() {
        for (place, rule) in TABLE.input.iter().enumerate() {
            assert!(!rule.names.is_empty() && !rule.roles.is_empty(), "{rule:?}");
            let hides = |earlier: &&Rule| {
                earlier.modules.is_empty()
                    && earlier.models.is_empty()
                    && rule.roles.iter().any(|role| earlier.roles.contains(role))
            };
            assert!(!TABLE.input[..place].iter().any(|earlier| hides(&earlier)), "{rule:?}");
        }
    }
}
