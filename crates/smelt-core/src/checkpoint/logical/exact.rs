//! Whether MLX holds a tensor exactly, where headers do not tell.
//!
//! NVFP4 has a scale on its scales, which MLX's has not: it goes into them if it is a power of two and
//! none of them leaves E4M3. Integers with zero points become affine ones with the bias
//! `-zero * scale`, which the dtype of the scales must hold exactly: always so for a zero point that is
//! a power of two, as symmetric GPTQ stores them, and hardly ever for others. Only scales and zero
//! points are read, and mostly the first few of them decide.

use super::decode::TILE;
use super::native::Proof;
use super::repack::{Exact, SCALE, bias, folds, narrowed};
use super::{Recipe, matrices};
use crate::Result;
use crate::checkpoint::logical::decode::Reading;
use crate::checkpoint::region::Axis;
use crate::checkpoint::{Checkpoint, StoredId, TensorId};

/// Bytes that are read at once.
const PIECE: u64 = 64 << 10;

const NO_POWER: &str = "its second scale is no power of two, so the scales times it are no E4M3";
const NO_FOLD: &str = "not all of its scales times the second one are E4M3";
const NO_BIAS: &str = "its zero points times their scales are not exact in the dtype of the scales";
const ORDER: &str = "its columns are in an order of their own";

impl Checkpoint {
    /// Why MLX does not hold a native tensor exactly; `None` if it does.
    ///
    /// # Errors
    /// What reading scales and zero points can meet.
    ///
    /// # Panics
    /// If the tensor is not native.
    pub fn inexact(&self, id: TensorId) -> Result<Option<&'static str>> {
        let tensor = self.logical(id);
        let native = tensor.native().expect("only native tensors are asked for");
        let Recipe::Scaled(scaled) = &tensor.recipe else { return Ok(None) };
        if native.proof == Proof::Headers {
            return Ok(None);
        }
        let exact = Exact { reading: Reading::of(self), tensor, scaled, native };
        if scaled.second.is_some() { exact.folds() } else { exact.has_biases() }
    }
}

impl Exact<'_> {
    fn folds(&self) -> Result<Option<&'static str>> {
        let (leads, rows, cols) = matrices(&self.tensor.shape);
        let scales = rows * (cols / self.native.format.group_size() as u64);
        for lead in 0..leads {
            let factor = self.factor(lead)?;
            if !is_power(factor) {
                return Ok(Some(NO_POWER));
            }
            let table = folds(factor);
            // Whatever a scale is, once it is itself.
            if factor != 1.0
                && !self.all((self.scaled.scales.id, 1), lead, scales, |_, byte| {
                    table[usize::from(byte[0])].is_some()
                })?
            {
                return Ok(Some(NO_FOLD));
            }
        }
        Ok(None)
    }

    /// Whether all of `count` elements of a matrix of a stored tensor are as they should be.
    fn all(
        &self,
        (id, size): (StoredId, u64),
        lead: u64,
        count: u64,
        fits: impl Fn(u64, &[u8]) -> bool,
    ) -> Result<bool> {
        let mut piece = Vec::new();
        for start in (0..count).step_by((PIECE / size) as usize) {
            let len = (PIECE / size).min(count - start);
            piece.resize((len * size) as usize, 0);
            let region = [Axis::point(lead), Axis::range(start, len)];
            self.reading.view(id, &[lead + 1, count], size, &region, &mut piece)?;
            let mut places = (start..).zip(piece.chunks_exact(size as usize));
            if !places.all(|(place, bytes)| fits(place, bytes)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn has_biases(&self) -> Result<Option<&'static str>> {
        let (leads, rows, cols) = matrices(&self.tensor.shape);
        let group = self.native.format.group_size() as u64;
        if let Some(id) = self.scaled.order {
            let own = |place: u64, bytes: &[u8]| {
                bytes.iter().rev().fold(0, |n, b| n << 8 | u64::from(*b)) == place / group
            };
            if !self.all((id, 4), 0, cols, own)? {
                return Ok(Some(ORDER));
            }
        }
        let float = self.native.dtype.float().expect("scales of an affine format are floats");
        let groups = cols / group;
        let high = (TILE / SCALE / groups.max(1)).clamp(1, rows.max(1));
        for (lead, start) in
            (0..leads).flat_map(|lead| (0..rows).step_by(high as usize).map(move |row| (lead, row)))
        {
            let rows = Axis::range(start, high.min(rows - start));
            let (mut values, zeros) = self.pairs(lead, rows, Axis::range(0, groups))?;
            if zeros.iter().all(|zero| *zero == 0.0 || is_power(*zero)) {
                continue;
            }
            bias(&mut values, &zeros);
            let stored = narrowed(float, &values);
            let mut again = vec![0; values.len() * 4];
            smelt_kernels::convert(float, smelt_kernels::Float::F32, &stored, &mut again);
            let mut pairs = values.iter().zip(again.as_chunks::<4>().0);
            if !pairs.all(|(value, again)| value.to_le_bytes() == *again) {
                return Ok(Some(NO_BIAS));
            }
        }
        Ok(None)
    }
}

/// Bits of an f32's mantissa.
const MANTISSA: u32 = 23;

/// Whether a number is `2^k`.
fn is_power(number: f32) -> bool {
    number.is_normal() && number > 0.0 && number.to_bits().trailing_zeros() >= MANTISSA
}
