//! The weights of a module's input channels, as a block needs them.

/// Weights of input channels: for all of a module, or for some of its experts one after another.
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

    /// The weights of an entry.
    ///
    /// # Panics
    /// If there is none of this number.
    pub fn entry(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..][..self.width]
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
