//! With hashes, no bit of any file of an output changes unseen.

use std::fmt::Write as _;
use std::sync::LazyLock;

use proptest::prelude::*;
use smelt_core::pipeline::{CARD, Event, Observer, Papers, REPORT};
use smelt_core::plan::Plan;
use smelt_core::report::Report;
use smelt_core::report::card::{self, Origin};

use crate::shards::{header, header_len};
use crate::{Contents, MANIFEST, Model, execute, mixed, open, planned, verify};

/// Leaves report and card.
struct Clerk<'a>(&'a Plan);

impl Observer for Clerk<'_> {
    fn on(&self, _event: &Event) {}

    fn papers(&self) -> Papers {
        let mut report = Report::new(self.0, "model", vec!["smelt".to_owned()], &[]);
        let origin = Origin { card: None, base_model: "owner/model", multimodal: false };
        let card = card::text(&report, origin);
        report.vouch_for(&card);
        Papers { card: Some(card), report: Some(report.to_json()) }
    }
}

/// An output as a user has it: of some shards, with everything that is written beside them.
static SOUND: LazyLock<Contents> = LazyLock::new(|| {
    let mut model = Model::manifest("qwen3_moe");
    model.tensors.retain(|(name, _)| {
        !["layers.1.", "layers.2.", "layers.3."].iter().any(|layer| name.contains(layer))
    });
    model.config["num_hidden_layers"] = 1.into();
    let source = open(model.files());
    let plan = planned(&source, &smelt_core::plan::Options { shard_bytes: 40_000, ..mixed() });
    let sound = execute(&source, &plan, &Clerk(&plan));
    for name in [MANIFEST, REPORT, CARD, "config.json", "tokenizer.json", "model.safetensors.index.json"] {
        assert!(sound.contains_key(name), "{name}");
    }
    assert!(verify(&sound, None).findings.is_empty());
    sound
});

/// What verify says of the model with one bit turned: whether anything, and whether an error.
fn flipped(name: &str, at: usize, bit: u32) -> (bool, bool) {
    let mut model = SOUND.clone();
    model.get_mut(name).unwrap()[at] ^= 1 << bit;
    let report = verify(&model, None);
    (!report.findings.is_empty(), !report.is_sound())
}

/// Places of each kind in a shard: the length, the header, the first, middle and last byte of each tensor.
fn places_of_shard(bytes: &[u8]) -> Vec<usize> {
    let start = header_len(bytes);
    let mut places: Vec<usize> = (0..8).chain([8, start / 2, start - 1]).collect();
    for (name, entry) in header(bytes).as_object().unwrap() {
        if name != "__metadata__" {
            let at = |end: usize| start + entry["data_offsets"][end].as_u64().unwrap() as usize;
            places.extend([at(0), usize::midpoint(at(0), at(1)), at(1) - 1]);
        }
    }
    places
}

/// A place in each line of a text.
fn places_of_text(bytes: &[u8]) -> Vec<usize> {
    let ends = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
    let mut start = 0;
    let mut places = vec![0, bytes.len() - 1];
    for end in ends {
        // Not always the same place of a line.
        places.push(start + end % (end - start + 1));
        start = end + 1;
    }
    places
}

#[test]
fn one_bit_in_every_kind_of_place() {
    let (mut unseen, mut count) = (String::new(), 0);
    for (name, bytes) in &*SOUND {
        let places =
            if name.ends_with(".safetensors") { places_of_shard(bytes) } else { places_of_text(bytes) };
        for at in places {
            let (found, error) = flipped(name, at, (at % 8) as u32);
            // A model card may be somebody's own work.
            if !found || (!error && name != CARD) {
                writeln!(unseen, "byte {at} of {name}").unwrap();
            }
            count += 1;
        }
    }
    assert!(unseen.is_empty(), "of {count} not found:\n{unseen}");
    assert!(count > 300, "{count} places");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_byte(file in any::<prop::sample::Index>(), place in any::<prop::sample::Index>(), bit in 0..8u32) {
        // Every file has the same chance, and the bytes of a header more than their share.
        let names: Vec<&String> = SOUND.keys().collect();
        let name = names[file.index(names.len())];
        let bytes = &SOUND[name];
        let front = if name.ends_with(".safetensors") { header_len(bytes) } else { bytes.len() };
        let at = place.index(if bit % 2 == 0 { front } else { bytes.len() });
        prop_assert!(flipped(name, at, bit).0, "byte {} of {}", at, name);
    }
}
