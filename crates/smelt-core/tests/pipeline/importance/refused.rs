//! One broken file for each refusal.

use safetensors::Dtype;
use smelt_core::plan::{Importance, ImportanceError, Method, Options};
use smelt_core::{Error, PlanError};
use zip::CompressionMethod;

use super::encode::{Gguf, Given, arrays, gguf, legacy, npy, npz, own, read, tensors, zip};
use super::{given, weighed};
use crate::common::Model;
use crate::{open, plan};

/// What a file is refused with.
fn refusal(file: Vec<u8>) -> ImportanceError {
    let checkpoint = open(&Model::manifest("qwen3_moe"));
    match weighed(&checkpoint, file) {
        Err(Error::Importance(refused)) => refused,
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("nothing is wrong"),
    }
}

macro_rules! refused {
    ($file:expr, $pattern:pat $(if $guard:expr)?) => {
        let found = refusal($file);
        assert!(matches!(&found, $pattern $(if $guard)?), "{found:?}");
        let text = found.to_string();
        assert!(text.starts_with(|c: char| !c.is_uppercase()), "{text}");
    };
}

use ImportanceError as E;

fn one(name: &str, width: usize) -> Given {
    Given::new(name, width, &[1.0], |_, channel| channel as f32)
}

#[test]
fn files_of_no_kind() {
    refused!(b"a diary, which is long enough".to_vec(), E::Unknown { .. });
    refused!(Vec::new(), E::Unknown { .. });
    refused!(gguf(&[]), E::Empty { .. });
    refused!(zip(&[], CompressionMethod::Stored), E::Empty { .. });
    let missing = smelt_core::plan::Statistics::open(std::path::Path::new("not-there.dat"));
    assert!(matches!(missing, Err(Error::Importance(E::Open { .. }))), "{missing:?}");
}

#[test]
fn gguf_that_is_broken() {
    refused!(Gguf { version: 1, ..Gguf::of(&given(false)) }.bytes(), E::Version { version: 1, .. });
    refused!(Gguf { kind: "adapter", ..Gguf::of(&given(false)) }.bytes(), E::NotImatrix { .. });
    let whole = gguf(&given(false));
    refused!(whole[..whole.len() - 64].to_vec(), E::Truncated { .. });
    refused!(whole[..60].to_vec(), E::Truncated { .. });
    let mut many = whole.clone();
    many[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    refused!(many, E::Implausible { .. });
    let mut long = whole.clone();
    long[24..32].copy_from_slice(&(1u64 << 40).to_le_bytes());
    refused!(long, E::Implausible { what: "the length of a name", .. });
    let mut name = whole;
    name[32] = 0xFF;
    refused!(name, E::Name { at: 32, .. });
    let mut twice = Gguf::of(&given(false));
    twice.tensors.push(twice.tensors[0].clone());
    refused!(twice.bytes(), E::Twice { .. });
    let mut half = Gguf::of(&given(false));
    half.tensors[2].2 = 1;
    refused!(half.bytes(), E::Dtype { .. });
    let mut without = Gguf::of(&given(false));
    without.tensors.remove(0);
    refused!(without.bytes(), E::NoCounts { .. });
    let mut shape = Gguf::of(&given(false));
    shape.tensors[2].1 = vec![4, 4, 8];
    refused!(shape.bytes(), E::Shape { .. });
    let mut huge = Gguf::of(&given(false));
    huge.tensors[2].1 = vec![1 << 40, 1 << 40];
    refused!(huge.bytes(), E::Shape { .. });
    let mut counts = Gguf::of(&given(false));
    counts.tensors[6].1 = vec![1, 3];
    refused!(counts.bytes(), E::Counts { counts: 3, rows: 4, .. });
}

#[test]
fn dat_that_is_broken() {
    let whole = legacy(&given(false), 3);
    refused!(whole[..whole.len() - 300].to_vec(), E::Truncated { .. });
    let place = 8 + "blk.1.attn_q.weight".len();
    let changed = |at: usize, value: i32| {
        let mut file = whole.clone();
        file[at..at + 4].copy_from_slice(&value.to_le_bytes());
        file
    };
    refused!(changed(place, -1), E::Implausible { what: "a number of calls", .. });
    refused!(changed(place + 4, 0), E::Implausible { what: "a number of channels", .. });
    refused!(changed(0, i32::MAX), E::Implausible { what: "its number of entries", .. });
    refused!(changed(place + 8, f32::NAN.to_bits() as i32), E::Value { .. });
    let twice = [one("blk.0.attn_q", 128), one("blk.0.attn_q", 128)];
    refused!(legacy(&twice, 1), E::Twice { .. });
}

/// What is done to the arrays of a file.
type Change<'a> = &'a dyn Fn(&mut Vec<(String, Vec<u8>)>);

#[test]
fn npz_that_is_broken() {
    let whole = npz(&given(true));
    refused!(whole[..whole.len() - 8].to_vec(), E::Zip { .. });
    let changed = |change: Change<'_>| {
        let mut all = arrays(&given(true));
        change(&mut all);
        zip(&all, CompressionMethod::Deflated)
    };
    refused!(changed(&|all| drop(all.remove(1))), E::NoCounts { .. });
    refused!(changed(&|all| all[0].1 = npy("<f8", "128,", &[0; 1024])), E::Dtype { .. });
    refused!(changed(&|all| all[1].1 = npy("<i4", "2,", &[0; 8])), E::Dtype { .. });
    refused!(changed(&|all| all[1].1 = npy("<i8", "3,", &[0; 24])), E::Counts { counts: 3, rows: 1, .. });
    refused!(changed(&|all| all[0].1 = npy("<f4", "128,", &[0; 8])), E::Array { .. });
    refused!(changed(&|all| all[0].1 = npy("<f4", "18446744073709551615, 4", &[0; 8])), E::Array { .. });
    refused!(changed(&|all| all[0].1 = b"no array at all".to_vec()), E::Array { .. });
    refused!(changed(&|all| all[0].1 = npy("<f4", "2, 2, 2", &[0; 32])), E::Shape { .. });
    refused!(changed(&|all| all[0].1[10] = b'!'), E::Array { .. });
    refused!(changed(&|all| all[0].1.truncate(6)), E::Unpack { .. });
    let mut nan = npy("<f4", "128,", &[0; 512]);
    let at = nan.len() - 4;
    nan[at..].copy_from_slice(&(-1.0f32).to_le_bytes());
    refused!(changed(&|all| all[0].1.clone_from(&nan)), E::Value { value, .. } if *value == -1.0);
    // Numbers that do not unpack: the deflated bytes of the first array are spoiled behind its description.
    let mut spoiled = npz(&given(true));
    let start = spoiled.windows(4).position(|bytes| bytes == b".npy").unwrap() + 4;
    for byte in &mut spoiled[start + 90..start + 130] {
        *byte ^= 0x5A;
    }
    let found = refusal(spoiled);
    assert!(matches!(found, E::Unpack { .. } | E::Value { .. } | E::Array { .. }), "{found:?}");
}

#[test]
fn our_own_that_is_broken() {
    let file = |dtype: Dtype, shape: Vec<usize>, bytes: usize| {
        tensors(&[("model.layers.0.self_attn.q_proj".to_owned(), dtype, shape, vec![0; bytes])])
    };
    refused!(file(Dtype::F64, vec![128], 1024), E::Dtype { .. });
    refused!(file(Dtype::F32, vec![2, 2, 32], 512), E::Shape { .. });
    let counts = |dtype: Dtype, len: usize, bytes: usize| {
        let means = ("model.layers.0.self_attn.q_proj".to_owned(), Dtype::F32, vec![128], vec![0; 512]);
        let counts = ("model.layers.0.self_attn.q_proj.counts".to_owned(), dtype, vec![len], vec![0; bytes]);
        tensors(&[means, counts])
    };
    refused!(counts(Dtype::F64, 1, 8), E::Dtype { .. });
    refused!(counts(Dtype::I64, 2, 16), E::Counts { .. });
    let mut negative = own(&[one("model.layers.0.self_attn.q_proj", 128)]);
    let last = negative.len() - 4;
    negative[last..].copy_from_slice(&f32::INFINITY.to_le_bytes());
    refused!(negative, E::Value { .. });
}

#[test]
fn files_of_another_model() {
    refused!(gguf(&[one("blk.0.attn_q", 96)]), E::OtherModel { found: (1, 96), shape, .. } if shape.ends_with(&[128]));
    refused!(own(&[one("model.layers.0.mlp.experts.1.up_proj", 96)]), E::OtherModel { found: (1, 96), .. });
    let experts = Given::new("blk.0.ffn_up_exps", 128, &[1.0; 8], |_, channel| channel as f32);
    refused!(gguf(&[experts]), E::OtherModel { found: (8, 128), .. });
    refused!(legacy(&[one("blk.0.attn_q", 96)], 1), E::OtherModel { .. });
    refused!(gguf(&[one("blk.70.attn_q", 128)]), E::NothingMatches { entries: 1, .. });
}

#[test]
fn next_to_no_inputs_are_some() {
    let checkpoint = open(&Model::manifest("qwen3_moe"));
    let name = "model.layers.0.self_attn.o_proj";
    let few = Given::new(name, 128, &[f32::from_bits(1)], |_, channel| channel as f32);
    let (_, importance) = weighed(&checkpoint, gguf(&[few])).unwrap();
    let (channels, _) = importance.reader().channels(name, 0, 1).unwrap().unwrap();
    assert!(channels.entry(0).iter().all(|weight| weight.is_finite() && *weight > 0.0));
}

#[test]
fn what_has_no_use_for_importance() {
    let checkpoint = open(&Model::manifest("qwen3_moe"));
    let options = Options { method: Method::Rtn, ..Options::default() };
    let mut plan = plan(&checkpoint, &options).unwrap();
    let importance = Importance::new(read(own(&given(true))).unwrap(), &plan, checkpoint.config()).unwrap();
    let refused = plan.weigh(&importance, false);
    assert!(matches!(refused, Err(Error::Importance(E::Method))), "{refused:?}");
    let mut plan = crate::plan(&checkpoint, &Options { format: None, ..super::fast() }).unwrap();
    let refused = plan.weigh(&importance, false);
    assert!(matches!(refused, Err(Error::Importance(E::NothingQuantized))), "{refused:?}");
    let mut plan = crate::plan(&checkpoint, &super::fast()).unwrap();
    let refused = plan.weigh(&importance, true);
    assert!(
        matches!(&refused, Err(Error::Plan(PlanError::Strict { note })) if note.contains("no importance")),
        "{refused:?}"
    );
}
