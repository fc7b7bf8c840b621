//! The library of smelt: from the files of a checkpoint to the files of a quantized model.
//!
//! Five rooms, in the order in which data passes. [`source`] reads bytes of named files and knows
//! nothing of what they mean. [`checkpoint`] knows: shards, tensors, configuration, side files.
//! [`layout`] says how the tensors of a checkpoint become the parameters of a library's model, as
//! expressions that are pulled region by region. [`plan`] decides every byte of the output from
//! headers alone, and refuses what can't be done. [`pipeline`] carries a plan out in bounded memory.
//! Above them [`verify`] says whether a finished model is what it should be,
//! and [`report`] says what was done.
//!
//! No network and no terminal in here, and no `unsafe`.
#![forbid(unsafe_code)]

pub mod checkpoint;
mod error;
pub mod layout;
pub mod pipeline;
pub mod plan;
pub mod report;
pub mod source;
pub mod units;
pub mod verify;

pub use error::{
    Changes, CheckpointError, Error, HeaderError, LayoutError, Listed, PipelineError, PlanError, Problems,
    Result, SourceError,
};
