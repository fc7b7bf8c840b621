//! Measured errors: for modules and formats, how far the quantizer's result is from the weights.
//!
//! `error = Σ h (ŵ - w)² / Σ h w²` over sampled rows, with the importance `h` of the input channel where
//! there is one. It depends on the weights and on the method, not on a target, so one file of measurements
//! serves every target, and a file that lacks some formats is completed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use smelt_kernels::Format;

use super::allocate::BitsError;
use super::{Plan, Spec};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, PipelineError, Result};

/// The version of the file, and of the way in which errors are measured.
const VERSION: u32 = 2;

/// Errors of many modules.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measures {
    /// Version of this format.
    version: u32,
    /// What they were measured on, in a few digits.
    fingerprint: String,
    /// Errors by module path.
    modules: BTreeMap<String, Vec<Measure>>,
}

/// The error of one module in one format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measure {
    /// The format.
    pub format: Spec,
    /// Relative squared error.
    pub error: f32,
}

impl Measures {
    /// None yet, of what `fingerprint` names.
    pub fn new(fingerprint: String) -> Self {
        Self { version: VERSION, fingerprint, modules: BTreeMap::new() }
    }

    /// The errors in a file, if it is of the same weights, method and importance; else none. A file that is not
    /// there is as one of something else.
    ///
    /// # Errors
    /// [`BitsError::Measures`] if there is a file that holds no measurements: it may be somebody's own.
    pub fn read(path: &Path, fingerprint: String) -> Result<Self> {
        let error = |why: String| BitsError::Measures { file: path.to_owned(), why };
        let text = match fs::read_to_string(path) {
            Err(why) if why.kind() == std::io::ErrorKind::NotFound => return Ok(Self::new(fingerprint)),
            text => text.map_err(|why| error(why.to_string()))?,
        };
        let read: Self = serde_json::from_str(&text).map_err(|why| error(why.to_string()))?;
        let same = read.version == VERSION && read.fingerprint == fingerprint;
        Ok(if same { read } else { Self::new(fingerprint) })
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// [`PipelineError::Write`].
    pub fn write(&self, path: &Path) -> Result<()> {
        let error = |source| Error::Pipeline(PipelineError::Write { path: path.to_owned(), source });
        let mut text = serde_json::to_string(self).map_err(|why| error(why.into()))?;
        text.push('\n');
        let temporary = path.with_extension("json.partial");
        fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, path)).map_err(error)
    }

    /// The error of a module in a format.
    pub fn error(&self, module: &str, format: Format) -> Option<f64> {
        let all = self.modules.get(module)?;
        all.iter().find(|measure| measure.format.0 == format).map(|measure| f64::from(measure.error))
    }

    /// Adds an error.
    pub fn add(&mut self, module: &str, format: Format, error: f32) {
        self.modules.entry(module.to_owned()).or_default().push(Measure { format: format.into(), error });
    }

    /// How many modules have errors.
    pub fn len(&self) -> usize {
        self.modules.len()
    }

    /// Whether no module has.
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
    }
}

/// What errors depend on: the source's headers, sizes and times of its files, the expressions, the method, the
/// importance.
///
/// # Panics
/// Never: a graph is data that serialises.
pub fn fingerprint(plan: &Plan, checkpoint: &Checkpoint) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut add = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    add(&format!("{VERSION} {}", plan.smelt));
    add(plan.method.name());
    add(plan.importance.as_ref().map_or("", |coverage| &coverage.digest));
    for file in checkpoint.stamps() {
        add(&format!("{} {:?}", file.path, file.stamp));
    }
    for tensor in &plan.source_tensors {
        add(&format!(
            "{} {} {:?} {} {}",
            tensor.name, tensor.dtype, tensor.shape, tensor.shard, tensor.offset
        ));
    }
    for task in &plan.tasks {
        add(&format!("{} {} {:?}", task.name, task.dtype, task.node));
    }
    serde_json::to_writer(&mut hasher, &plan.graph).expect("a graph is data, and a hash takes any");
    hasher.finalize().to_hex()[..32].to_owned()
}
