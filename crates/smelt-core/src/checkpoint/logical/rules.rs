//! The formats, one rule each: by the dtype and the name of the codes, with companions of fixed names.
//!
//! Nothing is taken on faith: every companion's dtype and shape must be those that the codes ask for,
//! and what the config declares must agree.

use smelt_kernels::Code;

use super::codes::{Codes, Order};
use super::fit::{Limits, scalar};
use super::grid::{Grid, Kind};
use super::pair::Stored;
use super::{Declared, LogicalTensor, Recipe, Scaled, Second, StorageProblem, Zero, matrices};
use crate::checkpoint::{DType, StoredId, StoredTensor};

/// What a rule makes of a tensor.
pub(super) enum Found {
    /// It holds no codes.
    Nothing,
    /// The logical tensor.
    Tensor(Box<LogicalTensor>),
    /// What does not fit.
    Problem(Box<StorageProblem>),
}

pub(super) type Rule<T> = Result<T, StorageProblem>;

/// The logical tensor whose codes `tensor` holds.
pub(super) fn packed(declared: &Declared, stored: &Stored<'_>, id: StoredId, tensor: &StoredTensor) -> Found {
    let codes = Packed { declared, stored, id, tensor };
    let made = match (tensor.dtype, codes.ending()) {
        _ if !is_countable(&tensor.shape) => return Found::Nothing,
        (DType::U8, Ending::Blocks) => codes.blocks(),
        (DType::U8 | DType::I32, Ending::WeightPacked) => codes.compressed(),
        (DType::I32, Ending::QWeight) => codes.qweight(),
        (DType::U32, Ending::Weight) if codes.has_scales() => codes.mlx(),
        (dtype, _) if dtype.is_narrow_float() && !codes.is_scale() => codes.fp8(),
        (DType::U8 | DType::I8, Ending::Weight | Ending::Other) => match codes.companion(&SCALES) {
            Ok(None) => return Found::Nothing,
            Ok(Some((_, scale))) if is_ternary(tensor, scale) => return Found::Nothing,
            Ok(Some(scale)) => codes.bytes(scale),
            Err(problem) => Err(problem),
        },
        _ => return Found::Nothing,
    };
    match made {
        Ok(logical) if logical.shape.contains(&0) => {
            Found::Problem(Box::new(codes.unknown("without a single weight".to_owned())))
        }
        Ok(logical) => Found::Tensor(Box::new(logical)),
        Err(problem) => Found::Problem(Box::new(problem)),
    }
}

/// Elements beyond which sums over a shape may not fit 64 bits. Only a tensor without any may say more.
const COUNTABLE: u64 = 1 << 48;

fn is_countable(shape: &[u64]) -> bool {
    let sides = shape.iter().filter(|&&side| side > 0);
    sides.fold(1u64, |all, &side| all.saturating_mul(side)) <= COUNTABLE
}

/// `BitNet`: three values, four to a byte, and one scale. MLX's model takes both as they are.
pub(super) fn is_ternary(weight: &StoredTensor, scale: &StoredTensor) -> bool {
    let one = scale.shape.iter().product::<u64>() == 1;
    weight.dtype == DType::U8 && scale.dtype.float().is_some() && one
}

/// Why a tensor of a quantized checkpoint says nothing of a weight.
pub(super) fn unused(name: &str) -> Option<&'static str> {
    let activations = [
        "input_scale",
        "activation_scale",
        "input_global_scale",
        "input_zero_point",
        "output_scale",
        "input_activation_scale",
    ];
    let caches = [".k_scale", ".v_scale", ".q_scale", ".kv_scale", ".prob_scale"];
    let last = |word: &str| name.strip_suffix(word).is_some_and(|rest| rest.ends_with(['.', '_']));
    if activations.into_iter().any(last) {
        Some("a scale for activations, which MLX does not quantize")
    } else if caches.iter().any(|ending| name.ends_with(ending)) {
        Some("a scale for the cache of keys and values, which MLX does not use")
    } else {
        None
    }
}

/// Endings of scales behind the name of the weight, with and without `.weight`.
const SCALES: [(&str, &str); 3] = [("", "_scale_inv"), ("", "_scale"), (".weight", ".scale")];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Weight,
    WeightPacked,
    QWeight,
    Blocks,
    Other,
}

/// A stored tensor that may hold codes.
#[derive(Clone, Copy)]
pub(super) struct Packed<'a> {
    pub(super) declared: &'a Declared,
    pub(super) stored: &'a Stored<'a>,
    pub(super) id: StoredId,
    pub(super) tensor: &'a StoredTensor,
}

pub(super) type Part<'a> = (StoredId, &'a StoredTensor);

impl<'a> Packed<'a> {
    fn ending(&self) -> Ending {
        let endings = [
            (".weight_packed", Ending::WeightPacked),
            (".qweight", Ending::QWeight),
            ("_blocks", Ending::Blocks),
            (".weight", Ending::Weight),
        ];
        let found = endings.into_iter().find(|(ending, _)| self.tensor.name.ends_with(ending));
        found.map_or(Ending::Other, |(_, ending)| ending)
    }

    /// Whether the name is that of a scale.
    fn is_scale(&self) -> bool {
        let endings = ["_scale", "_scale_inv", ".scale", "_scales", ".scales"];
        endings.iter().any(|ending| self.tensor.name.ends_with(ending))
    }

    /// The name without `ending`.
    pub(super) fn stem(&self, ending: &str) -> &'a str {
        self.tensor.name.strip_suffix(ending).unwrap_or(&self.tensor.name)
    }

    fn has_scales(&self) -> bool {
        self.stored.find(&format!("{}.scales", self.stem(".weight"))).is_some()
    }

    /// The only one of some companions that is there.
    fn companion(&self, endings: &[(&str, &str)]) -> Rule<Option<Part<'a>>> {
        let names = endings
            .iter()
            .filter_map(|(cut, add)| Some(format!("{}{add}", self.tensor.name.strip_suffix(cut)?)));
        let mut there = names.filter_map(|name| self.stored.find(&name));
        let first = there.next();
        match (first, there.next()) {
            (Some(first), Some(second)) => Err(StorageProblem::Twice {
                tensor: self.tensor.name.to_string(),
                first: first.1.name.to_string(),
                second: second.1.name.to_string(),
            }),
            (first, _) => Ok(first),
        }
    }

    /// A companion that must be there.
    pub(super) fn needed(&self, stem: &str, ending: &str) -> Rule<Part<'a>> {
        let name = format!("{stem}{ending}");
        self.stored.find(&name).ok_or_else(|| self.missing(format!("`{name}`")))
    }

    pub(super) fn missing(&self, wanted: String) -> StorageProblem {
        StorageProblem::Missing { tensor: self.tensor.name.to_string(), dtype: self.tensor.dtype, wanted }
    }

    pub(super) fn dtype(&self, companion: &StoredTensor, wanted: &str) -> StorageProblem {
        StorageProblem::Dtype {
            tensor: self.tensor.name.to_string(),
            companion: companion.name.to_string(),
            dtype: companion.dtype,
            wanted: wanted.to_owned(),
        }
    }

    pub(super) fn shape(&self, companion: &StoredTensor, wanted: String) -> StorageProblem {
        StorageProblem::Shape {
            tensor: self.tensor.name.to_string(),
            shape: self.tensor.shape.to_vec(),
            companion: companion.name.to_string(),
            found: companion.shape.to_vec(),
            wanted,
        }
    }

    pub(super) fn config(&self, companion: &StoredTensor, found: String, declared: String) -> StorageProblem {
        StorageProblem::Config {
            tensor: self.tensor.name.to_string(),
            companion: companion.name.to_string(),
            found,
            declared,
        }
    }

    pub(super) fn unknown(&self, found: String) -> StorageProblem {
        StorageProblem::Unknown {
            tensor: self.tensor.name.to_string(),
            found,
            declared: self.declared.says(),
        }
    }

    /// Refuses a companion of another shape.
    pub(super) fn has_shape(&self, companion: &StoredTensor, wanted: &[u64]) -> Rule<()> {
        if *companion.shape == *wanted { Ok(()) } else { Err(self.shape(companion, format!("{wanted:?}"))) }
    }

    /// Refuses codes of another width than the config says.
    fn has_bits(&self, companion: &StoredTensor, bits: u64) -> Rule<()> {
        if self.declared.allows(|weights| weights.bits.is_none_or(|declared| declared == bits)) {
            return Ok(());
        }
        let declared =
            self.declared.bits().map_or_else(|| "other widths".to_owned(), |n| format!("{n} bits"));
        Err(self.config(companion, format!("codes of {bits} bits with their scales"), declared))
    }

    /// Refuses floats of another kind than `fmt` says.
    fn has_fmt(&self, companion: &StoredTensor, found: &str) -> Rule<()> {
        match &self.declared.fmt {
            Some(fmt) if !found.to_lowercase().ends_with(fmt) => {
                Err(self.config(companion, format!("{found} with its scale"), format!("`fmt` is {fmt}")))
            }
            _ => Ok(()),
        }
    }

    /// E4M3 or E5M2 with scales for blocks, channels or all.
    fn fp8(&self) -> Rule<LogicalTensor> {
        let (code, words) = match self.tensor.dtype {
            DType::F8E4M3 => (Code::E4m3, "FP8 E4M3"),
            DType::F8E5M2 => (Code::E5m2, "FP8 E5M2"),
            other => return Err(self.unknown(format!("of dtype {other}"))),
        };
        let scale = self.companion(&SCALES)?.or_else(|| self.scale_of_parts());
        let name = &self.tensor.name;
        let wanted = || self.missing(format!("scale such as `{name}_scale_inv` or `{name}_scale`"));
        let scale = scale.ok_or_else(wanted)?;
        let scales =
            self.grid(scale, &self.tensor.shape, Limits { block: self.declared.block, group: None })?;
        let (_, rows, cols) = matrices(&self.tensor.shape);
        let codes = Codes { id: self.id, bits: 8, rows, cols, order: Order::Rows, element: 1 };
        self.has_bits(scale.1, 8)?;
        self.has_fmt(scale.1, words)?;
        let mx = code == Code::E4m3 && scales.kind == Kind::Power && scales.block == (1, 32);
        let known_as = if mx { " (MXFP8)" } else { "" };
        let words = format!("{words} with {}{known_as}", self.scale_words(&scales, scale.1));
        let recipe = Scaled {
            words,
            code,
            codes,
            scales,
            second: None,
            zero: Zero::Same(0.0),
            order: None,
            shape: None,
        };
        Ok(logical(name, DType::BF16, self.tensor.shape.to_vec(), recipe))
    }

    /// The scale of a table that is stored in parts, `x.shard_0.weight` and so on: `x.weight_scale`.
    fn scale_of_parts(&self) -> Option<Part<'a>> {
        let (table, part) = self.stem(".weight").rsplit_once('.')?;
        let number = part.strip_prefix("shard_")?;
        number.parse::<u32>().ok()?;
        self.stored.find(&format!("{table}.weight_scale"))
    }

    /// Bytes with scales: FP4 of two kinds, or 8-bit integers.
    fn bytes(&self, scale: Part<'a>) -> Rule<LogicalTensor> {
        match (self.tensor.dtype, scale.1.dtype) {
            (DType::U8, DType::F8E4M3) => {
                let second = self.needed(&self.tensor.name, "_scale_2")?;
                self.fp4(&self.tensor.name, scale, Some((second, false)))
            }
            (DType::U8 | DType::I8, DType::U8 | DType::F8E8M0) => self.fp4(&self.tensor.name, scale, None),
            (DType::I8, DType::F32 | DType::BF16 | DType::F16) => self.int8(scale),
            (codes, scales) => {
                Err(self.unknown(format!("{codes} with scales `{}` in {scales}", scale.1.name)))
            }
        }
    }

    /// Two E2M1 in a byte, the low half first.
    fn fp4(&self, name: &str, scale: Part<'a>, second: Option<(Part<'a>, bool)>) -> Rule<LogicalTensor> {
        let mut shape = self.tensor.shape.to_vec();
        let last = shape.last_mut().ok_or_else(|| self.unknown("a single byte".to_owned()))?;
        *last *= 2;
        let group = if second.is_some() { 16 } else { 32 };
        let group = self.declared.group_size().filter(|_| second.is_some()).unwrap_or(group);
        let scales = self.grid(scale, &shape, Limits { block: None, group: Some(group) })?;
        self.has_bits(scale.1, 4)?;
        if !self.declared.allows(|weights| weights.group_size.is_none_or(|declared| declared == group)) {
            let declared = format!("groups of {}", self.declared.group_size().unwrap_or(0));
            return Err(self.config(scale.1, format!("in groups of {group}"), declared));
        }
        let (lead, rows, cols) = matrices(&shape);
        let second_grid = |(part, divides): (Part<'a>, bool)| {
            if part.1.dtype != DType::F32 {
                return Err(self.dtype(part.1, "F32"));
            }
            let count = part.1.shape.iter().product::<u64>();
            if count != 1 && count != lead {
                return Err(self.shape(part.1, format!("one number, or {lead}")));
            }
            let grid = Grid { block: (rows, cols), size: (1, 1), for_each: count != 1, ..scalar(part.0) };
            Ok(Second { grid, divides })
        };
        let (kind, divides) = (second.is_some(), second.is_some_and(|(_, divides)| divides));
        let second = second.map(second_grid).transpose()?;
        let codes = Codes { id: self.id, bits: 4, rows, cols, order: Order::Rows, element: 1 };
        let words = match (kind, divides) {
            (false, _) => format!("FP4 E2M1 with a power of two for {group} (MXFP4)"),
            (true, false) => format!("NVFP4 with a factor on the scales, groups of {group} (ModelOpt)"),
            (true, true) => {
                format!("NVFP4 with a divisor of the scales, groups of {group} (compressed-tensors)")
            }
        };
        let recipe = Scaled {
            words,
            code: Code::E2m1,
            codes,
            scales,
            second,
            zero: Zero::Same(0.0),
            order: None,
            shape: None,
        };
        Ok(logical(name, DType::BF16, shape, recipe))
    }

    fn int8(&self, scale: Part<'a>) -> Rule<LogicalTensor> {
        let (name, shape) = (&self.tensor.name, self.tensor.shape.to_vec());
        let group = self.declared.group_size();
        let scales = self.grid(scale, &shape, Limits { block: self.declared.block, group })?;
        self.has_bits(scale.1, 8)?;
        let (_, rows, cols) = matrices(&shape);
        let codes = Codes { id: self.id, bits: 8, rows, cols, order: Order::Rows, element: 1 };
        let zero = match self.stored.find(&format!("{name}_zero_point")) {
            None => Zero::Same(0.0),
            Some((_, zero)) if zero.dtype != DType::I8 => return Err(self.dtype(zero, "I8")),
            Some((id, zero)) => {
                self.has_shape(zero, &scale.1.shape)?;
                let codes = Codes {
                    id,
                    bits: 8,
                    rows: scales.size.0,
                    cols: scales.size.1,
                    order: Order::Rows,
                    element: 1,
                };
                Zero::Stored { codes, signed: true, plus: 0.0 }
            }
        };
        let words = format!("8-bit integers with {}", self.scale_words(&scales, scale.1));
        let recipe =
            Scaled { words, code: Code::Signed, codes, scales, second: None, zero, order: None, shape: None };
        Ok(logical(name, scale_dtype(scale.1), shape, recipe))
    }

    /// compressed-tensors: FP4 in bytes, integers in words.
    fn compressed(&self) -> Rule<LogicalTensor> {
        let stem = self.stem("_packed");
        let scale = self.needed(stem, "_scale")?;
        if self.tensor.dtype == DType::I32 {
            return self.integers(stem, scale);
        }
        match scale.1.dtype {
            DType::F8E4M3 => {
                let second = self.needed(stem, "_global_scale")?;
                self.fp4(stem, scale, Some((second, true)))
            }
            DType::U8 | DType::F8E8M0 => self.fp4(stem, scale, None),
            _ => Err(self.dtype(scale.1, "F8_E4M3, F8_E8M0 or U8")),
        }
    }

    /// gpt-oss: blocks of 32 along the inputs, of a weight that multiplies from the right.
    fn blocks(&self) -> Rule<LogicalTensor> {
        let stem = self.stem("_blocks");
        let scale = self.needed(stem, "_scales")?;
        if scale.1.dtype != DType::U8 {
            return Err(self.dtype(scale.1, "U8"));
        }
        let &[experts, out, groups, 16] = &*self.tensor.shape else {
            return Err(self.unknown(format!("of shape {:?}, not blocks of 16 bytes", self.tensor.shape)));
        };
        self.has_shape(scale.1, &[experts, out, groups])?;
        let rows = groups * 32;
        let codes = Codes { id: self.id, bits: 4, rows, cols: out, order: Order::Columns, element: 1 };
        let (kind, block, size) = (Kind::Power, (32, 1), (groups, out));
        let scales = Grid { id: scale.0, kind, block, size, for_each: true, turned: true };
        let words = "FP4 E2M1 with a power of two for 32 (MXFP4, gpt-oss)".to_owned();
        let zero = Zero::Same(0.0);
        let recipe =
            Scaled { words, code: Code::E2m1, codes, scales, second: None, zero, order: None, shape: None };
        Ok(logical(stem, DType::BF16, vec![experts, rows, out], recipe))
    }
}

/// A tensor that is scaled.
pub(super) fn logical(name: &str, dtype: DType, shape: Vec<u64>, recipe: Scaled) -> LogicalTensor {
    LogicalTensor { name: name.into(), dtype, shape: shape.into(), recipe: Recipe::Scaled(Box::new(recipe)) }
}

/// The dtype of integers that are scaled: that of the scales, if it is one of 16 bits.
pub(super) fn scale_dtype(scale: &StoredTensor) -> DType {
    if scale.dtype == DType::F32 { DType::BF16 } else { scale.dtype }
}
