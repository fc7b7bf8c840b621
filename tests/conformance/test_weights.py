"""`--mode none` writes the weights that the library makes of a checkpoint, bit for bit.

The layouts of all manifests are compared elsewhere; here real weights go through every kind of
transform: stacks, transposes, splits of fused and latent projections, shifted norms, folded factors.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import Variant, manifest_tensors, write_json, write_tensors
from compare import Stored, read_tensors
from conftest import Workspace
from record import EXPECTED, MANIFESTS

CASES = [
    (name, library)
    for name in [
        "deepseek_v3_mtp",
        "falcon_h1",
        "gemma4_moe",
        "gemma4_ple",
        "glm_moe_dsa",
        "gpt2",
        "gpt_oss_bf16",
        "granitemoehybrid_dense",
        "jamba",
        "kimi_linear",
        "llama4_text",
        "mamba2",
        "minimax_m2",
        "mistral3",
        "nemotron_h",
        "qwen3_5_moe_fused",
        "qwen3_5_mtp",
        "qwen3_vl_moe",
        "siglip",
    ]
    for library in ("mlx-lm", "mlx-vlm")
    if "fingerprint" in json.loads(EXPECTED.read_text()).get(name, {}).get(library, {})
]

# A process of its own: one that has loaded a library has its state. The parameters are saved as the
# library holds them after its strict load.
LOAD = """
import sys
from pathlib import Path
import mlx.core as mx
from mlx.utils import tree_flatten
library, source, target = sys.argv[1:]
if library == "mlx-lm":
    from mlx_lm.utils import load_model
    model, _ = load_model(Path(source), lazy=True)
else:
    from mlx_vlm.utils import load_model
    model = load_model(Path(source), lazy=True)
mx.save_safetensors(target, dict(tree_flatten(model.parameters())))
"""


@pytest.mark.parametrize(("name", "library"), CASES, ids=[f"{n}-{lib}" for n, lib in CASES])
def test_none_is_what_the_library_loads(
    name: str, library: str, workspace: Workspace, tmp_path: Path
) -> None:
    manifest = json.loads((MANIFESTS / f"{name}.json").read_text())
    source = tmp_path / "source"
    source.mkdir()
    write_json(source / "config.json", manifest["config"])
    write_tensors(source, [manifest_tensors(manifest, Variant())])
    out = tmp_path / "out"
    options = ["--mode", "none", "--target", library]
    workspace.smelt.run("quantize", source, "-o", out, *options)
    ours, expected = read_tensors(out), loaded(source, library, tmp_path / "theirs")
    # What the library computes itself (rotary tables and the like) is no parameter of a checkpoint.
    assert ours.keys() <= expected.keys()
    differ = [key for key, tensor in ours.items() if tensor != expected[key]]
    assert not differ, f"{len(differ)} of {len(ours)} differ: {differ[:5]}"
    # It loads, and loading changes nothing: the result is what the library's sanitize leaves alone.
    assert loaded(out, library, tmp_path / "again") == expected


def loaded(checkpoint: Path, library: str, folder: Path) -> dict[str, Stored]:
    """The parameters of the library's model after its strict load."""
    folder.mkdir()
    command = [sys.executable, "-c", LOAD, library, str(checkpoint), str(folder / "model.safetensors")]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return read_tensors(folder)
