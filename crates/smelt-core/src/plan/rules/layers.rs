//! Layers by their numbers, from the front or from the back.

use std::collections::HashMap;
use std::str::FromStr;

use crate::layout::Output;

/// A list of layers such as `0-3,-1`: numbers and ranges, negative ones from the last, which is -1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers(Vec<(i32, i32)>);

/// Why a list of layers is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayersError {
    /// Neither a number nor a range.
    #[error(
        "`{0}` is no layer; there are numbers such as 5 or -1 (the last) and ranges such as 0-3 or -4--1"
    )]
    Shape(String),
    /// A range that ends before it begins.
    #[error("the range `{0}` ends before it begins")]
    Reversed(String),
}

impl FromStr for Layers {
    type Err = LayersError;

    fn from_str(text: &str) -> Result<Self, LayersError> {
        text.split(',').map(|part| range(part.trim())).collect::<Result<_, _>>().map(Self)
    }
}

fn range(text: &str) -> Result<(i32, i32), LayersError> {
    let shape = || LayersError::Shape(text.to_owned());
    let number = |part: &str| part.parse::<i32>().ok().filter(|_| !part.starts_with('+')).ok_or_else(shape);
    // A minus in front belongs to the number; the one behind it parts two.
    let dash = text.char_indices().skip(1).find(|(_, letter)| *letter == '-').map(|(at, _)| at);
    let (first, last) = match dash {
        None => (number(text)?, number(text)?),
        Some(at) => (number(&text[..at])?, number(&text[at + 1..])?),
    };
    if (first < 0) == (last < 0) && first > last {
        return Err(LayersError::Reversed(text.to_owned()));
    }
    Ok((first, last))
}

impl Layers {
    /// Whether a layer is among them, of `count` in its stack.
    pub fn contains(&self, layer: u64, count: u64) -> bool {
        let (Ok(layer), Ok(count)) = (i64::try_from(layer), i64::try_from(count)) else { return false };
        let from_front = |number: i32| if number < 0 { count + i64::from(number) } else { i64::from(number) };
        self.0.iter().any(|&(first, last)| from_front(first) <= layer && layer <= from_front(last))
    }
}

/// How many layers each stack of a model has: the decoder's, a tower's.
#[derive(Debug, Default)]
pub(in crate::plan) struct Stacks(HashMap<String, u64>);

impl Stacks {
    /// Of the parameters of a layout.
    pub(super) fn of(outputs: &[Output]) -> Self {
        let mut stacks: HashMap<String, u64> = HashMap::new();
        for (stack, layer) in outputs.iter().filter_map(|output| place(&output.name)) {
            match stacks.get_mut(stack) {
                Some(count) => *count = (*count).max(layer.saturating_add(1)),
                None => drop(stacks.insert(stack.to_owned(), layer.saturating_add(1))),
            }
        }
        Self(stacks)
    }

    /// Whether the layer of a module is among these, counted in its own stack; what is in no layer is not.
    pub(super) fn among(&self, path: &str, layers: &Layers) -> bool {
        let found = place(path).and_then(|(stack, layer)| Some((layer, *self.0.get(stack)?)));
        found.is_some_and(|(layer, count)| layers.contains(layer, count))
    }
}

/// The first number in a path, and the path up to it.
fn place(path: &str) -> Option<(&str, u64)> {
    let mut start = 0;
    for part in path.split('.') {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        if let Some(layer) = part.parse().ok().filter(|_| digits) {
            return Some((&path[..start], layer));
        }
        start += part.len() + 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chosen(text: &str, count: u64) -> Vec<u64> {
        let layers: Layers = text.parse().unwrap();
        (0..count + 2).filter(|&layer| layers.contains(layer, count)).collect()
    }

    #[test]
    fn numbers_count_from_either_end() {
        assert_eq!(chosen("0-3,-1", 8), [0, 1, 2, 3, 7]);
        assert_eq!(chosen("-2--1", 8), [6, 7]);
        assert_eq!(chosen("6 , 2", 8), [2, 6]);
        assert_eq!(chosen("2--3", 8), [2, 3, 4, 5]);
        assert_eq!(chosen("-9", 8), [0u64; 0]);
        assert_eq!(chosen("-9-1", 8), [0, 1]);
    }

    proptest! {
        /// Against all numbers of a range, written out.
        #[test]
        fn ranges_are_their_numbers(ranges in prop::collection::vec((-12..12i32, 0..6i32), 1..4), count in 1..12u64) {
            let same = |first: i32, last: i32| (first < 0) == (last < 0);
            let ranges: Vec<(i32, i32)> =
                ranges.into_iter().map(|(first, more)| (first, first + more)).filter(|&(a, b)| same(a, b)).collect();
            prop_assume!(!ranges.is_empty());
            let text: Vec<String> = ranges.iter().map(|(first, last)| format!("{first}-{last}")).collect();
            let mut expected: Vec<u64> = ranges
                .iter()
                .flat_map(|&(first, last)| first..=last)
                .filter_map(|number| {
                    let layer = if number < 0 { count as i32 + number } else { number };
                    u64::try_from(layer).ok().filter(|&layer| layer < count)
                })
                .collect();
            expected.sort_unstable();
            expected.dedup();
            let mut found = chosen(&text.join(","), count);
            found.retain(|&layer| layer < count);
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn what_is_no_layer_is_refused() {
        for text in ["", "a", "1-", "1-2-3", "+1", "1..2", "99999999999"] {
            assert!(matches!(text.parse::<Layers>(), Err(LayersError::Shape(_))), "{text}");
        }
        for text in ["3-1", "-1--4"] {
            assert!(matches!(text.parse::<Layers>(), Err(LayersError::Reversed(_))), "{text}");
        }
    }

    #[test]
    fn paths_have_a_stack_and_a_layer() {
        assert_eq!(place("model.layers.11.mlp.experts.3.up_proj"), Some(("model.layers.", 11)));
        assert_eq!(place("0.weight"), Some(("", 0)));
        assert_eq!(place("lm_head.weight"), None);
    }
}
