"""Families give the layout that the installed library is seen to make.

Each comparison starts Python and imports a library, so a run takes a sample of the recorded pairs;
`SMELT_ALL_LAYOUTS=1` takes all.
"""

from __future__ import annotations

import json
import os
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from pairs import EXPECTED, layout

RECORDED = [
    (name, library, cell["fingerprint"])
    for name, row in json.loads(EXPECTED.read_text()).items()
    for library, cell in row.items()
    if "fingerprint" in cell
]
PAIRS = RECORDED if os.environ.get("SMELT_ALL_LAYOUTS") else RECORDED[::7]

Checks = dict[tuple[str, str], Future[dict[str, str]]]


@pytest.fixture(scope="module")
def checks() -> Checks:
    """All comparisons, on every core."""
    pool = ThreadPoolExecutor(os.cpu_count())
    return {(name, library): pool.submit(layout, name, library) for name, library, _ in PAIRS}


@pytest.mark.parametrize(
    ("name", "library", "fingerprint"),
    PAIRS,
    ids=[f"{name}-{library}" for name, library, _ in PAIRS],
)
def test_family_equals_library(name: str, library: str, fingerprint: str, checks: Checks) -> None:
    assert checks[name, library].result().get("fingerprint") == fingerprint
