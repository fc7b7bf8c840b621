//! What a relative error in a module costs the model, by the module's role and place, before anything is known
//! of the model itself.
//!
//! ```text
//! loss of a module = weight(role, layer) × ‖Ŵ - W‖² / ‖W‖²
//! ```
//!
//! whatever its size: the error stands for the relative error of the module's output, and one in a small
//! projection disturbs the residual stream as much as one in a large projection. Small modules so get more bits
//! than large ones without being told to.
//!
//! The weights were fitted to the divergence that each module causes alone, in six small trained models:
//! llama-like, gemma-like and qwen-like ones, dense and with experts, tied and not. There divergence is
//! proportional to the error from 2 to 4 bits, and sums over modules hold within a fifth. An allocation by these weights is
//! 6 % from one by each model's own measurements, on average over models and sizes; weights of 1 are
//! 30 to 100 % from it. They are round because a factor of 1.5 in any one of them changes less than 1 %.
//! What larger models have published (27 to 400 thousand million weights, one module at a time) agrees: all
//! projections between 0.3 and 2, heads between 43 and 62 at 40 to 92 layers, embeddings between 3 and 12.

use crate::layout::Role;

/// What decides weights besides role and layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whether the token embedding is the head as well.
    pub tied: bool,
    /// Whether there are routed experts.
    pub routed: bool,
    /// Decoder layers.
    pub layers: u64,
}

/// What a relative error of 1 in a module of this role and layer costs, in arbitrary units.
pub fn weight(role: Role, layer: Option<u64>, facts: Facts) -> f64 {
    let own = own(role, facts);
    layer.map_or(own, |layer| own * place(role, layer, facts))
}

/// By role alone.
fn own(role: Role, facts: Facts) -> f64 {
    match role {
        // An error of the head reaches the logits with nothing after it to average it out, while that of one layer
        // among many is a small part of the stream: the more layers, the more the head counts in comparison.
        Role::Head => head(facts),
        // Tied: both an embedding and a head.
        Role::Embedding if facts.tied => head(facts) + 6.0,
        // The first thing in the stream, and all that the first layer reads.
        Role::Embedding => 9.0,
        // Queries and keys only move attention about, and softmax forgives; keys are shared by more heads.
        Role::AttentionQuery => 0.35 * attention(facts),
        Role::AttentionKey => 0.5 * attention(facts),
        Role::AttentionValue | Role::AttentionOutput | Role::AttentionFused | Role::AttentionLatent => {
            attention(facts)
        }
        Role::LinearAttention | Role::StateSpace => attention(facts),
        // Down projections write to the stream, with inputs of heavier tails than the others'.
        Role::MlpDown | Role::ExpertDown | Role::SharedExpertDown => 1.25,
        // What multiplies or steers the stream: few weights, far-reaching errors.
        Role::AttentionGate | Role::Router | Role::Indexer | Role::HyperConnection => 4.0,
        // A table beside the stream makes small gated additions; drafts are checked by the model itself, and an
        // error in them costs speed alone.
        Role::PerLayerEmbedding | Role::Mtp => 0.5,
        _ => 1.0,
    }
}

/// The head's, against a projection of one layer. The root fits 4 to 8 layers (15 to 24) as well as 40 to 92.
fn head(facts: Facts) -> f64 {
    7.0 * (facts.layers.max(1) as f64).sqrt()
}

/// Beside experts, of which a token uses few, attention does more of the work.
fn attention(facts: Facts) -> f64 {
    if facts.routed { 1.5 } else { 1.0 }
}

/// By the place in the stack.
fn place(role: Role, layer: u64, facts: Facts) -> f64 {
    let written = matches!(role, Role::AttentionValue | Role::AttentionOutput | Role::AttentionFused);
    let steady = matches!(role, Role::Head | Role::Embedding | Role::PerLayerEmbedding | Role::Mtp);
    if steady || role.is_tower() {
        return 1.0;
    }
    // What the first layer writes outweighs the embeddings that it is added to; all later layers read it.
    let first = match (layer, written) {
        (0, true) => 4.0,
        (0, false) => 1.6,
        _ => 1.0,
    };
    // The stream grows from layer to layer, and the share of what attention adds to it falls.
    let depth = layer as f64 / facts.layers.saturating_sub(1).max(1) as f64;
    if written { first * 2f64.powf(0.5 - depth.min(1.0)) } else { first }
}

/// The fewest bits that a module of this role may get, where the family does not fix its format: what selects or
/// steers rather than sums fails by jumps, and takes next to no bytes.
pub fn floor(role: Role) -> u8 {
    match role {
        Role::Router
        | Role::AttentionGate
        | Role::Indexer
        | Role::HyperConnection
        | Role::Convolution
        | Role::Position
        | Role::Projector
        | Role::Vision
        | Role::Audio => 8,
        // A draft that is rarely right is worth nothing.
        Role::Mtp => 4,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(layers: u64) -> Facts {
        Facts { tied: false, routed: false, layers }
    }

    #[test]
    fn the_head_grows_with_the_layers_and_the_first_layer_counts_most() {
        assert_eq!(weight(Role::Head, None, facts(64)), 56.0);
        assert_eq!(weight(Role::Embedding, None, Facts { tied: true, ..facts(64) }), 62.0);
        let output = |layer| weight(Role::AttentionOutput, Some(layer), facts(8));
        assert!(output(0) > 2.0 * output(1) && output(1) > output(7));
        assert_eq!(weight(Role::MlpUp, Some(7), facts(8)), 1.0);
        let routed = Facts { routed: true, ..facts(8) };
        let query = |facts| weight(Role::AttentionQuery, Some(3), facts);
        assert!((query(routed) / query(facts(8)) - 1.5).abs() < 1e-12);
    }

    #[test]
    fn a_model_of_one_layer_has_weights() {
        let weight = weight(Role::AttentionValue, Some(0), facts(1));
        assert!(weight.is_finite() && weight > 0.0);
    }
}
