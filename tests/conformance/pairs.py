"""Pairs of a manifest and a library: what is checked of each, from real weights to a 4-bit load.

layout   the family's layout is the one that the library was seen to make
weights  `--mode none` holds the bits that the library holds after its strict load of the source;
         of a family with `preimage`, what the library makes of the result when it loads it
load     the library loads that result strictly, and its sanitize leaves it as it is
bits     a 4-bit result has the modules quantized that the library's rules allow, with its bits
load4    the library loads the 4-bit result strictly, and its sanitize leaves it as it is
logits   the library computes the same with the source and with the result of `--mode none`
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from checkpoints import Variant, manifest_tensors, write_json, write_tensors
from library import Case, Findings, examine, in_process, logits

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "tests" / "manifests"
EXPECTED = MANIFESTS / "expected.json"
SMELT = os.environ.get("SMELT_BIN", str(ROOT / "target" / "release" / "smelt"))
LIBRARIES = ("mlx-lm", "mlx-vlm")
CHECKS = ("weights", "load", "bits", "load4", "logits")
TOWERS = {"vision", "audio", "projector"}


def smelt(*args: str | Path) -> str:
    """What smelt prints.

    Raises RuntimeError with its complaint if it refuses.
    """
    run = subprocess.run([SMELT, *map(str, args)], capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr.strip())
    return run.stdout


def is_plain(name: str) -> bool:
    """Whether a manifest's weights are floats; packed ones can't be drawn."""
    shapes = json.loads((MANIFESTS / f"{name}.json").read_text())["tensors"].values()
    dtypes = {shape[0] for shape in shapes if shape and isinstance(shape[0], str)}
    return not any(dtype.startswith(("F8", "F4", "U8", "I8", "I32", "U32")) for dtype in dtypes)


def check(name: str, library: str) -> Findings:
    """All checks that need weights: for each nothing, or what is wrong."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            case = prepare(name, library, Path(folder))
        except RuntimeError as refusal:
            return {"weights": str(refusal).splitlines()[0]}
        found = in_process(examine, library, case, fault="load")
        return found | in_process(logits, library, case, fault="logits")


def prepare(name: str, library: str, folder: Path) -> Case:
    """Makes the checkpoint of a manifest, and both results of smelt."""
    manifest = json.loads((MANIFESTS / f"{name}.json").read_text())
    case = Case(folder / "source", folder / "plain", folder / "packed", ())
    case.source.mkdir()
    write_json(case.source / "config.json", manifest["config"])
    write_tensors(case.source, [manifest_tensors(manifest, Variant())])
    target = ["--target", library]
    smelt("quantize", case.source, "-o", case.plain, *target, "--mode", "none")
    smelt(
        "quantize", case.source, "-o", case.packed, *target, "--rounding", "cpu", "--method", "rtn"
    )
    plan = json.loads(smelt("plan", case.source, *target, "--json").splitlines()[-1])
    preimage = plan.get("preimage", False)
    return Case(case.source, case.plain, case.packed, towers(plan), open_bits(plan), preimage)


def towers(plan: dict[str, Any]) -> tuple[str, ...]:
    """The modules of towers."""
    names = (task["name"] for task in plan["tasks"] if task["role"] in TOWERS)
    return tuple(name.removesuffix("weight") for name in names)


def open_bits(plan: dict[str, Any]) -> frozenset[str]:
    """The parameters of which MLX leaves the last bits open."""
    notes = (note for note in plan["notes"] if note["kind"] == "open_bits")
    return frozenset(name for note in notes for name in note["parameters"])


def layout(name: str, library: str) -> dict[str, str]:
    """The fingerprint of an equal layout, or the reason why there is none."""
    command = [SMELT, "families", "check", str(MANIFESTS / f"{name}.json"), "--json"]
    command += ["--library", library, "--python", sys.executable]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    answer = json.loads(run.stdout.splitlines()[0])
    if "error" in answer:
        return {"reason": answer["error"]}
    if found := answer["differences"]:
        return {"reason": f"{len(found)} differences, the first: {found[0]}"}
    return {"family": answer["family"], "fingerprint": answer["fingerprint"]}
