//! How far stored weights are from their source, on a sample of every block.
//!
//! Decoding all that was just encoded would cost more than plain rounding does, so a stretch of the weights
//! is looked at, then many more are passed over. Which ones depends on their place in the tensor alone.

use smelt_kernels::{Distortion, Float, Format, Stored, distortion};

use super::encode::{Place, Sizes};

/// Elements of a stretch: whole groups of any size.
const STRETCH: u64 = 1 << 12;

/// One stretch of this many is looked at.
const EVERY: u64 = 32;

/// The sums over the sample of a block, of its input and of what [`super::encode::Encoder`] made of it.
pub(super) fn sampled(
    (format, dtype): (Format, Float),
    place: Place,
    input: &[u8],
    stored: &[u8],
) -> Distortion {
    let group = format.group_size() as u64;
    let (each, groups) = (Sizes::of_group(format, dtype), (place.len / group) as usize);
    let (codes, rest) = stored.split_at(groups * each.codes);
    let (scales, biases) = rest.split_at(groups * each.scales);
    let mut sum = Distortion::default();
    for (start, end) in stretches(place) {
        let (first, last) = ((start / group) as usize, (end / group) as usize);
        let parts = Stored {
            codes: &codes[first * each.codes..last * each.codes],
            scales: &scales[first * each.scales..last * each.scales],
            biases: &biases[first * each.biases..last * each.biases],
        };
        let input = &input[start as usize * dtype.size()..end as usize * dtype.size()];
        sum += distortion(format, dtype, input, None, parts);
    }
    sum
}

/// The elements of a block that are looked at, counted from its first.
pub(super) fn stretches(place: Place) -> impl Iterator<Item = (u64, u64)> {
    let end = place.offset + place.len;
    let first = place.offset / (STRETCH * EVERY);
    let all = (first..).map(|index| index * STRETCH * EVERY).take_while(move |start| *start < end);
    let inside = move |start: u64| (start.max(place.offset), (start + STRETCH).min(end));
    all.map(inside).filter(|(start, end)| start < end).map(move |(a, b)| (a - place.offset, b - place.offset))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_share_the_sample_of_a_tensor() {
        let whole: Vec<_> = stretches(Place { offset: 0, len: 1 << 20 }).collect();
        assert_eq!(whole.len(), 8);
        let mut parts = Vec::new();
        for offset in (0..1u64 << 20).step_by(3072) {
            let len = 3072.min((1 << 20) - offset);
            parts.extend(stretches(Place { offset, len }).map(|(a, b)| (a + offset, b + offset)));
        }
        assert_eq!(
            parts.iter().map(|(a, b)| b - a).sum::<u64>(),
            whole.iter().map(|(a, b)| b - a).sum::<u64>()
        );
        assert!(parts.iter().all(|(a, _)| a % (STRETCH * EVERY) < STRETCH));
    }
}
