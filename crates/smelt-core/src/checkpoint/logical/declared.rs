//! What a checkpoint says of its own quantization, wherever its tools put it.

use serde_json::Value;

use crate::checkpoint::Config;

/// The statements of `quantization_config` and its like that decoding depends on.
#[derive(Clone, Debug, Default)]
pub(in crate::checkpoint) struct Declared {
    /// `quant_method`, or `modelopt` where only its own file speaks.
    pub(super) method: Option<String>,
    /// Rows and columns that share a scale.
    pub(super) block: Option<(u64, u64)>,
    /// Bits, group size and symmetry, where they are the same for all modules.
    pub(super) weights: Vec<Weights>,
    /// Which float of 8 bits the codes are, `e4m3` or `e5m2`.
    pub(super) fmt: Option<String>,
    /// Whether columns are in groups by an order that is stored.
    pub(super) act_order: bool,
    /// Whether zero points of GPTQ are stored as they are, not less one.
    pub(super) zeros_as_they_are: bool,
    /// MLX's block: defaults and modules.
    pub(super) mlx: Option<Value>,
}

/// How one group of modules is quantized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Weights {
    pub(super) bits: Option<u64>,
    /// Columns that share a scale; `None` where it is not by groups.
    pub(super) group_size: Option<u64>,
    pub(super) symmetric: Option<bool>,
}

/// What tools call the formats that smelt reads. What another name stands for is not guessed.
pub(super) const METHODS: [&str; 9] =
    ["awq", "compressed-tensors", "fbgemm_fp8", "fp8", "gptq", "modelopt", "modelopt_fp4", "mxfp4", "mxfp8"];

/// A larger block or group is as good as this one: no weight has as many rows or columns.
const LARGEST: u64 = 1 << 32;

const PLACES: [&str; 4] =
    ["quantization_config", "text_config.quantization_config", "compression_config", "quantization"];

impl Declared {
    /// Of the config and of `hf_quant_config.json`, if there is one.
    pub(in crate::checkpoint) fn of(config: &Config, modelopt: Option<&Value>) -> Self {
        let blocks = PLACES.into_iter().filter_map(|place| config.get(place));
        let named = |key: &str| blocks.clone().find(|block| block.get(key).is_some_and(Value::is_string));
        let own = named("quant_method").or_else(|| named("quant_algo"));
        let other = modelopt.and_then(|value| value.get("quantization"));
        let mut mlx = blocks.filter(|block| block.get("quant_method").is_none());
        let mlx = mlx.find(|block| block.get("group_size").is_some()).cloned();
        let Some(block) = own.or(other) else {
            return Self { mlx, ..Self::default() };
        };
        let method = block.get("quant_method").and_then(Value::as_str).unwrap_or("modelopt");
        Self {
            method: Some(method.to_owned()),
            block: size(block.get("weight_block_size")).or_else(|| block_structure(block)),
            weights: weights(block),
            fmt: fmt(block),
            act_order: act_order(block),
            zeros_as_they_are: block.get("checkpoint_format").and_then(Value::as_str) == Some("gptq_v2"),
            mlx,
        }
    }

    /// The method, if smelt does not know it.
    pub(super) fn unknown(&self) -> Option<&str> {
        self.method.as_deref().filter(|method| !METHODS.contains(method))
    }

    /// What the config says of the method, for messages.
    pub(super) fn says(&self) -> String {
        self.method.as_ref().map_or_else(String::new, |method| format!(" (config.json says `{method}`)"))
    }

    /// The group size, if all that is declared agrees on one.
    pub(super) fn group_size(&self) -> Option<u64> {
        agreed(self.weights.iter().map(|weights| weights.group_size))
    }

    /// The bits, if all that is declared agrees on them.
    pub(super) fn bits(&self) -> Option<u64> {
        agreed(self.weights.iter().map(|weights| weights.bits))
    }

    /// Whether some group of modules is declared so; nothing declared contradicts nothing.
    pub(super) fn allows(&self, fits: impl Fn(&Weights) -> bool) -> bool {
        self.weights.is_empty() || self.weights.iter().any(fits)
    }
}

fn agreed(mut values: impl Iterator<Item = Option<u64>>) -> Option<u64> {
    let first = values.next()??;
    values.all(|value| value == Some(first)).then_some(first)
}

/// compressed-tensors lists groups of modules, the others speak of all at once.
fn weights(block: &Value) -> Vec<Weights> {
    let listed: Vec<Weights> = of_groups(block).map(one).collect();
    let plain = one(block);
    if listed.is_empty() && plain != Weights::default() { vec![plain] } else { listed }
}

/// The arguments for weights of all groups of modules of compressed-tensors.
fn of_groups(block: &Value) -> impl Iterator<Item = &Value> {
    let groups = block.get("config_groups").and_then(Value::as_object);
    let weights =
        groups.into_iter().flat_map(|groups| groups.values()).filter_map(|group| group.get("weights"));
    weights.filter(|weights| weights.is_object())
}

/// Rows and columns, where they are a list of two.
fn size(value: Option<&Value>) -> Option<(u64, u64)> {
    let side = |at: usize| {
        value?.as_array()?.get(at)?.as_u64().filter(|&size| size > 0).map(|size| size.min(LARGEST))
    };
    side(0).zip(side(1))
}

/// The blocks of compressed-tensors, where all groups of modules have the same.
fn block_structure(block: &Value) -> Option<(u64, u64)> {
    let mut all = of_groups(block).map(|weights| size(weights.get("block_structure")));
    let first = all.next()??;
    all.all(|other| other == Some(first)).then_some(first)
}

fn fmt(block: &Value) -> Option<String> {
    let said = block.get("fmt").and_then(Value::as_str)?.to_lowercase();
    ["e4m3", "e5m2"].into_iter().find(|known| said.contains(known)).map(str::to_owned)
}

/// GPTQ says it for all; compressed-tensors for each group, where `weight` is an order that is undone.
fn act_order(block: &Value) -> bool {
    let by_group = |weights: &Value| weights.get("actorder").and_then(Value::as_str) == Some("group");
    let mut groups = of_groups(block).peekable();
    let plain = block.get("desc_act").and_then(Value::as_bool) == Some(true);
    plain || (groups.peek().is_some() && groups.all(by_group))
}

fn one(block: &Value) -> Weights {
    let number = |names: [&str; 2]| names.into_iter().find_map(|name| block.get(name)?.as_u64());
    let flag = |name: &str| block.get(name).and_then(Value::as_bool);
    Weights {
        bits: number(["num_bits", "bits"]),
        group_size: number(["group_size", "q_group_size"])
            .filter(|&size| size > 0)
            .map(|size| size.min(LARGEST)),
        symmetric: flag("symmetric").or_else(|| flag("sym")).or_else(|| flag("zero_point").map(|zero| !zero)),
    }
}
