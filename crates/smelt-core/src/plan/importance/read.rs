//! The weights of a module's channels, read when they are needed.

use super::bind::{Weighing, knows};
use super::rows::Cursor;
use super::{Channels, Importance};
use crate::error::Result;
use crate::plan::Task;

/// The least that a channel counts, of the mean of its row: a text that did not touch a channel is no proof that
/// none does.
const FLOOR: f64 = 1e-4;

/// What unpacking takes: 32 KiB of what came before, tables, and a piece of the file.
const UNPACKING: u64 = 128 << 10;

/// Reads weights; one for each worker.
#[derive(Debug)]
pub struct Reader<'a> {
    importance: &'a Importance,
    cursor: Cursor<'a>,
    /// What experts without data get in a module.
    layer: Option<(String, Vec<f32>)>,
}

/// Bytes that the weights of a block take, while they are read and afterwards.
pub(crate) fn block_bytes(task: &Task, elements: u64) -> u64 {
    let width = task.shape.last().copied().unwrap_or(0);
    let (stack, entry) = match *task.shape {
        [entries, rows, columns] => (entries, (rows * columns).max(1)),
        _ => (1, u64::MAX),
    };
    let touched = (elements / entry + 2).min(stack);
    // F32 weights; a row as it is stored and once more in order; sums and means over the layer.
    UNPACKING + 4 * width * touched + 4 * width * 2 + (8 + 4) * width
}

impl<'a> Reader<'a> {
    pub(super) fn new(importance: &'a Importance) -> Self {
        Self { importance, cursor: Cursor::new(importance.file()), layer: None }
    }

    /// The weights of `count` entries of a module's first axis from `first` on, or those that all of them have; with
    /// that, whether they are all. `None` for a module without any.
    ///
    /// # Errors
    /// When the file can't be read.
    pub fn channels(&mut self, module: &str, first: u64, count: u64) -> Result<Option<(Channels, bool)>> {
        let importance = self.importance;
        let Some(weighing) = importance.weighing(module) else { return Ok(None) };
        let shared = weighing.parts.rows() == 1;
        let (first, count) = if shared { (0, 1) } else { (first, count) };
        let mut values = Vec::with_capacity((count * weighing.width) as usize);
        for expert in first..first + count {
            self.row(module, weighing, expert, &mut values)?;
        }
        let channels = Channels::new(values, weighing.width as usize);
        Ok(channels.map(|channels| (channels, shared)))
    }

    /// Appends the weights of an expert.
    fn row(&mut self, module: &str, weighing: &Weighing, expert: u64, out: &mut Vec<f32>) -> Result<()> {
        let before = out.len();
        if knows(self.importance.rows(), &weighing.parts, expert) {
            self.own(weighing, expert, out)?;
        } else {
            if self.layer.as_ref().is_none_or(|(of, _)| of != module) {
                self.layer = Some((module.to_owned(), self.mean(weighing)?));
            }
            out.extend(self.layer.iter().flat_map(|(_, mean)| mean));
        }
        let row = &mut out[before..];
        let mean = row.iter().map(|&value| f64::from(value)).sum::<f64>() / row.len() as f64;
        for value in &mut *row {
            *value = value.max((mean * FLOOR) as f32);
        }
        if let Some(tiles) = weighing.tiles {
            tiles.undo(row);
        }
        Ok(())
    }

    /// Appends the mean squares of an expert that has data.
    fn own(&mut self, weighing: &Weighing, expert: u64, out: &mut Vec<f32>) -> Result<()> {
        let Some((key, row)) = weighing.parts.row(expert) else { return Ok(()) };
        let (entry, before) = (self.importance.entry(key.0), out.len());
        self.cursor.values(entry, row * weighing.width, weighing.width, out)?;
        let factor = f64::from(self.importance.rows()[&key].factors[row as usize]);
        for value in &mut out[before..] {
            *value = (f64::from(*value) * factor).min(f64::from(f32::MAX)) as f32;
        }
        Ok(())
    }

    /// The mean squares over all inputs of all experts.
    fn mean(&mut self, weighing: &Weighing) -> Result<Vec<f32>> {
        let (mut sums, mut all) = (vec![0.0; weighing.width as usize], 0.0);
        let mut row = Vec::with_capacity(sums.len());
        for expert in 0..weighing.parts.rows() {
            if !knows(self.importance.rows(), &weighing.parts, expert) {
                continue;
            }
            let Some((key, at)) = weighing.parts.row(expert) else { continue };
            let count = f64::from(self.importance.rows()[&key].counts[at as usize]);
            row.clear();
            self.own(weighing, expert, &mut row)?;
            for (sum, value) in sums.iter_mut().zip(&row) {
                *sum += count * f64::from(*value);
            }
            all += count;
        }
        Ok(sums.into_iter().map(|sum| (sum / all) as f32).collect())
    }
}
