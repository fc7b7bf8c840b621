//! Sums over a plan, counted as mlx-lm counts them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{OutputShard, Task};
use crate::checkpoint::Checkpoint;
use crate::layout::Role;

/// Sums over a whole plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Parameters of the model; scales and biases of quantization are none, nor is what is written apart.
    pub parameters: u64,
    /// Parameters that a token uses: routed experts count by the share that is chosen.
    pub active_parameters: u64,
    /// Bytes of the model's stored tensors.
    pub tensor_bytes: u64,
    /// Bytes of all files with tensors, those apart from the model too.
    pub file_bytes: u64,
    /// Bytes of the tensors that are read.
    pub source_bytes: u64,
    /// Bytes of the files that are copied.
    pub side_bytes: u64,
    /// `8 * tensor_bytes / parameters`
    pub bits_per_weight: f64,
    /// The same by role.
    pub roles: BTreeMap<Role, RoleTotals>,
}

/// Sums over the parameters of one role.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoleTotals {
    /// Parameters.
    pub parameters: u64,
    /// Stored bytes.
    pub bytes: u64,
    /// How many tensors have which format; `bf16` and its like for what is not quantized.
    pub formats: BTreeMap<String, u64>,
}

impl Totals {
    pub(super) fn of(
        tasks: &[Task],
        shards: &[OutputShard],
        checkpoint: &Checkpoint,
        active_share: Option<f64>,
    ) -> Self {
        let mut roles: BTreeMap<Role, RoleTotals> = BTreeMap::new();
        for task in tasks {
            let role = roles.entry(task.role).or_default();
            role.parameters += task.elements();
            role.bytes += task.bytes();
            *role.formats.entry(format_name(task)).or_default() += 1;
        }
        let model = || roles.iter().filter(|(role, _)| **role != Role::Mtp);
        let sum = |of: fn(&RoleTotals) -> u64| model().map(|(_, totals)| of(totals)).sum::<u64>();
        let (parameters, tensor_bytes) = (sum(|role| role.parameters), sum(|role| role.bytes));
        Self {
            parameters,
            active_parameters: active(&roles, active_share),
            tensor_bytes,
            file_bytes: shards.iter().map(OutputShard::bytes).sum(),
            source_bytes: checkpoint.tensors().iter().map(|tensor| tensor.bytes).sum(),
            side_bytes: checkpoint.side_files().iter().map(|file| file.size).sum(),
            bits_per_weight: if parameters == 0 {
                0.0
            } else {
                8.0 * tensor_bytes as f64 / parameters as f64
            },
            roles,
        }
    }

    /// Bytes that the output takes on the disk.
    pub fn disk_bytes(&self) -> u64 {
        self.file_bytes + self.side_bytes
    }
}

/// The format of a task in a word or two.
pub(super) fn format_name(task: &Task) -> String {
    match &task.format {
        Some(spec) => spec.0.to_string(),
        None => task.dtype.name().to_lowercase(),
    }
}

fn active(roles: &BTreeMap<Role, RoleTotals>, share: Option<f64>) -> u64 {
    let used = |(role, totals): (&Role, &RoleTotals)| match share {
        Some(share) if role.is_routed() => (totals.parameters as f64 * share).round() as u64,
        _ if *role == Role::Mtp => 0,
        _ => totals.parameters,
    };
    roles.iter().map(used).sum()
}
