"""What stock mlx-lm and mlx-vlm hold after their strict load of a checkpoint, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from compare import Stored
from mlx.utils import tree_flatten

NAMES = {
    mx.bfloat16: "BF16",
    mx.float16: "F16",
    mx.float32: "F32",
    mx.uint8: "U8",
    mx.uint32: "U32",
    mx.int32: "I32",
    mx.int64: "I64",
}
PROMPT = [5, 17, 101, 33, 64, 7, 250, 19]


def load(checkpoint: Path, library: str) -> Any:
    """The library's model, strictly loaded."""
    if library == "mlx-lm":
        from mlx_lm.utils import load_model

        return load_model(checkpoint, lazy=True)[0]
    from mlx_vlm.utils import load_model

    return load_model(checkpoint, lazy=True)


def parameters(checkpoint: Path, library: str) -> dict[str, Stored]:
    """All parameters, as the bytes that a file would hold."""
    return {
        name: stored(array) for name, array in tree_flatten(load(checkpoint, library).parameters())
    }


def stored(array: mx.array) -> Stored:
    bits = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return Stored(NAMES[array.dtype], tuple(array.shape), np.array(bits).tobytes())


def logits(checkpoint: Path, library: str) -> mx.array:
    """Of a short prompt, in f32: mlx on a CPU multiplies dense experts in f32 only."""
    model = load(checkpoint, library)
    model = getattr(model, "language_model", model) if library == "mlx-vlm" else model
    model.set_dtype(mx.float32)
    out = model(mx.array([PROMPT]))
    return getattr(out, "logits", out).astype(mx.float32)
