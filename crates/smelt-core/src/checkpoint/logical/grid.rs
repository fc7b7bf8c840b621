//! Scales: a matrix of numbers of which each counts for a block of the weight.

use smelt_kernels::Float;

use super::decode::Reading;
use crate::checkpoint::region::Axis;
use crate::checkpoint::{DType, StoredId};
use crate::{CheckpointError, Result};

/// Scales of a stack of matrices.
#[derive(Clone, Copy, Debug)]
pub(in crate::checkpoint) struct Grid {
    pub(super) id: StoredId,
    pub(super) kind: Kind,
    /// Rows and columns of the weight that share a scale.
    pub(super) block: (u64, u64),
    /// Rows and columns of scales for each matrix.
    pub(super) size: (u64, u64),
    /// Whether each matrix has its own; else all have the same.
    pub(super) for_each: bool,
    /// Whether it is stored with rows and columns exchanged.
    pub(super) turned: bool,
}

/// How a scale is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::checkpoint) enum Kind {
    /// A float that MLX knows.
    Float(Float),
    /// A power of two: `2^(byte - 127)`; 255 is no number.
    Power,
    /// An E4M3.
    Narrow,
}

impl Kind {
    /// Of a dtype: bytes are powers of two where `bytes` says so.
    pub(super) fn of(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F8E8M0 | DType::U8 => Some(Self::Power),
            DType::F8E4M3 => Some(Self::Narrow),
            dtype => dtype.float().map(Self::Float),
        }
    }

    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::Float(float) => float.size() as u64,
            Self::Power | Self::Narrow => 1,
        }
    }
}

/// The scales that a tile meets, row-major, or their zero points.
#[derive(Debug)]
pub(super) struct Values {
    pub(super) data: Vec<f32>,
    pub(super) width: usize,
    pub(super) rows: Axis,
    pub(super) block_rows: u64,
}

impl Values {
    /// The same for every row.
    pub(super) fn same(data: Vec<f32>) -> Self {
        Self { width: data.len(), data, rows: Axis::point(0), block_rows: u64::MAX }
    }

    /// The values of the tile's row `index`, which is at `row` of the weight.
    pub(super) fn row(&self, index: u64, row: u64) -> &[f32] {
        let at = if self.block_rows == 1 { index } else { row / self.block_rows - self.rows.start };
        &self.data[at as usize * self.width..][..self.width]
    }
}

/// The blocks that an axis meets: themselves where each element has its own, else those between as well.
pub(super) fn blocks(axis: Axis, size: u64) -> Axis {
    if size == 1 {
        return axis;
    }
    let last = axis.start + (axis.len - 1) * axis.step;
    Axis::range(axis.start / size, last / size - axis.start / size + 1)
}

impl Grid {
    /// Reads the scales for these rows and columns of a matrix; columns `None` for all.
    pub(super) fn read(
        &self,
        reading: Reading<'_>,
        lead: u64,
        rows: Axis,
        cols: Option<Axis>,
    ) -> Result<Values> {
        let rows = blocks(rows, self.block.0);
        let cols = cols.map_or(Axis::range(0, self.size.1), |cols| blocks(cols, self.block.1));
        let lead = Axis::point(if self.for_each { lead } else { 0 });
        let (height, width) = (rows.len as usize, cols.len as usize);
        let bytes = self.kind.bytes() as usize;
        let mut raw = vec![0; height * width * bytes];
        let leads = lead.start + 1;
        if self.turned {
            reading.view(
                self.id,
                &[leads, self.size.1, self.size.0],
                bytes as u64,
                &[lead, cols, rows],
                &mut raw,
            )?;
        } else {
            reading.view(
                self.id,
                &[leads, self.size.0, self.size.1],
                bytes as u64,
                &[lead, rows, cols],
                &mut raw,
            )?;
        }
        let mut data = self.values(reading, &raw)?;
        if self.turned {
            data = turned(&data, width, height);
        }
        Ok(Values { data, width, rows, block_rows: self.block.0 })
    }

    fn values(&self, reading: Reading<'_>, raw: &[u8]) -> Result<Vec<f32>> {
        match self.kind {
            Kind::Float(float) => {
                let mut wide = vec![0; raw.len() / float.size() * 4];
                smelt_kernels::convert(float, Float::F32, raw, &mut wide);
                Ok(wide.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
            }
            Kind::Power if raw.contains(&255) => {
                Err(CheckpointError::NoScale { tensor: reading.name(self.id) }.into())
            }
            Kind::Power => Ok(raw.iter().map(|&byte| power(byte)).collect()),
            Kind::Narrow => Ok(raw.iter().map(|&byte| smelt_kernels::e4m3_to_f32(byte)).collect()),
        }
    }
}

/// `2^(byte - 127)`; byte 0 is a subnormal.
fn power(byte: u8) -> f32 {
    f32::from_bits((u32::from(byte) << 23).max(0x0040_0000))
}

/// A matrix of `rows` × `cols` with rows and columns exchanged.
fn turned(data: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|col| (0..rows).map(move |row| data[row * cols + col])).collect()
}
