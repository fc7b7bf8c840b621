//! One thing broken in each kind of place of a finished model: every one is found.

use serde_json::{Value, json};
use smelt_core::verify::Check;
use smelt_kernels::Mode;

use crate::shards::{
    INDEX, bytes, edit_header, edit_json, hashed, header_len, place, rename, sealed, shard, shard_names,
};
use crate::{Contents, MANIFEST, errors, has_error, in_mode, made, mixed, verify};

const QUERY: &str = "model.layers.1.self_attn.q_proj";
const ROUTER: &str = "model.layers.1.mlp.gate";
const EXPERTS: &str = "model.layers.1.mlp.switch_mlp.up_proj";
const NORM: &str = "model.layers.2.input_layernorm.weight";

/// What is done to a model.
type Deed = Box<dyn Fn(&mut Contents)>;

/// A deed, the check that must find it without hashes (`None`: nothing can), and the name in the finding.
type Case = (&'static str, Deed, Option<(Check, &'static str)>);

fn case(
    what: &'static str,
    deed: impl Fn(&mut Contents) + 'static,
    found: Option<(Check, &'static str)>,
) -> Case {
    (what, Box::new(deed), found)
}

fn flip(model: &mut Contents, tensor: &str) {
    let bytes = bytes(model, tensor);
    bytes[bytes.len() / 2] ^= 1;
}

fn file<'a>(model: &'a mut Contents, name: &str) -> &'a mut Vec<u8> {
    model.get_mut(name).unwrap()
}

fn config(model: &mut Contents, change: impl FnOnce(&mut Value)) {
    edit_json(model, "config.json", change);
}

/// A change of both copies of the dictionary.
fn dictionary(model: &mut Contents, change: impl Fn(&mut Value)) {
    config(model, |config| {
        change(&mut config["quantization"]);
        change(&mut config["quantization_config"]);
    });
}

/// Takes the last tensor of a shard away as if it had never been written.
fn lose(model: &mut Contents) {
    let name = shard_names(model).pop().unwrap();
    let shard = model.get_mut(&name).unwrap();
    let mut last = (String::new(), 0, 0);
    edit_header(shard, |header| {
        let entries = header.as_object_mut().unwrap();
        entries.remove("__metadata__");
        let of = |entry: &Value, at: usize| entry["data_offsets"][at].as_u64().unwrap();
        let (name, entry) = entries.iter().max_by_key(|(_, entry)| of(entry, 1)).unwrap();
        last = (name.clone(), of(entry, 0), of(entry, 1));
        entries.remove(&last.0);
    });
    let length = header_len(shard) + last.1 as usize;
    shard.truncate(length);
    edit_json(model, INDEX, |index| {
        index["weight_map"].as_object_mut().unwrap().remove(&last.0);
        index["metadata"]["total_size"] =
            json!(index["metadata"]["total_size"].as_u64().unwrap() - last.2 + last.1);
    });
}

fn broken_files() -> Vec<Case> {
    let shards = Some((Check::Shards, ""));
    vec![
        case("header length", |model| shard(model, NORM)[0] ^= 0x10, shards),
        case("header length, high byte", |model| shard(model, NORM)[6] ^= 1, shards),
        case("header JSON", |model| shard(model, NORM)[9] = b'{', shards),
        case("truncated shard", |model| shard(model, NORM).truncate(9_000), shards),
        case("grown shard", |model| shard(model, NORM).extend([0; 9]), shards),
        case("empty shard", |model| shard(model, NORM).clear(), shards),
        case("missing shard", |model| drop(model.remove(&place(model, NORM).file)), shards),
        case(
            "swapped shards",
            |model| {
                let names = shard_names(model);
                let (a, b) = (model[&names[0]].clone(), model[&names[1]].clone());
                model.insert(names[0].clone(), b);
                model.insert(names[1].clone(), a);
            },
            Some((Check::Index, "")),
        ),
        case("index that is no JSON", |model| file(model, INDEX)[0] = b'[', Some((Check::Index, INDEX))),
        case(
            "index of another tensor",
            |model| {
                edit_json(model, INDEX, |index| {
                    let map = index["weight_map"].as_object_mut().unwrap();
                    let file = map.remove(NORM).unwrap();
                    map.insert("model.layers.2.input_layernorm.weighs".to_owned(), file);
                });
            },
            Some((Check::Index, NORM)),
        ),
        case(
            "config that is no JSON",
            |model| file(model, "config.json")[0] = b'[',
            Some((Check::Config, "config.json")),
        ),
        case("no config", |model| drop(model.remove("config.json")), Some((Check::Config, "config.json"))),
        case(
            "side file",
            |model| file(model, "tokenizer.json")[0] = b'?',
            Some((Check::SideFiles, "tokenizer.json")),
        ),
        case("side file that still is JSON", |model| file(model, "tokenizer.json")[3] ^= 1, None),
        case(
            "leftover",
            |model| drop(model.insert("model-9.safetensors.partial".to_owned(), vec![1])),
            Some((Check::Leftovers, "model-9.safetensors.partial")),
        ),
        case(
            "shard of another model",
            |model| {
                let other = model[&shard_names(model)[0]].clone();
                model.insert("model-other.safetensors".to_owned(), other);
            },
            Some((Check::Leftovers, "model-other.safetensors")),
        ),
    ]
}

fn broken_structure() -> Vec<Case> {
    vec![
        case(
            "renamed tensor",
            |model| rename(model, NORM, "model.layers.2.input_layernormweight"),
            Some((Check::Keys, NORM)),
        ),
        case(
            "renamed scales",
            |model| rename(model, "lm_head.scales", "lm_head.scalez"),
            Some((Check::Quantization, "lm_head.weight")),
        ),
        case(
            "renamed biases",
            |model| rename(model, "lm_head.biases", "lm_head.biasez"),
            Some((Check::Quantization, "lm_head.weight")),
        ),
        case("lost tensor", lose, Some((Check::Keys, "model.norm.weight"))),
        case(
            "left scale",
            |model| rename(model, NORM, "model.layers.2.mlp.weight_scale_inv"),
            Some((Check::Leftovers, "model.layers.2.mlp.weight_scale_inv")),
        ),
        case(
            "shape",
            |model| {
                edit_header(shard(model, &format!("{QUERY}.weight")), |header| {
                    header[format!("{QUERY}.weight")]["shape"].as_array_mut().unwrap().reverse();
                });
            },
            Some((Check::Quantization, "model.layers.1.self_attn.q_proj.weight")),
        ),
        case(
            "dtype",
            |model| {
                edit_header(shard(model, &format!("{QUERY}.weight")), |header| {
                    header[format!("{QUERY}.weight")]["dtype"] = json!("I32");
                });
            },
            Some((Check::Quantization, "model.layers.1.self_attn.q_proj.weight")),
        ),
    ]
}

/// A change of both copies of the dictionary, and the name in the finding.
fn entry(what: &'static str, change: fn(&mut Value), named: &'static str) -> Case {
    case(what, move |model| dictionary(model, change), Some((Check::Quantization, named)))
}

fn remove(object: &mut Value, key: &str) {
    object.as_object_mut().unwrap().remove(key).unwrap();
}

fn broken_dictionary() -> Vec<Case> {
    vec![
        entry("bits of the top", |block| block["bits"] = json!(8), "lm_head.weight"),
        entry(
            "bits and group size that have the same shapes",
            |block| (block["bits"], block["group_size"]) = (json!(8), json!(32)),
            "lm_head.weight",
        ),
        entry("mode", |block| block["mode"] = json!("mxfp4"), "config.json"),
        entry("bits of an entry", |block| block[ROUTER]["bits"] = json!(4), "model.layers.1.mlp.gate.weight"),
        entry("lost entry", |block| remove(block, ROUTER), "model.layers.1.mlp.gate.weight"),
        entry(
            "entry that says not quantized",
            |block| block[QUERY] = json!(false),
            "model.layers.1.self_attn.q_proj.weight",
        ),
        entry(
            "entry for what is not quantized",
            |block| block["model.embed_tokens"] = json!({"bits": 4, "group_size": 64}),
            "model.embed_tokens.weight",
        ),
        entry("no group size", |block| remove(block, "group_size"), "config.json"),
    ]
}

/// A change of config.json, and the name in the finding.
fn said(what: &'static str, change: fn(&mut Value), named: &'static str) -> Case {
    case(what, move |model| config(model, change), Some((Check::Quantization, named)))
}

/// The quantization of a source over weights that are not quantized.
fn not_quantized(model: &mut Contents) {
    let options = smelt_core::plan::Options { format: None, overrides: Vec::new(), ..mixed() };
    let mut plain = made("qwen3_moe", &options).model;
    config(&mut plain, |config| config["quantization_config"] = json!({"quant_method": "fp8"}));
    plain.extend(model.remove_entry(MANIFEST));
    *model = plain;
}

fn broken_config() -> Vec<Case> {
    vec![
        said(
            "no dictionary",
            |config| config.as_object_mut().unwrap().retain(|key, _| !key.starts_with("quantization")),
            "lm_head.weight",
        ),
        said("no dictionary but its copy", |config| remove(config, "quantization"), "config.json"),
        said("one of the twins", |config| config["quantization_config"]["bits"] = json!(5), "config.json"),
        case(
            "a source's quantization over plain weights",
            not_quantized,
            Some((Check::Quantization, "config.json")),
        ),
        case(
            "config of another width",
            |model| config(model, |config| config["hidden_size"] = json!(256)),
            Some((Check::Shapes, NORM)),
        ),
    ]
}

fn broken_values() -> Vec<Case> {
    let zero = |part: &'static str, range: std::ops::Range<usize>| {
        move |model: &mut Contents| {
            bytes(model, &format!("{EXPERTS}.{part}"))[range.clone()].fill(0);
        }
    };
    let poison = |tensor: &'static str, bits: u16| {
        move |model: &mut Contents| {
            bytes(model, tensor)[4..6].copy_from_slice(&bits.to_le_bytes());
        }
    };
    vec![
        case("codes", |model| flip(model, &format!("{QUERY}.weight")), None),
        case("scales", |model| flip(model, &format!("{QUERY}.scales")), None),
        case("biases", |model| flip(model, &format!("{QUERY}.biases")), None),
        case("float tensor", |model| flip(model, NORM), None),
        case("NaN scale", poison("lm_head.scales", 0x7FC0), Some((Check::Finite, "lm_head.scales"))),
        case("infinite bias", poison("lm_head.biases", 0xFF80), Some((Check::Finite, "lm_head.biases"))),
        case("NaN in a float tensor", poison(NORM, 0x7F81), Some((Check::Finite, NORM))),
        case(
            "zeroed codes",
            zero("weight", 512..1024),
            Some((Check::Dead, "model.layers.1.mlp.switch_mlp.up_proj.weight")),
        ),
        case(
            "zeroed scales",
            zero("scales", 8..24),
            Some((Check::Dead, "model.layers.1.mlp.switch_mlp.up_proj.weight")),
        ),
    ]
}

#[test]
fn every_broken_thing_is_found() {
    let sound = made("qwen3_moe", &mixed()).model;
    assert!(shard_names(&sound).len() > 2);
    assert!(verify(&sound, None).findings.is_empty() && verify(&hashed(&sound), None).findings.is_empty());
    let cases = [broken_files(), broken_structure(), broken_dictionary(), broken_config(), broken_values()];
    for (what, deed, found) in cases.into_iter().flatten() {
        let mut model = sound.clone();
        deed(&mut model);
        let report = verify(&model, None);
        match found {
            None => assert!(report.is_sound(), "{what}: {:#?}", report.findings),
            Some((check, "")) => {
                let any = errors(&report).iter().any(|finding| finding.check == check);
                assert!(any, "{what}: {:#?}", report.findings);
            }
            Some((check, name)) => {
                assert!(has_error(&report, check, name), "{what}: {:#?}", report.findings);
            }
        }
        let mut model = hashed(&sound);
        deed(&mut model);
        let report = verify(&model, None);
        assert!(!report.is_sound(), "{what}, with hashes");
        assert!(
            report.findings.iter().all(|finding| !finding.names.is_empty() && !finding.advice.is_empty())
        );
    }
}

#[test]
fn scales_of_one_byte_that_are_no_numbers() {
    for (mode, byte) in [(Mode::Mxfp4, 0xFF), (Mode::Mxfp8, 0xFF), (Mode::Nvfp4, 0x7F), (Mode::Nvfp4, 0xFF)] {
        let mut model = made("llama", &in_mode(mode)).model;
        bytes(&mut model, "lm_head.scales")[7] = byte;
        assert!(has_error(&verify(&model, None), Check::Finite, "lm_head.weight"), "{mode:?}");
    }
    let mut model = made("llama", &in_mode(Mode::Mxfp8)).model;
    bytes(&mut model, "lm_head.weight")[7] = 0x7F;
    assert!(has_error(&verify(&model, None), Check::Finite, "lm_head.weight"));
    let mut model = made("llama", &in_mode(Mode::Nvfp4)).model;
    bytes(&mut model, "lm_head.weight")[..64].fill(0);
    let report = verify(&model, None);
    assert!(report.findings.iter().any(|finding| finding.check == Check::Dead), "{:#?}", report.findings);
}

#[test]
fn what_hashes_can_not_be_read_says_so() {
    let sound = hashed(&made("llama", &mixed()).model);
    let mut model = sound.clone();
    edit_json(&mut model, MANIFEST, |manifest| manifest["version"] = json!(2));
    let report = verify(&model, None);
    assert!(report.is_sound() && !report.hashed && report.findings.len() == 1, "{:#?}", report.findings);
    let mut model = sound;
    file(&mut model, MANIFEST)[0] = b'?';
    assert!(has_error(&verify(&model, None), Check::Hashes, MANIFEST));
    // Sealed, but put together from two.
    let mut manifest: Value = serde_json::from_slice(&hashed(&model)[MANIFEST]).unwrap();
    manifest.as_object_mut().unwrap().remove("digest");
    manifest["settings"]["bits"] = json!("4");
    model.insert(MANIFEST.to_owned(), sealed(&manifest));
    assert!(has_error(&verify(&model, None), Check::Hashes, MANIFEST));
}
