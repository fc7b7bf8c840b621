"""What the stock libraries make of a checkpoint, and how that compares with what smelt wrote.

Each comparison runs in a process of its own, because one that has loaded a library has its state;
the processes are forked from one that has imported the libraries already, which takes seconds.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import mlx.core as mx
    from mlx import nn

TOKENS = [[5, 17, 1, 33, 2, 7, 50, 19]]

UNITS = 4
"""in the last place: a sigmoid of MLX's CPU is off by up to two, and others follow it"""

Tensors = dict[str, "mx.array"]

Findings = dict[str, str]
"""For each check nothing, or what is wrong."""


@dataclass(frozen=True)
class Case:
    """A checkpoint and what smelt made of it for one library."""

    source: Path
    plain: Path
    """with `--mode none`"""
    packed: Path
    """in 4 bits by the CPU's rule, plainly rounded"""
    towers: tuple[str, ...]
    """modules that see or hear, which smelt leaves as they are where some libraries do not"""
    open_bits: frozenset[str] = frozenset()
    """parameters of which MLX leaves the last bits open, by smelt's plan"""
    preimage: bool = False
    """whether smelt stored what the library turns into its parameters, not these themselves"""


def in_process(job: Callable[..., Findings], *args: Any, fault: str) -> Findings:
    """What a job finds, in a process of its own: a library may abort the one that it is in.

    `fault` is the check that has failed then.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlx_lm.convert", "mlx_vlm.convert"])
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(theirs, job, args, fault))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        process.join()
        return {fault: f"not run: the library ends the process with {process.exitcode}"}
    finally:
        process.join()


def _report(
    pipe: Connection, job: Callable[..., Findings], args: tuple[Any, ...], fault: str
) -> None:
    """Sends what a job finds or raises, with nothing printed."""
    silence = io.StringIO()
    with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
        try:
            found = job(*args)
        except Exception as error:
            found = {fault: f"{type(error).__name__}: {error}".splitlines()[0]}
    pipe.send(found)


def examine(library: str, case: Case) -> Findings:
    """Compares the results of `--mode none` and of four bits with the library's own."""
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    model, config = load(library, case.source)
    expected = parameters(model)
    few = case.open_bits
    held = (lambda path: parameters(load(library, path)[0])) if case.preimage else stored
    found = {
        "weights": differing(held(case.plain), expected, few),
        "load": not_same(parameters(load(library, case.plain)[0]), expected, few),
    }
    try:
        theirs = parameters(quantize(library, model, config))
    except Exception as error:
        return found | {"bits": f"not compared: {type(error).__name__}"}
    kept = {name: tensor for name, tensor in theirs.items() if not name.startswith(case.towers)}
    ours = held(case.packed)
    found["bits"] = other_modules(ours, kept) or differing(within(ours, kept), kept, few)
    found["load4"] = differing(ours, parameters(load(library, case.packed)[0]))
    return found


def logits(library: str, case: Case) -> Findings:
    """Whether the source and the result of `--mode none` compute the same."""
    import mlx.core as mx

    mx.set_default_device(mx.cpu)
    try:
        paths = (case.source, case.source, case.plain)
        first, again, ours = (run(library, load(library, path)[0]) for path in paths)
    except Exception as error:
        return {"logits": f"not run: {type(error).__name__}"}
    if not mx.array_equal(first, again, equal_nan=True).item():
        return {"logits": "not compared: the library computes something else each time"}
    same = mx.array_equal(first, ours, equal_nan=True).item()
    return {"logits": "" if same else "they differ"}


def load(library: str, path: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The library's model after its strict load, and its config."""
    if library == "mlx-lm":
        from mlx_lm.utils import load_model

        return load_model(path, lazy=True)
    from mlx_vlm.utils import load_config, load_model

    return load_model(path, lazy=True), load_config(path)


def quantize(library: str, model: nn.Module, config: dict[str, Any]) -> nn.Module:
    """The model in 4 bits and groups of 64, by the library's own rules."""
    if library == "mlx-lm":
        from mlx_lm.utils import quantize_model

        return quantize_model(model, config, 64, 4)[0]
    from mlx_vlm.quant_utils import quantize_model
    from mlx_vlm.utils import skip_multimodal_module

    rule = getattr(model, "quant_predicate", None) or (lambda _path, _module: True)
    config.setdefault("vision_config", {})
    decide = lambda path, module: not skip_multimodal_module(path) and rule(path, module)  # noqa: E731
    return quantize_model(model, config, 64, 4, quant_predicate=decide)[0]


def parameters(model: nn.Module) -> Tensors:
    """The parameters by their paths."""
    from mlx.utils import tree_flatten

    return dict(tree_flatten(model.parameters()))


def stored(path: Path) -> Tensors:
    """The tensors of a checkpoint's files."""
    import mlx.core as mx

    files = sorted(path.glob("model*.safetensors"))
    return {name: tensor for file in files for name, tensor in mx.load(str(file)).items()}


def differing(ours: Tensors, theirs: Tensors, few: frozenset[str] = frozenset()) -> str:
    """The first of our tensors that theirs have not, or with other bits; of `few` only the last
    ones may differ. What a library computes itself (rotary tables and the like) is no parameter of
    a checkpoint."""

    def same(name: str) -> bool:
        pair = ours[name], theirs[name]
        return equal(*pair) or (name in few and near(*pair))

    bad = [name for name in sorted(ours) if name not in theirs or not same(name)]
    return f"{len(bad)} of {len(ours)} differ: {bad[:3]}" if bad else ""


def not_same(found: Tensors, expected: Tensors, few: frozenset[str] = frozenset()) -> str:
    """What is on one side only, or differs."""
    names = sorted(expected.keys() ^ found.keys())
    return f"on one side only: {names[:3]}" if names else differing(found, expected, few)


def within(ours: Tensors, theirs: Tensors) -> Tensors:
    """Our tensors, without those that theirs lacks because they belong to a tower."""
    return {name: tensor for name, tensor in ours.items() if name in theirs}


def equal(a: mx.array, b: mx.array) -> bool:
    """Whether two tensors have the same bits."""
    import mlx.core as mx

    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    as_bytes = lambda t: mx.contiguous(t).reshape(-1).view(mx.uint8)  # noqa: E731
    return a.size == 0 or bool(mx.array_equal(as_bytes(a), as_bytes(b)).item())


def near(a: mx.array, b: mx.array) -> bool:
    """Whether two tensors are the same but for some units in the last place."""
    import mlx.core as mx

    if a.dtype != b.dtype or a.shape != b.shape or not mx.issubdtype(a.dtype, mx.floating):
        return False
    unit = mx.finfo(a.dtype).eps
    return bool(mx.allclose(a, b, rtol=UNITS * unit, atol=0).item())


def other_modules(ours: Tensors, theirs: Tensors) -> str:
    """Modules that only one side has quantized."""
    scales = [{name for name in side if name.endswith(".scales")} for side in (ours, theirs)]
    only = sorted(scales[0] ^ scales[1])
    return f"quantized on one side only: {only[:3]}" if only else ""


def run(library: str, model: nn.Module) -> mx.array:
    """The logits of a few tokens, in float32: a CPU multiplies stacked experts in nothing else.

    Weights are made contiguous first: how a product of a transposed matrix is summed is up to MLX.
    """
    import mlx.core as mx
    from mlx.utils import tree_map

    mx.random.seed(0)
    model.set_dtype(mx.float32)
    model.update(tree_map(mx.contiguous, model.parameters()))
    text = model if library == "mlx-lm" else model.language_model
    out = text(mx.array(TOKENS))
    out = getattr(out, "logits", out)
    mx.eval(out)
    return out
