//! Decodes a region of a logical tensor.
//!
//! The region is worked off in tiles of a bounded number of elements, so that whatever is held
//! beside the result has a bound that depends on the tensor alone ([`scratch`]): the plan adds it
//! once for each worker. A tile follows the order in which the codes are stored, because a read of
//! whole stored lines costs one call and a read across them thousands.

use smelt_kernels::{Float, Steps, dequantize, scaled};

use super::grid::{Values, blocks};
use super::{LogicalTensor, Mlx, Recipe, Scaled, Zero, matrices};
use crate::checkpoint::region::{Axis, elements};
use crate::checkpoint::{Checkpoint, StoredId, read};
use crate::{CheckpointError, Error, Result};

/// Most elements of a tile.
pub(super) const TILE: u64 = 128 << 10;

/// Reads stored tensors.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    checkpoint: &'a Checkpoint,
}

impl<'a> Reading<'a> {
    pub(super) fn of(checkpoint: &'a Checkpoint) -> Self {
        Self { checkpoint }
    }

    /// A region of a stored tensor seen under another shape, of elements of `size` bytes.
    pub(super) fn view(
        self,
        id: StoredId,
        shape: &[u64],
        size: u64,
        region: &[Axis],
        out: &mut [u8],
    ) -> Result<()> {
        read::view(self.checkpoint, id, (shape, size), region, out)
    }

    pub(super) fn name(self, id: StoredId) -> String {
        self.checkpoint.tensor(id).name.to_string()
    }
}

/// A part of a matrix.
#[derive(Clone, Copy)]
struct Tile {
    lead: u64,
    rows: Axis,
    cols: Axis,
}

/// Where the elements of a tile go: a block of rows of `width` elements.
struct Target<'a> {
    out: &'a mut [u8],
    width: usize,
    /// The tile's first row and column in the block.
    row: usize,
    col: usize,
    float: Float,
}

impl Target<'_> {
    /// The place of `len` elements of the tile's row `index`.
    fn row(&mut self, index: u64, len: u64) -> &mut [u8] {
        let size = self.float.size();
        let at = ((self.row + index as usize) * self.width + self.col) * size;
        &mut self.out[at..at + len as usize * size]
    }
}

/// Fills `out` with a region of a logical tensor, row-major, in its dtype.
pub(in crate::checkpoint) fn region(
    checkpoint: &Checkpoint,
    tensor: &LogicalTensor,
    region: &[Axis],
    out: &mut [u8],
) -> Result<()> {
    let reading = Reading::of(checkpoint);
    if let Recipe::Plain(id) = tensor.recipe {
        let size = tensor.dtype.bits() / 8;
        return reading.view(id, &tensor.shape, size, region, out);
    }
    if elements(region) == 0 {
        return Ok(());
    }
    let float = tensor.dtype.float().expect("decoded tensors are floats");
    let one = Axis::point(0);
    let (outer, rows, cols) = match region {
        [] => (&[][..], one, one),
        [cols] => (&[][..], one, *cols),
        [outer @ .., rows, cols] => (outer, *rows, *cols),
    };
    let block = (rows.len * cols.len) as usize * float.size();
    for (index, out) in out.chunks_exact_mut(block).enumerate() {
        let lead = lead_of(&tensor.shape, outer, index as u64);
        for (row, col) in tiles(&tensor.recipe, rows, cols) {
            let part =
                |axis: Axis, from: u64, len: u64| Axis { start: axis.start + from * axis.step, len, ..axis };
            let tile =
                Tile { lead, rows: part(rows, row.start, row.len), cols: part(cols, col.start, col.len) };
            let (row, col) = (row.start as usize, col.start as usize);
            let target = Target { out: &mut *out, width: cols.len as usize, row, col, float };
            match &tensor.recipe {
                Recipe::Scaled(recipe) => recipe.decode(reading, tensor, tile, target)?,
                Recipe::Mlx(mlx) => mlx.decode(reading, tensor, tile, target)?,
                Recipe::Plain(_) => unreachable!("read as it is"),
            }
        }
    }
    Ok(())
}

/// Which matrix of the stack the combination `index` of positions on the outer axes is.
pub(super) fn lead_of(shape: &[u64], outer: &[Axis], mut index: u64) -> u64 {
    let (mut lead, mut stride) = (0, 1);
    for (axis, size) in outer.iter().zip(shape).rev() {
        lead += (axis.start + index % axis.len * axis.step) * stride;
        index /= axis.len;
        stride *= size;
    }
    lead
}

/// Cuts rows and columns into tiles, counted in the region's elements.
fn tiles(recipe: &Recipe, rows: Axis, cols: Axis) -> Vec<(Axis, Axis)> {
    // What is read lies between the elements of a stepped axis as well.
    let (row, col) = match recipe {
        Recipe::Scaled(recipe) if recipe.codes.by_columns() => {
            let row = (TILE / rows.step).clamp(1, rows.len);
            (row, (TILE / (row * rows.step)).clamp(1, cols.len))
        }
        _ => {
            let col = (TILE / cols.step).clamp(1, cols.len);
            ((TILE / (col * cols.step)).clamp(1, rows.len), col)
        }
    };
    let cuts = |len: u64, chunk: u64| {
        (0..len).step_by(chunk as usize).map(move |start| Axis::range(start, chunk.min(len - start)))
    };
    cuts(rows.len, row).flat_map(|row| cuts(cols.len, col).map(move |col| (row, col))).collect()
}

impl Scaled {
    fn decode(
        &self,
        reading: Reading<'_>,
        tensor: &LogicalTensor,
        tile: Tile,
        mut target: Target<'_>,
    ) -> Result<()> {
        let Tile { lead, rows, cols } = tile;
        if let Some(id) = self.shape
            && (lead, rows.start) == (0, 0)
        {
            check_shape(reading, tensor, id)?;
        }
        let codes = self.codes.read(reading, lead, rows, cols)?;
        let order = self.order.map(|id| read_order(reading, id, cols, self.scales.size.1)).transpose()?;
        let scale_cols = if order.is_some() { None } else { Some(cols) };
        let mut scales = self.scales.read(reading, lead, rows, scale_cols)?;
        self.second(reading, lead, &mut scales)?;
        let zeros = self.zeros(reading, lead, rows, scale_cols)?;
        let plain = order.is_none() && cols.step == 1;
        let size = if plain { self.scales.block.1 } else { 1 };
        let (mut own_scales, mut own_zeros) = (Vec::new(), Vec::new());
        for (index, codes) in codes.chunks_exact(cols.len as usize).enumerate() {
            let index = index as u64;
            let row = rows.start + index * rows.step;
            let (mut scales, mut zeros) = (scales.row(index, row), zeros.row(index, row));
            if !plain {
                let place = |at: u64| match &order {
                    Some(order) => order[at as usize],
                    // A scale each: only those of the elements are read.
                    None if self.scales.block.1 == 1 => at as usize,
                    None => {
                        ((cols.start + at * cols.step) / self.scales.block.1
                            - cols.start / self.scales.block.1) as usize
                    }
                };
                own_scales = (0..cols.len).map(|at| scales[place(at)]).collect();
                scales = &own_scales;
                if zeros.len() > 1 {
                    own_zeros = (0..cols.len).map(|at| zeros[place(at)]).collect();
                    zeros = &own_zeros;
                }
            }
            let same;
            if zeros.len() == 1 && scales.len() > 1 {
                same = vec![zeros[0]; scales.len()];
                zeros = &same;
            }
            let skip = (cols.start % size) as usize;
            let steps = Steps { scales, zeros, size: size as usize, skip };
            scaled(self.code, codes, steps, target.float, target.row(index, cols.len));
        }
        drop((own_scales, own_zeros));
        Ok(())
    }

    fn second(&self, reading: Reading<'_>, lead: u64, scales: &mut Values) -> Result<()> {
        let Some(second) = &self.second else {
            return Ok(());
        };
        let value = second.grid.read(reading, lead, Axis::point(0), None)?.data[0];
        let apply = |scale: f32| if second.divides { scale / value } else { scale * value };
        scales.data.iter_mut().for_each(|scale| *scale = apply(*scale));
        Ok(())
    }

    /// The zero points that a tile meets, one for each scale; none, or one for all, where they are the same.
    pub(super) fn zeros(
        &self,
        reading: Reading<'_>,
        lead: u64,
        rows: Axis,
        cols: Option<Axis>,
    ) -> Result<Values> {
        match &self.zero {
            Zero::Same(0.0) => Ok(Values::same(Vec::new())),
            Zero::Same(zero) => Ok(Values::same(vec![*zero])),
            Zero::Stored { codes, signed, plus } => {
                // Each scale has one.
                let (high, wide) = self.scales.block;
                let lead = if self.scales.for_each { lead } else { 0 };
                let rows = blocks(rows, high);
                let cols = cols.map_or(Axis::range(0, codes.cols), |cols| blocks(cols, wide));
                let bytes = codes.read(reading, lead, rows, cols)?;
                let number = |byte: u8| if *signed { f32::from(byte as i8) } else { f32::from(byte) };
                let data = bytes.into_iter().map(|byte| number(byte) + plus).collect();
                Ok(Values { data, width: cols.len as usize, rows, block_rows: high })
            }
        }
    }
}

/// The group of each of these columns.
fn read_order(reading: Reading<'_>, id: StoredId, cols: Axis, groups: u64) -> Result<Vec<usize>> {
    let mut raw = vec![0; cols.len as usize * 4];
    let size = cols.start + (cols.len - 1) * cols.step + 1;
    reading.view(id, &[size], 4, &[cols], &mut raw)?;
    let order = raw.as_chunks::<4>().0.iter().map(|bytes| i32::from_le_bytes(*bytes));
    let inside = |group: i32| usize::try_from(group).ok().filter(|&group| (group as u64) < groups);
    order
        .map(|group| {
            inside(group).ok_or_else(|| {
                Error::Checkpoint(CheckpointError::GroupOrder { tensor: reading.name(id), group })
            })
        })
        .collect()
}

/// The shape that is stored once more must be the tensor's.
pub(super) fn check_shape(reading: Reading<'_>, tensor: &LogicalTensor, id: StoredId) -> Result<()> {
    let stored = reading.checkpoint.tensor(id);
    let (count, size) = (stored.shape.iter().product::<u64>(), stored.dtype.bits() / 8);
    let mut raw = vec![0; (count * size) as usize];
    reading.view(id, &[count], size, &[Axis::range(0, count)], &mut raw)?;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte));
    let said: Vec<u64> = raw.chunks_exact(size as usize).map(number).collect();
    if *said == *tensor.shape {
        return Ok(());
    }
    let (tensor, shape) = (tensor.name.to_string(), tensor.shape.to_vec());
    Err(CheckpointError::SaidShape { companion: reading.name(id), said, tensor, shape }.into())
}

impl Mlx {
    fn decode(
        &self,
        reading: Reading<'_>,
        tensor: &LogicalTensor,
        tile: Tile,
        mut target: Target<'_>,
    ) -> Result<()> {
        let Tile { lead, rows, cols } = tile;
        let (_, height, width) = matrices(&tensor.shape);
        let group = self.format.group_size() as u64;
        let groups = blocks(cols, group);
        let read = |id: StoredId, each: u64| {
            let mut out = vec![0; (rows.len * groups.len * each) as usize];
            let shape = [lead + 1, height, width / group];
            reading.view(id, &shape, each, &[Axis::point(lead), rows, groups], &mut out).map(|()| out)
        };
        let scale_bytes = self.format.scale_bytes(target.float) as u64;
        let codes = read(self.codes, self.format.code_bytes() as u64)?;
        let scales = read(self.scales, scale_bytes)?;
        let biases = self.biases.map(|id| read(id, scale_bytes)).transpose()?.unwrap_or_default();
        if !self.format.has_biases() && self.format.group_size() == 32 && scales.contains(&255) {
            return Err(CheckpointError::NoScale { tensor: reading.name(self.scales) }.into());
        }
        let size = target.float.size();
        let line = (groups.len * group) as usize * size;
        let mut values = vec![0; rows.len as usize * line];
        dequantize(self.format, target.float, &codes, &scales, &biases, &mut values);
        let skip = (cols.start - groups.start * group) as usize;
        for (index, line) in values.chunks_exact(line).enumerate() {
            let picked = line.chunks_exact(size).skip(skip).step_by(cols.step as usize);
            let out = target.row(index as u64, cols.len).chunks_exact_mut(size);
            picked.zip(out).for_each(|(from, to)| to.copy_from_slice(from));
        }
        Ok(())
    }
}

/// Bytes that decoding any region of a tensor holds beside its result, at most.
pub(in crate::checkpoint) fn scratch(tensor: &LogicalTensor) -> u64 {
    let (_, rows, cols) = matrices(&tensor.shape);
    // A tile of one row or column at least, and what it meets at its ends.
    let tile = TILE.min(rows * cols) + 4 * (rows.min(TILE) + cols.min(TILE)) + 64;
    match &tensor.recipe {
        Recipe::Plain(_) => 0,
        Recipe::Mlx(mlx) => {
            let group = mlx.format.group_size() as u64;
            let covered = tile + 2 * group * (rows.min(TILE) + 1);
            covered * 4 + covered + covered / group * 8
        }
        Recipe::Scaled(recipe) => {
            let block = recipe.scales.block;
            let (rows, cols) = (rows.min(TILE), cols.min(TILE));
            let by_groups = tile / block.1.min(cols).max(1) / block.0.min(rows).max(1);
            let met = by_groups + rows / block.0 + cols / block.1 + 4;
            let met = if recipe.order.is_some() { rows.min(tile) * recipe.scales.size.1 + met } else { met };
            let own = if recipe.order.is_some() { cols * 20 } else { cols * 8 };
            tile * 4 + met * 24 + own
        }
    }
}
