"""Widths that differ by module: mlx-lm's recipes bit for bit, and targets that it loads."""

import json
from pathlib import Path

import pytest
from compare import assert_equivalent_config, assert_same_tensors, read_tensors
from conftest import Smelt, Workspace, mlx_lm_convert

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


TARGETS = [
    ("--target-bpw", "3.1"),
    ("--target-size", "330000"),
    ("--fit", "1GiB", "--context", "64"),
    ("--level", "oq3"),
    ("--level", "oq8"),
    ("--target-bpw", "5", "--formats", "4/64,8/64"),
]


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
@pytest.mark.parametrize("target", TARGETS, ids="=".join)
def test_a_target_loads(
    target: tuple[str, ...], family: str, workspace: Workspace, tmp_path: Path
) -> None:
    """Stock mlx-lm loads the result, and computes with it what the stored numbers say."""
    import mlx.core as mx
    from mlx_lm.utils import load

    out = tmp_path / "out"
    workspace.smelt.run("quantize", workspace.source(family), "-o", out, *target)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    if target[0] == "--target-size":
        assert size <= int(target[1])
    model, _ = load(str(out))
    logits = model(mx.array([[1, 2, 3, 4]]))
    assert mx.isfinite(logits.astype(mx.float32)).all().item()
    assert len(read_tensors(out)) > 0


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
