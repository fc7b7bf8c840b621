//! How much layers matter, besides the roles of their modules: a factor for each.

use std::collections::BTreeMap;

use serde_json::Value;

/// A factor for each layer, 1 on the geometric mean.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerPrior(BTreeMap<u64, f64>);

/// A layer counts at least and at most by this factor: scores measure one thing, and not very well.
const LIMITS: (f64, f64) = (0.25, 4.0);

impl LayerPrior {
    /// Of scores, positive numbers that say how sensitive a layer is; `None` without any. What has no score, or
    /// none above zero, is as sensitive as the mean.
    pub fn of_scores(scores: impl IntoIterator<Item = (u64, f64)>) -> Option<Self> {
        let sane = scores.into_iter().filter(|(_, score)| score.is_finite() && *score > 0.0);
        let logs: BTreeMap<u64, f64> = sane.map(|(layer, score)| (layer, score.ln())).collect();
        let mean = logs.values().sum::<f64>() / logs.len() as f64;
        let factor = |log: f64| (log - mean).exp().clamp(LIMITS.0, LIMITS.1);
        (!logs.is_empty()).then(|| Self(logs.into_iter().map(|(layer, log)| (layer, factor(log))).collect()))
    }

    /// Of an `oq_sensitivity_map.json`: an object of scores by layer number.
    pub fn of_map(map: &Value) -> Option<Self> {
        let scores = map.as_object()?.iter();
        let scores: Option<Vec<_>> =
            scores.map(|(layer, score)| Some((layer.parse().ok()?, score.as_f64()?))).collect();
        Self::of_scores(scores?)
    }

    /// The factor of the layer that a module's path names first, 1 where it names none.
    pub fn factor(&self, module: &str) -> f64 {
        layer_of(module).and_then(|layer| self.0.get(&layer).copied()).unwrap_or(1.0)
    }
}

/// The layer that a module's path names first, if it names one.
pub(crate) fn layer_of(module: &str) -> Option<u64> {
    module.split('.').find_map(|part| part.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_follow_scores_within_limits() {
        let map = serde_json::json!({ "0": 0.01, "1": 0.01, "2": 0.02, "3": 100.0 });
        let prior = LayerPrior::of_map(&map).unwrap();
        let factor = |layer: u64| prior.factor(&format!("model.layers.{layer}.mlp.up_proj"));
        assert!((factor(2) / factor(0) - 2.0).abs() < 1e-9 || factor(0) == 0.25);
        assert_eq!((factor(3), factor(9), prior.factor("lm_head")), (4.0, 1.0, 1.0));
        assert!(LayerPrior::of_map(&serde_json::json!({ "x": 1 })).is_none());
        assert!(LayerPrior::of_scores([(0, 0.0)]).is_none());
    }
}
