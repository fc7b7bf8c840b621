"""Checkpoints with adapters apart, which a library adds to the weights when it converts them.

A load alone adds one adapter and keeps the other for prompts that ask for it; so what smelt writes
is held against the model as the library's convert has it, not as it is loaded.
"""

from __future__ import annotations

from pathlib import Path

import library
import pytest
from library import Case, Findings
from pairs import prepare


def converted(case: Case) -> Findings:
    """The results of smelt against those of mlx-vlm's convert."""
    model, config = library.load("mlx-vlm", case.source)
    # Convert asks for this before all else, and the model adds its adapters then.
    assert model.quant_predicate
    expected = library.parameters(model)
    found = {
        "weights": library.differing(library.stored(case.plain), expected, case.open_bits),
        "load": library.not_same(
            library.parameters(library.load("mlx-vlm", case.plain)[0]), expected, case.open_bits
        ),
    }
    theirs = library.parameters(library.quantize("mlx-vlm", model, config))
    ours = library.stored(case.packed)
    kept = {name: tensor for name, tensor in theirs.items() if not name.startswith(case.towers)}
    found["bits"] = library.other_modules(ours, kept) or library.differing(
        library.within(ours, kept), kept, case.open_bits
    )
    loaded = library.parameters(library.load("mlx-vlm", case.packed)[0])
    return found | {"load4": library.differing(ours, loaded)}


@pytest.mark.parametrize("name", ["phi4mm"])
def test_both_are_added(name: str, tmp_path: Path) -> None:
    case = prepare(f"adapters/{name}", "mlx-vlm", tmp_path)
    assert len(case.open_bits) == 8
    found = library.in_process(converted, case, fault="load")
    assert {check: wrong for check, wrong in found.items() if wrong} == {}
