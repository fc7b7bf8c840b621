//! Codes: where the integers or small floats of a matrix lie in a stored tensor.

use super::decode::Reading;
use crate::Result;
use crate::checkpoint::StoredId;
use crate::checkpoint::region::Axis;

/// The codes of a stack of matrices of `rows` × `cols`.
#[derive(Clone, Copy, Debug)]
pub(in crate::checkpoint) struct Codes {
    pub(super) id: StoredId,
    pub(super) bits: u8,
    pub(super) rows: u64,
    pub(super) cols: u64,
    pub(super) order: Order,
    /// Bytes of an element of the stored tensor, which each line fills up.
    pub(super) element: u64,
}

/// In which order codes are packed; always the lowest bits of a byte first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::checkpoint) enum Order {
    /// Row after row.
    Rows,
    /// Column after column.
    Columns,
    /// Column after column, the eight codes of a word in the order 0, 2, 4, 6, 1, 3, 5, 7.
    ColumnsMixed,
    /// Words of a stretch of a row each, column after column of them.
    RowWords,
    /// Words of a stretch of a column each, row after row of them.
    ColumnWords,
}

/// The place in a word of each of its codes in [`Order::ColumnsMixed`].
const MIXED: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// Bytes of a word.
const WORD: u64 = 4;

impl Codes {
    /// Whether the columns of a matrix lie together, rather than its rows.
    pub(super) fn by_columns(&self) -> bool {
        matches!(self.order, Order::Columns | Order::ColumnsMixed | Order::RowWords)
    }

    /// Reads the codes of these rows and columns, row-major, a byte each.
    pub(super) fn read(&self, reading: Reading<'_>, lead: u64, rows: Axis, cols: Axis) -> Result<Vec<u8>> {
        match self.order {
            Order::Rows => self.lines(reading, (lead, self.rows, self.cols), rows, cols),
            Order::Columns | Order::ColumnsMixed => {
                let columns = self.lines(reading, (lead, self.cols, self.rows), cols, rows)?;
                Ok(turned(&columns, cols.len, rows.len))
            }
            Order::RowWords => self.words(reading, (lead, self.rows, self.cols), rows, cols),
            Order::ColumnWords => {
                let columns = self.words(reading, (lead, self.cols, self.rows), cols, rows)?;
                Ok(turned(&columns, cols.len, rows.len))
            }
        }
    }

    /// Codes along stored lines: of `across` lines the `along`.
    fn lines(
        &self,
        reading: Reading<'_>,
        size: (u64, u64, u64),
        across: Axis,
        along: Axis,
    ) -> Result<Vec<u8>> {
        let (lead, lines, length) = size;
        if self.bits == 8 {
            let mut codes = vec![0; (across.len * along.len) as usize];
            let region = [Axis::point(lead), across, along];
            reading.view(self.id, &[lead + 1, lines, length], 1, &region, &mut codes)?;
            return Ok(codes);
        }
        let unit = self.element;
        let each = unit * 8 / u64::from(self.bits);
        let cover = super::grid::blocks(along, each);
        let mut raw = vec![0; (across.len * cover.len * unit) as usize];
        let region = [Axis::point(lead), across, cover];
        reading.view(self.id, &[lead + 1, lines, length.div_ceil(each)], unit, &region, &mut raw)?;
        let codes = self.spread(&raw);
        Ok(picked(codes, cover.len * each, along.start - cover.start * each, along))
    }

    /// Codes whose words stand across the stored lines: of `across` words each the codes `along`.
    fn words(
        &self,
        reading: Reading<'_>,
        size: (u64, u64, u64),
        across: Axis,
        along: Axis,
    ) -> Result<Vec<u8>> {
        let (lead, lines, length) = size;
        let each = WORD * 8 / u64::from(self.bits);
        let cover = super::grid::blocks(along, each);
        let mut raw = vec![0; (across.len * cover.len * WORD) as usize];
        let region = [Axis::point(lead), cover, across];
        reading.view(self.id, &[lead + 1, length.div_ceil(each), lines], WORD, &region, &mut raw)?;
        let mut words = vec![0; raw.len()];
        smelt_kernels::transpose(&raw, cover.len as usize, across.len as usize, WORD as usize, &mut words);
        let codes = self.spread(&words);
        Ok(picked(codes, cover.len * each, along.start - cover.start * each, along))
    }

    /// Packed codes, a byte each.
    fn spread(&self, packed: &[u8]) -> Vec<u8> {
        let mut codes = vec![0; packed.len() * 8 / usize::from(self.bits)];
        smelt_kernels::unpack(self.bits, packed, &mut codes);
        if self.order == Order::ColumnsMixed {
            for word in codes.as_chunks_mut::<8>().0 {
                let stored = *word;
                for (code, place) in word.iter_mut().zip(MIXED) {
                    *code = stored[place];
                }
            }
        }
        codes
    }
}

/// Of rows of `width` codes those that `along` asks for, counted from `skip`.
fn picked(codes: Vec<u8>, width: u64, skip: u64, along: Axis) -> Vec<u8> {
    if width == along.len {
        return codes;
    }
    let rows = codes.chunks_exact(width as usize);
    rows.flat_map(|row| row[skip as usize..].iter().step_by(along.step as usize).take(along.len as usize))
        .copied()
        .collect()
}

/// A matrix of bytes with rows and columns exchanged.
fn turned(data: &[u8], rows: u64, cols: u64) -> Vec<u8> {
    let mut out = vec![0; data.len()];
    smelt_kernels::transpose(data, rows as usize, cols as usize, 1, &mut out);
    out
}
