//! Parts of tensors that MLX has exactly, but in other words: NVFP4 whose second scale goes into the
//! first, integers in another order or with zero points instead of biases.
//!
//! Whether a tensor is exact is a matter of its scales ([`super::exact`]); here it is taken for
//! granted. Like decoding it goes tile by tile, so that it needs no more than [`super::decode::scratch`].

use smelt_kernels::{Float, e4m3_to_f32};

use super::decode::{Reading, TILE, lead_of};
use super::{LogicalTensor, Native, Part, Scaled};
use crate::checkpoint::region::{Axis, elements};
use crate::{CheckpointError, Result};

/// A tensor and how MLX has it.
#[derive(Clone, Copy)]
pub(super) struct Exact<'a> {
    pub(super) reading: Reading<'a>,
    pub(super) tensor: &'a LogicalTensor,
    pub(super) scaled: &'a Scaled,
    pub(super) native: Native,
}

/// A part of a matrix of a part: rows, and words or groups.
#[derive(Clone, Copy)]
struct Tile {
    lead: u64,
    rows: Axis,
    cols: Axis,
}

impl Exact<'_> {
    /// Fills `out` with a region of a part.
    pub(super) fn region(&self, part: Part, region: &[Axis], out: &mut [u8]) -> Result<()> {
        if elements(region) == 0 {
            return Ok(());
        }
        match (part, &self.scaled.second) {
            (Part::Codes, Some(_)) => {
                let shape = self.native.shape_of(part, &self.tensor.shape);
                self.reading.view(self.scaled.codes.id, &shape, WORD, region, out)
            }
            (_, Some(_)) => self.folded(region, out),
            (_, None) => self.by_tiles(part, region, out),
        }
    }

    /// The scale on the scales of a matrix, as a factor.
    pub(super) fn factor(&self, lead: u64) -> Result<f32> {
        let Some(second) = &self.scaled.second else { return Ok(1.0) };
        let value = second.grid.read(self.reading, lead, Axis::point(0), None)?.data[0];
        Ok(if second.divides { 1.0 / value } else { value })
    }

    /// Scales of NVFP4 with the second one in them.
    fn folded(&self, region: &[Axis], out: &mut [u8]) -> Result<()> {
        let shape = self.native.shape_of(Part::Scales, &self.tensor.shape);
        self.reading.view(self.scaled.scales.id, &shape, 1, region, out)?;
        let outer = &region[..region.len() - 2];
        let matrix = elements(&region[region.len() - 2..]) as usize;
        for (index, scales) in out.chunks_exact_mut(matrix).enumerate() {
            let table = folds(self.factor(lead_of(&shape, outer, index as u64))?);
            for scale in scales {
                let fold = table[usize::from(*scale)];
                *scale =
                    fold.ok_or_else(|| CheckpointError::NonFinite { tensor: self.tensor.name.to_string() })?;
            }
        }
        Ok(())
    }

    fn by_tiles(&self, part: Part, region: &[Axis], out: &mut [u8]) -> Result<()> {
        let shape = self.native.shape_of(part, &self.tensor.shape);
        let size = (self.native.dtype_of(part).bits() / 8) as usize;
        let [outer @ .., rows, cols] = region else { unreachable!("native tensors have two axes") };
        let (rows, cols) = (*rows, *cols);
        assert!(cols.step == 1 || cols.len == 1, "no layout cuts into the rows of parts");
        for (index, out) in out.chunks_exact_mut((rows.len * cols.len) as usize * size).enumerate() {
            let lead = lead_of(&shape, outer, index as u64);
            for (row, col) in self.tiles(part, rows, cols) {
                let rows = Axis { start: rows.start + row.start * rows.step, len: row.len, step: rows.step };
                let tile = Tile { lead, rows, cols: Axis::range(cols.start + col.start, col.len) };
                let made = self.tile(part, tile)?;
                for (index, line) in made.chunks_exact(col.len as usize * size).enumerate() {
                    let at = ((row.start + index as u64) * cols.len + col.start) as usize * size;
                    out[at..at + line.len()].copy_from_slice(line);
                }
            }
        }
        Ok(())
    }

    /// Cuts rows and columns of a part into tiles, along the lines in which its source is stored.
    fn tiles(&self, part: Part, rows: Axis, cols: Axis) -> Vec<(Axis, Axis)> {
        let each = if part == Part::Codes { 32 / u64::from(self.scaled.codes.bits) } else { SCALE };
        let room = TILE / each;
        let (high, wide) = if self.scaled.codes.by_columns() {
            let high = (room / rows.step).clamp(1, rows.len);
            (high, (room / (high * rows.step)).clamp(1, cols.len))
        } else {
            let wide = room.clamp(1, cols.len);
            ((room / wide).clamp(1, rows.len), wide)
        };
        let cuts = |len: u64, chunk: u64| {
            (0..len).step_by(chunk as usize).map(move |start| Axis::range(start, chunk.min(len - start)))
        };
        cuts(rows.len, high).flat_map(|row| cuts(cols.len, wide).map(move |col| (row, col))).collect()
    }

    fn tile(&self, part: Part, tile: Tile) -> Result<Vec<u8>> {
        let Tile { lead, rows, cols } = tile;
        if part == Part::Codes {
            let bits = self.scaled.codes.bits;
            let each = 32 / u64::from(bits);
            let cols = Axis::range(cols.start * each, cols.len * each);
            return Ok(packed(bits, &self.scaled.codes.read(self.reading, lead, rows, cols)?));
        }
        let float = self.native.dtype.float().expect("scales of an affine format are floats");
        let (mut values, zeros) = self.pairs(lead, rows, cols)?;
        if part == Part::Biases {
            bias(&mut values, &zeros);
        }
        Ok(narrowed(float, &values))
    }

    /// Scales and zero points of these rows and groups, row-major; of zero points one if all are the same.
    pub(super) fn pairs(&self, lead: u64, rows: Axis, groups: Axis) -> Result<(Vec<f32>, Vec<f32>)> {
        let group = self.native.format.group_size() as u64;
        let cols = Axis::range(groups.start * group, groups.len * group);
        let scales = self.scaled.scales.read(self.reading, lead, rows, Some(cols))?.data;
        let zeros = self.scaled.zeros(self.reading, lead, rows, Some(cols))?;
        Ok((scales, zeros.data))
    }
}

/// Bytes of a word of codes.
const WORD: u64 = 4;

/// What a scale takes of a tile with all that is made of it, in elements.
pub(super) const SCALE: u64 = 8;

/// `-zero * scale` in the place of each scale.
pub(super) fn bias(scales: &mut [f32], zeros: &[f32]) {
    let all = zeros.iter().copied().cycle();
    // Not the negative of a product: that of 0 has a sign.
    scales.iter_mut().zip(all).for_each(|(scale, zero)| *scale = 0.0 - zero * *scale);
}

pub(super) fn narrowed(float: Float, values: &[f32]) -> Vec<u8> {
    let wide: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut out = vec![0; values.len() * float.size()];
    smelt_kernels::convert(Float::F32, float, &wide, &mut out);
    out
}

/// Codes of a byte each as MLX packs them: the first in the lowest bits of a word.
fn packed(bits: u8, codes: &[u8]) -> Vec<u8> {
    let each = usize::from(8 / bits);
    let byte =
        |codes: &[u8]| codes.iter().rev().fold(0u32, |byte, code| byte << bits | u32::from(*code)) as u8;
    codes.chunks_exact(each).map(byte).collect()
}

/// The E4M3 that is `factor` times each E4M3, where there is one.
pub(super) fn folds(factor: f32) -> [Option<u8>; 256] {
    let positive: Vec<f32> = (0..0x7F).map(e4m3_to_f32).collect();
    std::array::from_fn(|byte| {
        let value = e4m3_to_f32(byte as u8 & 0x7F) * factor;
        let place = positive.partition_point(|known| *known < value);
        let same = positive.get(place).is_some_and(|known| *known == value);
        same.then_some(place as u8 | byte as u8 & 0x80)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folds_are_exact_or_none() {
        for power in -20..20 {
            let factor = 2f32.powi(power);
            for (byte, fold) in folds(factor).into_iter().enumerate() {
                let value = e4m3_to_f32(byte as u8) * factor;
                let known = (0..=255).find(|&other| e4m3_to_f32(other).to_bits() == value.to_bits());
                assert_eq!(fold, known.filter(|_| !value.is_nan()), "{byte} times 2^{power}");
            }
        }
        assert_eq!(folds(f32::NAN), [None; 256]);
    }

    #[test]
    fn the_first_code_is_the_lowest() {
        assert_eq!(packed(4, &[1, 2, 3, 4]), [0x21, 0x43]);
        assert_eq!(packed(2, &[1, 2, 3, 0]), [0b0011_1001]);
        assert_eq!(packed(8, &[7, 9]), [7, 9]);
    }
}
