"""A model type that the installed library has and smelt's families do not: tomorrow's model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from compare import assert_same_tensors
from conftest import Smelt, Workspace

PATCH = "import mlx_lm.models\nmlx_lm.models.__path__.append({folder!r})\n"
MODEL = "from mlx_lm.models.llama import Model, ModelArgs\n"
LOADS = """
import sys
import mlx.core as mx
from pathlib import Path
from mlx_lm.utils import load_model
model, config = load_model(Path(sys.argv[1]), lazy=True)
assert model.__class__.__module__ == "mlx_lm.models.llama" and config["model_type"] == "tomorrow"
print(model(mx.array([[5, 17, 1]])).shape)
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python whose mlx-lm has one model more."""
    folder = tmp_path / "site"
    (folder / "models").mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(PATCH.format(folder=str(folder / "models")))
    (folder / "models" / "tomorrow.py").write_text(MODEL)
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    return script


def test_tomorrows_model_in_one_command(
    python: Path, workspace: Workspace, smelt: Smelt, tmp_path: Path
) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    shutil.copytree(workspace.source("llama"), source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"model_type": "tomorrow"}))
    refused = smelt.run("quantize", source, "-o", out, code=1)
    assert "no family for the model type `tomorrow`" in refused.stderr
    assert "--discover" in refused.stderr
    smelt.run("quantize", source, "-o", out, "--discover", "--python", python)
    loaded = subprocess.run(
        [python, "-c", LOADS, out], capture_output=True, text=True, check=True
    ).stdout
    assert loaded.split() == ["(1,", "3,", f"{config['vocab_size']})"]
    ours = tmp_path / "ours"
    smelt.run("quantize", workspace.source("llama"), "-o", ours)
    assert_same_tensors(out, ours)
