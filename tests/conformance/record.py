"""Compares every family with both libraries on every manifest, and writes down what came out.

    python tests/conformance/record.py [NAME …]

`tests/manifests/expected.json` then holds the fingerprint of each layout that equals the library's (the
Rust tests check them without Python), and `docs/architectures.md` the table for people. With names,
only those manifests are compared again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "tests" / "manifests"
EXPECTED = MANIFESTS / "expected.json"
TABLE = ROOT / "docs" / "architectures.md"
SMELT = os.environ.get("SMELT_BIN", str(ROOT / "target" / "release" / "smelt"))
LIBRARIES = ("mlx-lm", "mlx-vlm")
LONGEST_REASON = 160

Expected = dict[str, dict[str, dict[str, str]]]

HEAD = """# Architectures

What smelt's families make of each checkpoint, compared with what the library itself does on the same
names, shapes and config (mlx-lm {mlx_lm}, mlx-vlm {mlx_vlm}). Made by `tests/conformance/record.py`.

**equal**: every parameter is the same expression over the same tensors, quantized by the same rules.
{equal} pairs of checkpoint and library are. Where the reason says `differences`, the family writes
another expression than the library for so many parameters; anything else is a refusal, by the library
or by smelt, before a byte is written. Names like `_fp8` or `_awq` are storage formats that smelt does
not read yet.

| checkpoint | mlx-lm | mlx-vlm |
|---|---|---|
"""


def manifests() -> list[str]:
    """The names of all manifests."""
    return sorted(path.stem for path in MANIFESTS.glob("*.json") if path != EXPECTED)


def check(name: str, library: str) -> dict[str, str]:
    """The fingerprint of an equal layout, or the reason why there is none."""
    command = [SMELT, "families", "check", str(MANIFESTS / f"{name}.json"), "--json"]
    command += ["--library", library, "--python", sys.executable]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    answer = json.loads(run.stdout.splitlines()[0])
    if "error" in answer:
        return {"reason": shorten(answer["error"])}
    if answer["differences"]:
        return {"reason": f"{len(answer['differences'])} differences"}
    return {"family": answer["family"], "fingerprint": answer["fingerprint"]}


def shorten(error: str) -> str:
    """The first line of an error, without what varies or runs on."""
    line = error.splitlines()[0].split(" (it has ")[0]
    if len(error.splitlines()) > 1:
        line += " " + error.splitlines()[1].strip()
    return line if len(line) <= LONGEST_REASON else line[:LONGEST_REASON] + "…"


def table(expected: Expected) -> str:
    """The page for people."""
    from mlx_lm import __version__ as mlx_lm
    from mlx_vlm.version import __version__ as mlx_vlm

    cells = [cell for row in expected.values() for cell in row.values()]
    equal = sum("fingerprint" in cell for cell in cells)
    text = HEAD.format(mlx_lm=mlx_lm, mlx_vlm=mlx_vlm, equal=equal)
    for name, row in sorted(expected.items()):
        shown = ["equal" if "fingerprint" in row[lib] else row[lib]["reason"] for lib in LIBRARIES]
        text += f"| {name} | {' | '.join(cell.replace('|', '/') for cell in shown)} |\n"
    return text


def main() -> None:
    names = sys.argv[1:] or manifests()
    expected: Expected = json.loads(EXPECTED.read_text()) if sys.argv[1:] else {}
    pairs = [(name, library) for name in names for library in LIBRARIES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (name, library), cell in zip(pairs, pool.map(lambda pair: check(*pair), pairs)):
            expected.setdefault(name, {})[library] = cell
            print(name, library, "equal" if "fingerprint" in cell else cell["reason"], flush=True)
    EXPECTED.write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
    TABLE.write_text(table(expected))


if __name__ == "__main__":
    main()
