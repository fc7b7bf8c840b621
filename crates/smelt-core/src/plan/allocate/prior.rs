//! What a relative error in a module costs the model, by the module's role, before anything is known of
//! the model itself.
//!
//! The loss of a module is `weight(role) × ‖Ŵ - W‖² / ‖W‖²`, whatever its size: it stands for the relative
//! error of the module's output, and an error in a small projection disturbs the residual stream as much as one in
//! a large projection. Small modules so get more bits than large ones without being told to.
//!
//! Weights are of the order of 1. They are few, and coarse on purpose: within a role layers differ by more than
//! two roles do, and a factor of two in a weight moves a module by half a bit.

use crate::layout::Role;

/// What decides weights besides the role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Whether the token embedding is the head as well.
    pub tied: bool,
}

/// What a relative error of 1 in a module of this role costs, in arbitrary units.
pub fn weight(role: Role, facts: Facts) -> f64 {
    match role {
        // The head's error reaches the logits with nothing after it to average it out, and every token sees it.
        Role::Head => 10.0,
        // Tied: both an embedding and a head.
        Role::Embedding if facts.tied => 12.0,
        // One row of many is used at a time, and its error is one of two in the residual stream of the first layer.
        Role::Embedding => 1.0,
        // A table beside the stream: small gated additions.
        Role::PerLayerEmbedding => 0.5,
        // Queries and keys only move attention about, and softmax forgives: half.
        Role::AttentionQuery | Role::AttentionKey => 0.5,
        // Values go straight into the stream, and grouped heads share each of them.
        Role::AttentionValue => 2.0,
        // Part query and key, part value: in between.
        Role::AttentionFused => 1.0,
        // Writes to the stream.
        Role::AttentionOutput => 1.5,
        // All heads are made of one latent vector.
        Role::AttentionLatent => 1.5,
        // Errors of recurrent states add up over the tokens; inputs and outputs of such layers write to the
        // stream in place of attention.
        Role::LinearAttention | Role::StateSpace => 1.5,
        // Every token uses them, beside routed experts of which each sees few tokens.
        Role::SharedExpertGate | Role::SharedExpertUp => 2.0,
        Role::SharedExpertDown => 3.0,
        // Down projections write to the stream, with inputs of heavier tails than the others'.
        Role::MlpDown => 1.5,
        Role::ExpertDown => 2.0,
        // What multiplies or steers the stream: few weights, far-reaching errors.
        Role::AttentionGate | Role::Router | Role::Indexer | Role::HyperConnection => 4.0,
        // Drafts are checked by the model itself: an error costs speed alone.
        Role::Mtp => 0.5,
        _ => 1.0,
    }
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
