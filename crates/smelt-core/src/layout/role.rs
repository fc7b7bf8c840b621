//! What a tensor is for: the one classification that the plan, the report and everything that
//! chooses bits share. Families assign it; nothing else guesses it from names.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Declares the roles with their names.
macro_rules! roles {
    ($($(#[$doc:meta])* $role:ident $name:literal,)*) => {
        /// The part that a tensor plays in a model.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum Role {
            $($(#[$doc])* #[serde(rename = $name)] $role,)*
        }

        impl Role {
            /// The names of all roles.
            pub const NAMES: &[&str] = &[$($name),*];

            /// The role of a name.
            pub fn from_name(name: &str) -> Option<Self> {
                match name {
                    $($name => Some(Self::$role),)*
                    _ => None,
                }
            }

            /// The name in family files, plans and reports.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$role => $name,)*
                }
            }
        }
    };
}

roles! {
    /// Token embeddings.
    Embedding "embedding",
    /// Embeddings of their own for each layer, and what brings them in.
    PerLayerEmbedding "per-layer-embedding",
    /// Position embeddings and tables.
    Position "position",
    /// Query projection.
    AttentionQuery "attention-query",
    /// Key projection.
    AttentionKey "attention-key",
    /// Value projection.
    AttentionValue "attention-value",
    /// Query, key and value projections in one.
    AttentionFused "attention-fused",
    /// Output projection of attention.
    AttentionOutput "attention-output",
    /// Gate on the output of attention, sinks and the like.
    AttentionGate "attention-gate",
    /// Projections into and out of a latent space (MLA).
    AttentionLatent "attention-latent",
    /// Chooses the positions that sparse attention looks at.
    Indexer "indexer",
    /// Projections of linear attention.
    LinearAttention "linear-attention",
    /// Projections and parameters of a state-space layer.
    StateSpace "state-space",
    /// A short convolution.
    Convolution "convolution",
    /// Gate projection of a dense MLP.
    MlpGate "mlp-gate",
    /// Up projection of a dense MLP.
    MlpUp "mlp-up",
    /// Gate and up projections in one.
    MlpGateUp "mlp-gate-up",
    /// Down projection of a dense MLP.
    MlpDown "mlp-down",
    /// Chooses the experts of a token.
    Router "router",
    /// Gate projection of the routed experts.
    ExpertGate "expert-gate",
    /// Up projection of the routed experts.
    ExpertUp "expert-up",
    /// Gate and up projections of the routed experts in one.
    ExpertGateUp "expert-gate-up",
    /// Down projection of the routed experts.
    ExpertDown "expert-down",
    /// Gate projection of the experts that every token uses.
    SharedExpertGate "shared-expert-gate",
    /// Up projection of the experts that every token uses.
    SharedExpertUp "shared-expert-up",
    /// Gate and up projections of the experts that every token uses in one.
    SharedExpertGateUp "shared-expert-gate-up",
    /// Down projection of the experts that every token uses.
    SharedExpertDown "shared-expert-down",
    /// Mixes residual streams.
    HyperConnection "hyper-connection",
    /// Turns the last hidden state into logits, classes or scores.
    Head "head",
    /// Normalisation weights.
    Norm "norm",
    /// The bias of a projection.
    Bias "bias",
    /// The tower that sees.
    Vision "vision",
    /// The tower that hears or speaks.
    Audio "audio",
    /// Brings what a tower sees or hears to the language model.
    Projector "projector",
    /// Predicts several tokens at once; written apart from the model, which has no such layers.
    Mtp "mtp",
    /// None of the others.
    Other "other",
}

impl Role {
    /// Whether a token uses only a few of the experts that such a tensor stacks.
    pub const fn is_routed(self) -> bool {
        matches!(self, Self::ExpertGate | Self::ExpertUp | Self::ExpertGateUp | Self::ExpertDown)
    }

    /// Whether the tensor belongs to a tower or what joins one to the language model.
    pub const fn is_tower(self) -> bool {
        matches!(self, Self::Vision | Self::Audio | Self::Projector)
    }

    /// A guess from a parameter's name, for layouts that no family describes. `linear` tells whether
    /// it is the weight of a module that can be quantized.
    pub fn of_name(name: &str, linear: bool) -> Self {
        let path = name.strip_suffix(".weight").unwrap_or(name);
        let last = path.rsplit('.').next().unwrap_or(path);
        let expert = path.contains("switch_mlp") || path.contains(".experts");
        match last {
            "bias" => Self::Bias,
            _ if last.contains("norm") || last.starts_with("ln") => Self::Norm,
            "embed_tokens" | "wte" | "word_embeddings" | "tok_embeddings" | "embeddings" if linear => {
                Self::Embedding
            }
            "lm_head" | "output" if linear => Self::Head,
            "q_proj" | "query" => Self::AttentionQuery,
            "k_proj" | "key" => Self::AttentionKey,
            "v_proj" | "value" => Self::AttentionValue,
            "qkv_proj" | "qkv" | "c_attn" | "query_key_value" | "Wqkv" => Self::AttentionFused,
            "o_proj" | "out_proj" if path.contains("attn") || path.contains("attention") => {
                Self::AttentionOutput
            }
            "gate_proj" if expert => Self::ExpertGate,
            "up_proj" if expert => Self::ExpertUp,
            "down_proj" if expert => Self::ExpertDown,
            "gate_proj" | "w1" => Self::MlpGate,
            "up_proj" | "w3" => Self::MlpUp,
            "gate_up_proj" => Self::MlpGateUp,
            "down_proj" | "w2" => Self::MlpDown,
            "gate" | "router" => Self::Router,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}
