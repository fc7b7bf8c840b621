//! How much of a Mac's memory a model may take.
//!
//! `usable = wired(memory) - context - working`, where
//!
//! - `wired` is what macOS lets the GPU hold: 3/4 of the memory, 2/3 up to 36 GiB;
//! - `context` is the cache of keys and values of so many tokens, 16 bits each:
//!   `layers × 2 × kv heads × head size × 2 B × tokens`, or with a latent space (MLA)
//!   `layers × (rank + rotary size) × 2 B × tokens`. Layers that look back a window or keep a state
//!   take less: it is an upper bound;
//! - `working` is 512 MiB for activations and the runtime.

use super::BitsError;
use crate::checkpoint::Config;
use crate::units::bytes;

/// Up to this memory the GPU may hold two thirds.
const SMALL: u64 = 36 << 30;

/// Activations and the runtime itself.
const WORKING: u64 = 512 << 20;

/// Bytes of an element in the cache.
const ELEMENT: u64 = 2;

/// A machine, and what else is to run on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// Memory of the machine, in bytes.
    pub memory: u64,
    /// Tokens of context for which room is left.
    pub context: u64,
}

impl Fit {
    /// Bytes that the model's tensors may take.
    ///
    /// # Errors
    /// [`BitsError::NoRoom`] if the context alone takes more than there is.
    pub fn usable(self, config: &Config) -> Result<u64, BitsError> {
        let (wired, reserve) = (wired(self.memory), self.context_bytes(config).saturating_add(WORKING));
        let usable = wired.checked_sub(reserve).filter(|&left| left > 0);
        usable.ok_or_else(|| BitsError::NoRoom {
            memory: bytes(self.memory),
            usable: bytes(wired),
            reserve: bytes(reserve),
            tokens: self.context,
        })
    }

    /// Bytes that the context takes, at most; 0 where the config does not tell.
    pub fn context_bytes(self, config: &Config) -> u64 {
        token_bytes(config).saturating_mul(self.context)
    }
}

/// What macOS lets the GPU hold.
fn wired(memory: u64) -> u64 {
    if memory <= SMALL { memory / 3 * 2 } else { memory / 4 * 3 }
}

/// Bytes of cache that a token takes, at most.
fn token_bytes(config: &Config) -> u64 {
    let number = |key: &str| {
        let nested = format!("text_config.{key}");
        let value = config.get(key).or_else(|| config.get(&nested));
        value.and_then(serde_json::Value::as_u64)
    };
    let first = |keys: &[&str]| keys.iter().find_map(|key| number(key));
    let layers = first(&["num_hidden_layers", "n_layer", "n_layers", "num_layers"]).unwrap_or(0);
    let width = if let Some(rank) = number("kv_lora_rank") {
        rank + number("qk_rope_head_dim").unwrap_or(0)
    } else {
        let heads = first(&["num_attention_heads", "n_head", "n_heads"]).unwrap_or(1).max(1);
        let own = first(&["hidden_size", "n_embd", "d_model"]).unwrap_or(0) / heads;
        2 * number("num_key_value_heads").unwrap_or(heads) * number("head_dim").unwrap_or(own)
    };
    layers.saturating_mul(width).saturating_mul(ELEMENT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gpu_gets_its_share() {
        assert_eq!(wired(96 << 30), 72 << 30);
        assert_eq!(wired(36 << 30), 24 << 30);
    }
}
