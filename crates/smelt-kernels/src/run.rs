//! Cuts a block into runs that fit the first-level cache and takes each through the kernels.
//!
//! A kernel does one thing to a whole run (widen, find extremes, make codes, pack), so that there
//! are few of them: one a dtype, a rounding or a width, and not one for each combination. The
//! arrays between them never leave the cache.

use crate::arch::BLOCK;
use crate::dispatch::Engine;
use crate::{Float, Format, Mode, Packed, Rounding, affine, float, mx, pack};

/// Elements of a run: a multiple of every group size.
pub(crate) const RUN: usize = 2048;

/// Groups of a run of the smallest groups; a power of two, so that an index can be masked.
pub(crate) const GROUPS: usize = RUN / 16;

/// What to make of a block.
#[derive(Clone, Copy)]
pub(crate) struct Task {
    pub(crate) format: Format,
    pub(crate) rounding: Rounding,
    pub(crate) dtype: Float,
}

impl Task {
    /// Groups of a run.
    fn groups(self) -> usize {
        RUN / self.format.group_size()
    }

    /// Bytes of a run's codes.
    fn code_bytes(self) -> usize {
        self.groups() * self.format.code_bytes()
    }

    /// Bytes of a run's scales.
    fn scale_bytes(self) -> usize {
        self.groups() * self.format.scale_bytes(self.dtype)
    }
}

/// The parts of a quantized block, as [`Packed`] takes them.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    /// Packed codes: [`Format::code_bytes`] a group.
    pub codes: &'a [u8],
    /// Scales: [`Format::scale_bytes`] a group.
    pub scales: &'a [u8],
    /// Biases, as long as the scales; empty for a format without biases.
    pub biases: &'a [u8],
}

impl<'a> Stored<'a> {
    /// The parts of one run after the other.
    pub(crate) fn runs(self, task: Task) -> impl Iterator<Item = Stored<'a>> {
        let codes = self.codes.chunks(task.code_bytes());
        let scales = self.scales.chunks(task.scale_bytes());
        let mut biases = self.biases.chunks(task.scale_bytes());
        let parts = codes.zip(scales);
        parts.map(move |(codes, scales)| Stored { codes, scales, biases: biases.next().unwrap_or_default() })
    }
}

/// Finds the group of a vector in a run.
#[derive(Clone, Copy)]
pub(crate) struct Groups {
    shift: u32,
}

impl Groups {
    /// Groups of `size` elements, a power of two.
    pub(crate) fn new(size: usize) -> Self {
        Self { shift: size.trailing_zeros() }
    }

    pub(crate) fn size(self) -> usize {
        1 << self.shift
    }

    /// The group of element `index` of a run.
    #[inline(always)]
    pub(crate) fn of(self, index: usize) -> usize {
        // The mask changes nothing, but shows the compiler that no array of groups is exceeded.
        (index >> self.shift) & (GROUPS - 1)
    }
}

/// The arrays between the kernels.
pub(crate) struct Scratch {
    /// Elements of this run.
    pub(crate) len: usize,
    pub(crate) values: [f32; RUN],
    pub(crate) codes: [u8; RUN],
    pub(crate) packed: [u8; RUN + pack::SLACK],
    pub(crate) scales: [f32; GROUPS],
    pub(crate) biases: [f32; GROUPS],
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self {
            len: 0,
            values: [0.0; RUN],
            codes: [0; RUN],
            packed: [0; RUN + pack::SLACK],
            scales: [0.0; GROUPS],
            biases: [0.0; GROUPS],
        }
    }

    /// Length of the run in whole blocks: the last may hold what an earlier run left, whose codes
    /// nobody reads.
    pub(crate) fn blocks_len(&self) -> usize {
        self.len.next_multiple_of(BLOCK)
    }

    /// The codes of a run, from packed ones.
    pub(crate) fn unpack(&mut self, engine: Engine, format: Format, packed: &[u8]) {
        self.packed[..packed.len()].copy_from_slice(packed);
        let len = self.blocks_len();
        pack::unpack(engine, format.bits(), &self.packed, &mut self.codes[..len]);
    }

    /// The scales and biases of a run, from stored ones; biases are 0 where a format has none.
    pub(crate) fn widen_pairs(&mut self, engine: Engine, task: Task, scales: &[u8], biases: &[u8]) {
        if task.format.mode() == Mode::Affine {
            let groups = self.len / task.format.group_size();
            float::widen(engine, task.dtype, scales, &mut self.scales[..groups]);
            float::widen(engine, task.dtype, biases, &mut self.biases[..groups]);
        } else {
            let mut bytes = [0; GROUPS];
            bytes[..scales.len()].copy_from_slice(scales);
            mx::scale_values(engine, task.format.mode(), &bytes, &mut self.scales);
            self.biases = [0.0; GROUPS];
        }
    }
}

/// Quantizes a block by plain rounding; its parts fit together.
pub(crate) fn quantize(engine: Engine, task: Task, input: &[u8], out: Packed<'_>) {
    quantize_by(engine, task, input, out, |scratch, scales, biases| {
        encode(engine, task, scratch, scales, biases);
    });
}

/// Codes of one run into `scratch.codes`; stores its scales and biases.
pub(crate) fn encode(
    engine: Engine,
    task: Task,
    scratch: &mut Scratch,
    scales: &mut [u8],
    biases: &mut [u8],
) {
    match task.format.mode() {
        Mode::Affine => affine::encode(engine, task, scratch, scales, biases),
        _ => mx::encode(engine, task, scratch, scales),
    }
}

/// Quantizes a block run after run: `encode` makes the codes of a run and stores its scales and biases.
pub(crate) fn quantize_by(
    engine: Engine,
    task: Task,
    input: &[u8],
    out: Packed<'_>,
    mut encode: impl FnMut(&mut Scratch, &mut [u8], &mut [u8]),
) {
    let Task { format, dtype, .. } = task;
    let Packed { codes, scales, biases } = out;
    let codes = codes.chunks_mut(task.code_bytes());
    let scales = scales.chunks_mut(task.scale_bytes());
    let mut biases = biases.chunks_mut(task.scale_bytes());
    let mut scratch = Scratch::new();
    for ((input, codes), scales) in input.chunks(RUN * dtype.size()).zip(codes).zip(scales) {
        scratch.len = input.len() / dtype.size();
        float::widen(engine, dtype, input, &mut scratch.values[..scratch.len]);
        encode(&mut scratch, scales, biases.next().unwrap_or_default());
        let len = scratch.blocks_len();
        pack::pack(engine, format.bits(), &scratch.codes[..len], &mut scratch.packed);
        codes.copy_from_slice(&scratch.packed[..codes.len()]);
    }
}

/// Decodes a block; its parts fit together.
pub(crate) fn dequantize(engine: Engine, task: Task, stored: Stored<'_>, out: &mut [u8]) {
    let Task { format, dtype, .. } = task;
    let mut scratch = Scratch::new();
    for (out, stored) in out.chunks_mut(RUN * dtype.size()).zip(stored.runs(task)) {
        scratch.len = out.len() / dtype.size();
        scratch.unpack(engine, format, stored.codes);
        match format.mode() {
            Mode::Affine => affine::decode(engine, task, &mut scratch, stored),
            _ => mx::decode(engine, task, &mut scratch, stored.scales),
        }
        float::narrow(engine, dtype, &scratch.values[..scratch.len], out);
    }
}
