//! Pairs stored tensors to logical ones, from headers and config alone.
//!
//! Tensors that hold codes are taken first, each with its companions ([`rules`]). What is left then is a
//! float, says nothing of a weight (scales of activations), or is a companion without its weight.

use super::declared::METHODS;
use super::rules::{self, Found};
use super::{Declared, LogicalTensor, Recipe, StorageProblem, decode};
use crate::checkpoint::{DType, StoredId, StoredTensor};

/// What the stored tensors mean.
#[derive(Clone, Debug, Default)]
pub(in crate::checkpoint) struct Pairing {
    /// Sorted by name.
    pub(in crate::checkpoint) logical: Vec<LogicalTensor>,
    /// Left out, with reasons.
    pub(in crate::checkpoint) unused: Vec<(StoredId, &'static str)>,
    /// What does not fit.
    pub(in crate::checkpoint) problems: Vec<StorageProblem>,
    /// The most that decoding takes beside its result.
    pub(in crate::checkpoint) scratch: u64,
}

/// Stored tensors, sorted by name, and which of them are taken.
pub(super) struct Stored<'a> {
    tensors: &'a [StoredTensor],
    taken: Vec<bool>,
}

impl<'a> Stored<'a> {
    pub(super) fn find(&self, name: &str) -> Option<(StoredId, &'a StoredTensor)> {
        let id = crate::checkpoint::find(self.tensors, name)?;
        Some((id, &self.tensors[id.0 as usize]))
    }
}

/// Pairs all tensors of a checkpoint.
pub(in crate::checkpoint) fn pair(declared: &Declared, tensors: &[StoredTensor]) -> Pairing {
    let mut stored = Stored { tensors, taken: vec![false; tensors.len()] };
    let mut pairing = Pairing::default();
    for (at, tensor) in tensors.iter().enumerate() {
        match rules::packed(declared, &stored, StoredId(at as u32), tensor) {
            Found::Nothing => {}
            Found::Tensor(logical) => {
                for part in logical.parts() {
                    stored.taken[part.0 as usize] = true;
                }
                pairing.scratch = pairing.scratch.max(decode::scratch(&logical));
                pairing.logical.push(*logical);
            }
            Found::Problem(problem) => {
                stored.taken[at] = true;
                pairing.problems.push(*problem);
            }
        }
    }
    pairing.problems.extend(unknown(declared, &pairing.logical));
    let packed = !pairing.logical.is_empty();
    for at in (0..tensors.len()).filter(|&at| !stored.taken[at]) {
        let (id, tensor) = (StoredId(at as u32), &tensors[at]);
        if let Some(why) = rules::unused(&tensor.name).filter(|_| packed) {
            pairing.unused.push((id, why));
        } else if let Some(wanted) = companion(tensor).filter(|weight| !is_ternary(&stored, weight, tensor)) {
            let spare = StorageProblem::Spare { tensor: tensor.name.to_string(), wanted };
            pairing.problems.push(spare);
        } else {
            pairing.logical.push(plain(id, tensor));
        }
    }
    pairing.logical.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    twice(&mut pairing);
    if !pairing.problems.is_empty() {
        // Of no use for a layout, but as good as ever for a look at the checkpoint.
        let all = tensors.iter().enumerate().map(|(at, tensor)| plain(StoredId(at as u32), tensor));
        pairing.logical = all.collect();
        pairing.unused.clear();
    }
    pairing
}

/// A method of an unknown name: what its codes mean is not guessed.
fn unknown(declared: &Declared, packed: &[LogicalTensor]) -> Option<StorageProblem> {
    let method = declared.unknown()?.to_owned();
    let tensor = packed.iter().find(|tensor| matches!(tensor.recipe, Recipe::Scaled(_)))?.name.to_string();
    Some(StorageProblem::Method { tensor, method, known: METHODS.map(str::to_owned).to_vec() })
}

fn is_ternary(stored: &Stored<'_>, weight: &str, scale: &StoredTensor) -> bool {
    stored.find(weight).is_some_and(|(_, weight)| rules::is_ternary(weight, scale))
}

/// A weight that is there as codes and as floats.
fn twice(pairing: &mut Pairing) {
    let pairs = pairing.logical.windows(2).filter(|pair| pair[0].name == pair[1].name);
    let problem = |pair: &[LogicalTensor]| {
        let words = |tensor: &LogicalTensor| tensor.format().unwrap_or_else(|| tensor.dtype.to_string());
        let tensor = pair[0].name.to_string();
        StorageProblem::Twice { tensor, first: words(&pair[0]), second: words(&pair[1]) }
    };
    let found: Vec<_> = pairs.map(problem).collect();
    pairing.problems.extend(found);
}

fn plain(id: StoredId, tensor: &StoredTensor) -> LogicalTensor {
    let (name, dtype, shape) = (tensor.name.clone(), tensor.dtype, tensor.shape.clone());
    LogicalTensor { name, dtype, shape, recipe: Recipe::Plain(id) }
}

/// The weight that a tensor belongs to, if it can only be a companion.
fn companion(tensor: &StoredTensor) -> Option<String> {
    let name = &*tensor.name;
    let floats = [
        ("_scale_inv", ""),
        (".weight_scale", ".weight"),
        (".weight_scale_2", ".weight"),
        (".weight_global_scale", ".weight_packed"),
        (".weight_zero_point", ".weight_packed"),
        (".weight_shape", ".weight_packed"),
        (".weight_g_idx", ".weight_packed"),
        (".qzeros", ".qweight"),
        (".g_idx", ".qweight"),
    ];
    let weight =
        |(ending, weight): (&str, &str)| name.strip_suffix(ending).map(|stem| format!("{stem}{weight}"));
    if let Some(wanted) = floats.into_iter().find_map(weight) {
        return Some(wanted);
    }
    let bytes = [(".scales", ".weight"), (".scale", ".weight"), ("_scales", "_blocks"), ("_scale", "")];
    let is_scale = tensor.dtype.is_narrow_float() || tensor.dtype == DType::U8;
    bytes.into_iter().filter(|_| is_scale).find_map(weight)
}
