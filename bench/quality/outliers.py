"""Give a checkpoint outlier channels that leave its function unchanged.

Small models have few of the outliers that make large ones hard to quantize. Powers of two that
cancel put some in, and no mantissa of a bf16 weight changes:

    norms    weight of a norm's channel * s, that column of every matrix which reads the norm / s
    values   row of v_proj * s, the columns of o_proj which read it / s, for each query head
    hidden   row of up_proj * s, that column of down_proj / s

    outliers.py SOURCE DESTINATION [--share 0.01] [--largest 5] [--seed 0]

For pre-norm models with llama's names, dense or with experts (llama, mistral, qwen2, qwen3,
qwen3_moe).
"""

import argparse
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

ATTENTION = r"self_attn\.[qkv]_proj"
MLP = r"mlp\.(gate|shared_expert_gate|(shared_expert\.|experts\.\d+\.)?(gate|up)_proj)"


@dataclass
class Draw:
    """How many channels become outliers, and how large."""

    share: float
    largest: int
    random: np.random.Generator

    def scales(self, channels: int) -> torch.Tensor:
        """1 for most channels, 2**1 to 2**largest for some, at least one."""
        scales = np.ones(channels, np.float32)
        count = max(1, round(channels * self.share))
        chosen = self.random.choice(channels, count, replace=False)
        scales[chosen] = 2.0 ** self.random.integers(1, self.largest + 1, count)
        return torch.from_numpy(scales)


class Checkpoint:
    """Tensors by name, and the file of each."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.tensors, self.files = directory, {}, {}
        self.config = json.loads((directory / "config.json").read_text())
        for path in sorted(directory.glob("*.safetensors")):
            with safe_open(path, "pt") as stored:
                for name in stored.keys():  # noqa: SIM118
                    self.tensors[name], self.files[name] = stored.get_tensor(name), path.name

    def layers(self) -> list[str]:
        found = (re.match(r"(.*layers\.\d+)\.", name) for name in self.tensors)
        return sorted({match[1] for match in found if match})

    def scale(self, name: str, scales: torch.Tensor, axis: int) -> None:
        """Multiply a tensor along an axis, if there is one of this name."""
        if (tensor := self.tensors.get(name)) is not None:
            shape = [1] * tensor.ndim
            shape[axis] = -1
            self.tensors[name] = (tensor.float() * scales.view(shape)).to(tensor.dtype)

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True)
        for file in set(self.files.values()):
            kept = {n: t.contiguous() for n, t in self.tensors.items() if self.files[n] == file}
            save_file(kept, directory / file, metadata={"format": "pt"})
        for path in self.directory.iterdir():
            if path.is_file() and path.suffix != ".safetensors":
                shutil.copyfile(path, directory / path.name)


def norm(model: Checkpoint, draw: Draw, weight: str, readers: str) -> None:
    scales = draw.scales(model.tensors[weight].numel())
    model.scale(weight, scales, 0)
    layer = weight.rsplit(".", 2)[0]
    pattern = re.compile(rf"{re.escape(layer)}\.{readers}\.weight")
    for name in filter(pattern.fullmatch, list(model.tensors)):
        model.scale(name, 1 / scales, -1)


def values(model: Checkpoint, draw: Draw, attention: str) -> None:
    config = model.config
    heads, shared = config["num_attention_heads"], config["num_key_value_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    scales = draw.scales(shared * width)
    model.scale(f"{attention}.v_proj.weight", scales, 0)
    model.scale(f"{attention}.v_proj.bias", scales, 0)
    each = scales.view(shared, 1, width).expand(shared, heads // shared, width).reshape(-1)
    model.scale(f"{attention}.o_proj.weight", 1 / each, -1)


def hidden(model: Checkpoint, draw: Draw, mlp: str) -> None:
    ups = [n for n in model.tensors if n.startswith(f"{mlp}.") and n.endswith("up_proj.weight")]
    for up in ups:
        scales = draw.scales(model.tensors[up].shape[0])
        model.scale(up, scales, 0)
        model.scale(up.replace("up_proj.weight", "up_proj.bias"), scales, 0)
        model.scale(up.replace("up_proj", "down_proj"), 1 / scales, -1)


def inject(source: Path, destination: Path, draw: Draw) -> None:
    """Write a checkpoint with outliers."""
    model = Checkpoint(source)
    for layer in model.layers():
        norm(model, draw, f"{layer}.input_layernorm.weight", ATTENTION)
        norm(model, draw, f"{layer}.post_attention_layernorm.weight", MLP)
        values(model, draw, f"{layer}.self_attn")
        hidden(model, draw, f"{layer}.mlp")
    model.save(destination)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--share", type=float, default=0.01, help="share of channels")
    parser.add_argument("--largest", type=int, default=5, help="largest exponent of two")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    draw = Draw(args.share, args.largest, np.random.default_rng(args.seed))
    inject(args.source, args.destination, draw)


if __name__ == "__main__":
    main()
