//! What a tensor is for: the one classification that the plan, the report and everything that
//! chooses bits share. Families assign it; nothing else guesses it from names.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The part that a tensor plays in a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Token embeddings.
    Embedding,
    /// Query projection.
    AttentionQuery,
    /// Key projection.
    AttentionKey,
    /// Value projection.
    AttentionValue,
    /// Query, key and value projections in one.
    AttentionFused,
    /// Output projection of attention.
    AttentionOutput,
    /// Gate projection of a dense MLP.
    MlpGate,
    /// Up projection of a dense MLP.
    MlpUp,
    /// Gate and up projections in one.
    MlpGateUp,
    /// Down projection of a dense MLP.
    MlpDown,
    /// Chooses the experts of a token.
    Router,
    /// Gate projection of the routed experts.
    ExpertGate,
    /// Up projection of the routed experts.
    ExpertUp,
    /// Down projection of the routed experts.
    ExpertDown,
    /// Turns the last hidden state into logits.
    Head,
    /// Normalisation weights.
    Norm,
    /// The bias of a projection.
    Bias,
    /// None of the others.
    Other,
}

impl Role {
    /// Whether a token uses only a few of the experts that such a tensor stacks.
    pub const fn is_routed(self) -> bool {
        matches!(self, Self::ExpertGate | Self::ExpertUp | Self::ExpertDown)
    }

    /// A guess from a parameter's name, for layouts that no family describes. `linear` tells whether
    /// it is the weight of a module that can be quantized.
    pub fn of_name(name: &str, linear: bool) -> Self {
        let path = name.strip_suffix(".weight").unwrap_or(name);
        let last = path.rsplit('.').next().unwrap_or(path);
        let expert = path.contains("switch_mlp") || path.contains(".experts");
        match last {
            _ if name.ends_with(".bias") => Self::Bias,
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

    /// The name in family files, plans and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedding => "embedding",
            Self::AttentionQuery => "attention-query",
            Self::AttentionKey => "attention-key",
            Self::AttentionValue => "attention-value",
            Self::AttentionFused => "attention-fused",
            Self::AttentionOutput => "attention-output",
            Self::MlpGate => "mlp-gate",
            Self::MlpUp => "mlp-up",
            Self::MlpGateUp => "mlp-gate-up",
            Self::MlpDown => "mlp-down",
            Self::Router => "router",
            Self::ExpertGate => "expert-gate",
            Self::ExpertUp => "expert-up",
            Self::ExpertDown => "expert-down",
            Self::Head => "head",
            Self::Norm => "norm",
            Self::Bias => "bias",
            Self::Other => "other",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.pad(self.name())
    }
}
