//! What does not fit, said with the names that a user needs.

use serde_json::{Value, json};
use smelt_core::layout::{Family, Problem, family};
use smelt_core::plan::{Options, Origin, Plan, family_of};
use smelt_core::{Error, LayoutError};

use crate::common::Model;
use crate::{layout_of, open};

/// The problems of a manifest's model after a change, one a line.
fn problems(name: &str, change: impl FnOnce(&mut Model)) -> String {
    let mut model = Model::manifest(name);
    change(&mut model);
    let checkpoint = open(&model);
    let lines =
        |problems: &[Problem]| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
    match layout_of(&checkpoint, None) {
        Ok(_) => "fits".to_owned(),
        Err(Error::Layout(LayoutError::Misfit { problems, .. })) => lines(&problems.0),
        // The library's own complaint comes first; this is about the family's.
        Err(Error::Layout(LayoutError::ConfigKeys { .. })) => {
            let family = family_of(&checkpoint, None).unwrap();
            lines(&family.layout(checkpoint.config(), &checkpoint, "mlx-lm").unwrap_err())
        }
        Err(other) => panic!("{other}"),
    }
}

impl Model {
    fn remove(&mut self, name: &str) {
        let before = self.tensors.len();
        self.tensors.retain(|(tensor, _)| tensor != name);
        assert_eq!(self.tensors.len() + 1, before, "`{name}` is there to be removed");
    }

    fn reshape(&mut self, name: &str, shape: &[u64]) {
        let tensor = self.tensors.iter_mut().find(|(tensor, _)| tensor == name);
        tensor.unwrap().1 = shape.to_vec();
    }

    fn add(&mut self, name: &str, shape: &[u64]) {
        self.tensors.push((name.to_owned(), shape.to_vec()));
    }

    fn unset(&mut self, key: &str) {
        self.config.as_object_mut().unwrap().remove(key).unwrap();
    }
}

#[test]
fn a_missing_tensor_is_named() {
    let found = problems("llama", |model| model.remove("model.layers.1.mlp.up_proj.weight"));
    assert_eq!(
        found,
        "`model.layers.1.mlp.up_proj.weight` is missing, of which `model.layers.1.mlp.up_proj.weight` is made"
    );
}

#[test]
fn a_shape_against_the_config_is_told_with_both() {
    let found = problems("llama", |model| model.reshape("model.norm.weight", &[64]));
    assert_eq!(found, "`model.norm.weight` has shape [64], but config.json asks for [128]");
}

#[test]
fn a_missing_expert_is_named() {
    let name = "model.layers.3.mlp.experts.2.down_proj.weight";
    let found = problems("qwen3_moe", |model| model.remove(name));
    let first = "`model.layers.3.mlp.experts.2.down_proj.weight` is missing, of which \
                 `model.layers.3.mlp.switch_mlp.down_proj.weight` is made";
    assert_eq!(found.lines().next(), Some(first));
}

#[test]
fn an_expert_of_another_shape_is_named() {
    let name = "model.layers.0.mlp.experts.3.up_proj.weight";
    let found = problems("qwen3_moe", |model| model.reshape(name, &[32, 128]));
    let first = "`model.layers.0.mlp.switch_mlp.up_proj.weight`: \
                 `model.layers.0.mlp.experts.3.up_proj.weight`: part 3 has shape [32, 128] and dtype BF16 \
                 where the first has [64, 128] and BF16";
    assert_eq!(found.lines().next(), Some(first));
}

#[test]
fn the_only_cause_is_not_drowned_in_its_echo() {
    // Without one expert the stack is not made, so its other experts are unused: no problems of theirs.
    let name = "model.layers.3.mlp.experts.2.down_proj.weight";
    let found = problems("qwen3_moe", |model| model.remove(name));
    assert_eq!(found.lines().count(), 1, "{found}");
}

#[test]
fn a_tensor_that_no_rule_takes_is_a_problem() {
    let found = problems("llama", |model| model.add("model.layers.0.self_attn.sinks", &[4]));
    assert_eq!(found, "no rule takes `model.layers.0.self_attn.sinks`");
    // One layer more than the config has.
    let found = problems("llama", |model| model.add("model.layers.9.input_layernorm.weight", &[128]));
    assert_eq!(found, "no rule takes `model.layers.9.input_layernorm.weight`");
}

#[test]
fn a_config_without_a_key_says_which() {
    for (manifest, key) in [
        ("llama", "hidden_size"),
        ("llama", "num_hidden_layers"),
        ("llama", "num_attention_heads"),
        ("qwen3", "head_dim"),
        ("qwen3_moe", "moe_intermediate_size"),
        ("qwen3_moe", "decoder_sparse_step"),
        ("olmoe", "num_experts"),
        ("gemma2", "vocab_size"),
    ] {
        let found = problems(manifest, |model| model.unset(key));
        let missing = format!("`{key}` is missing in config.json");
        let first = found.lines().next().unwrap();
        assert!(first.ends_with(&missing), "{manifest} without {key}: {first}");
        assert!(!found.contains("fills the place"), "{manifest} without {key}: {found}");
    }
}

#[test]
fn a_library_without_a_model_of_the_type_is_refused_with_the_one_that_has() {
    let mut model = Model::manifest("llama");
    model.config["model_type"] = json!("qwen3_embedding");
    let checkpoint = open(&model);
    let with = |family: &Family, target: &str| Origin::family(&checkpoint, family, Some(target)).unwrap_err();
    // Whatever the family says, the library has the last word.
    let text = family::text("qwen3").unwrap().replace("\"qwen3\"]", "\"qwen3_embedding\"]");
    let ours = family::of_config(checkpoint.config()).unwrap();
    let named = text.replacen("name = \"qwen3\"", &format!("name = \"{}\"", ours.name), 1);
    let said = with(&Family::parse(&named).unwrap(), "mlx-lm").to_string();
    assert_eq!(
        said,
        "mlx-lm 0.32.2 has no model of type `qwen3_embedding`; mlx-vlm 0.7.10 has: give `--target mlx-vlm`"
    );
    // A user's own family may be for a library of the user's own.
    assert!(matches!(
        with(&Family::parse(&text).unwrap(), "mlx-lm"),
        Error::Layout(LayoutError::Misfit { .. })
    ));
}

#[test]
fn a_config_that_the_library_does_not_load_is_refused_by_its_name() {
    let refused = |name: &str, change: &dyn Fn(&mut Model)| {
        let mut model = Model::manifest(name);
        change(&mut model);
        layout_of(&open(&model), None).unwrap_err().to_string()
    };
    let said = refused("llama", &|model| model.unset("rms_norm_eps"));
    let expected = "mlx-lm 0.32.2 does not load a model of type `llama` whose config.json has no \
                    `rms_norm_eps`; take the config.json that the model was published with, or add the key";
    assert_eq!(said, expected);
    let said = refused("qwen3_moe", &|model| {
        model.unset("norm_topk_prob");
        model.unset("mlp_only_layers");
        model.config["transformers_version"] = json!("5.23.0");
    });
    assert!(
        said.contains("`mlp_only_layers` and `norm_topk_prob` (transformers 5.23.0 wrote this one)"),
        "{said}"
    );
}

/// As transformers 5 writes it, with other weights than those of a default.
#[test]
fn a_config_of_transformers_5_is_written_as_the_library_reads_it() {
    let mut model = Model::manifest("qwen3_moe");
    let experts = model.config["num_experts"].take();
    model.config["num_local_experts"] = experts.clone();
    model.config["rope_parameters"] = json!({ "rope_theta": 5e6, "rope_type": "yarn", "factor": 4.0 });
    for key in ["num_experts", "rope_theta", "rope_scaling"] {
        model.config.as_object_mut().unwrap().remove(key);
    }
    let checkpoint = open(&model);
    let origin = Origin::family(&checkpoint, family_of(&checkpoint, None).unwrap(), None).unwrap();
    let plan = Plan::new(&checkpoint, origin, &Options::default()).unwrap();
    let config: Value = serde_json::from_str(&plan.config).unwrap();
    assert_eq!((&config["rope_theta"], &config["num_experts"]), (&json!(5e6), &experts));
    assert_eq!(config["rope_scaling"], json!({ "rope_type": "yarn", "factor": 4.0, "type": "yarn" }));
    assert_eq!(config["rope_parameters"], model.config["rope_parameters"]);
}

#[test]
fn a_config_with_nonsense_is_refused() {
    let with = |key: &'static str, value: Value| {
        problems("llama", move |model| model.config[key] = value).lines().next().unwrap().to_owned()
    };
    let rule = "`model.embed_tokens.weight`: ";
    assert_eq!(
        with("hidden_size", json!("128")),
        format!("{rule}\"128\" where a whole number is needed in a shape")
    );
    assert_eq!(with("vocab_size", json!(-512)), format!("{rule}-512 where a size is needed in a shape"));
    assert_eq!(
        with("vocab_size", json!(1.5)),
        format!("{rule}1.5 where a whole number is needed in a shape")
    );
    let layers = with("num_hidden_layers", json!([1]));
    assert_eq!(layers, "`index.layer`: [1] where a whole number is needed in a shape");
    // Not written out, which would take all memory.
    let layers = with("num_hidden_layers", json!(1u64 << 40));
    assert_eq!(layers, "`index.layer`: 1099511627776 where no more than 65536 is needed in an index");
    let heads = problems("phi3", |model| model.config["num_attention_heads"] = json!(3));
    assert!(heads.lines().next().unwrap().ends_with(": 128 is not divisible by 3"), "{heads}");
    let none = problems("phi3", |model| model.config["num_attention_heads"] = json!(0));
    assert!(none.lines().next().unwrap().ends_with(": 128 is not divisible by 0"), "{none}");
    let huge = with("num_attention_heads", json!(i64::MAX));
    assert!(huge.contains("64 bits") || huge.contains("divisible"), "{huge}");
}

#[test]
fn many_problems_are_counted() {
    let mut model = Model::manifest("qwen3_moe");
    model.tensors.retain(|(name, _)| !name.ends_with("_proj.weight"));
    let checkpoint = open(&model);
    let error = layout_of(&checkpoint, None).unwrap_err().to_string();
    assert!(
        error.starts_with("the checkpoint does not fit the family `qwen3_moe`:\n  `model.layers.0."),
        "{error}"
    );
    assert_eq!(error.lines().count(), 14, "a heading, a dozen, and how many more: {error}");
    // Four attention projections and three stacks in each of four layers.
    assert!(error.ends_with("and 16 more"), "{error}");
}

#[test]
fn an_unknown_model_type_names_those_that_are_near_and_who_knows_it() {
    let mut model = Model::manifest("llama");
    let mut said = |model_type: &str| {
        model.config["model_type"] = json!(model_type);
        family_of(&open(&model), None).unwrap_err().to_string()
    };
    let error = said("llama9");
    assert!(error.contains("`llama9` (did you mean `llama`") && error.contains("`--family`"), "{error}");
    assert!(error.contains("neither library has a model of it") && error.contains("`--discover`"), "{error}");
    let library: Value = serde_json::from_str(include_str!("../../data/libraries.json")).unwrap();
    let types = library["mlx-vlm"]["models"].as_object().unwrap().keys();
    let is_missing = |name: &&String| !family::all().any(|family| family.model_types.contains(name));
    let error = types.filter(is_missing).map(|name| said(name)).find(|error| error.contains("no family"));
    let error = error.unwrap();
    assert!(error.contains("has a model of it: `--discover` asks the one installed"), "{error}");
    model.unset("model_type");
    let error = family_of(&open(&model), None).unwrap_err().to_string();
    assert!(error.contains("no `model_type`") && error.contains("--family"), "{error}");
}

#[test]
fn a_model_that_no_library_loads_is_refused_with_the_fault() {
    let mut model = Model::manifest("../../manifests/minicpm");
    model.config["tie_word_embeddings"] = json!(true);
    let Err(Error::Layout(LayoutError::Misfit { problems, .. })) = layout_of(&open(&model), None) else {
        panic!("it is refused")
    };
    assert!(problems.0[0].to_string().contains("a parameter too many"), "{problems}");
    model.config["tie_word_embeddings"] = json!(false);
    assert!(layout_of(&open(&model), None).is_ok());
}
