//! Reads blocks of a stored parameter as f32, whatever it is stored as.
//!
//! Scales and biases are widened first, so that a decoded weight is `code * scale + bias` in f32: what
//! the matrix products of MLX compute with, and free of a second rounding that would blur small errors.

use smelt_kernels::{Float, Format, Mode, convert, dequantize};

use super::model::Model;
use super::parameter::{Packed, Parameter, Stored};
use crate::Result;
use crate::checkpoint::{DType, StoredTensor};

/// A parameter that can be read in blocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Values<'a> {
    model: &'a Model,
    stored: Readable<'a>,
}

#[derive(Clone, Copy, Debug)]
enum Readable<'a> {
    Plain(&'a StoredTensor, Float),
    Packed(Packed<'a>, Format),
}

/// Buffers of one reader.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    stored: [Vec<u8>; 3],
    wide: [Vec<u8>; 2],
}

impl<'a> Values<'a> {
    /// The values of a parameter; `None` if it does not hold floats or its format is not known.
    pub(super) fn of(model: &'a Model, parameter: &Parameter<'a>, format: Option<Format>) -> Option<Self> {
        let stored = match parameter.stored {
            Stored::Plain(tensor) => Readable::Plain(tensor, tensor.dtype.float()?),
            Stored::Packed(packed) => {
                let format = format.filter(|_| packed.mismatch().is_none())?;
                Readable::Packed(packed, format)
            }
        };
        Some(Self { model, stored })
    }

    /// The shape of the parameter.
    pub(super) fn shape(&self) -> Vec<u64> {
        match self.stored {
            Readable::Plain(tensor, _) => tensor.shape.to_vec(),
            Readable::Packed(packed, format) => packed.shape(format),
        }
    }

    /// The dtype of what is stored as it is.
    pub(super) fn plain_dtype(&self) -> Option<DType> {
        match self.stored {
            Readable::Plain(tensor, _) => Some(tensor.dtype),
            Readable::Packed(..) => None,
        }
    }

    /// Elements that only can be read together.
    pub(super) fn unit(&self) -> u64 {
        match self.stored {
            Readable::Plain(..) => 1,
            Readable::Packed(_, format) => format.group_size() as u64,
        }
    }

    /// Fills `out` with the elements from `offset` on, as f32. Both are whole groups.
    pub(super) fn read(&self, offset: u64, out: &mut [u8], buffers: &mut Buffers) -> Result<()> {
        match self.stored {
            Readable::Plain(tensor, float) => {
                let size = float.size();
                let stored = sized(&mut buffers.stored[0], out.len() / 4 * size);
                self.model.read(tensor, offset * size as u64, stored)?;
                convert(float, Float::F32, stored, out);
                Ok(())
            }
            Readable::Packed(packed, format) => self.packed(&packed, format, offset, out, buffers),
        }
    }

    fn packed(
        &self,
        packed: &Packed<'_>,
        format: Format,
        offset: u64,
        out: &mut [u8],
        buffers: &mut Buffers,
    ) -> Result<()> {
        let (before, groups) = (offset / format.group_size() as u64, out.len() / 4 / format.group_size());
        let parts = [Some(packed.codes), Some(packed.scales), packed.biases];
        let scale = (packed.scales.dtype.bits() / 8) as usize;
        for ((part, buffer), size) in
            parts.iter().zip(&mut buffers.stored).zip([format.code_bytes(), scale, scale])
        {
            let Some(tensor) = part else { continue };
            self.model.read(tensor, before * size as u64, sized(buffer, groups * size))?;
        }
        let [codes, scales, biases] = &buffers.stored;
        let Some(float) = packed.scales.dtype.float().filter(|_| format.mode() == Mode::Affine) else {
            dequantize(format, Float::F32, codes, scales, &[], out);
            return Ok(());
        };
        let [wide_scales, wide_biases] = &mut buffers.wide;
        convert(float, Float::F32, scales, sized(wide_scales, groups * 4));
        convert(float, Float::F32, biases, sized(wide_biases, groups * 4));
        dequantize(format, Float::F32, codes, wide_scales, wide_biases, out);
        Ok(())
    }
}

/// The buffer with this length.
pub(super) fn sized(buffer: &mut Vec<u8>, len: usize) -> &mut [u8] {
    buffer.resize(len, 0);
    buffer
}
