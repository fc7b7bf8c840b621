"""Block-FP8 twins of the benchmark's models, and models with the shapes of DeepSeek-V3 and Kimi K2.

fp8.py twin llama OUT             every linear weight in FP8 with 128 x 128 scales, 0.6 GB
fp8.py deepseek OUT [--layers N]  names, shapes and scales of DeepSeek-V3; the weights are holes
fp8.py kimi OUT                   names and shapes of Kimi K2, all holes: for plans
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import shapes  # first: it makes `checkpoints` importable
import sparse_moe
from checkpoints import (
    Tensor,
    Variant,
    hole,
    manifest_tensors,
    weights,
    write_checkpoint,
    write_json,
    write_tensors,
    write_tokenizer,
)
from make_models import MANIFESTS

BLOCK = 128
CONFIG = {
    "quant_method": "fp8",
    "fmt": "e4m3",
    "activation_scheme": "dynamic",
    "weight_block_size": [BLOCK, BLOCK],
}
DENSE = ("embed_tokens", "lm_head", "norm", "mlp.gate.weight", "correction_bias")


def twin(manifest: dict[str, Any]) -> dict[str, Any]:
    """The same model with its linear weights in FP8, each with a scale for a block."""
    tensors: dict[str, Any] = {}
    for name, shape in manifest["tensors"].items():
        if any(part in name for part in DENSE):
            tensors[name] = shape
        else:
            tensors[name] = ["F8_E4M3", shape]
            tensors[f"{name}_scale_inv"] = ["F32", [-(-size // BLOCK) for size in shape]]
    config = manifest["config"] | {"quantization_config": CONFIG}
    return {"config": config, "tensors": tensors}


def fill(tensor: Tensor) -> np.ndarray:
    """Values of the size of weights, quick to draw."""
    rng = np.random.default_rng(len(tensor.name) * 1009 + sum(tensor.name.encode()))
    if tensor.dtype == "F8_E4M3":
        # 0x40 to 0x77: magnitudes 2 to 240, which times the scale are those of weights.
        code = rng.integers(0x40, 0x78, tensor.shape, dtype=np.uint8)
        return code | (rng.integers(0, 2, tensor.shape, dtype=np.uint8) << 7)
    if tensor.name.endswith("_scale_inv"):
        return rng.uniform(1e-4, 3e-4, tensor.shape).astype(np.float32)
    return weights(tensor)


def scales_alone(tensor: Tensor) -> np.ndarray | None:
    """Scales are data, all else a hole."""
    return fill(tensor) if tensor.name.endswith("_scale_inv") else None


def write_latent(out: Path, dims: shapes.Latent, fill: Callable[[Tensor], Any]) -> None:
    manifest = twin(shapes.latent(dims))
    tensors = sparse_moe.in_layer_order(manifest_tensors(manifest, Variant()))
    shards = sparse_moe.split(tensors)
    out.mkdir(parents=True)
    write_json(out / "config.json", manifest["config"] | {"torch_dtype": "bfloat16"})
    write_tokenizer(out, manifest["config"]["eos_token_id"])
    write_tensors(out, shards, fill=fill)
    total = sum(t.nbytes for t in tensors)
    print(f"{len(tensors)} tensors, {total / 1e9:.0f} GB in {len(shards)} sparse shards")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    models = commands.add_parser("twin")
    models.add_argument("model", choices=MANIFESTS)
    models.add_argument("out", type=Path)
    deepseek = commands.add_parser("deepseek")
    deepseek.add_argument("out", type=Path)
    deepseek.add_argument("--layers", type=int, default=shapes.DEEPSEEK_V3.layers)
    commands.add_parser("kimi").add_argument("out", type=Path)
    args = parser.parse_args()
    if args.command == "twin":
        write_checkpoint(args.out, twin(MANIFESTS[args.model]), Variant(shards=2), fill)
    elif args.command == "kimi":
        write_latent(args.out, shapes.KIMI_K2, hole)
    else:
        dims = dataclasses.replace(shapes.DEEPSEEK_V3, layers=args.layers)
        write_latent(args.out, dims, scales_alone)


if __name__ == "__main__":
    main()
