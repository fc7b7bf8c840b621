//! What a layout needs to know of a checkpoint: which tensors there are, not how they are stored.

use crate::checkpoint::{Checkpoint, DType, TensorId};

/// A tensor as a layout sees it.
#[derive(Clone, Copy, Debug)]
pub struct Info<'a> {
    /// Its name in the checkpoint.
    pub name: &'a str,
    /// Its dtype.
    pub dtype: DType,
    /// Its shape.
    pub shape: &'a [u64],
}

/// The tensors of a checkpoint by name and by number.
pub trait Catalog {
    /// How many there are; their ids are `0..count`.
    fn count(&self) -> u32;

    /// The tensor of this name.
    fn find(&self, name: &str) -> Option<TensorId>;

    /// What is known of a tensor.
    ///
    /// # Panics
    /// If the id is of another checkpoint.
    fn info(&self, id: TensorId) -> Info<'_>;
}

impl Catalog for Checkpoint {
    fn count(&self) -> u32 {
        self.logical_tensors().len() as u32
    }

    fn find(&self, name: &str) -> Option<TensorId> {
        let place = self.logical_tensors().binary_search_by(|tensor| (*tensor.name).cmp(name)).ok()?;
        Some(TensorId(place as u32))
    }

    fn info(&self, id: TensorId) -> Info<'_> {
        let tensor = self.logical(id);
        Info { name: &tensor.name, dtype: tensor.dtype, shape: &tensor.shape }
    }
}
