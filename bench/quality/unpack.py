"""Float weights of an MLX model as its files store them: own code for the packed formats, so that
what is measured is the bytes on disk and not a library's idea of them.

A packed row is one little-endian bit stream of codes. Affine: x = scale * code + bias, per group.
mxfp4, mxfp8: 2**(scale - 127) * float; nvfp4: e4m3(scale) * float. See `Spec`.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
FP4 = np.concatenate([E2M1, -E2M1])
GROUPS = {"affine": 64, "mxfp4": 32, "mxfp8": 32, "nvfp4": 16}


@dataclass(frozen=True)
class Spec:
    """How one module is stored."""

    bits: int
    group_size: int
    mode: str


def e4m3() -> np.ndarray:
    """All 256 values of the 8-bit float with 4 bits of exponent and no infinities."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent - 7.0)
    small = mantissa / 8 * 2.0**-6
    return (np.where(code & 128, -1, 1) * np.where(exponent == 0, small, normal)).astype(np.float32)


FP8 = e4m3()


def codes(packed: torch.Tensor, bits: int) -> np.ndarray:
    """Integer codes of packed rows, shape [..., elements of a row]."""
    octets = packed.contiguous().numpy().view(np.uint8)
    if bits == 8:
        return octets
    stream = np.unpackbits(octets, axis=-1, bitorder="little")
    split = stream.reshape(*octets.shape[:-1], -1, bits)
    return (split << np.arange(bits, dtype=np.uint8)).sum(-1, dtype=np.uint8)


def dequantize(
    packed: torch.Tensor, scales: torch.Tensor, biases: torch.Tensor | None, spec: Spec
) -> torch.Tensor:
    """Float32 weights of one stored module."""
    code = codes(packed, spec.bits)
    grouped = code.reshape(*code.shape[:-1], -1, spec.group_size)
    if spec.mode == "affine":
        assert biases is not None, "affine modules have biases"
        scale, bias = scales.float().numpy()[..., None], biases.float().numpy()[..., None]
        values = grouped.astype(np.float32) * scale + bias
    else:
        stored = scales.numpy()
        scale = FP8[stored] if spec.mode == "nvfp4" else 2.0 ** (stored.astype(np.float32) - 127)
        values = (FP4 if spec.bits == 4 else FP8)[grouped] * scale[..., None]
    return torch.from_numpy(values.reshape(code.shape).astype(np.float32))


def spec_of(config: dict, path: str) -> Spec:
    """A module's entry in config.json, completed by the model's defaults."""
    default = config.get("quantization") or config.get("quantization_config") or {}
    own = default.get(path)
    own = own if isinstance(own, dict) else default
    mode = own.get("mode", "affine")
    return Spec(own["bits"], own.get("group_size") or GROUPS[mode], mode)


def files(directory: Path) -> list[Path]:
    """The files with weights."""
    return sorted(directory.glob("model*.safetensors"))


def size(directory: Path) -> int:
    """Bytes of the weight files."""
    return sum(path.stat().st_size for path in files(directory))


def load(directory: Path) -> dict[str, torch.Tensor]:
    """Every tensor of an MLX model in float, by MLX's names."""
    config = json.loads((directory / "config.json").read_text())
    raw: dict[str, torch.Tensor] = {}
    for path in files(directory):
        with safe_open(path, "pt") as stored:
            raw |= {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    modules = {name.removesuffix(".scales") for name in raw if name.endswith(".scales")}
    out = {}
    for name, tensor in raw.items():
        module, _, leaf = name.rpartition(".")
        if module not in modules:
            out[name] = tensor.float()
        elif leaf == "weight":
            parts = raw[f"{module}.scales"], raw.get(f"{module}.biases")
            out[name] = dequantize(tensor, *parts, spec_of(config, module))
        elif leaf == "bias":
            out[name] = tensor.float()
    return out
