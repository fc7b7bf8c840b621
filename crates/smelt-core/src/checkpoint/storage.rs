//! In which form a checkpoint holds its weights: plain, packed by MLX, or packed by another tool.
//!
//! The configuration is asked first and the tensors second, because both have been seen without
//! the other: checkpoints whose configuration lost its quantization, and configurations with a note
//! of quantization-aware training (`quant_type` without `quant_method`) over plain weights.

use serde_json::Value;

use super::{Config, DType, StoredTensor};

/// How the weights are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Ordinary floats.
    Plain,
    /// MLX's own quantization.
    Mlx {
        /// Mode, if the configuration names one.
        mode: Option<String>,
        /// Bits of most weights, if the configuration has them.
        bits: Option<u64>,
        /// Group size of most weights, if the configuration has it.
        group_size: Option<u64>,
    },
    /// A format of another tool.
    Packed {
        /// The method by its own name, or the sign by which it was recognised.
        method: String,
    },
}

impl Storage {
    /// Looks at the configuration, `hf_quant_config.json` (its value, if there is one) and the
    /// tensors, sorted by name.
    pub(super) fn detect(config: &Config, modelopt: Option<&Value>, tensors: &[StoredTensor]) -> Self {
        let tensors_say_mlx = || tensors.iter().any(|weight| is_mlx(weight, tensors));
        mlx_block(config, "quantization")
            .or_else(|| tensors_say_mlx().then(|| mlx_copy(config)))
            .or_else(|| declared(config).map(|method| Self::Packed { method }))
            .or_else(|| modelopt.and_then(modelopt_method).map(|method| Self::Packed { method }))
            .or_else(|| packed_tensor(tensors).map(|method| Self::Packed { method }))
            .unwrap_or(Self::Plain)
    }

    /// In words, for people.
    pub fn describe(&self) -> String {
        match self {
            Self::Plain => "plain floats".to_owned(),
            Self::Mlx { mode, bits, group_size } => {
                let mode = mode.as_deref().unwrap_or("affine");
                let bits = bits.map_or_else(String::new, |bits| format!(", {bits} bits"));
                let group = group_size.map_or_else(String::new, |size| format!(", group size {size}"));
                format!("already quantized by MLX ({mode}{bits}{group})")
            }
            Self::Packed { method } => format!("already quantized ({method})"),
        }
    }
}

/// The block that MLX's tools write under `key`.
fn mlx_block(config: &Config, key: &str) -> Option<Storage> {
    let block = config.get(key)?;
    // Other tools use the same keys, but always name themselves.
    let other = ["quant_method", "quant_algo"].iter().any(|key| block.get(key).is_some());
    let number = |key| block.get(key).and_then(Value::as_u64);
    let (bits, group_size) = (number("bits"), number("group_size"));
    if other || bits.or(group_size).is_none() {
        return None;
    }
    let mode = block.get("mode").and_then(Value::as_str).map(str::to_owned);
    Some(Storage::Mlx { mode, bits, group_size })
}

/// MLX's tensors without its block: there may be the copy that its tools write beside it, which
/// alone proves nothing, since notes of quantization-aware training look the same.
fn mlx_copy(config: &Config) -> Storage {
    let unknown = Storage::Mlx { mode: None, bits: None, group_size: None };
    mlx_block(config, "quantization_config").unwrap_or(unknown)
}

/// `x.weight` in U32 beside `x.scales`.
fn is_mlx(weight: &StoredTensor, sorted: &[StoredTensor]) -> bool {
    let stem = weight.name.strip_suffix(".weight").filter(|_| weight.dtype == DType::U32);
    stem.is_some_and(|stem| has(sorted, &format!("{stem}.scales")))
}

fn has(sorted: &[StoredTensor], name: &str) -> bool {
    sorted.binary_search_by(|tensor| (*tensor.name).cmp(name)).is_ok()
}

/// The method that the configuration names. Models with vision keep it with the text part, older
/// compressed-tensors files under another name.
fn declared(config: &Config) -> Option<String> {
    let places = ["quantization_config", "text_config.quantization_config", "compression_config"];
    let blocks = places.into_iter().filter_map(|place| config.get(place));
    blocks.into_iter().find_map(|block| {
        let method = block.get("quant_method")?.as_str()?;
        let detail = ["format", "quant_algo", "fmt"];
        let detail = detail.into_iter().find_map(|key| block.get(key)?.as_str());
        Some(detail.map_or_else(|| method.to_owned(), |detail| format!("{method}, {detail}")))
    })
}

/// The method in `hf_quant_config.json`: `{"quantization": {"quant_algo": "NVFP4", ...}}`.
fn modelopt_method(value: &Value) -> Option<String> {
    let method = value.get("quantization")?.get("quant_algo")?.as_str()?;
    Some(format!("modelopt, {method}"))
}

/// A tensor that no plain checkpoint has: a narrow float, or bytes that have scales.
fn packed_tensor(sorted: &[StoredTensor]) -> Option<String> {
    let mut suspects = sorted.iter().filter(|tensor| {
        tensor.dtype.is_narrow_float()
            || matches!(tensor.dtype, DType::U8 | DType::I8 | DType::I32)
                && scale_names(&tensor.name).iter().any(|name| has(sorted, name))
    });
    suspects.next().map(|tensor| format!("{} tensors such as `{}`", tensor.dtype, tensor.name))
}

/// What the scales of packed codes called `name` may be called.
fn scale_names(name: &str) -> Vec<String> {
    let endings: &[(&str, &[&str])] = &[
        (".weight", &[".weight_scale", ".weight_scale_inv", ".scale", ".scales"]),
        (".weight_packed", &[".weight_scale"]),
        ("_blocks", &["_scales"]),
        (".qweight", &[".scales"]),
        ("", &["_scale", "_scale_inv"]),
    ];
    let with = |(ending, scales): &(&str, &[&str])| {
        let stem = name.strip_suffix(ending)?.to_owned();
        Some(scales.iter().map(|scale| format!("{stem}{scale}")).collect::<Vec<_>>())
    };
    endings.iter().filter_map(with).flatten().collect()
}
