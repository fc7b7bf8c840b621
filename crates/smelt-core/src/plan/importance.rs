//! How much the inputs of a module matter: a weight for each input channel, the mean square of what
//! passes through it on some text, up to a factor. The error of a weight counts by its channel's.

use std::collections::HashMap;

use super::Task;
use crate::error::Result;
use crate::plan::allocate::BitsError;

/// The weights of one module's input channels.
#[derive(Clone, Debug, PartialEq)]
pub struct Channels {
    /// One weight a channel, not negative; where entries of the first axis (experts) have weights of
    /// their own, one entry after another.
    values: Vec<f32>,
    /// Channels.
    width: usize,
}

impl Channels {
    /// Weights of `width` channels, for all or for each entry of the first axis. `None` if `values`
    /// is empty, does not divide into entries, or holds what is negative or not finite.
    pub fn new(values: Vec<f32>, width: usize) -> Option<Self> {
        let whole = width > 0 && !values.is_empty() && values.len().is_multiple_of(width);
        let sane = values.iter().all(|value| value.is_finite() && *value >= 0.0);
        (whole && sane).then_some(Self { values, width })
    }

    /// How many entries of the first axis have weights of their own; 1 where all share them.
    pub fn entries(&self) -> usize {
        self.values.len() / self.width
    }

    /// The weights that hold at an element of a tensor whose entries have `entry` elements, from that
    /// element's channel up to the end of its row, and how many elements on they hold: to the end of
    /// the row, or where the element begins a row to the end of the entry, or for ever if all share them.
    pub(crate) fn at(&self, element: u64, entry: u64) -> (&[f32], u64) {
        let width = self.width as u64;
        let index = if self.entries() == 1 { 0 } else { (element / entry) as usize };
        let row = &self.values[index * self.width..][..self.width];
        let channel = element % width;
        let left = match (channel, self.entries()) {
            (0, 1) => u64::MAX,
            (0, _) => entry - element % entry,
            _ => width - channel,
        };
        (&row[channel as usize..], left)
    }
}

/// The weights of many modules.
#[derive(Clone, Debug, Default)]
pub struct Importance {
    modules: HashMap<String, Channels>,
    /// What tells these weights from others.
    digest: String,
}

impl Importance {
    /// Weights by module path; `digest` is what tells them from others, such as a hash of their file.
    pub fn new(modules: HashMap<String, Channels>, digest: String) -> Self {
        Self { modules, digest }
    }

    /// The weights of a module, if there are any.
    pub fn of(&self, module: &str) -> Option<&Channels> {
        self.modules.get(module)
    }

    /// What tells these weights from others.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// How many modules have weights.
    pub fn len(&self) -> usize {
        self.modules.len()
    }

    /// Whether no module has.
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }

    /// Bytes that the weights take.
    pub fn bytes(&self) -> u64 {
        self.modules.values().map(|channels| 4 * channels.values.len() as u64).sum()
    }

    /// Refuses weights that do not fit the tasks that have them.
    ///
    /// # Errors
    /// [`BitsError::Channels`] naming the first module.
    pub fn check(&self, tasks: &[Task]) -> Result<()> {
        for task in tasks {
            let Some(channels) = self.of(task.module()) else { continue };
            let width = task.shape.last().copied().unwrap_or(0);
            let entries = channels.entries() as u64;
            let fits = channels.width as u64 == width
                && (entries == 1 || (task.shape.len() > 2 && task.shape[0] == entries));
            if !fits {
                let found = (entries, channels.width as u64);
                let module = task.module().to_owned();
                return Err(BitsError::Channels { module, found, shape: task.shape.clone() }.into());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_follow_the_element() {
        // Two experts of three rows of four channels.
        let channels = Channels::new((0..8u8).map(f32::from).collect(), 4).unwrap();
        assert_eq!(channels.at(0, 12), (&[0.0, 1.0, 2.0, 3.0][..], 12));
        assert_eq!(channels.at(4, 12), (&[0.0, 1.0, 2.0, 3.0][..], 8));
        assert_eq!(channels.at(14, 12), (&[6.0, 7.0][..], 2));
        let shared = Channels::new(vec![1.0, 2.0], 2).unwrap();
        assert_eq!(shared.at(21, 6), (&[2.0][..], 1));
    }

    #[test]
    fn what_can_not_be_a_weight_is_refused() {
        assert!(Channels::new(vec![], 4).is_none());
        assert!(Channels::new(vec![1.0; 6], 4).is_none());
        assert!(Channels::new(vec![1.0, f32::NAN], 2).is_none());
        assert!(Channels::new(vec![1.0, -1.0], 2).is_none());
    }
}
