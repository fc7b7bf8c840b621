//! What each rule came to: how many modules it set, and how large they are.

use serde::{Deserialize, Serialize};

use super::{Entry, RuleSource, Ruling, Verdict};
use crate::plan::Note;

/// What a rule came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleEffect {
    /// Where the rule comes from.
    pub source: RuleSource,
    /// The rule in short.
    pub rule: String,
    /// Its line, if it stands in a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// Why it is there, if its writer says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Modules that it finds; of a floor or ceiling, those that a target chooses for.
    pub matched: u64,
    /// Modules among them that no later rule decides instead.
    pub modules: u64,
    /// Bytes of these in the result.
    pub bytes: u64,
}

/// Counts what rules come to.
#[derive(Debug)]
pub(in crate::plan) struct Tally<'a> {
    ruling: &'a Ruling<'a>,
    effects: Vec<RuleEffect>,
}

impl<'a> Tally<'a> {
    pub(in crate::plan) fn new(ruling: &'a Ruling<'a>) -> Self {
        Self { ruling, effects: ruling.entries.iter().map(effect).collect() }
    }

    /// Counts a module; `free` says whether a target may choose for it, `bytes` what it takes.
    pub(in crate::plan) fn count(&mut self, verdict: &Verdict, free: bool, bytes: u64) {
        let bounding = [verdict.floor, verdict.ceiling].map(|bound| bound.map(|(index, _)| index));
        let setting = verdict.set.map(|(index, _)| index);
        for &index in &verdict.matched {
            let bound = matches!(&self.ruling.entries[index], Entry::Rule(_, rule) if rule.is_bound());
            if bound && !free {
                continue;
            }
            let effect = &mut self.effects[index];
            effect.matched += 1;
            if setting == Some(index) || (bound && bounding.contains(&Some(index))) {
                effect.modules += 1;
                effect.bytes += bytes;
            }
        }
    }

    /// The effects, and a note for each rule that finds nothing.
    pub(in crate::plan) fn finish(self) -> (Vec<RuleEffect>, Vec<Note>) {
        let unused = self.ruling.entries.iter().zip(&self.effects).filter(|(_, effect)| effect.matched == 0);
        let notes = unused.map(|(entry, _)| match entry {
            Entry::Like(like) => Note::LikeUnused { model: like.name().to_owned() },
            Entry::Rule(RuleSource::Override, rule) => Note::OverrideUnused { text: rule.text.clone() },
            Entry::Rule(_, rule) => Note::RuleUnused {
                rule: rule.text.clone(),
                line: rule.place.as_ref().map_or(0, |place| place.line),
                bound: rule.is_bound(),
            },
        });
        let notes = notes.collect();
        (self.effects, notes)
    }
}

fn effect(entry: &Entry<'_>) -> RuleEffect {
    let (source, text, rule) = match entry {
        Entry::Like(like) => (RuleSource::Like, format!("as `{}` has them", like.name()), None),
        Entry::Rule(source, rule) => (*source, rule.text.clone(), Some(rule)),
    };
    RuleEffect {
        source,
        rule: text,
        line: rule.and_then(|rule| Some(rule.place.as_ref()?.line)),
        reason: rule.and_then(|rule| rule.reason.clone()),
        matched: 0,
        modules: 0,
        bytes: 0,
    }
}
