"""Checks every family with both libraries on every manifest, and writes down what came out.

    python tests/conformance/record.py [NAME …]

`tests/manifests/expected.json` then holds the fingerprint of each layout that equals the library's
(the Rust tests check them without Python), and `docs/architectures.md` the table for people. With
names, only those manifests are checked again.
"""

from __future__ import annotations

import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor

from pairs import CHECKS, EXPECTED, LIBRARIES, MANIFESTS, ROOT, check, is_plain, layout

TABLE = ROOT / "docs" / "architectures.md"
LONGEST_REASON = 160

Cell = dict[str, "str | dict[str, str]"]
Expected = dict[str, dict[str, Cell]]

HEAD = """# Architectures

What smelt's families make of each checkpoint, compared with the library itself on the same names,
shapes and config (mlx-lm {mlx_lm}, mlx-vlm {mlx_vlm}). Made by `tests/conformance/record.py`.

- **layout**: every parameter is the same expression over the same tensors as the library was seen
  to make, quantized by the same rules. The checks behind it run with real, deterministic weights.
- **weights**: `--mode none` holds the bits that the library holds after its strict load, but for
  the last ones of parameters of which the plan says that MLX leaves them open, such as a sigmoid's.
- **load**: the library loads that result strictly, and its `sanitize` leaves it as it is.
- **bits**: a 4-bit result has just the modules quantized that the library's rules allow, and its
  bits; towers stay as they are.
- **load4**: the library loads the 4-bit result strictly, and `sanitize` leaves it as it is.
- **logits**: the library computes the same, on a CPU, with the source and with the result of
  `--mode none`.

{equal} of {pairs} pairs of checkpoint and library pass all that could be checked. For the others
the reason is a refusal, by the library or by smelt, before a byte is written; one model is
stored in another way than the library stores it, because it would not run so (limite).

| checkpoint | library | result |
|---|---|---|
"""


def manifests() -> list[str]:
    """The names of all manifests."""
    return sorted(path.stem for path in MANIFESTS.glob("*.json") if path != EXPECTED)


def cell(name: str, library: str) -> Cell:
    """What came out for a pair."""
    found: Cell = dict(layout(name, library))
    if "reason" in found:
        return {"reason": shorten(str(found["reason"]))}
    if not is_plain(name):
        return found | {"unlike": dict.fromkeys(CHECKS, "not drawn: packed weights")}
    unlike = {check: wrong for check, wrong in check(name, library).items() if wrong}
    return found | {"unlike": unlike} if unlike else found


def shorten(error: str) -> str:
    """The first line of an error, without what varies or runs on."""
    line = re.split(r" \(did you mean |; (?:neither|mlx)", error.splitlines()[0])[0]
    if len(error.splitlines()) > 1:
        line += " " + error.splitlines()[1].strip()
    return line if len(line) <= LONGEST_REASON else line[:LONGEST_REASON] + "…"


def shown(cell: Cell) -> str:
    """A pair's result in the table."""
    if "reason" in cell:
        return str(cell["reason"]).replace("|", "/")
    unlike = dict(cell.get("unlike", {}))
    if len(unlike) == len(CHECKS):
        return "layout; packed weights are read in `test_sources.py`"
    fine = ", ".join(["layout", *(check for check in CHECKS if check not in unlike)])
    return "; ".join([fine, *(f"{check} {why}" for check, why in unlike.items())])


def table(expected: Expected) -> str:
    """The page for people."""
    from mlx_lm import __version__ as mlx_lm
    from mlx_vlm.version import __version__ as mlx_vlm

    rows = [
        (name, library, row[library])
        for name, row in sorted(expected.items())
        for library in LIBRARIES
    ]
    equal = sum("fingerprint" in cell for _, _, cell in rows)
    text = HEAD.format(mlx_lm=mlx_lm, mlx_vlm=mlx_vlm, equal=equal, pairs=len(rows))
    return text + "".join(
        f"| {name} | {library} | {shown(cell)} |\n" for name, library, cell in rows
    )


def main() -> None:
    names = sys.argv[1:] or manifests()
    if unknown := set(names) - set(manifests()):
        sys.exit(f"no manifest in {MANIFESTS}: {', '.join(sorted(unknown))}")
    expected: Expected = json.loads(EXPECTED.read_text()) if sys.argv[1:] else {}
    pairs = [(name, library) for name in names for library in LIBRARIES]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for (name, library), found in zip(
            pairs, pool.map(lambda pair: cell(*pair), pairs), strict=True
        ):
            expected.setdefault(name, {})[library] = found
            print(name, library, shown(found), flush=True)
    EXPECTED.write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")
    TABLE.write_text(table(expected))


if __name__ == "__main__":
    main()
