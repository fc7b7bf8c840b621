//! Storage that MLX has as well: the same codes and scales, bit for bit.
//!
//! Such a tensor can be handed out as what MLX stores of it, [`Part`] by part, so that nothing is
//! decoded and quantized again. Headers prove it of a power of two times E2M1 or E4M3 in groups of 32,
//! which are `mxfp4` and `mxfp8`, and of symmetric integers, which are affine with a bias of
//! `-2^(bits-1) * scale`, which a float holds exactly. NVFP4 with a second scale and integers with zero
//! points may be native as well, which only their scales tell ([`super::exact`]).

use smelt_kernels::{Code, Float, Format, Mode};

use super::codes::Order;
use super::decode::{self, Reading};
use super::grid::{Grid, Kind};
use super::repack::Exact;
use super::{LogicalTensor, Recipe, Scaled, Zero};
use crate::checkpoint::region::Axis;
use crate::checkpoint::{Checkpoint, DType, StoredId};
use crate::{CheckpointError, Result};

/// A tensor of MLX's format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Packed codes, in words.
    Codes,
    /// Scales.
    Scales,
    /// Biases.
    Biases,
}

impl Part {
    /// In the order in which they are stored.
    pub const ALL: [Self; 3] = [Self::Codes, Self::Scales, Self::Biases];
}

/// What tells that MLX has a tensor exactly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// Dtypes, shapes and config.
    Headers,
    /// Scales and zero points, see [`Checkpoint::inexact`].
    Data,
}

/// How MLX has a stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Native {
    /// The format.
    pub format: Format,
    /// The dtype of scales and biases of an affine format, else that of the decoded weight.
    pub dtype: DType,
    /// Whether the groups lie along the last axis but one of the logical tensor: the parts have the last
    /// two axes exchanged then.
    pub turned: bool,
    /// What tells that it is exact.
    pub proof: Proof,
}

impl Native {
    /// The dtype of a part.
    pub fn dtype_of(&self, part: Part) -> DType {
        match part {
            Part::Codes => DType::U32,
            _ if self.format.has_biases() => self.dtype,
            _ => DType::U8,
        }
    }

    /// The shape of a part of a logical tensor of this shape, of two axes or more.
    pub fn shape_of(&self, part: Part, logical: &[u64]) -> Vec<u64> {
        let mut shape = logical.to_vec();
        let last = shape.len() - 1;
        if self.turned {
            shape.swap(last - 1, last);
        }
        shape[last] = match part {
            Part::Codes => shape[last] * u64::from(self.format.bits()) / 32,
            Part::Scales | Part::Biases => shape[last] / self.format.group_size() as u64,
        };
        shape
    }
}

impl LogicalTensor {
    /// How MLX has the tensor, if it has it exactly.
    pub fn native(&self) -> Option<Native> {
        if self.shape.len() < 2 {
            return None;
        }
        let native = match &self.recipe {
            Recipe::Plain(_) => return None,
            Recipe::Mlx(mlx) => {
                Native { format: mlx.format, dtype: self.dtype, turned: false, proof: Proof::Headers }
            }
            Recipe::Scaled(scaled) => scaled.native(self.dtype)?,
        };
        let along = self.shape[self.shape.len() - if native.turned { 2 } else { 1 }];
        along.is_multiple_of(native.format.group_size() as u64).then_some(native)
    }
}

impl Scaled {
    fn native(&self, dtype: DType) -> Option<Native> {
        let Grid { kind, block, turned, for_each: true, .. } = self.scales else {
            return None;
        };
        let straight = block.0 == 1 && !turned && self.codes.order == Order::Rows;
        let across = block.1 == 1 && turned && self.codes.order == Order::Columns;
        let as_stored = straight || across;
        let same_float = |float| dtype.float() == Some(float) && self.second.is_none();
        let (mode, bits, proof) = match (self.code, kind, &self.second) {
            (Code::E2m1, Kind::Power, None) if as_stored => (Mode::Mxfp4, 4, Proof::Headers),
            (Code::E4m3, Kind::Power, None) if as_stored => (Mode::Mxfp8, 8, Proof::Headers),
            (Code::E2m1, Kind::Narrow, Some(_)) if straight => (Mode::Nvfp4, 4, Proof::Data),
            (Code::Unsigned, Kind::Float(float), None) if same_float(float) => {
                let (bits, simple) = (self.codes.bits, as_stored && self.order.is_none());
                match &self.zero {
                    Zero::Same(zero) if simple && *zero == half(bits) => (Mode::Affine, bits, Proof::Headers),
                    _ if block.0 == 1 => (Mode::Affine, bits, Proof::Data),
                    _ => return None,
                }
            }
            _ => return None,
        };
        let group = if block.0 == 1 { block.1 } else { block.0 };
        let format = Format::new(mode, bits, usize::try_from(group).ok()?)?;
        Some(Native { format, dtype, turned: across && !straight, proof })
    }
}

/// Half the range of unsigned integers of so many bits.
fn half(bits: u8) -> f32 {
    (1u32 << (bits - 1)) as f32
}

/// Fills `out` with a region of a part of a native tensor.
pub(in crate::checkpoint) fn region(
    checkpoint: &Checkpoint,
    tensor: &LogicalTensor,
    part: Part,
    region: &[Axis],
    out: &mut [u8],
) -> Result<()> {
    let native = tensor.native().expect("only parts of native tensors are asked for");
    let reading = Reading::of(checkpoint);
    let (shape, dtype) = (native.shape_of(part, &tensor.shape), native.dtype_of(part));
    let view = |id: StoredId, out: &mut [u8]| reading.view(id, &shape, dtype.bits() / 8, region, out);
    let scales = |id: StoredId, out: &mut [u8]| {
        view(id, out)?;
        check_scales(reading, native, id, out)
    };
    match (&tensor.recipe, part) {
        (Recipe::Plain(_), _) => unreachable!("plain tensors are not native"),
        (Recipe::Mlx(mlx), Part::Codes) => view(mlx.codes, out),
        (Recipe::Mlx(mlx), Part::Scales) => scales(mlx.scales, out),
        (Recipe::Mlx(mlx), Part::Biases) => view(mlx.biases.expect("an affine format has biases"), out),
        (Recipe::Scaled(scaled), _) if native.proof == Proof::Data => {
            if let Some(id) = scaled.shape.filter(|_| part == Part::Codes && is_first(region)) {
                decode::check_shape(reading, tensor, id)?;
            }
            Exact { reading, tensor, scaled, native }.region(part, region, out)
        }
        (Recipe::Scaled(scaled), Part::Codes) => {
            if let Some(id) = scaled.shape.filter(|_| is_first(region)) {
                decode::check_shape(reading, tensor, id)?;
            }
            view(scaled.codes.id, out)
        }
        (Recipe::Scaled(scaled), Part::Scales) => scales(scaled.scales.id, out),
        (Recipe::Scaled(scaled), Part::Biases) => {
            scales(scaled.scales.id, out)?;
            let float = dtype.float().expect("scales of an affine format are floats");
            times(float, -half(scaled.codes.bits), out);
            Ok(())
        }
    }
}

/// Whether a region has the first element.
fn is_first(region: &[Axis]) -> bool {
    region.iter().all(|axis| axis.start == 0)
}

/// No power of two has the byte 255.
fn check_scales(reading: Reading<'_>, native: Native, id: StoredId, scales: &[u8]) -> Result<()> {
    let powers = matches!(native.format.mode(), Mode::Mxfp4 | Mode::Mxfp8);
    if powers && scales.contains(&255) {
        Err(CheckpointError::NoScale { tensor: reading.name(id) }.into())
    } else {
        Ok(())
    }
}

/// Elements that are widened at a time.
const CHUNK: usize = 1024;

/// Each element times a power of two, in place: exact but for an overflow, which is infinite then.
fn times(float: Float, factor: f32, data: &mut [u8]) {
    let mut wide = [0; 4 * CHUNK];
    for chunk in data.chunks_mut(CHUNK * float.size()) {
        let wide = &mut wide[..chunk.len() / float.size() * 4];
        smelt_kernels::convert(float, Float::F32, chunk, wide);
        for bytes in wide.as_chunks_mut::<4>().0 {
            *bytes = (f32::from_le_bytes(*bytes) * factor).to_le_bytes();
        }
        smelt_kernels::convert(Float::F32, float, wide, chunk);
    }
}
