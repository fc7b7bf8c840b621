"""`smelt verify` passes what stock mlx-lm and mlx-vlm write, and says what they refuse to load."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkpoints
import mlx_lm
import pytest
from conftest import PLAIN, ROOT, Workspace, mlx_lm_convert
from formats import ALL, DEFAULT, MXFP4, MXFP8, NONE, NVFP4, Format

FORMATS = [DEFAULT, Format("affine", 2, 32), Format("affine", 8, 128), MXFP4, MXFP8, NVFP4, NONE]
FAMILIES = ["sample", "llama", "qwen3_moe", "gemma2", "mixtral", "llama_tied", "phi3"]


def verdict(workspace: Workspace, model: Path, *args: str | Path, sound: bool = True) -> list[Any]:
    """The events of a check, which must end as expected."""
    done = workspace.smelt.run("verify", model, *args, "--json", code=0 if sound else 1)
    return [json.loads(line) for line in done.stdout.splitlines()]


def data(events: list[Any], kind: str) -> list[Any]:
    return [event["data"] for event in events if event["type"] == kind]


@pytest.mark.parametrize("fmt", FORMATS, ids=lambda f: f.id)
@pytest.mark.parametrize("family", FAMILIES)
def test_mlx_lm_is_sound(family: str, fmt: Format, workspace: Workspace) -> None:
    theirs = workspace.theirs(family, fmt)
    events = verdict(workspace, theirs, "--against", workspace.source(family))
    assert not data(events, "finding")
    (done,) = data(events, "done")
    assert done["library"] == "mlx-lm"
    assert done["compared"] == done["parameters"]


@pytest.mark.parametrize("name", ["qwen3_next", "kimi_linear", "nemotron_h", "lfm2", "mistral3"])
def test_other_architectures_are_sound(name: str, workspace: Workspace, tmp_path: Path) -> None:
    """Stacked experts, shifted norms, convolutions, parameters that are never cast."""
    source = tmp_path / "source"
    manifest = json.loads((ROOT / "tests" / "manifests" / f"{name}.json").read_text())
    checkpoints.write_checkpoint(source, manifest, PLAIN)
    out = mlx_lm_convert(source, tmp_path / "out", quantize=True, q_group_size=32)
    assert not data(verdict(workspace, out, "--against", source), "finding")


@pytest.mark.parametrize("recipe", ["mixed_2_6", "mixed_3_4", "mixed_4_6"])
def test_recipes_are_sound(recipe: str, workspace: Workspace, tmp_path: Path) -> None:
    """Recipes write an entry for every module, some of them with a null group size."""
    source = workspace.source("sample")
    out = mlx_lm_convert(source, tmp_path / "out", quantize=True, quant_predicate=recipe)
    assert not data(verdict(workspace, out, "--against", source), "finding")


@pytest.mark.parametrize("fmt", ALL, ids=lambda f: f.id)
def test_ours_is_sound(fmt: Format, workspace: Workspace) -> None:
    ours = workspace.ours("sample", fmt)
    assert not data(verdict(workspace, ours, "--against", workspace.source("sample")), "finding")


def loads(model: Path) -> bool:
    try:
        mlx_lm.load(str(model))
    except (ValueError, KeyError, TypeError):
        return False
    return True


Change = Callable[[dict[str, Any]], None]


def _pop(*path: str) -> Change:
    def change(config: dict[str, Any]) -> None:
        for key in path[:-1]:
            config = config[key]
        del config[path[-1]]

    return change


def _set(value: Any, *path: str) -> Change:
    def change(config: dict[str, Any]) -> None:
        for key in path[:-1]:
            config = config[key]
        config[path[-1]] = value

    return change


ENTRY = "model.layers.0.self_attn.q_proj"
REFUSED: dict[str, Change] = {
    "no dictionary": _pop("quantization"),
    "no bits": _pop("quantization", "bits"),
    "packed module that is said to be dense": _set(False, "quantization", ENTRY),
    "wrong entry": _set({"bits": 8, "group_size": 64}, "quantization", ENTRY),
    "entry of a norm": _set({"bits": 4, "group_size": 64}, "quantization", "model.norm"),
    "another width": _set(256, "hidden_size"),
    "more layers": _set(9, "num_hidden_layers"),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED.keys())
def test_what_mlx_lm_refuses_is_no_model(
    change: Change, workspace: Workspace, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(workspace.theirs("sample", DEFAULT), out)
    config = json.loads((out / "config.json").read_text())
    # Only one of the twins, as the loader sees it: the other must not be what is found.
    config.pop("quantization_config", None)
    change(config)
    (out / "config.json").write_text(json.dumps(config))
    assert not loads(out)
    findings = data(verdict(workspace, out, sound=False), "finding")
    assert [f for f in findings if f["severity"] == "error" and f["names"]]


def test_vlm_is_sound(workspace: Workspace, tmp_path: Path) -> None:
    """mlx-vlm's names for a language model have a prefix."""
    convert = pytest.importorskip("mlx_vlm.convert").convert
    source, out = workspace.source("qwen3_moe"), tmp_path / "out"
    convert(str(source), str(out), quantize=True)
    events = verdict(workspace, out, "--against", source)
    assert not [f for f in data(events, "finding") if f["severity"] == "error"]
    assert data(events, "done")[0]["library"] == "mlx-vlm"


def test_a_layout_of_the_library_takes_the_place_of_a_family(
    workspace: Workspace, tmp_path: Path
) -> None:
    """What was made by discovery can be held against its source as well."""
    source, out, file = workspace.source("qwen3_moe"), tmp_path / "out", tmp_path / "layout.json"
    python = ["--python", sys.executable]
    workspace.smelt.run("discover", source, "-o", file, *python)
    workspace.smelt.run("quantize", source, "-o", out, "--layout", file)
    for how in (["--layout", file], ["--discover", *python]):
        events = verdict(workspace, out, "--against", source, *how)
        assert not data(events, "finding")
        (done,) = data(events, "done")
        assert (done["family"], done["library"]) == (None, "mlx-lm")
        assert done["compared"] == done["parameters"]
    workspace.smelt.run("verify", out, "--layout", file, code=1)
    refused = workspace.smelt.run(
        "verify", out, "--against", workspace.source("llama"), "--layout", file, code=1
    )
    assert "layout" in refused.stderr
