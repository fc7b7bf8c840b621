"""Widths that differ by module: mlx-lm's recipes bit for bit; targets, rules, copies that load."""

import json
from pathlib import Path
from typing import Any

import pytest
import source_cases
from compare import assert_equivalent_config, assert_same_tensors, read_tensors, resolve
from conftest import Smelt, Workspace, mlx_lm_convert
from source_table import BY_ID

RECIPES = ["mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6"]


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma2", "llama_tied"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe(recipe: str, family: str, group: int, workspace: Workspace, tmp_path: Path) -> None:
    source = workspace.source(family)
    args = ("--recipe", recipe, "--group-size", str(group))
    ours = workspace.smelt.quantize(source, tmp_path / "ours", *args)
    theirs = mlx_lm_convert(
        source, tmp_path / "theirs", quantize=True, q_group_size=group, quant_predicate=recipe
    )
    assert_same_tensors(ours, theirs)
    assert_equivalent_config(ours, theirs, source)


LEVELS = ["oq2", "oq2.5", "oq2.7", "oq3", "oq3.5", "oq4", "oq5", "oq6", "oq8"]
TARGETS = [
    ("--target-bpw", "3.1"),
    ("--target-size", "330000"),
    ("--fit", "1GiB", "--context", "64"),
    ("--target-bpw", "5", "--formats", "4/64,8/64"),
    ("--target-bpw", "5", "--override", "o_proj=8:32", "--override", r"layers\.0\..*q_proj=mxfp8"),
    *(("--level", level) for level in LEVELS),
]


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("target", TARGETS, ids="=".join)
def test_a_target_loads(
    target: tuple[str, ...], family: str, workspace: Workspace, tmp_path: Path
) -> None:
    """Stock mlx-lm loads the result, whose size is the predicted one."""
    out = tmp_path / "out"
    plan = planned_and_made(workspace.smelt, workspace.source(family), out, *target)
    if target[0] == "--target-size":
        assert plan["totals"]["file_bytes"] <= int(target[1])
    if target[0] == "--target-bpw":
        assert plan["totals"]["bits_per_weight"] <= float(target[1])
    assert_loads(out)


def planned_and_made(smelt: Smelt, source: Path, out: Path, *args: str | Path) -> dict[str, Any]:
    """The plan of a run, which came true to the byte."""
    measures = () if "--measures" in args else measures_of(out, args)
    plan = json.loads(smelt.run("plan", source, *args, *measures, "--json").stdout)
    smelt.run("quantize", source, "-o", out, *args, *measures)
    tensors = read_tensors(out)
    parts = {part["name"]: part["bytes"] for task in plan["tasks"] for part in task["parts"]}
    assert parts == {name: len(tensor.data) for name, tensor in tensors.items()}
    sizes = [path.stat().st_size for path in out.glob("*.safetensors")]
    assert plan["totals"]["file_bytes"] == sum(sizes)
    report = json.loads((out / "smelt-report.json").read_text())
    assert report.get("rules", []) == plan.get("rules", [])
    return plan


def measures_of(out: Path, args: tuple[str | Path, ...]) -> tuple[str | Path, ...]:
    """Where measurements are kept, if there are any: `plan` would leave them beside the source."""
    gives = {"--target-bpw", "--target-size", "--fit", "--level", "--recipe"}
    wanted = gives & set(map(str, args)) and "oq8" not in args
    return ("--measures", out.with_name("kept.measures.json")) if wanted else ()


def assert_loads(out: Path) -> None:
    import mlx.core as mx
    from mlx_lm.utils import load

    model, _ = load(str(out))
    logits = model(mx.array([[1, 2, 3, 4]]))
    assert mx.isfinite(logits.astype(mx.float32)).all().item()


def test_measures_are_used_again(smelt: Smelt, workspace: Workspace, tmp_path: Path) -> None:
    source = workspace.source("qwen3_moe")
    first = smelt.run("quantize", source, "-o", tmp_path / "a", "--target-bpw", "4")
    assert "measured" in first.stderr
    kept = [path.name for path in tmp_path.iterdir() if path.name.endswith(".measures.json")]
    assert len(kept) == 1
    second = smelt.run("quantize", source, "-o", tmp_path / "b", "--target-bpw", "5")
    assert "no weight is read" in second.stderr
    plan = json.loads(
        smelt.run(
            "plan", source, "--target-bpw", "5", "--json", "--measures", tmp_path / kept[0]
        ).stdout
    )
    assert plan["totals"]["file_bytes"] == sum(
        p.stat().st_size for p in (tmp_path / "b").glob("*.safetensors")
    )
    assert plan["allocation"]["bound"] <= plan["allocation"]["loss"]


# -- recipe files --------------------------------------------------------------

RULES = """
[[rule]]
role = ["attention-key", "attention-value"]
floor = 6
reason = "long contexts"

[[rule]]
match = "o_proj"
layers = "0,-1"
format = "8/32"

[[rule]]
role = ["mlp-down", "expert-down"]
ceiling = 4
"""
BUDGETS = {
    "target_bpw = 4.7": (),
    "target_size = 420000": (),
    'fit = "1GiB"\ncontext = 64': (),
    'level = "oq4"\nformats = ["3/64", "4/64", "6/64", "8/64"]': (),
    "": ("--target-bpw", "4.7"),
}


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_a_recipe_file(budget: str, family: str, workspace: Workspace, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, budget + RULES)
    out = tmp_path / "out"
    args = ("--recipe", recipe, *BUDGETS[budget], "--override", r"layers\.1\..*o_proj=keep")
    plan = planned_and_made(workspace.smelt, workspace.source(family), out, *args)
    formats = resolve(out)
    for module, fmt in formats.items():
        bits = fmt[0] if fmt else 16
        if "k_proj" in module or "v_proj" in module:
            assert 6 <= bits <= 8, module
        if "down_proj" in module:
            assert bits <= 4, module
    assert formats["model.layers.0.self_attn.o_proj"] == (8, 32, "affine")
    assert formats["model.layers.1.self_attn.o_proj"] is None
    assert all(rule["matched"] > 0 for rule in plan["rules"])
    assert [rule["source"] for rule in plan["rules"]] == ["recipe"] * 3 + ["override"]
    assert_loads(out)


def test_a_recipe_of_one_format(workspace: Workspace, tmp_path: Path) -> None:
    """Without a target a recipe is a list of overrides, bit for bit as mlx-lm applies them."""
    rules = """
    bits = 3
    group_size = 32
    [[rule]]
    role = "mlp-down"
    format = "6/64"
    [[rule]]
    match = "down_proj"
    layers = "1-2"
    format = "keep"
    """

    def decide(path: str, _module: Any) -> bool | dict[str, Any]:
        if path.endswith("down_proj"):
            kept = path.split(".")[2] in ("1", "2")
            return False if kept else {"bits": 6, "group_size": 64}
        return True

    source = workspace.source("llama")
    recipe = str(write_recipe(tmp_path, rules))
    ours = workspace.smelt.quantize(source, tmp_path / "ours", "--recipe", recipe)
    theirs = mlx_lm_convert(
        source,
        tmp_path / "theirs",
        quantize=True,
        q_bits=3,
        q_group_size=32,
        quant_predicate=decide,
    )
    assert_same_tensors(ours, theirs)
    assert_equivalent_config(ours, theirs, source)


def write_recipe(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(f"schema = 1\n{text}\n")
    return path


# -- copies --------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "qwen3_moe", "gemma2", "llama_tied"])
@pytest.mark.parametrize("recipe", ["mixed_2_6", "mixed_4_6", None])
def test_like_a_model_of_mlx_lm(
    recipe: str | None, family: str, workspace: Workspace, tmp_path: Path
) -> None:
    """A model of mlx-lm is copied format by format, and bit for bit where rounding is the same."""
    source = workspace.source(family)
    theirs = mlx_lm_convert(
        source, tmp_path / "theirs", quantize=True, q_group_size=64, quant_predicate=recipe
    )
    ours = workspace.smelt.quantize(source, tmp_path / "ours", "--strict", "--like", str(theirs))
    assert_same_tensors(ours, theirs)
    assert_equivalent_config(ours, theirs, source)
    searched = tmp_path / "searched"
    planned_and_made(workspace.smelt, source, searched, "--like", theirs)
    assert resolve(searched) == resolve(theirs)
    assert_loads(searched)


# -- sources in formats of MLX -------------------------------------------------


@pytest.mark.parametrize("bits", ["3.5", "4.6", "5"])
@pytest.mark.parametrize("case", ["mxfp4-gpt-oss", "int4-g32-moe"])
def test_a_target_where_bits_are_moved(case: str, bits: str, smelt: Smelt, tmp_path: Path) -> None:
    """What is moved takes the source's bytes, and the rest of the budget goes elsewhere."""
    made = source_cases.make(BY_ID[case], tmp_path)
    out = tmp_path / "out"
    plan = planned_and_made(smelt, made.source, out, "--target-bpw", bits)
    assert plan["totals"]["bits_per_weight"] <= float(bits)
    moved = [task for task in plan["tasks"] if task.get("moved")]
    last = plan["allocation"]["frontier"][-1]["tensor_bytes"]
    if plan["totals"]["tensor_bytes"] < 0.97 * last:
        assert plan["totals"]["bits_per_weight"] > float(bits) - 0.2
    if bits == "5":
        assert moved
    assert_loads(out)


# -- refusals ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "recipe", "said"),
    [
        (["--target-bpw", "1"], None, "this model takes from 2."),
        (["--target-size", "1000"], None, "can't be reached"),
        (["--recipe", "recipe.toml"], "target_bpw = 4\n[[rule]]\nmatch = ''\nfloor = 6", "from 6."),
        (["--recipe", "recipe.toml"], "target_bpw = 'x'", "line 2, column 14"),
        (["--recipe", "recipe.toml"], "[[rule]]\nmatch = '('\nformat = '4'", "line 3, column 9"),
        (["--target-bpw", "4", "--sensitivity-map", "map.json"], None, "scores by layer number"),
    ],
)
def test_what_can_not_be_done_writes_nothing(
    args: list[str], recipe: str | None, said: str, workspace: Workspace, tmp_path: Path
) -> None:
    (tmp_path / "map.json").write_text('{"first": 1}')
    if recipe:
        write_recipe(tmp_path, recipe)
    named = [str(tmp_path / arg) if arg.endswith((".toml", ".json")) else arg for arg in args]
    before = sorted(tmp_path.iterdir())
    source = workspace.source("llama")
    done = workspace.smelt.run("quantize", source, "-o", tmp_path / "out", *named, code=1)
    assert said in done.stderr
    assert sorted(tmp_path.iterdir()) == before
