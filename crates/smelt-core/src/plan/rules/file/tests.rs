//! What a recipe says, and where it is wrong.

use super::*;

fn parsed(text: &str) -> RecipeFile {
    RecipeFile::parse("r.toml", &format!("schema = 1\n{text}")).unwrap()
}

/// Line, column and message of the error; the first line is the schema's.
fn wrong(text: &str) -> String {
    let error = RecipeFile::parse("r.toml", &format!("schema = 1\n{text}")).unwrap_err();
    let shown = error.to_string();
    assert!(shown.starts_with("the recipe `r.toml`, line "), "{shown}");
    format!("{}:{} {}", error.place.line, error.place.column, error.fault)
}

#[test]
fn a_whole_recipe() {
    let recipe = parsed(
        "description = 'x'\ntarget_bpw = 4\nformats = ['4/64', 'mxfp4', '8']\n\n\
         [[rule]]\nrole = ['attention-key', 'attention-value']\nfloor = 6\nreason = 'long contexts'\n\n\
         [[rule]]\nmatch = 'down_proj$'\nlayers = '0-1,-1'\nformat = '8/32'\n\n\
         [[rule]]\nrole = 'mlp-up'\nfloor = 2\nceiling = 3\n[[rule]]\nmatch = ''\nformat = 'keep'\n",
    );
    let (budget, place) = recipe.budget.unwrap();
    assert_eq!((budget, place.line, place.column), (Budget::BitsPerWeight(4.0), 3, 14));
    let formats = recipe.formats.unwrap().0;
    assert_eq!(
        formats.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["4-bit g64", "mxfp4", "8-bit g64"]
    );
    let texts: Vec<&str> = recipe.rules.iter().map(|rule| rule.text.as_str()).collect();
    assert_eq!(
        texts,
        [
            "attention-key or attention-value: at least 6 bits",
            "/down_proj$/, layers 0-1,-1: 8-bit g32",
            "mlp-up: 2 to 3 bits",
            "//: keep"
        ]
    );
    let lines: Vec<usize> = recipe.rules.iter().map(|rule| rule.place.as_ref().unwrap().line).collect();
    assert_eq!(lines, [6, 11, 16, 20]);
    assert_eq!(recipe.rules[0].reason.as_deref(), Some("long contexts"));
}

#[test]
fn budgets() {
    let budget = |text: &str| parsed(text).budget.unwrap().0;
    assert_eq!(budget("target_size = '96GiB'"), Budget::Size(96 << 30));
    assert_eq!(budget("target_size = 13607051"), Budget::Size(13_607_051));
    let fit = Budget::Fit { memory: 64 << 30, context: Some(4096) };
    assert_eq!(budget("context = 4096\nfit = '64G'"), fit);
    assert_eq!(budget("level = 'oQ3.5'"), Budget::Level("oq3.5".parse().unwrap()));
    let plain = |mode, bits, group| Budget::Plain(Format::new(mode, bits, group).unwrap());
    assert_eq!(budget("bits = 3"), plain(Mode::Affine, 3, 64));
    assert_eq!(budget("group_size = 32\nbits = 6"), plain(Mode::Affine, 6, 32));
    assert_eq!(budget("mode = 'nvfp4'"), plain(Mode::Nvfp4, 4, 16));
    assert!(parsed("[[rule]]\nmatch = 'x'\nformat = '4'").budget.is_none());
}

#[test]
fn every_mistake_has_its_place() {
    let error = |text: &str| RecipeFile::parse("r.toml", text).unwrap_err().to_string();
    assert_eq!(
        error("schema = 2\n"),
        "the recipe `r.toml`, line 1, column 10: schema 2 is not known; this smelt reads schema 1"
    );
    assert!(error("bits = 4\n").contains("missing field `schema`"));
    assert!(error("schema = 1\nschema = 1\n").contains("line 2, column 1: duplicate key"));
    assert!(wrong("target_bwp = 4").starts_with("2:1 unknown field `target_bwp`, expected one of `schema`"));
    assert!(wrong("\ntarget_bpw = 'four'").starts_with("3:14 invalid type: string \"four\""));
    assert!(wrong("bits = 300").starts_with("2:8 invalid value: integer `300`"));
    assert!(wrong("bits = = 4").starts_with("2:8 "));
    assert!(wrong("rule = 3").starts_with("2:8 invalid type"));
    assert_eq!(wrong("target_bpw = -1"), "2:14 a number of bits above zero is needed, such as 4.6");
    assert_eq!(wrong("target_bpw = nan"), "2:14 a number of bits above zero is needed, such as 4.6");
    assert!(wrong("target_size = 'big'").starts_with("2:15 a size such as"));
    assert!(wrong("target_size = 1.5").starts_with("2:15 a size is needed"));
    assert_eq!(wrong("context = 4"), "2:11 `context` belongs to `fit`, which is not given");
    assert!(wrong("level = 'oq7'").starts_with("2:9 `oq7` is no level"));
    assert!(wrong("mode = 'int'").starts_with("2:8 `int` is no mode"));
    assert!(wrong("bits = 7").starts_with("2:8 mode affine has"));
    assert!(wrong("level = 'oq4'\nbits = 4").starts_with("3:8 `level` and `bits` are both given"));
    assert!(wrong("formats = ['4', '4/64']").starts_with("2:17 `4/64` stands there twice"));
    assert!(wrong("formats = ['4',\n '7']").starts_with("3:2 mode affine has"));
    assert!(wrong("formats = []").starts_with("2:11 no format"));
    assert!(wrong("bits = 4\nformats = ['4']").starts_with("3:11 this bounds"));
    assert!(wrong("level = 'oq8'\n[[rule]]\nrole = 'head'\nfloor = 4").starts_with("3:1 this bounds"));
}

#[test]
fn every_mistake_of_a_rule_has_its_place() {
    let rule = |text: &str| wrong(&format!("[[rule]]\n{text}"));
    assert!(rule("format = '4'").starts_with("2:1 the rule says of no module"));
    assert!(rule("match = 'x'").starts_with("2:1 the rule does nothing"));
    assert!(
        rule("match = '('\nformat = '4'")
            .starts_with("3:9 the pattern is no regular expression: unclosed group")
    );
    assert!(rule("role = 'nose'\nformat = '4'").starts_with("3:8 `nose` is no role; there are embedding, "));
    assert!(rule("role = ['head', 'nose']\nformat = '4'").starts_with("3:8 `nose` is no role"));
    assert!(rule("role = []\nformat = '4'").starts_with("3:8 no role"));
    assert!(rule("role = 3\nformat = '4'").starts_with("3:8 a role or a list of roles is needed"));
    assert!(rule("layers = '3-1'\nformat = '4'").starts_with("3:10 the range `3-1` ends before"));
    assert!(
        rule("layers = 3\nformat = '4'").starts_with("3:10 invalid type: integer `3`, expected a string")
    );
    assert!(rule("match = 'x'\nformat = '4:64'").starts_with("4:10 `4:64` is not BITS/GROUP"));
    assert!(rule("match = 'x'\nfloor = 9").starts_with("4:9 bits from 2 to 8"));
    assert!(rule("match = 'x'\nfloor = 6\nceiling = 4").starts_with("2:1 the floor of 6 bits is above"));
    assert!(rule("match = 'x'\nfloor = 6\nformat = '8'").starts_with("5:10 `format` decides already"));
    assert!(
        rule("match = 'ä' # €\nformat = '8'\nwhy = 'x'")
            .starts_with("5:1 unknown field `why`, expected one of `match`")
    );
}
