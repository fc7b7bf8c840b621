//! Editing JSON as text: only the edited member changes.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use smelt_core::checkpoint::{Config, JsonText};
use smelt_core::{CheckpointError, Error};

fn parse(text: &str) -> JsonText {
    JsonText::parse("config.json", text.as_bytes()).expect("valid text")
}

fn set(text: &str, path: &[&str], value: &Value) -> String {
    let mut json = parse(text);
    assert!(json.set(path, value), "{path:?} in {text}");
    json.text().to_owned()
}

fn removed(text: &str, path: &[&str]) -> String {
    let mut json = parse(text);
    assert!(json.remove(path), "{path:?} in {text}");
    json.text().to_owned()
}

const CONFIG: &str = r#"{
  "eps": 1e-06,
  "scale": Infinity,
  "low": -Infinity,
  "list": [1,NaN , "NaN"],
  "sub": {
    "theta": 10000.0,
    "quantization": {"bits": 4}
  },
  "text": "a \"Infinity\" \\",
  "last": 1.50
}
"#;

#[test]
fn non_finite_numbers_are_read_and_kept() {
    let config = Config::parse("config.json", CONFIG.as_bytes()).expect("as Python writes it");
    assert_eq!(config.text(), CONFIG);
    assert_eq!(config.get("scale"), Some(&json!({"__float__": "Infinity"})));
    assert_eq!(config.get("low"), Some(&json!({"__float__": "-Infinity"})));
    assert_eq!(config.get("list"), Some(&json!([1, {"__float__": "NaN"}, "NaN"])));
    assert_eq!(config.get("text"), Some(&json!(r#"a "Infinity" \"#)));
    for wrong in [r#"{"a": xNaN}"#, r#"{"a": 1-Infinity}"#, r#"{"a": NaNNaN}"#, r#"{"a": +NaN}"#, "{NaN: 1}"]
    {
        let result = JsonText::parse("config.json", wrong.as_bytes());
        assert!(
            matches!(result, Err(Error::Checkpoint(CheckpointError::Json { .. }))),
            "{wrong}: {result:?}"
        );
    }
}

#[test]
fn edits_keep_every_other_byte() {
    let gone = "    \"theta\": 10000.0,\n    \"quantization\": {\"bits\": 4}\n";
    let kept = "    \"theta\": 10000.0\n";
    assert_eq!(removed(CONFIG, &["sub", "quantization"]), CONFIG.replace(gone, kept));
    assert_eq!(removed(CONFIG, &["eps"]), CONFIG.replace("\"eps\": 1e-06,\n  ", ""));
    assert_eq!(removed(CONFIG, &["last"]), CONFIG.replace(",\n  \"last\": 1.50", ""));
    let added = set(CONFIG, &["q"], &json!({"bits": 4, "x": [true, {}]}));
    let member = ",\n  \"q\": {\n    \"bits\": 4,\n    \"x\": [\n      true,\n      {}\n    ]\n  }\n}\n";
    assert_eq!(added, CONFIG.replace("\n}\n", member));
    let replaced = set(CONFIG, &["sub", "theta"], &json!({"a": 1}));
    assert_eq!(replaced, CONFIG.replace("10000.0", "{\n      \"a\": 1\n    }"));
}

#[test]
fn edits_follow_the_files_own_style() {
    let value = json!({"k": 1});
    let table = [
        ("{}", r#"{"n": {"k":1}}"#),
        ("{\n}", "{\"n\": {\"k\":1}}"),
        (r#"{"a":1}"#, r#"{"a":1,"n":{"k":1}}"#),
        (r#"{"a": 1, "b": 2}"#, r#"{"a": 1, "b": 2, "n": {"k":1}}"#),
        ("{\n\t\"a\" : 1\n}", "{\n\t\"a\" : 1,\n\t\"n\" : {\n\t\t\"k\": 1\n\t}\n}"),
        ("{\r\n  \"a\": 1\r\n}", "{\r\n  \"a\": 1,\r\n  \"n\": {\r\n    \"k\": 1\r\n  }\r\n}"),
        ("\n {\n    \"a\": 1}", "\n {\n    \"a\": 1,\n    \"n\": {\n        \"k\": 1\n    }}"),
    ];
    for (before, after) in table {
        assert_eq!(set(before, &["n"], &value), after, "{before}");
    }
    let nested = set("{\n  \"a\": {}\n}", &["a", "n"], &value);
    assert_eq!(nested, "{\n  \"a\": {\n    \"n\": {\n      \"k\": 1\n    }\n  }\n}");
}

#[test]
fn paths_that_lead_nowhere_change_nothing() {
    let mut json = parse(CONFIG);
    for path in [&["absent"][..], &["eps", "x"], &["absent", "x"], &["list", "x"], &[]] {
        assert!(!json.remove(path), "{path:?}");
    }
    for path in [&["eps", "x"][..], &["absent", "x"], &["list", "x"], &[]] {
        assert!(!json.set(path, &json!(1)), "{path:?}");
    }
    assert_eq!(json.text(), CONFIG);
}

#[test]
fn keys_given_twice_or_escaped() {
    assert_eq!(removed(r#"{"a": 1, "b": 2, "\u0061": 3}"#, &["a"]), r#"{"b": 2}"#);
    assert_eq!(set(r#"{"a": 1, "a": 2}"#, &["a"], &json!(3)), r#"{"a": 1, "a": 3}"#);
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~é\n{}\"]{0,5}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            object(inner).prop_map(Value::from),
        ]
    })
}

fn object(value: impl Strategy<Value = Value>) -> impl Strategy<Value = Map<String, Value>> {
    prop::collection::vec(("[a-c\"\\\\{é]{0,2}", value), 0..4).prop_map(|list| list.into_iter().collect())
}

/// The text of an object in one of the layouts that occur.
fn text() -> impl Strategy<Value = String> {
    (object(value()), 0..4).prop_map(|(object, layout)| match layout {
        0 => serde_json::to_string(&object).expect("an object"),
        1 => serde_json::to_string_pretty(&object).expect("an object"),
        2 => format!("  {}\n", serde_json::to_string_pretty(&object).expect("an object")),
        _ => serde_json::to_string_pretty(&object).expect("an object").replace('\n', "\r\n"),
    })
}

/// What an edit of the values, and not of the text, gives.
fn edit(value: &mut Value, path: &[String], new: Option<&Value>) -> bool {
    let Some((key, parents)) = path.split_last() else {
        return false;
    };
    let found = parents.iter().try_fold(value, |value, key| value.as_object_mut()?.get_mut(key));
    let Some(object) = found.and_then(Value::as_object_mut) else {
        return false;
    };
    match new {
        Some(new) => drop(object.insert(key.clone(), new.clone())),
        None => return object.shift_remove(key).is_some(),
    }
    true
}

/// The longest piece at the start or end that both have.
fn common(a: &str, b: &str) -> (usize, usize) {
    let start = a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let end = a.bytes().rev().zip(b.bytes().rev()).take_while(|(a, b)| a == b).count();
    (start, end)
}

/// The keys in order: `serde_json` compares objects without it.
fn spelled(value: &Value) -> String {
    value.to_string()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// An edited text reads as the edited value, order of keys included.
    #[test]
    fn edits_agree_with_edits_of_the_value(
        text in text(),
        path in prop::collection::vec("[a-c\"\\\\{é]{0,2}", 0..3),
        new in value(),
    ) {
        let keys: Vec<&str> = path.iter().map(String::as_str).collect();
        let mut json = parse(&text);
        let mut expected = json.value();
        prop_assert_eq!(json.set(&keys, &new), edit(&mut expected, &path, Some(&new)));
        prop_assert_eq!(spelled(&parse(json.text()).value()), spelled(&expected));
        prop_assert_eq!(json.remove(&keys), edit(&mut expected, &path, None));
        prop_assert_eq!(spelled(&parse(json.text()).value()), spelled(&expected));
    }

    /// A member that is added at the end and removed again leaves the text as it was.
    #[test]
    fn adding_and_removing_restores_the_text(text in text(), new in value()) {
        let mut json = parse(&text);
        let had_members = json.value().as_object().is_some_and(|object| !object.is_empty());
        prop_assert!(json.set(&["new key"], &new));
        let (start, end) = common(&text, json.text());
        prop_assert!(start + end >= text.len() || !had_members, "an insertion changes nothing else");
        prop_assert!(json.remove(&["new key"]));
        if had_members {
            prop_assert_eq!(json.text(), text);
        }
    }

    /// Random text is an error or an object, and edits of it never panic.
    #[test]
    fn random_text_never_panics(text in r#"(\{|\}|\[|\]|,|:|"a"|"\\"|NaN|-Infinity|1e-6| |\n|é){0,30}"#) {
        for text in [text.clone(), format!("{{\"a\":{text}}}")] {
            if let Ok(mut json) = JsonText::parse("x", text.as_bytes()) {
                json.set(&["a", "a"], &json!(1));
                json.remove(&["a"]);
                prop_assert!(JsonText::parse("x", json.text().as_bytes()).is_ok());
            }
        }
    }
}
