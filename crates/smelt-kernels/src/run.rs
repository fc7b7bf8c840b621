//! Cuts a block into runs that fit the first-level cache and takes each through the kernels.
//!
//! A kernel does one thing to a whole run (widen, find extremes, make codes, pack), so that there
//! are few of them: one a dtype, a rounding or a width, and not one for each combination. The
//! arrays between them never leave the cache.

use crate::arch::BLOCK;
use crate::dispatch::Engine;
use crate::{Float, Format, Mode, Packed, Rounding, affine, float, mx, pack};

/// Elements of a run: a multiple of every group size.
const RUN: usize = 2048;

/// Groups of a run of the smallest groups; a power of two, so that an index can be masked.
pub(crate) const GROUPS: usize = RUN / 16;

/// What to make of a block.
#[derive(Clone, Copy)]
pub(crate) struct Task {
    pub(crate) format: Format,
    pub(crate) rounding: Rounding,
    pub(crate) dtype: Float,
}

/// The parts of a quantized block.
#[derive(Clone, Copy)]
pub(crate) struct Stored<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) scales: &'a [u8],
    pub(crate) biases: &'a [u8],
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
    fn new() -> Self {
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
}

/// Quantizes a block; its parts fit together.
pub(crate) fn quantize(engine: Engine, task: Task, input: &[u8], out: Packed<'_>) {
    let Task { format, dtype, .. } = task;
    let Packed { codes, scales, biases } = out;
    let groups = RUN / format.group_size();
    let codes = codes.chunks_mut(groups * format.code_bytes());
    let scales = scales.chunks_mut(groups * format.scale_bytes(dtype));
    let mut biases = biases.chunks_mut(groups * format.scale_bytes(dtype));
    let mut scratch = Scratch::new();
    for ((input, codes), scales) in input.chunks(RUN * dtype.size()).zip(codes).zip(scales) {
        scratch.len = input.len() / dtype.size();
        float::widen(engine, dtype, input, &mut scratch.values[..scratch.len]);
        match format.mode() {
            Mode::Affine => {
                let biases = biases.next().unwrap_or_default();
                affine::encode(engine, task, &mut scratch, scales, biases);
            }
            _ => mx::encode(engine, task, &mut scratch, scales),
        }
        let len = scratch.blocks_len();
        pack::pack(engine, format.bits(), &scratch.codes[..len], &mut scratch.packed);
        codes.copy_from_slice(&scratch.packed[..codes.len()]);
    }
}

/// Decodes a block; its parts fit together.
pub(crate) fn dequantize(engine: Engine, task: Task, stored: Stored<'_>, out: &mut [u8]) {
    let Task { format, dtype, .. } = task;
    let groups = RUN / format.group_size();
    let codes = stored.codes.chunks(groups * format.code_bytes());
    let scales = stored.scales.chunks(groups * format.scale_bytes(dtype));
    let mut biases = stored.biases.chunks(groups * format.scale_bytes(dtype));
    let mut scratch = Scratch::new();
    for ((out, codes), scales) in out.chunks_mut(RUN * dtype.size()).zip(codes).zip(scales) {
        scratch.len = out.len() / dtype.size();
        let stored = Stored { codes, scales, biases: biases.next().unwrap_or_default() };
        scratch.packed[..codes.len()].copy_from_slice(codes);
        let len = scratch.blocks_len();
        pack::unpack(engine, format.bits(), &scratch.packed, &mut scratch.codes[..len]);
        match format.mode() {
            Mode::Affine => affine::decode(engine, task, &mut scratch, stored),
            _ => mx::decode(engine, task, &mut scratch, stored.scales),
        }
        float::narrow(engine, dtype, &scratch.values[..scratch.len], out);
    }
}
