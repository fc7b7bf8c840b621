//! A recipe file: it is refused with a place in it, or its rules make a plan or a refusal of one.
#![no_main]

use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use smelt_core::checkpoint::Checkpoint;
use smelt_core::plan::{Options, Origin, Plan, RecipeFile, family_of};
use smelt_core::source::ManifestSource;

/// A manifest with stacked experts, a router and a tower.
const MANIFEST: &str = include_str!("../../tests/manifests/qwen3_vl_moe.json");

fn planning() -> &'static (Checkpoint, Origin) {
    static OPENED: OnceLock<(Checkpoint, Origin)> = OnceLock::new();
    OPENED.get_or_init(|| {
        let source = ManifestSource::parse("fuzz", MANIFEST).expect("the manifest is sound");
        let checkpoint = Checkpoint::open(Arc::new(source)).expect("the manifest is a checkpoint");
        let family = family_of(&checkpoint, None).expect("the model type is known");
        let origin = Origin::family(&checkpoint, family, None).expect("the family fits");
        (checkpoint, origin)
    })
}

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match RecipeFile::parse("fuzz.toml", text) {
        Err(error) => {
            let lines = text.split('\n').count();
            assert!((1..=lines).contains(&error.place.line), "{error}");
        }
        Ok(recipe) => {
            let (checkpoint, origin) = planning();
            let options = Options { rules: recipe.rules, ..Options::default() };
            if let Ok(plan) = Plan::new(checkpoint, origin.clone(), &options) {
                assert_eq!(plan.rules.len(), options.rules.len());
                assert!(plan.rules.iter().all(|effect| effect.modules <= effect.matched));
            }
        }
    }
});
