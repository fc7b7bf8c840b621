//! What the weights of the source amount to, in the report.

use std::collections::BTreeMap;

use super::Report;
use crate::pipeline::{Outlier, Weighed};

impl Report {
    /// Adds what a run was told of the weights: sums by place in the plan, and what can't be right, which
    /// is said among the notes as well.
    pub fn add_weights(&mut self, weighed: &BTreeMap<usize, Weighed>, outliers: &[Outlier]) {
        for (task, tensor) in self.tensors.iter_mut().enumerate() {
            tensor.weights = weighed.get(&task).copied();
        }
        self.notes.extend(outliers.iter().map(ToString::to_string));
        self.outliers = outliers.to_vec();
    }
}
