//! The library of smelt: from the files of a checkpoint to the files of a quantized model.
//!
//! Rooms, from the bottom up: [`source`] reads bytes of named files and knows nothing of what they
//! mean; [`checkpoint`] knows what they mean (shards, tensors, configuration, side files) and
//! refuses, with a name, everything that a later stage could trip over.
//!
//! No network and no terminal in here, and no `unsafe`.
#![forbid(unsafe_code)]

pub mod checkpoint;
mod error;
pub mod source;

pub use error::{Error, Result};
