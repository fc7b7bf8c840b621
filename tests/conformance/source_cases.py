"""Checkpoints in every storage format, each beside the plain checkpoint that it stands for.

Names, shapes, dtypes and configs come from manifests of published checkpoints (`tests/manifests`).
Where there is one of a quantized checkpoint, the plain one is derived from it and has to encode to
exactly what the manifest lists; other formats are put on a plain model.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import (
    CONFIG_DTYPE,
    Tensor,
    Variant,
    expand,
    manifest_tensors,
    weights,
    write_json,
    write_tokenizer,
)
from number_formats import F32
from pairs import MANIFESTS
from sources import Array, Encoded, Encoder, floats, write_arrays

Shape = tuple[int, ...]

COMPANION = re.compile(
    r"(_scale_inv|\.scale|\.weight_scale|\.weight_scale_2|\.input_scale|\.activation_scale|\.weight_shape"
    r"|\.weight_global_scale|\.input_global_scale|\.qzeros|\.scales|_scales)$"
)
DENSE = re.compile(
    r"embed|lm_head|norm|\.gate\.|router|visual|vision|conv1d|shared_expert_gate|eh_proj"
)
GPT_OSS_BIAS = "proj_bias"


@dataclass(frozen=True)
class Case:
    """A checkpoint in one storage format."""

    id: str
    manifest: str
    encoder: Encoder
    words: tuple[str, ...]
    """what `smelt inspect` has to say of it"""
    experts: Encoder | None = None
    """for routed experts, where they are stored in another way"""
    dtype: str = "BF16"
    library: str = "mlx-lm"
    side: dict[str, Any] = field(default_factory=dict)
    """side files, JSON"""
    only: str = ""
    """a pattern of the modules that are quantized, on a plain manifest"""
    config_in: str = ""
    """the block of config.json that holds `quantization_config`"""
    text_config: dict[str, Any] = field(default_factory=dict)
    """keys to change there"""
    extra: dict[str, tuple[str, Shape]] = field(default_factory=dict)
    """further tensors, which have no meaning for a weight: name, with ranges, dtype and shape"""

    def __str__(self) -> str:
        return self.id

    def encoder_of(self, name: str) -> Encoder:
        return self.experts if self.experts and ".experts." in name else self.encoder


@dataclass(frozen=True)
class Made:
    """A case on the disk."""

    case: Case
    source: Path
    """as it is published"""
    plain: Path
    """the same model in floats, as the library takes it"""
    twin: Path
    """the same, as it is published in floats; for all but gpt-oss that is `plain`"""
    stored: dict[str, Array]
    encoded: dict[str, Encoded]
    """by the name of the plain weight"""


def manifest(name: str) -> dict[str, Any]:
    if name == "wide":
        return wide()
    return json.loads((MANIFESTS / f"{name}.json").read_text())


def wide() -> dict[str, Any]:
    """llama in one layer, larger than a block of a run in little memory, in odd multiples of 64."""
    small = manifest("llama")
    config = small["config"] | {
        "hidden_size": 832,
        "intermediate_size": 4160,
        "num_hidden_layers": 1,
    }
    sizes = {128: 832, 256: 4160}
    tensors = {
        name.replace("{0-3}", "0"): [sizes.get(size, size) for size in shape]
        for name, shape in small["tensors"].items()
    }
    tensors["model.layers.0.self_attn.q_proj.weight"] = [128, 832]
    tensors["model.layers.0.self_attn.o_proj.weight"] = [832, 128]
    return {"config": config, "tensors": tensors}


def stored_tensors(name: str) -> Iterator[tuple[str, str, Shape]]:
    """What a manifest lists: name, dtype, shape."""
    for tensor in manifest_tensors(manifest(name), Variant()):
        yield tensor.name, tensor.dtype, tensor.shape


def plain_tensor(name: str, dtype: str, shape: Shape) -> tuple[str, Shape] | None:
    """The weight that a packed tensor stands for."""
    if name.endswith("_blocks"):
        experts, rows, groups, _ = shape
        return name.removesuffix("_blocks"), (experts, groups * 32, rows)
    if name.endswith(".qweight"):
        return name.replace(".qweight", ".weight"), (shape[1] * 8, shape[0])
    if name.endswith(".weight_packed"):
        factor = 8 if dtype == "I32" else 2
        return name.replace("_packed", ""), (*shape[:-1], shape[-1] * factor)
    if dtype in ("U8", "I8"):
        return name, (*shape[:-1], shape[-1] * 2)
    return (name, shape) if dtype.startswith("F8_E") else None


def is_quantized(case: Case, name: str, shape: Shape) -> bool:
    """On a plain manifest: which weights the publisher would have quantized."""
    if is_packed(case.manifest):
        return False
    if case.only:
        return re.search(case.only, name) is not None
    return name.endswith(".weight") and len(shape) == 2 and not DENSE.search(name)


@functools.cache
def is_packed(name: str) -> bool:
    """Whether a manifest is of a quantized checkpoint: then it says itself what is quantized."""
    return "quantization_config" in manifest(name)["config"]


def plain_tensors(case: Case) -> Iterator[tuple[str, str, Shape, bool]]:
    """Name, dtype and shape of the plain model's tensors, and whether they are quantized."""
    for name, dtype, shape in stored_tensors(case.manifest):
        if COMPANION.search(name):
            continue
        if plain := plain_tensor(name, dtype, shape):
            yield *(plain[0], case.dtype, plain[1]), True
        else:
            own = case.dtype if dtype in ("BF16", "F16") else dtype
            yield name, own, shape, is_quantized(case, name, shape)


def values_of(name: str, dtype: str, shape: Shape) -> np.ndarray:
    """The weight that is encoded: as in all tests, drawn from the name."""
    return weights(Tensor(name, "F32", shape)).astype(F32)


def make(case: Case, folder: Path) -> Made:
    """Write both checkpoints."""
    stored, plain, encoded = {}, {}, {}
    for name, dtype, shape, quantized in plain_tensors(case):
        if quantized:
            encoded[name] = case.encoder_of(name).encode(name, values_of(name, dtype, shape))
            stored |= encoded[name].stored
            plain[name] = floats(case.dtype, encoded[name].decoded)
        else:
            stored[name] = plain[name] = dense(name, dtype, shape)
    for template, (dtype, shape) in case.extra.items():
        stored |= {name: floats(dtype, np.full(shape, 0.25)) for name in expand(template)}
    config = manifest(case.manifest)["config"]
    written = folder / "source", folder / "plain"
    write(written[0], quantized_config(case, config), stored, case.side)
    floating = plain_config(case, config)
    write(written[1], floating, library_names(case, plain), {})
    twin = written[1]
    if case.manifest == "gpt_oss":
        twin = folder / "twin"
        write(twin, floating, plain, {})
    return Made(case, *written, twin, stored, encoded)


def dense(name: str, dtype: str, shape: Shape) -> Array:
    if dtype.startswith("I"):
        return Array(dtype, np.zeros(shape, np.int64 if dtype == "I64" else np.int32))
    return Array(dtype, weights(Tensor(name, dtype, shape)))


def plain_config(case: Case, config: dict[str, Any]) -> dict[str, Any]:
    config = {k: v for k, v in config.items() if k != "quantization_config"}
    if case.text_config:
        config["text_config"] = config["text_config"] | case.text_config
    return config | {"dtype": CONFIG_DTYPE[case.dtype], "torch_dtype": CONFIG_DTYPE[case.dtype]}


def quantized_config(case: Case, config: dict[str, Any]) -> dict[str, Any]:
    config, block = plain_config(case, config), case.encoder.config
    if not block:
        return config
    if case.config_in:
        inner = config[case.config_in] | {"quantization_config": block}
        return config | {case.config_in: inner}
    return config | {"quantization_config": block}


def read_config(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / "config.json").read_text())


def write(
    out: Path, config: dict[str, Any], arrays: dict[str, Array], side: dict[str, Any]
) -> None:
    out.mkdir(parents=True)
    write_json(out / "config.json", config)
    for name, value in side.items():
        write_json(out / name, value)
    write_tokenizer(out, config.get("eos_token_id"))
    write_arrays(out / "model.safetensors", arrays)


def library_names(case: Case, plain: dict[str, Array]) -> dict[str, Array]:
    """gpt-oss in floats has a layout that no library takes; it is given the library's own."""
    if case.manifest != "gpt_oss":
        return plain
    named = {}
    for name, array in plain.items():
        bits = array.bits
        if name.endswith(GPT_OSS_BIAS):
            bits = bits[..., None, :]  # [experts, 1, out], as a weight of [experts, in, out]
        for new, part in gpt_oss_parts(name, bits):
            named[new] = Array(array.dtype, part[..., 0] if name.endswith(GPT_OSS_BIAS) else part)
    return named


def gpt_oss_parts(name: str, bits: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Fused, transposed experts as the library's projections; gate and up take turns."""
    base, suffix = name.removesuffix("_bias"), ".bias" if name.endswith(GPT_OSS_BIAS) else ".weight"
    if base.endswith("experts.gate_up_proj"):
        rows = np.swapaxes(bits, 1, 2)
        yield base.replace("gate_up", "gate") + suffix, rows[:, 0::2]
        yield base.replace("gate_up", "up") + suffix, rows[:, 1::2]
    elif base.endswith("experts.down_proj"):
        yield base + suffix, np.swapaxes(bits, 1, 2)
    else:
        yield name, bits
