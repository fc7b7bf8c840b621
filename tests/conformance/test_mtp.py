"""`--mtp separate`: what predicts further tokens lies beside a model that loads as ever.

Values are compared with a dequantization of a few lines of numpy; where mlx-vlm has a drafter for
such layers, it loads the folder as it is and holds what it makes of the source itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import library
import mlx.core as mx
import numpy as np
import pytest
from checkpoints import Variant, manifest_tensors, write_json, write_tensors
from compare import Stored, assert_same_tensors, read_json, read_tensors
from conftest import Smelt
from loaded import floats
from pairs import MANIFESTS

FUSED = "qwen3_5_moe_fused"
MODELS = {
    "deepseek_v3_mtp": "eh_proj",
    "glm4_moe_mtp": "eh_proj",
    "qwen3_5_mtp": "mtp.fc",
    "qwen3_next_mtp": "mtp.fc",
    FUSED: "mtp.fc",
}
"""each with the projection that joins a token and a hidden state"""
DRAFTERS = ["qwen3_5_mtp", FUSED]
DENSE = ("eh_proj", "fc", "gate", "shared_expert_gate", "embed_tokens", "head")


def manifest_of(name: str) -> dict[str, Any]:
    """The manifest; one with fused experts gets a layer that predicts."""
    manifest = json.loads((MANIFESTS / f"{name}.json").read_text())
    if name == FUSED:
        theirs = json.loads((MANIFESTS / "qwen3_5_mtp.json").read_text())["tensors"]
        own = {form: shape for form, shape in theirs.items() if form.startswith("mtp.")}
        text = manifest["config"]["text_config"]
        text["mtp_num_hidden_layers"] = 1
        experts, size = text["num_experts"], text["moe_intermediate_size"]
        hidden, shared = text["hidden_size"], text["shared_expert_intermediate_size"]
        mlp = "mtp.layers.0.mlp"
        own = {form: shape for form, shape in own.items() if ".mlp." not in form}
        own |= {
            f"{mlp}.gate.weight": [experts, hidden],
            f"{mlp}.experts.gate_up_proj": [experts, 2 * size, hidden],
            f"{mlp}.experts.down_proj": [experts, hidden, size],
            f"{mlp}.shared_expert.gate_proj.weight": [shared, hidden],
            f"{mlp}.shared_expert.up_proj.weight": [shared, hidden],
            f"{mlp}.shared_expert.down_proj.weight": [hidden, shared],
            f"{mlp}.shared_expert_gate.weight": [1, hidden],
        }
        manifest["tensors"] |= own
    return manifest


@pytest.fixture(scope="module", params=MODELS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    manifest = manifest_of(request.param)
    out = tmp_path_factory.mktemp("source") / request.param
    out.mkdir()
    write_json(out / "config.json", manifest["config"])
    write_tensors(out, [manifest_tensors(manifest, Variant())])
    return out


def target_of(source: Path) -> list[str]:
    config = read_json(source / "config.json")
    return ["mlx-lm", "mlx-vlm"] if config["model_type"] != "qwen3_5_moe" else ["mlx-vlm", "mlx-lm"]


def predicting(source: Path) -> dict[str, Stored]:
    """The tensors of the layer that predicts: DeepSeek's and GLM's is the one behind the last."""
    layers = read_json(source / "config.json").get("num_hidden_layers")
    tensors = read_tensors(source)
    last = ("mtp.", *(f"model.layers.{layer}." for layer in (layers, 61)))
    return {name: tensor for name, tensor in tensors.items() if name.startswith(last)}


def modules_of(tensors: dict[str, Stored]) -> dict[str, np.ndarray]:
    """The weights by the names that they have when experts are stacked and cut."""
    found: dict[str, np.ndarray] = {}
    stacks: dict[str, dict[int, np.ndarray]] = {}
    for name, tensor in tensors.items():
        values = floats(tensor)
        before, _, after = name.partition(".mlp.experts.")
        if not after:
            found[name] = values
        elif after == "gate_up_proj":
            gate, up = np.split(values, 2, axis=-2)
            found[f"{before}.mlp.switch_mlp.gate_proj.weight"] = gate
            found[f"{before}.mlp.switch_mlp.up_proj.weight"] = up
        elif after == "down_proj":
            found[f"{before}.mlp.switch_mlp.down_proj.weight"] = values
        else:
            expert, _, rest = after.partition(".")
            stacks.setdefault(f"{before}.mlp.switch_mlp.{rest}", {})[int(expert)] = values
    stacked = {name: np.stack([each[i] for i in range(len(each))]) for name, each in stacks.items()}
    return found | stacked


def unpacked(tensors: dict[str, Stored], module: str) -> tuple[np.ndarray, np.ndarray]:
    """Codes times scales plus biases, and for each weight the largest error that this may have."""
    weight, scales = tensors[f"{module}.weight"], floats(tensors[f"{module}.scales"])
    biases = floats(tensors[f"{module}.biases"])
    codes = np.frombuffer(weight.data, np.uint8).reshape(*scales.shape, 64)
    scales, biases = scales[..., None], biases[..., None]
    values = codes * scales + biases
    # Half a step, and what bf16 loses of scale and bias over 255 steps.
    error = np.abs(scales) * (0.5 + 255 / 256) + np.abs(biases) / 128
    shape = (*scales.shape[:-2], -1)
    return values.reshape(shape), np.broadcast_to(error, values.shape).reshape(shape)


def test_stock_libraries_load_the_model(source: Path, tmp_path: Path, smelt: Smelt) -> None:
    """Strictly, and with the same parameters as without what lies beside it."""
    for name in target_of(source):
        folder = tmp_path / name
        dropped = smelt.quantize(source, folder / "drop", "--target", name)
        ours = smelt.quantize(source, folder / "ours", "--target", name, "--mtp", "separate")
        assert_same_tensors(ours, dropped)
        assert (ours / "config.json").read_text() == (dropped / "config.json").read_text()
        held = library.parameters(library.load(name, ours)[0])
        assert not library.differing(library.stored(ours), held)
        assert sorted(path.name for path in (ours / "mtp").iterdir()) == [
            "config.json",
            "model.safetensors",
            "model.safetensors.index.json",
        ]


def test_what_lies_beside_is_the_source_in_eight_bits(
    source: Path, tmp_path: Path, smelt: Smelt
) -> None:
    ours = smelt.quantize(source, tmp_path / "ours", "--bits", "3", "--mtp", "separate")
    stored, theirs = read_tensors(ours / "mtp"), predicting(source)
    weights = modules_of(theirs)
    packed = {name.removesuffix(".scales") for name in stored if name.endswith(".scales")}
    assert any("switch_mlp" in module for module in packed) or source.name == "qwen3_5_mtp"
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if module in packed:
            assert module.rpartition(".")[2] not in DENSE, name
            values, error = unpacked(stored, module)
            assert (np.abs(values - weight) <= error).all(), name
        else:
            assert stored[name] == theirs[name], name
    fusion = [name for name in weights if name.endswith(f"{MODELS[source.name]}.weight")]
    assert len(fusion) == 1
    assert stored[fusion[0]] == theirs[fusion[0]]
    companions = {f"{module}.{part}" for module in packed for part in ("scales", "biases")}
    assert set(stored) == set(weights) | companions
    block = read_json(ours / "mtp" / "config.json")["quantization"]
    assert block == {"group_size": 64, "bits": 8, "mode": "affine"}


def test_verify_accepts_it(source: Path, tmp_path: Path, smelt: Smelt) -> None:
    ours = smelt.quantize(source, tmp_path / "ours", "--mtp", "separate")
    smelt.run("verify", ours, "--against", source)
    path = ours / "mtp" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert "not those that were written" in smelt.run("verify", ours, code=1).stdout


@pytest.mark.parametrize("source", DRAFTERS, indirect=True)
@pytest.mark.parametrize("mode", ["none", "affine"])
def test_the_drafter_of_mlx_vlm_loads_it(
    source: Path, mode: str, tmp_path: Path, smelt: Smelt
) -> None:
    """Strictly; unquantized it holds what the library makes of the source."""
    from mlx_vlm.speculative.drafters import load_drafter

    mx.set_default_device(mx.cpu)
    options = ("--target", "mlx-vlm", "--mtp", "separate", "--mode", mode)
    ours = smelt.quantize(source, tmp_path / "ours", *options)
    draft, kind = load_drafter(str(ours / "mtp"))
    assert kind == "mtp"
    held = library.parameters(draft)
    theirs = library.parameters(load_drafter(str(source))[0])
    if mode == "none":
        assert not library.not_same(held, theirs)
    else:
        assert {name for name in held if name.endswith(".scales")}
        assert theirs.keys() <= held.keys()
        norms = [name for name in theirs if name.endswith("norm.weight")]
        assert norms
        assert all(mx.array_equal(held[name], theirs[name]).item() for name in norms)
