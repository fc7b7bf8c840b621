//! Family files of a user: what they can say, and what is refused.

use std::sync::Arc;

use serde_json::json;
use smelt_core::checkpoint::{Checkpoint, DType};
use smelt_core::layout::pool::Pool;
use smelt_core::layout::pull::Puller;
use smelt_core::layout::{Family, Layout, Own, Role};
use smelt_core::source::MemorySource;

use crate::common::Model;
use crate::layout_of;

const HEAD: &str = "name = \"own\"\ntitle = \"Own\"\nmodel_types = [\"own\"]\n";

fn refusal(body: &str) -> String {
    let error = Family::parse(&format!("{HEAD}{body}")).expect_err(body);
    error.to_string()
}

fn rule(name: &str, rest: &str) -> String {
    format!(
        "[index]\nlayer = \"layers\"\n[[group]]\n[group.tensors]\n\"{name}\" = {{ role = \"other\", {rest} }}\n"
    )
}

fn module(rest: &str) -> String {
    rule("w", &format!("module = \"Linear\", {rest}"))
}

#[test]
fn refusals_name_the_key() {
    let table = [
        ("name = 1", "duplicate key"),
        ("[indexes]\nlayer = \"n\"", "unknown field `indexes`"),
        (&rule("w", "form = \"a\""), "unknown field `form`"),
        (&rule("w", "shape = 3"), "invalid type: integer `3`, expected a string"),
        (&rule("w", "module = \"Conv\""), "unknown variant `Conv`"),
        ("[[group]]\n[group.tensors]\n\"w\" = { role = \"heads\" }", "unknown variant `heads`"),
        ("[[group]]\n[group.tensors]\n\"w\" = { shape = \"a\" }", "missing field `role`"),
        ("[[drop]]\ntensors = \"w\"", "missing field `why`"),
        (&rule("w", "shape = \"a, b +\""), "in `w`: a value expected at column 8 of `[a, b +]`"),
        (&rule("w", "when = \"a b\""), "in `w`: an operator or the end expected at column 3 of `a b`"),
        (&rule("w", "from = 'stack(layer, \"x)'"), "in `w`: a closing quote expected at column 14 of"),
        ("[let]\nheads = \"(\"", "in `heads`: a value expected at column 2 of `(`"),
        (
            "[experts]\ntotal = \"n\"\nactive = \"\"",
            "in `experts.active`: a value expected at column 1 of ``",
        ),
        ("[mtp]\nexact = []", "unknown field `exact`"),
        ("[mtp]\ndense = [\"a.{b\"]", "in `a.{b`: a place needs both braces and a name"),
        (
            "[mtp.experts]\n\"{expert}.w\" = [\"a\", \"b\"]",
            "in `mtp.experts.{expert}.w`: the name of one expert's",
        ),
        ("[mtp.experts]\n\"{layer}.w\" = \"a\"", "in `mtp.experts.{layer}.w`: the name of one expert's"),
        ("[[group]]\n[group.tensors]\n\"w\" = { role = \"mtp\" }", "in `w`: the role `mtp` is for what"),
        (&rule("w.{layer", ""), "in `w.{layer`: a place needs both braces and a name"),
        (&rule("w.{expert}", ""), "in `w.{expert}`: neither `[index]` nor `[let]` has `expert`"),
        (&rule("w", "bits = 8, group_size = 64"), "in `w`: `bits`, `group_size`, `mode`, `quantize`"),
        (&rule("w", "mode = \"mxfp8\""), "and `format_group` are for a `module`"),
        (&module("bits = 8"), "in `w`: `bits` and `group_size` go together"),
        (&module("mode = \"mxfp8\", bits = 8"), "in `w`: `bits` and `group_size` go together"),
        (&module("bits = 7, group_size = 64"), "MLX has no affine format of 7 bits in groups of 64"),
        (&module("bits = 8, group_size = 48"), "MLX has no affine format of 8 bits in groups of 48"),
        (&module("mode = \"mxfp8\", bits = 4, group_size = 32"), "no mxfp8 format of 4 bits in groups of 32"),
        (&module("mode = \"nvfp4\", bits = 4, group_size = 32"), "no nvfp4 format of 4 bits in groups of 32"),
        (&module("mode = \"mxfp6\""), "in `w`: MLX has no mode `mxfp6`, only affine, mxfp4, mxfp8 and nvfp4"),
        (&module("mode = \"affine\""), "in `w`: the mode affine needs `bits` and `group_size`"),
        (&module("mode = 8"), "invalid type: integer `8`, expected a string"),
        (&module("mode = 'if(n'"), "in `w`: `,` or the closing bracket expected at column 5 of `if(n`"),
        (&module("quantize = false, mode = \"mxfp4\""), "in `w`: `quantize = false` goes alone"),
    ];
    for (body, message) in table {
        let found = refusal(body);
        assert!(found.contains(message), "{body}\nsays\n{found}\nand not\n{message}");
    }
}

/// A checkpoint of four tensors, the first of them counting up.
fn checkpoint() -> Checkpoint {
    let tensors =
        [("a", vec![4, 6]), ("b", vec![4, 6]), ("v", vec![6]), ("x.0", vec![2, 3]), ("x.1", vec![2, 3])];
    let tensors = tensors.map(|(name, shape)| (name.to_owned(), shape)).to_vec();
    let config = json!({"model_type": "own", "n": 4, "x": 2, "kinds": ["full", "sliding"], "half": 0.5, "word": "w", "nothing": null,
        "pattern": "*M-M", "blocks": [{"size": 4, "inner": {"kind": "x"}}, {"size": 6}], "vision-7": {"depth": 3}});
    let mut files = Model { config, tensors }.files();
    let shard = &mut files.iter_mut().find(|(name, _)| name == "model.safetensors").unwrap().1;
    // The data of `a`, which comes first, lies at the end minus all others'.
    let data = shard.len() - 2 * (24 + 24 + 6 + 6 + 6);
    for place in 0..24u32 {
        let bits = ((place as f32).to_bits() >> 16) as u16;
        shard[data + 2 * place as usize..][..2].copy_from_slice(&bits.to_le_bytes());
    }
    Checkpoint::open(Arc::new(MemorySource::new(files))).unwrap()
}

/// The layout of that checkpoint by a whole family, everything else dropped.
fn layout_by(body: &str, target: &str) -> Result<Layout, String> {
    let text = format!(
        "{HEAD}targets = [\"mlx-lm\", \"mlx-vlm\"]\n{body}\n[[drop]]\ntensors = \"*\"\nwhy = \"-\"\n"
    );
    let family = Family::parse(&text).map_err(|error| error.to_string())?;
    let checkpoint = checkpoint();
    let layout = family.layout(checkpoint.config(), &checkpoint, target);
    layout.map_err(|problems| problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
}

/// The layout of that checkpoint by one rule, everything else dropped.
fn layout(rule: &str) -> Result<Layout, String> {
    let text = format!(
        "{HEAD}[let]\ntwice = \"2 * n\"\nring = \"gnir\"\ngnir = \"ring\"\nn = \"n ?? 7\"\n\
         [index]\ni = \"x\"\n[[group]]\n[group.tensors]\n\"out\" = {{ role = \"norm\", {rule} }}\n\
         [[drop]]\ntensors = \"*\"\nwhy = \"not asked for\"\n"
    );
    let family = Family::parse(&text).map_err(|error| error.to_string())?;
    layout_of(&checkpoint(), Some(&family)).map_err(|error| error.to_string())
}

/// The shape and the numbers of the tensor that `from` makes.
fn made(from: &str) -> (Vec<u64>, Vec<f32>) {
    let layout = layout(&format!("from = '{from}'")).unwrap_or_else(|error| panic!("{from}: {error}"));
    let node = layout.graph.node(layout.outputs[0].node);
    assert_eq!(node.dtype, DType::BF16);
    let region = smelt_core::checkpoint::region::whole(&node.shape);
    let mut out = vec![0; node.shape.iter().product::<u64>() as usize * 2];
    let (checkpoint, mut pool) = (checkpoint(), Pool::default());
    Puller::new(&layout.graph, &checkpoint)
        .pull(layout.outputs[0].node, &region, &mut out, &mut pool)
        .unwrap();
    let number = |bytes: &[u8]| f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16);
    (node.shape.to_vec(), out.chunks_exact(2).map(number).collect())
}

#[test]
fn every_function_of_from_does_what_it_says() {
    let counting = |from: u32, to: u32| (from..to).map(|n| n as f32).collect::<Vec<_>>();
    assert_eq!(made("\"a\""), (vec![4, 6], counting(0, 24)));
    assert_eq!(made("slice(\"a\", 0, 1, 3)"), (vec![2, 6], counting(6, 18)));
    assert_eq!(made("slice(\"a\", 1, 1, 6, 2)").1[..4], [1.0, 3.0, 5.0, 7.0]);
    assert_eq!(made("transpose(\"a\", 1, 0)").1[..4], [0.0, 6.0, 12.0, 18.0]);
    assert_eq!(made("reshape(\"a\", [2, n / 2, 6])"), (vec![2, 2, 6], counting(0, 24)));
    assert_eq!(made("cast(cast(\"a\", \"f32\"), \"bf16\")").1, counting(0, 24));
    assert_eq!(made("slice(\"a\", 0, 0, 1) + 1"), (vec![1, 6], counting(1, 7)));
    assert_eq!(made("slice(\"a\", 0, 0, 1) * half").1, [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]);
    assert_eq!(made("\"a\" - \"a\"").1, [0.0; 24]);
    assert_eq!(made("concat(0, \"a\", \"b\")").0, [8, 6]);
    assert_eq!(made("stack(i, \"x.{i}\")").0, [2, 2, 3]);
    assert_eq!(made("stack(i, transpose(\"x.{i}\", 1, 0))").0, [2, 3, 2]);
    assert_eq!(made("\"a\" / \"v\"").0, [4, 6]);
    assert_eq!(made("stack(\"a\", \"b\")").0, [2, 4, 6]);
    assert_eq!(made("split(\"a\", 0, 2, 1)"), (vec![2, 6], counting(12, 24)));
    assert_eq!(
        made("broadcast(slice(\"a\", 0, 1, 2), [2, 6])").1,
        [counting(6, 12), counting(6, 12)].concat()
    );
    assert_eq!(made("repeat(slice(\"a\", 1, 0, 1), 0, 2)").1, [0.0, 0.0, 6.0, 6.0, 12.0, 12.0, 18.0, 18.0]);
    assert_eq!(made("pad(slice(\"a\", 1, 1, 2), 0, 1, 2)").1, [0.0, 1.0, 7.0, 13.0, 19.0, 0.0, 0.0]);
    assert_eq!(made("sum(slice(\"a\", 1, 0, 2), 1)").1, [1.0, 13.0, 25.0, 37.0]);
    assert_eq!(made("norm(slice(\"a\", 1, 0, 1), 0)").0, [1, 1]);
    assert_eq!(made("sqrt(square(negative(slice(\"a\", 0, 0, 1))))").1, counting(0, 6));
    assert_eq!(made("slice(sigmoid(\"a\"), 0, 0, 1)").1[0], 0.5);
    assert_eq!(made("if(n == 4, \"a\", \"b\")").1, counting(0, 24));
    let row = "slice(\"a\", 0, 0, 1)";
    assert_eq!(made(&format!("max({row}, 2)")).1, [2.0, 2.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(made(&format!("min({row}, \"v\" * 0 + half)")).1, [0.0, 0.5, 0.5, 0.5, 0.5, 0.5]);
    assert_eq!(made(&format!("clip({row}, 1, max(2, n))")).1, [1.0, 1.0, 2.0, 3.0, 4.0, 4.0]);
    assert_eq!(made("full([2, x], half - 1, \"bf16\")"), (vec![2, 2], vec![-0.5; 4]));
    assert_eq!(made(&format!("10 - {row}")).1, [10.0, 9.0, 8.0, 7.0, 6.0, 5.0]);
    assert_eq!(made(&format!("{row} + ({row} * 2 + 1)")).1, [1.0, 4.0, 7.0, 10.0, 13.0, 16.0]);
    assert_eq!(made("slice(\"a\", 0, 0, 1) + \"a\"").1[6..8], [6.0, 8.0]);
    assert_eq!(made(&format!("abs(0 - floor({row} * half))")).1, [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]);
    assert_eq!(made("bitcast(bitcast(\"a\", \"u32\"), \"bf16\")").1, counting(0, 24));
}

#[test]
fn what_from_can_not_make_says_why() {
    let table = [
        ("from = 'stack(j, \"x.{j}\")'", "`out`: nothing fills the place `{j}`"),
        ("from = '\"x.{i}\"'", "`out`: nothing fills the place `{i}`"),
        ("from = 'flip(\"a\")'", "`out`: `flip(…)` is no tensor expression"),
        ("from = '(n)'", "`out`: `n` is no tensor expression"),
        ("from = '\"a\" == \"b\"'", "`out`: `… == …` is no tensor expression"),
        ("from = 'cast(\"a\", \"int8\")'", "`out`: `a tensor of dtype \"int8\"` is no tensor expression"),
        ("from = '\"a\" + word'", "`out`: `\"w\"` is no tensor expression"),
        ("from = '\"a\" + \"x.0\"'", "`out`: [4, 6] (BF16) and [2, 3] (BF16) do not go together"),
        ("from = 'reshape(\"a\", [5, 5])'", "`out`: shape [4, 6] does not reshape to [5, 5]"),
        ("from = 'slice(\"a\", 0, 2, twice)'", "`out`: elements 2..8 of axis 0 of a tensor of shape [4, 6]"),
        ("from = 'concat(0, \"a\", \"x.0\")'", "`out`: part 1 has shape [2, 3]"),
        ("shape = \"ring, 6\", from = \"a\"", "` is defined by itself"),
        ("shape = \"n / 3, 6\", from = \"a\"", "`out`: 4 is not divisible by 3"),
        ("shape = \"kinds[2], 6\", from = \"a\"", "`out`: item 2 of a list of 2"),
        ("shape = \"n[0], 6\", from = \"a\"", "`out`: 4 where a list is needed in `[…]`"),
        ("shape = \"n * word, 6\", from = \"a\"", "`out`: \"w\" where a number is needed in `*`"),
        (
            "shape = \"kinds + 1, 6\", from = \"a\"",
            "`out`: [\"full\", \"sliding\"] where a number is needed in `+`",
        ),
        ("shape = \"size(n), 6\", from = \"a\"", "`out`: no function `size, with 1 arguments`"),
        ("shape = \"deep.down.size, 6\", from = \"a\"", "`out`: `deep.down.size` is missing in config.json"),
        ("shape = \"nothing ?? gone, 6\", from = \"a\"", "`out`: `gone` is missing in config.json"),
        ("when = \"int(word) > 0\", from = \"a\"", "`out`: \"w\" where a whole number is needed in `int`"),
        ("when = \"pattern[4] == word\", from = \"a\"", "`out`: item 4 of a list of 4"),
        ("when = \"kinds[0].size\", from = \"a\"", "`out`: \"full\" where an object is needed in `.size`"),
        (
            "module = \"Linear\", bits = \"n + 3\", group_size = 64, from = \"a\"",
            "`out`: MLX has no affine format of 7 bits in groups of 64",
        ),
        (
            "module = \"Linear\", mode = \"mxfp4\", bits = \"x + 6\", group_size = 32, from = \"a\"",
            "`out`: MLX has no mxfp4 format of 8 bits in groups of 32",
        ),
        (
            "module = \"Linear\", mode = 'if(n > 0, word, \"mxfp4\")', from = \"a\"",
            "`out`: MLX has no mode `w`, only",
        ),
        (
            "module = \"Linear\", mode = 'if(n > 0, n, x)', from = \"a\"",
            "`out`: 4 where the name of a mode is needed in `mode`",
        ),
        (
            "module = \"Linear\", mode = 'if(n > 0, \"affine\", null)', from = \"a\"",
            "`out`: the mode affine needs `bits` and `group_size`",
        ),
        ("when = \"gone > 0\", from = \"a\"", "`out`: `gone` is missing in config.json"),
        ("shape = \"9223372036854775807 * n, 6\", from = \"a\"", "`out`: a number of more than 64 bits"),
    ];
    for (rule, message) in table {
        let found = layout(rule).expect_err(rule);
        assert!(found.contains(message), "{rule}\nsays\n{found}\nand not\n{message}");
    }
}

#[test]
fn conditions_decide_what_there_is() {
    let there = |when: &str| match layout(&format!("from = \"a\", when = '{when}'")) {
        Ok(layout) => layout.outputs.len() == 1,
        Err(error) => panic!("{when}: {error}"),
    };
    for when in [
        "true",
        "not nothing",
        "n == 4 and n != 5",
        "n < 5 and n <= 4 and 5 > n and 4 >= n",
        "has(\"x.1\") and not has(\"x.2\")",
        "any(\"x.{i}\") and not any(\"y.*\")",
        "ndim(\"a\") == 2 and dim(\"a\", 1) == 6 and ndim(\"gone\") == null",
        "len(kinds) == 2 and kinds[1] == \"sliding\" and \"full\" in kinds",
        "not n in nothing",
        "twice == 8 and n % 3 == 1 and -n + 5 == 1",
        "half * 2 == 1.0 and half < 1",
        "dtype(\"a\") == \"bf16\" and dtype(\"gone\") == null",
        "int(half * 5) == 2 and int(\"12\") == 12 and int(true) == 1",
        "given(nothing) and not given(gone) and get(nothing, 3) == null and get(gone, 3) == 3",
        "is_list(kinds) and not is_list(n) and is_text(word) and is_object(blocks[0])",
        "blocks[1].size == 6 and blocks[0].inner.kind == \"x\" and blocks[1].inner.kind == null",
        "len(blocks) == 2 and \"inner\" in blocks[0] and not \"inner\" in blocks[1]",
        "len(pattern) == 4 and pattern[1] == \"M\" and \"M-\" in pattern",
        "split(\"a,b\", \",\")[1] == \"b\" and len(split(word, \"x\")) == 1",
        "count(kinds, \"full\") == 1 and count(pattern, \"M\") == 2 and range(1, 3) == [1, 2]",
    ] {
        assert!(there(when), "{when}");
        assert!(!there(&format!("not ({when})")), "{when}");
    }
}

#[test]
fn a_value_may_complete_the_key_that_it_is_named_after() {
    let layout = layout("shape = \"n, 6\", from = \"a\"").unwrap();
    assert_eq!(layout.outputs[0].role, Role::Norm);
    assert_eq!(layout.dropped.len(), 4);
    assert!(layout.dropped.iter().all(|dropped| dropped.why == "not asked for"));
}

#[test]
fn an_index_may_run_over_a_list_and_depend_on_another() {
    let rules = "[index]\ni = \"range(1, x)\"\nj = \"x\"\nk = \"range(j, x)\"\n\
        [[group]]\n[group.tensors]\n\
        \"late.{i}\" = { from = \"x.{i}\", role = \"other\" }\n\
        \"rest.{j}\" = { from = 'stack(k, \"x.{k}\")', role = \"other\" }\n\
        \"pair.{j}.{k}\" = { from = \"x.{k}\", role = \"other\" }";
    let layout = layout_by(rules, "mlx-lm").unwrap();
    let shape = |output: &smelt_core::layout::Output| layout.graph.node(output.node).shape.to_vec();
    let made: Vec<_> = layout.outputs.iter().map(|output| (output.name.as_str(), shape(output))).collect();
    assert_eq!(made[0], ("late.1", vec![2, 3]));
    let names: Vec<_> = made.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["late.1", "pair.0.0", "pair.0.1", "rest.0", "pair.1.1", "rest.1"]);
    assert_eq!((&made[3].1, &made[5].1), (&vec![2, 2, 3], &vec![1, 2, 3]));
}

#[test]
fn how_a_module_is_stored_may_depend_on_the_config() {
    let own = |rule: &str| {
        let rules = format!(
            "[[group]]\n[group.tensors]\n\"a\" = {{ role = \"other\", module = \"Linear\", {rule} }}"
        );
        let layout = layout_by(&rules, "mlx-lm").unwrap();
        let output = &layout.outputs[0];
        (output.module.unwrap().own, output.cast, output.format_group.clone())
    };
    assert_eq!(own("quantize = \"n < 4\"").0, Own::Keep);
    assert_eq!(own("quantize = \"n == 4\", cast = \"n < 4\""), (Own::Run, false, None));
    let Own::Format(format) = own("bits = \"n + 1\", group_size = \"16 * x\"").0 else { panic!("no format") };
    assert_eq!((format.bits(), format.group_size()), (5, 32));
    assert_eq!(own("bits = \"nothing\", group_size = 64").0, Own::Run);
    let mode = |rule: &str| match own(rule).0 {
        Own::Format(format) => format.to_string(),
        own => format!("{own:?}"),
    };
    for name in ["mxfp4", "mxfp8", "nvfp4"] {
        assert_eq!(mode(&format!("mode = \"{name}\"")), name);
    }
    assert_eq!(mode("mode = \"mxfp4\", bits = \"n\", group_size = 32"), "mxfp4");
    assert_eq!(mode("mode = 'if(n == 4, \"mxfp8\", null)'"), "mxfp8");
    assert_eq!(mode("mode = 'if(n < 4, \"mxfp8\", null)'"), "Run");
    assert_eq!(mode("mode = 'if(n < 4, \"mxfp8\", \"affine\")', bits = 8, group_size = 64"), "8-bit g64");
    assert_eq!(own("format_group = \"one\"").2.as_deref(), Some("one"));
}

#[test]
fn a_tower_without_any_tensor_is_left_out_for_mlx_vlm() {
    let rules = "[[group]]\n[group.tensors]\n\
        \"a\" = { role = \"other\" }\n\
        \"tower.a\" = { role = \"vision\" }\n\"tower.norm\" = { role = \"norm\" }";
    assert_eq!(layout_by(rules, "mlx-vlm").unwrap().outputs.len(), 1);
    assert!(layout_by(rules, "mlx-lm").unwrap_err().contains("`tower.a` is missing"));
    // A part of it is not enough, and what is no tower always has to be there.
    let part = format!("{rules}\n\"tower.b\" = {{ from = \"b\", role = \"vision\" }}");
    assert!(layout_by(&part, "mlx-vlm").unwrap_err().contains("`tower.a` is missing"));
    let other = format!("{rules}\n\"head.w\" = {{ role = \"head\" }}");
    assert_eq!(layout_by(&other, "mlx-vlm").unwrap_err(), "`head.w` is missing, of which `head.w` is made");
}
