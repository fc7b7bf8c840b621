//! Layers that predict further tokens (MTP), written apart from the model.
//!
//! The libraries' models do not have these layers, so a family drops them. A drop rule that is marked
//! (`mtp = true`) says that what it takes is such a layer; the family's `[mtp]` says how that is stored when
//! it is wanted: under the source's names, experts stacked as those of the model are, and the few weights
//! that a draft hangs on (the projection that joins token and hidden state, routers, embeddings and heads
//! shared with the model) as they are.

use std::collections::BTreeMap;

use indexmap::IndexMap;

use super::catalog::Catalog;
use super::family::{Template, TensorError};
use super::graph::{Graph, NodeId};
use super::{Layout, Module, ModuleClass, Output, Own, Problem, Role};

/// How a family stores the layers that predict further tokens.
#[derive(Clone, Debug, Default)]
pub struct MtpRules {
    /// The `model_type` of a library that loads such layers on their own.
    pub model_type: Option<String>,
    /// Forms of names that are not quantized.
    pub dense: Vec<Template>,
    /// Forms of names to which a change of dtype does not apply.
    pub keep: Vec<Template>,
    /// Experts that are stacked or cut.
    pub experts: Vec<MtpExperts>,
}

/// Experts of a layer: tensors that are stacked, or a tensor of all that is cut.
#[derive(Clone, Debug)]
pub struct MtpExperts {
    /// What the source's names end in. With the place `{expert}` one tensor for each, else all in one.
    pub from: Template,
    /// What the names end in that are written. Where there are several, the rows are cut into as many equal
    /// parts.
    pub to: Vec<String>,
}

impl MtpExperts {
    /// What stands before the part of a name that the rule speaks of, and the number of the expert.
    fn of<'a>(&self, name: &'a str) -> Option<(&'a str, Option<u64>)> {
        let starts = name.match_indices('.').map(|(at, _)| at + 1);
        [0].into_iter().chain(starts).find_map(|start| {
            let bound = self.from.matches(&name[start..])?;
            Some((&name[..start], bound.first().map(|(_, expert)| *expert)))
        })
    }
}

impl Layout {
    /// Takes the layers that predict further tokens from what is left out, and makes them parameters
    /// with the role [`Role::Mtp`], behind all others. Says how many tensors that were.
    ///
    /// # Errors
    /// Experts that are missing or do not fit one another, and names that the model has as well.
    pub fn separate_mtp(&mut self, catalog: &dyn Catalog) -> Result<usize, Vec<Problem>> {
        let dropped = std::mem::take(&mut self.dropped);
        let (taken, left): (Vec<_>, Vec<_>) = dropped.into_iter().partition(|dropped| dropped.mtp);
        self.dropped = left;
        let mut parting = Parting {
            graph: &mut self.graph,
            rules: &self.mtp,
            catalog,
            outputs: Vec::new(),
            stacks: IndexMap::new(),
            problems: Vec::new(),
        };
        for dropped in &taken {
            parting.take(&dropped.tensor);
        }
        parting.stack();
        let Parting { outputs, mut problems, .. } = parting;
        problems.extend(self.twice(&outputs));
        self.outputs.extend(outputs);
        if problems.is_empty() { Ok(taken.len()) } else { Err(problems) }
    }

    /// Names that the model has too: each stored tensor of an output has a name of its own.
    fn twice(&self, outputs: &[Output]) -> Vec<Problem> {
        let ours: std::collections::HashSet<&str> =
            self.outputs.iter().map(|output| output.name.as_str()).collect();
        let twice = outputs.iter().filter(|output| ours.contains(output.name.as_str()));
        twice.map(|output| Problem::Twice { output: output.name.clone() }).collect()
    }
}

/// Whether a tensor's name is one that layers have which predict further tokens.
pub fn looks_like_mtp(name: &str) -> bool {
    name.split('.').any(|part| part.starts_with("mtp") || part.contains("nextn") || part == "eh_proj")
}

/// Experts to stack: their nodes by number, and the name of the first tensor for messages.
type Stack = (String, BTreeMap<u64, NodeId>);

struct Parting<'a> {
    graph: &'a mut Graph,
    rules: &'a MtpRules,
    catalog: &'a dyn Catalog,
    outputs: Vec<Output>,
    stacks: IndexMap<String, Stack>,
    problems: Vec<Problem>,
}

impl Parting<'_> {
    fn take(&mut self, name: &str) {
        let Some(id) = self.catalog.find(name) else {
            self.problems.push(Problem::Missing { output: name.to_owned(), tensor: name.to_owned() });
            return;
        };
        let info = self.catalog.info(id);
        let node = self.graph.source(id, info.dtype, info.shape);
        let rules = self.rules;
        let found = rules.experts.iter().find_map(|rule| Some((rule, rule.of(name)?)));
        match found {
            None => {
                let class =
                    (name.ends_with(".weight") && info.shape.len() == 2).then_some(ModuleClass::Linear);
                self.put(name.to_owned(), node, class);
            }
            Some((rule, (before, Some(expert)))) => {
                for to in &rule.to {
                    let stack = self.stacks.entry(format!("{before}{to}"));
                    stack.or_insert_with(|| (name.to_owned(), BTreeMap::new())).1.insert(expert, node);
                }
            }
            Some((rule, (before, None))) => self.cut(before, node, &rule.to),
        }
    }

    /// Cuts the rows of a tensor that holds several projections.
    fn cut(&mut self, before: &str, node: NodeId, names: &[String]) {
        let shape = self.graph.node(node).shape.to_vec();
        let axis = shape.len().saturating_sub(2);
        // Rows that do not divide end beyond the tensor, which is an error.
        let rows = shape.get(axis).copied().unwrap_or(0).div_ceil(names.len().max(1) as u64);
        for (part, name) in (0..).zip(names) {
            let (name, whole) = (format!("{before}{name}"), names.len() == 1);
            let start = part * rows;
            let made = if whole { Ok(node) } else { self.graph.slice(node, axis, start, start + rows, 1) };
            match made {
                Ok(node) => self.put(name, node, Some(ModuleClass::SwitchLinear)),
                Err(error) => self.problems.push(Problem::Tensor { output: name, error: error.into() }),
            }
        }
    }

    /// Makes one parameter of the experts of each projection, of which there are as many for all.
    fn stack(&mut self) {
        let count = self.stacks.values().map(|(_, experts)| experts.len() as u64).max().unwrap_or(0);
        for (name, (first, experts)) in std::mem::take(&mut self.stacks) {
            if let Some(missing) = (0..count).find(|expert| !experts.contains_key(expert)) {
                let tensor = format!("expert {missing} beside {first}");
                self.problems.push(Problem::Missing { output: name, tensor });
                continue;
            }
            let nodes: Vec<NodeId> = experts.into_values().collect();
            match self.graph.stack(0, &nodes) {
                Ok(node) => self.put(name, node, Some(ModuleClass::SwitchLinear)),
                Err(error) => {
                    let error = TensorError::from(error);
                    self.problems.push(Problem::Tensor { output: name, error });
                }
            }
        }
    }

    fn put(&mut self, name: String, node: NodeId, class: Option<ModuleClass>) {
        let has = |forms: &[Template]| forms.iter().any(|form| form.matches(&name).is_some());
        let float = self.graph.node(node).dtype.float().is_some();
        let class = class.filter(|_| float && name.ends_with(".weight") && !has(&self.rules.dense));
        let (module, cast) = (class.map(|class| Module { class, own: Own::Run }), !has(&self.rules.keep));
        self.outputs.push(Output { name, node, role: Role::Mtp, module, cast, format_group: None });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_are_found_at_the_end_of_a_name() {
        let rule = |from: &str| MtpExperts { from: Template::parse(from).unwrap(), to: Vec::new() };
        let each = rule("experts.{expert}.up_proj.weight");
        assert_eq!(each.of("mtp.0.mlp.experts.17.up_proj.weight"), Some(("mtp.0.mlp.", Some(17))));
        assert_eq!(each.of("experts.3.up_proj.weight"), Some(("", Some(3))));
        assert_eq!(each.of("mtp.0.mlp.shared_experts.up_proj.weight"), None);
        assert_eq!(each.of("mtp.0.my_experts.3.up_proj.weight"), None);
        assert_eq!(rule("experts.down_proj").of("mtp.mlp.experts.down_proj"), Some(("mtp.mlp.", None)));
    }

    #[test]
    fn names_tell_what_predicts_further_tokens() {
        for name in
            ["mtp.fc.weight", "model.mtp_block.0.w", "a.nextn_layers.w", "model.layers.9.eh_proj.weight"]
        {
            assert!(looks_like_mtp(name), "{name}");
        }
        assert!(!looks_like_mtp("model.layers.3.mlp.up_proj.weight"));
    }
}
