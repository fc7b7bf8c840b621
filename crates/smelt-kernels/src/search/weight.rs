//! What the error of each element counts in the search: the importance of its input channel.
//!
//! ```text
//! with importance `h`         ω = h
//! without it                  ω = 1
//! ```
//!
//! If `h` is the mean square of the channel's input, `Σ h (w - ŵ)²` is the squared error of the output
//! for inputs that do not depend on each other. Factors that favour large weights (`σ + |w|`,
//! `sqrt(σ² + w²)`) were measured on trained models of five kinds: they gain at 2 bits alone, by
//! taking less of the group's length, which `restore` gives back better; with it they lose 1 to 3 % at
//! every width. `ω = w²` is the worst.
//!
//! A group with no weight above zero, or with one that is not finite, keeps plain rounding.

/// How elements are weighed.
#[derive(Clone, Copy)]
pub(super) enum Law<'a> {
    /// All the same.
    Equal,
    /// By the importance of a row's channels.
    Channel(&'a [f32]),
}

impl<'a> Law<'a> {
    /// The law for an importance of one weight a channel, if there is one.
    pub(super) fn new(importance: Option<&'a [f32]>) -> Self {
        importance.map_or(Self::Equal, Self::Channel)
    }

    /// Weights of groups that begin at element `at` of the block into `out`; what is used of it.
    pub(super) fn weigh(self, at: usize, group_size: usize, out: &mut [f32]) -> &[f32] {
        let Self::Channel(row) = self else { return &[] };
        for (k, out) in out.chunks_exact_mut(group_size).enumerate() {
            let channel = (at + k * group_size) % row.len();
            out.copy_from_slice(&row[channel..channel + group_size]);
        }
        out
    }
}
