//! Names with places for indices and texts: `{prefix}layers.{layer}.mlp.experts.{expert}.w1.weight`.

use std::fmt;

/// A name with places.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Part {
    Text(String),
    Place(String),
}

/// A brace without its partner, or an empty place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a place needs both braces and a name, as in `{{layer}}`")]
pub struct TemplateError;

impl Template {
    /// Parses a text in which `{name}` is a place.
    ///
    /// # Errors
    /// [`TemplateError`] for a lone brace or an empty place.
    pub fn parse(mut text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        while let Some((before, rest)) = text.split_once('{') {
            let (place, after) = rest.split_once('}').ok_or(TemplateError)?;
            if place.is_empty() || place.contains('{') || before.contains('}') {
                return Err(TemplateError);
            }
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            parts.push(Part::Place(place.to_owned()));
            text = after;
        }
        if text.contains('}') {
            return Err(TemplateError);
        }
        if !text.is_empty() {
            parts.push(Part::Text(text.to_owned()));
        }
        Ok(Self { parts })
    }

    /// The names of the places, in order, each once.
    pub fn places(&self) -> Vec<&str> {
        let mut places = Vec::new();
        for part in &self.parts {
            if let Part::Place(name) = part
                && !places.contains(&name.as_str())
            {
                places.push(name.as_str());
            }
        }
        places
    }

    /// The name with what `write` puts into each place.
    ///
    /// # Errors
    /// That of `write`.
    pub fn fill<E>(&self, write: impl Fn(&str, &mut String) -> Result<(), E>) -> Result<String, E> {
        let mut name = String::with_capacity(64);
        for part in &self.parts {
            match part {
                Part::Text(text) => name.push_str(text),
                Part::Place(place) => write(place, &mut name)?,
            }
        }
        Ok(name)
    }

    /// The template with the places for which `text` has a text filled with it.
    #[must_use]
    pub fn resolved(&self, text: impl Fn(&str) -> Option<String>) -> Self {
        let resolve = |part: &Part| match part {
            Part::Place(place) => text(place).map_or_else(|| part.clone(), Part::Text),
            Part::Text(_) => part.clone(),
        };
        Self { parts: self.parts.iter().map(resolve).collect() }
    }

    /// What stands in the places where `name` has this form. A place takes digits; `*` in the text
    /// takes anything within the name.
    pub fn matches(&self, name: &str) -> Option<Vec<(&str, u64)>> {
        let mut bound = Vec::new();
        match_parts(&self.parts, name, &mut bound).then_some(bound)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parts.iter().try_for_each(|part| match part {
            Part::Text(text) => out.write_str(text),
            Part::Place(place) => write!(out, "{{{place}}}"),
        })
    }
}

fn match_parts<'a>(parts: &'a [Part], name: &str, bound: &mut Vec<(&'a str, u64)>) -> bool {
    match parts.split_first() {
        None => name.is_empty(),
        Some((Part::Text(text), rest)) => match_text(text, rest, name, bound),
        Some((Part::Place(place), rest)) => match_place(place, rest, name, bound),
    }
}

fn match_place<'a>(place: &'a str, rest: &'a [Part], name: &str, bound: &mut Vec<(&'a str, u64)>) -> bool {
    let end = name.find(|c: char| !c.is_ascii_digit()).unwrap_or(name.len());
    let Ok(value) = name[..end].parse::<u64>() else {
        return false;
    };
    // A place that occurs twice holds the same index both times; a leading zero is no index.
    let known = bound.iter().find(|(name, _)| *name == place).map(|&(_, value)| value);
    if known.is_some_and(|known| known != value) || value.to_string().len() != end {
        return false;
    }
    if known.is_none() {
        bound.push((place, value));
    }
    match_parts(rest, &name[end..], bound)
}

fn match_text<'a>(text: &str, rest: &'a [Part], name: &str, bound: &mut Vec<(&'a str, u64)>) -> bool {
    let Some((literal, after)) = text.split_once('*') else {
        return name.strip_prefix(text).is_some_and(|tail| match_parts(rest, tail, bound));
    };
    let Some(tail) = name.strip_prefix(literal) else {
        return false;
    };
    let after = after.trim_start_matches('*');
    if let Some((next, _)) = after.split_once('*') {
        // The star behind it takes what comes after the first such place, so no other one need be tried.
        return tail.find(next).is_some_and(|at| match_text(after, rest, &tail[at..], bound));
    }
    let held = bound.len();
    let ends = tail.char_indices().map(|(at, _)| at).chain([tail.len()]);
    for end in ends {
        if match_text(after, rest, &tail[end..], bound) {
            return true;
        }
        bound.truncate(held);
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filled_template_matches_with_the_same_indices() {
        let template = Template::parse("a.{layer}.b.{expert}.w").unwrap();
        assert_eq!(template.places(), ["layer", "expert"]);
        let index = |place: &str, name: &mut String| {
            name.push_str(if place == "layer" { "12" } else { "3" });
            Ok::<(), ()>(())
        };
        let name = template.fill(index).unwrap();
        assert_eq!(name, "a.12.b.3.w");
        assert_eq!(template.matches(&name), Some(vec![("layer", 12), ("expert", 3)]));
        assert_eq!(template.matches("a.12.b.x.w"), None);
        assert_eq!(template.matches("a.012.b.3.w"), None);
    }

    #[test]
    fn a_star_takes_anything() {
        let template = Template::parse("model.mtp.*").unwrap();
        assert!(template.matches("model.mtp.layers.0.w").is_some());
        assert!(template.matches("model.mlp.w").is_none());
        let template = Template::parse("*.layers.{layer}.*.inv_freq").unwrap();
        assert_eq!(template.matches("m.layers.7.attn.inv_freq"), Some(vec![("layer", 7)]));
    }

    #[test]
    fn many_stars_take_no_longer_than_one() {
        let template = Template::parse(&format!("*a{}b*a*c", "*".repeat(60))).unwrap();
        assert!(template.matches("xaxbxaxc").is_some());
        assert!(template.matches("xaxbxxc").is_none());
        let template = Template::parse(&"*a".repeat(40)).unwrap();
        assert!(template.matches(&"a".repeat(40)).is_some());
        assert!(template.matches(&format!("{}b", "a".repeat(200))).is_none());
        let template = Template::parse("*x*.{layer}.*.w").unwrap();
        assert_eq!(template.matches("ax.x.3.4.y.w"), Some(vec![("layer", 3)]));
    }

    #[test]
    fn lone_braces_are_refused() {
        for text in ["a.{layer", "a.layer}", "a.{}", "a.{b{c}}"] {
            assert_eq!(Template::parse(text), Err(TemplateError), "{text}");
        }
    }
}
