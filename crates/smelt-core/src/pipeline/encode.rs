//! Quantizes a block by the method of the plan, its rows by their importance where there is one.

use smelt_kernels::{Distortion, Float, Format, Packed, Rounding, Stored, distortion, quantize, search};

use crate::plan::{Channels, Method, Plan, Task};

/// How a task's weights become codes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Encoder<'a> {
    pub(super) format: Format,
    method: Method,
    rounding: Rounding,
    dtype: Float,
    importance: Option<&'a Channels>,
    /// Elements of an entry of the first axis, which may have weights of its own.
    entry: u64,
}

/// Where a block lies in its tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Elements before it.
    pub(super) offset: u64,
    /// Elements in it.
    pub(super) len: u64,
}

/// The parts of a quantized block in one buffer: codes, scales, biases.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) codes: usize,
    pub(super) scales: usize,
    pub(super) biases: usize,
}

impl Sizes {
    /// Bytes that a group takes in each part.
    pub(super) fn of_group(format: Format, dtype: Float) -> Self {
        let scales = format.scale_bytes(dtype);
        let biases = if format.has_biases() { scales } else { 0 };
        Self { codes: format.code_bytes(), scales, biases }
    }

    /// Bytes of all parts.
    pub(super) fn all(self) -> usize {
        self.codes + self.scales + self.biases
    }

    fn times(self, groups: usize) -> Self {
        Self { codes: self.codes * groups, scales: self.scales * groups, biases: self.biases * groups }
    }
}

impl<'a> Encoder<'a> {
    /// For a task of a plan, in this format.
    ///
    /// # Panics
    /// If the task is not of floats, which plans do not quantize.
    pub(super) fn new(plan: &Plan, task: &Task, format: Format, importance: Option<&'a Channels>) -> Self {
        Self {
            format,
            method: plan.method,
            rounding: plan.rounding.into(),
            dtype: task.dtype.float().expect("the plan quantizes floats only"),
            importance,
            entry: task.shape.iter().skip(1).product::<u64>().max(1),
        }
    }

    /// Bytes that a group takes in each part.
    pub(super) fn group(self) -> Sizes {
        Sizes::of_group(self.format, self.dtype)
    }

    /// Quantizes a block into a buffer that holds codes, scales and biases one after another.
    pub(super) fn encode(self, place: Place, input: &[u8], stored: &mut [u8]) {
        let sizes = self.group().times((place.len / self.format.group_size() as u64) as usize);
        let (codes, rest) = stored.split_at_mut(sizes.codes);
        let (scales, biases) = rest.split_at_mut(sizes.scales);
        let (mut out, mut input) = (Packed { codes, scales, biases }, input);
        for (row, len) in self.pieces(place) {
            let groups = (len / self.format.group_size() as u64) as usize;
            let (now, later) = split(out, self.group().times(groups));
            let (block, rest) = input.split_at(len as usize * self.dtype.size());
            match self.method {
                Method::Rtn => quantize(self.format, self.rounding, self.dtype, block, now),
                Method::Search(effort) => {
                    search(self.format, effort, self.rounding, self.dtype, block, row, now);
                }
            }
            (out, input) = (later, rest);
        }
    }

    /// How far a block that [`Encoder::encode`] stored is from its input.
    pub(super) fn distortion(self, place: Place, input: &[u8], stored: &[u8]) -> Distortion {
        let sizes = self.group().times((place.len / self.format.group_size() as u64) as usize);
        let (mut codes, rest) = stored.split_at(sizes.codes);
        let (mut scales, mut biases) = rest.split_at(sizes.scales);
        let (mut sum, mut input) = (Distortion::default(), input);
        for (row, len) in self.pieces(place) {
            let groups = (len / self.format.group_size() as u64) as usize;
            let piece = self.group().times(groups);
            let now = Stored {
                codes: take(&mut codes, piece.codes),
                scales: take(&mut scales, piece.scales),
                biases: take(&mut biases, piece.biases),
            };
            let block = take(&mut input, len as usize * self.dtype.size());
            sum += distortion(self.format, self.dtype, block, row, now);
        }
        sum
    }

    /// The pieces of a block whose rows have the same weights, with their lengths in elements.
    fn pieces(self, place: Place) -> impl Iterator<Item = (Option<&'a [f32]>, u64)> {
        let (mut at, end) = (place.offset, place.offset + place.len);
        std::iter::from_fn(move || {
            if at == end {
                return None;
            }
            let Some(channels) = self.importance else {
                at = end;
                return Some((None, place.len));
            };
            let (row, left) = channels.at(at, self.entry);
            let len = left.min(end - at);
            // Whole rows, then what is left of one: a piece never ends inside a row that it does not begin in.
            let len = if len > row.len() as u64 { len / row.len() as u64 * row.len() as u64 } else { len };
            at += len;
            Some((Some(&row[..row.len().min(len as usize)]), len))
        })
    }
}

fn take<'a>(bytes: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (taken, rest) = bytes.split_at(len);
    *bytes = rest;
    taken
}

fn split(out: Packed<'_>, sizes: Sizes) -> (Packed<'_>, Packed<'_>) {
    let Packed { codes, scales, biases } = out;
    let (codes, later_codes) = codes.split_at_mut(sizes.codes);
    let (scales, later_scales) = scales.split_at_mut(sizes.scales);
    let (biases, later_biases) = biases.split_at_mut(sizes.biases);
    let later = Packed { codes: later_codes, scales: later_scales, biases: later_biases };
    (Packed { codes, scales, biases }, later)
}
