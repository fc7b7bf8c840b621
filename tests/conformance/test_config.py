"""Configs as transformers 5 writes them, and as the libraries read them.

The configs come from the installed transformers. A result must load with the values that the
config has, also where the library has a default for a key that it looks for in another place.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import library
import library_table
import pytest
from checkpoints import Variant, load_manifest, manifest_tensors, write_json, write_tensors
from compare import read_json
from conftest import ROOT, Smelt
from pairs import MANIFESTS

THETA = 123456.0
MODELS = ["llama", "qwen2", "qwen3_moe", "glm4_moe", "exaone4", "gemma3_text", "granite"]


def modern(manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest's config as transformers 5 saves it, with a base that is no default."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    old = manifest["config"]
    owner = CONFIG_MAPPING[old["model_type"]]
    saved = lambda **values: json.loads(owner(**values).to_json_string(use_diff=False))  # noqa: E731
    new, usual = saved(**old), saved()
    rope = new["rope_parameters"]
    for key in ("rope_theta", "rope_scaling", "torch_dtype", "rope_local_base_freq"):
        new.pop(key, None)
    if "head_dim" not in usual:
        new.pop("head_dim", None)
    if "full_attention" in rope:
        rope["full_attention"]["rope_theta"] = THETA
    else:
        rope["rope_theta"] = THETA
    return new


def bases(model: Any) -> set[float]:
    """What the library took for the base of rotary positions, wherever its model keeps it."""
    holders = [model, getattr(model, "language_model", None)]
    configs = [getattr(holder, name, None) for holder in holders for name in ("args", "config")]
    keys = ("rope_theta", "rope_global_base_freq")
    return {getattr(config, key) for config in configs for key in keys if hasattr(config, key)}


@pytest.mark.parametrize("name", ["mlx-lm", "mlx-vlm"])
@pytest.mark.parametrize("model", MODELS)
def test_a_config_of_transformers_5(model: str, name: str, tmp_path: Path, smelt: Smelt) -> None:
    path = MANIFESTS / f"{model}.json"
    manifest = json.loads(path.read_text()) if path.exists() else load_manifest(model)
    source = tmp_path / "source"
    source.mkdir()
    config = modern(manifest)
    write_json(source / "config.json", config)
    write_tensors(source, [manifest_tensors(manifest, Variant())])
    ours = smelt.quantize(source, tmp_path / "ours", "--target", name)
    loaded, _ = library.load(name, ours)
    assert THETA in bases(loaded)
    written = read_json(ours / "config.json")
    assert written["rope_parameters"] == config["rope_parameters"]
    smelt.run("verify", ours, "--against", source)


def test_the_table_is_that_of_the_installed_libraries() -> None:
    table = ROOT / "crates" / "smelt-core" / "data" / "libraries.json"
    assert table.read_text() == library_table.text()
