"""Every family's results with real weights: what the library makes, loads and computes.

`pairs` says what each check is. The pairs are those that `expected.json` records as equal.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from library import Findings
from pairs import EXPECTED, check, is_plain

PAIRS = [
    (name, library, cell.get("unlike", {}))
    for name, row in json.loads(EXPECTED.read_text()).items()
    for library, cell in row.items()
    if "fingerprint" in cell and is_plain(name)
]

Checks = dict[tuple[str, str], Future[Findings]]


@pytest.fixture(scope="module")
def checks() -> Checks:
    """All checks, on every core."""
    pool = ThreadPoolExecutor(os.cpu_count())
    return {(name, library): pool.submit(check, name, library) for name, library, _ in PAIRS}


@pytest.mark.parametrize(
    ("name", "library", "unlike"), PAIRS, ids=[f"{name}-{library}" for name, library, _ in PAIRS]
)
def test_equals_the_library(
    name: str, library: str, unlike: dict[str, str], checks: Checks
) -> None:
    """Nothing is found but what is recorded: a library that can't run or quantize the model."""
    found = {check: wrong for check, wrong in checks[name, library].result().items() if wrong}
    unrecorded = {check: wrong for check, wrong in found.items() if check not in unlike}
    assert not unrecorded
    # What can't be compared may vary in its reason; what differs is just what is recorded.
    varying = ("not ",)
    assert all(w.startswith(varying) or w == unlike[c] for c, w in found.items()), found
