"""Quantized checkpoints with one thing wrong: refused before a byte is written, with the names.

A scale that is misread loads and talks nonsense, so whatever contradicts is an error, not a guess.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import source_cases
from conftest import Smelt
from source_cases import Made
from source_table import BY_ID
from sources import Array, floats

LAYER = "model.layers.2."
DOWN = LAYER + "mlp.down_proj"
Q = LAYER + "self_attn.q_proj"
EXPERT = LAYER + "mlp.experts.1.down_proj"
Stored = dict[str, Array]
Config = dict[str, Any]


@dataclass(frozen=True)
class Fault:
    """One change to a sound checkpoint, and what the refusal has to name."""

    id: str
    case: str
    change: Callable[[Stored, Config], None]
    names: tuple[str, ...]
    in_data: bool = False
    """in a small tensor that says how others lie, which a plan from headers does not read"""

    def __str__(self) -> str:
        return self.id


def without(name: str) -> Callable[[Stored, Config], None]:
    return lambda stored, config: stored.__delitem__(name)


def put(name: str, array: Array) -> Callable[[Stored, Config], None]:
    return lambda stored, config: stored.__setitem__(name, array)


def reshaped(name: str, *shape: int) -> Callable[[Stored, Config], None]:
    """The same dtype in another shape."""

    def change(stored: Stored, config: Config) -> None:
        bits = stored[name].bits
        stored[name] = Array(stored[name].dtype, np.resize(bits, shape).astype(bits.dtype))

    return change


def retyped(name: str, dtype: str, kind: type) -> Callable[[Stored, Config], None]:
    """The same shape in another dtype."""

    def change(stored: Stored, config: Config) -> None:
        stored[name] = Array(dtype, np.ones(stored[name].shape, kind))

    return change


def set_bits(name: str, place: tuple[int, ...], value: float) -> Callable[[Stored, Config], None]:
    """One element's bits."""

    def change(stored: Stored, config: Config) -> None:
        bits = stored[name].bits.copy()
        bits[place] = value
        stored[name] = Array(stored[name].dtype, bits)

    return change


def configured(**keys: Any) -> Callable[[Stored, Config], None]:
    return lambda stored, config: config["quantization_config"].update(keys)


def weights_args(**keys: Any) -> Callable[[Stored, Config], None]:
    """Of compressed-tensors' one group."""

    def change(stored: Stored, config: Config) -> None:
        config["quantization_config"]["config_groups"]["group_0"]["weights"].update(keys)

    return change


def dense(name: str) -> Callable[[Stored, Config], None]:
    """The weight in BF16; its companions stay."""
    return lambda stored, config: stored.__setitem__(
        name, floats("BF16", np.zeros(stored[name].shape, np.float32))
    )


SCALE = f"{DOWN}.weight_scale_inv"
# A config contradicts every tensor; the first of them are named.
FIRST = "model.layers.0.mlp.down_proj"
FIRST_WEIGHT = f"{FIRST}.weight"
INT4_PAIR = (f"{FIRST}.weight_packed", f"{FIRST}.weight_scale")
WORDS_PAIR = (f"{FIRST}.qweight", f"{FIRST}.scales")
FAULTS = [
    # A companion is missing, or there is one too many.
    Fault("fp8-no-scale", "fp8-block-f32-llama", without(SCALE), (f"{DOWN}.weight",)),
    Fault(
        "fp8-spare-scale", "fp8-block-f32-llama", dense(f"{DOWN}.weight"), (f"{DOWN}.weight", SCALE)
    ),
    Fault("fp8-scale-alone", "fp8-block-f32-llama", without(f"{DOWN}.weight"), (SCALE,)),
    Fault(
        "fp8-two-scales",
        "fp8-block-f32-llama",
        put(f"{DOWN}.weight_scale", floats("F32", np.ones((1, 2)))),
        (f"{DOWN}.weight_scale",),
    ),
    Fault(
        "modelopt-no-scale",
        "fp8-tensor-modelopt",
        without(f"{DOWN}.weight_scale"),
        (f"{DOWN}.weight",),
    ),
    Fault(
        "mxfp4-no-scales",
        "mxfp4-gpt-oss",
        without(f"{LAYER}mlp.experts.down_proj_scales"),
        (f"{LAYER}mlp.experts.down_proj",),
    ),
    Fault(
        "mxfp4-no-blocks",
        "mxfp4-gpt-oss",
        without(f"{LAYER}mlp.experts.down_proj_blocks"),
        (f"{LAYER}mlp.experts.down_proj",),
    ),
    Fault("fp4-no-scale", "fp4-i8-experts", without(f"{EXPERT}.scale"), (f"{EXPERT}.weight",)),
    Fault("nvfp4-no-scale", "nvfp4-modelopt", without(f"{Q}.weight_scale"), (f"{Q}.weight",)),
    Fault(
        "nvfp4-no-second-scale", "nvfp4-modelopt", without(f"{Q}.weight_scale_2"), (f"{Q}.weight",)
    ),
    Fault(
        "nvfp4-no-global-scale", "nvfp4-ct", without(f"{Q}.weight_global_scale"), (f"{Q}.weight",)
    ),
    Fault("int4-no-scale", "int4-g32-llama", without(f"{Q}.weight_scale"), (f"{Q}.weight",)),
    Fault(
        "int4-no-zero-point",
        "int4-asymmetric-g32",
        without(f"{Q}.weight_zero_point"),
        (f"{Q}.weight",),
    ),
    Fault("awq-no-zeros", "awq", without(f"{Q}.qzeros"), (f"{Q}.q",)),
    Fault("awq-no-scales", "awq", without(f"{Q}.scales"), (f"{Q}.qweight",)),
    Fault("gptq-no-scales", "gptq-4", without(f"{Q}.scales"), (f"{Q}.qweight",)),
    # One of another shape or dtype.
    Fault(
        "fp8-scale-transposed",
        "fp8-block-f32-llama",
        reshaped(SCALE, 2, 1),
        (f"{DOWN}.weight", SCALE),
    ),
    Fault(
        "fp8-scale-too-long",
        "fp8-block-f32-llama",
        reshaped(SCALE, 1, 3),
        (f"{DOWN}.weight", SCALE),
    ),
    Fault("fp8-scale-integers", "fp8-block-f32-llama", retyped(SCALE, "I64", np.int64), (SCALE,)),
    Fault(
        "fp8-channel-too-short",
        "fp8-channel-ct-qwen3",
        reshaped(f"{Q}.weight_scale", 64, 1),
        (f"{Q}.weight_scale",),
    ),
    Fault(
        "fp8-fused-scale-2d",
        "fp8-fused-experts",
        reshaped("model.language_model.layers.2.mlp.experts.down_proj_scale_inv", 2, 1),
        ("layers.2.mlp.experts.down_proj",),
    ),
    Fault(
        "mxfp4-scales-short",
        "mxfp4-gpt-oss",
        reshaped(f"{LAYER}mlp.experts.down_proj_scales", 4, 128, 4),
        (f"{LAYER}mlp.experts.down_proj_scales",),
    ),
    Fault(
        "nvfp4-scale-short",
        "nvfp4-modelopt",
        reshaped(f"{Q}.weight_scale", 128, 4),
        (f"{Q}.weight_scale",),
    ),
    Fault(
        "nvfp4-scale-bf16",
        "nvfp4-modelopt",
        retyped(f"{Q}.weight_scale", "BF16", np.uint16),
        (f"{Q}.weight_scale",),
    ),
    Fault(
        "nvfp4-second-scale-long",
        "nvfp4-modelopt",
        put(f"{Q}.weight_scale_2", floats("F32", np.ones(3))),
        (f"{Q}.weight_scale_2",),
    ),
    Fault(
        "int4-scale-long",
        "int4-g32-llama",
        reshaped(f"{Q}.weight_scale", 128, 8),
        (f"{Q}.weight_scale",),
    ),
    Fault(
        "int4-wrong-shape",
        "int4-g32-llama",
        put(f"{Q}.weight_shape", Array("I32", np.array([128, 256], np.int32))),
        (f"{Q}.weight_shape",),
        in_data=True,
    ),
    Fault(
        "int4-packed-floats",
        "int4-g32-llama",
        retyped(f"{Q}.weight_packed", "F32", np.float32),
        (f"{Q}.weight_packed",),
    ),
    Fault("awq-zeros-short", "awq", reshaped(f"{Q}.qzeros", 2, 16), (f"{Q}.qzeros",)),
    Fault(
        "gptq-index-too-large",
        "gptq-4-act-order",
        set_bits(f"{Q}.g_idx", (5,), 4),
        (f"{Q}.g_idx",),
        in_data=True,
    ),
    Fault(
        "gptq-index-negative",
        "gptq-4-act-order",
        set_bits(f"{Q}.g_idx", (5,), -1),
        (f"{Q}.g_idx",),
        in_data=True,
    ),
    # The config says another thing than the tensors.
    Fault(
        "fp8-block-size-contradicts",
        "fp8-block-f32-llama",
        configured(weight_block_size=[64, 64]),
        ("weight_block_size", "64"),
    ),
    Fault(
        "int4-group-contradicts", "int4-g32-llama", weights_args(group_size=64), (*INT4_PAIR, "64")
    ),
    Fault("int4-bits-contradict", "int4-g32-llama", weights_args(num_bits=8), INT4_PAIR),
    Fault(
        "int4-symmetry-contradicts",
        "int4-asymmetric-g32",
        weights_args(symmetric=True),
        (FIRST_WEIGHT, "symmetric", "zero point"),
    ),
    Fault("awq-group-contradicts", "awq", configured(group_size=64), (*WORDS_PAIR, "64")),
    Fault("awq-bits-contradict", "awq", configured(bits=8), WORDS_PAIR),
    Fault("gptq-bits-contradict", "gptq-4", configured(bits=8), WORDS_PAIR),
    Fault(
        "fp8-e4m3-called-e5m2",
        "fp8-block-f32-llama",
        configured(fmt="e5m2"),
        (FIRST_WEIGHT, f"{FIRST}.weight_scale_inv", "E4M3", "e5m2"),
    ),
    Fault(
        "fp8-e5m2-called-e4m3",
        "fp8-e5m2-block",
        configured(fmt="e4m3"),
        (FIRST_WEIGHT, f"{FIRST}.weight_scale_inv", "E5M2", "e4m3"),
    ),
    Fault(
        "fp8-ct-block-contradicts",
        "fp8-block-ct",
        weights_args(block_structure=[64, 64]),
        (FIRST_WEIGHT, f"{FIRST}.weight_scale", "64"),
    ),
    Fault(
        "fp8-bits-contradict",
        "fp8-channel-ct-qwen3",
        weights_args(num_bits=4),
        (FIRST_WEIGHT, f"{FIRST}.weight_scale", "8 bits", "4 bits"),
    ),
    Fault(
        "mxfp4-group-contradicts",
        "mxfp4-ct",
        weights_args(group_size=16),
        (f"{FIRST}.weight_packed", f"{FIRST}.weight_scale", "16", "32"),
    ),
    Fault("gptq-no-order", "gptq-4-act-order", without(f"{Q}.g_idx"), (f"{Q}.qweight", "desc_act")),
    Fault(
        "int4-no-order",
        "int4-act-order",
        without(f"{Q}.weight_g_idx"),
        (f"{Q}.weight_packed", f"{Q}.weight_g_idx"),
    ),
    Fault(
        "unknown-method",
        "fp8-block-f32-llama",
        configured(quant_method="quark"),
        (FIRST_WEIGHT, "quark", "compressed-tensors", "fbgemm_fp8"),
    ),
]
# These lie in the data, which is read when the weight is.
BAD_DATA = [
    Fault(
        "e8m0-255",
        "fp8-block-e8m0-scale-inv",
        set_bits(f"{DOWN}.weight_scale_inv", (0, 1), 255),
        (f"{DOWN}.weight_scale_inv", "255"),
    ),
    Fault(
        "u8-255",
        "mxfp8-u8",
        set_bits(f"{EXPERT}.weight_scale_inv", (3, 1), 255),
        (f"{EXPERT}.weight_scale_inv", "255"),
    ),
    Fault(
        "mxfp4-255",
        "mxfp4-gpt-oss",
        set_bits(f"{LAYER}mlp.experts.down_proj_scales", (1, 7, 3), 255),
        (f"{LAYER}mlp.experts.down_proj_scales", "255"),
    ),
    Fault(
        "fp8-nan-code",
        "fp8-block-f32-llama",
        set_bits(f"{DOWN}.weight", (7, 9), 0x7F),
        (f"{DOWN}.weight",),
    ),
    Fault(
        "fp8-nan-scale", "fp8-block-f32-llama", set_bits(SCALE, (0, 1), np.nan), (f"{DOWN}.weight",)
    ),
    Fault(
        "fp8-infinite-scale",
        "fp8-block-f32-llama",
        set_bits(SCALE, (0, 1), np.inf),
        (f"{DOWN}.weight",),
    ),
    Fault(
        "nvfp4-zero-divisor",
        "nvfp4-ct",
        set_bits(f"{Q}.weight_global_scale", (0,), 0),
        (f"{Q}.weight",),
    ),
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Made]:
    """The checkpoints without a fault."""
    root, known = tmp_path_factory.mktemp("sound"), {}

    def get(name: str) -> Made:
        if name not in known:
            known[name] = source_cases.make(BY_ID[name], root / name)
        return known[name]

    return get


def changed(made: Made, change: Callable[[Stored, Config], None], out: Path) -> Path:
    stored = dict(made.stored)
    config = copy.deepcopy(source_cases.read_config(made.source))
    change(stored, config)
    source_cases.write(out, config, stored, made.case.side)
    return out


@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_refused_from_the_headers(
    fault: Fault, smelt: Smelt, sound: Callable[[str], Made], tmp_path: Path
) -> None:
    source, out = changed(sound(fault.case), fault.change, tmp_path / "source"), tmp_path / "out"
    said = smelt.run("quantize", source, "-o", out, code=1).stderr
    assert [name for name in fault.names if name not in said] == [], said
    assert not list(out.glob("*.safetensors"))
    if not fault.in_data:
        assert not out.exists()
        smelt.run("plan", source, code=1)


@pytest.mark.parametrize(
    "mode",
    [("--bits", "4"), ("--mode", "none"), ("--mode", "mxfp4"), ("--mode", "mxfp8")],
    ids=" ".join,
)
@pytest.mark.parametrize("fault", BAD_DATA, ids=str)
def test_refused_when_read(
    fault: Fault, mode: tuple[str, ...], smelt: Smelt, sound: Callable[[str], Made], tmp_path: Path
) -> None:
    """Moved bits are looked at like others. A run that stops takes back what it wrote."""
    source, out = changed(sound(fault.case), fault.change, tmp_path / "source"), tmp_path / "out"
    said = smelt.run("quantize", source, "-o", out, *mode, code=1).stderr
    assert [name for name in fault.names if name not in said] == [], said
    assert not list(out.glob("*.safetensors"))


def test_no_outlier_in_sound_checkpoints(
    smelt: Smelt, sound: Callable[[str], Made], tmp_path: Path
) -> None:
    for case in ("fp8-block-f32-llama", "fp8-tensor-modelopt", "nvfp4-modelopt", "int4-g32-llama"):
        smelt.run("quantize", sound(case).source, "-o", tmp_path / case, "--strict")


def times(name: str, factor: float) -> Callable[[Stored, Config], None]:
    """A scale that is misread by so much."""

    def change(stored: Stored, config: Config) -> None:
        bits = (stored[name].bits * factor).astype(stored[name].bits.dtype)
        stored[name] = Array(stored[name].dtype, bits)

    return change


@pytest.mark.parametrize("factor", [450_000.0, 1 / 450_000.0])
def test_a_misread_scale_is_an_outlier(
    factor: float, smelt: Smelt, sound: Callable[[str], Made], tmp_path: Path
) -> None:
    source = changed(sound("fp8-block-f32-llama"), times(SCALE, factor), tmp_path / "source")
    done = smelt.run("quantize", source, "-o", tmp_path / "out", "--json")
    assert f"{DOWN}.weight" in done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    told = [event["data"]["tensor"] for event in events if event["type"] == "outlier"]
    assert told == [f"{DOWN}.weight"]
    report = json.loads((tmp_path / "out" / "smelt-report.json").read_text())
    assert [outlier["tensor"] for outlier in report["outliers"]] == [f"{DOWN}.weight"]
    page = smelt.run("report", tmp_path / "out", "-o", "-").stdout
    card = (tmp_path / "out" / "README.md").read_text()
    notes = page.partition('class="notes"')[2].partition("</ul>")[0]
    assert [f"{DOWN}.weight" in shown for shown in (notes, card)] == [True, True]
    strict = smelt.run("quantize", source, "-o", tmp_path / "strict", "--strict", code=1).stderr
    assert f"{DOWN}.weight" in strict
    assert not (tmp_path / "strict" / "config.json").exists()
