"""Every family gives the layout that the installed library gives, on every recorded manifest."""

from __future__ import annotations

import json
import os
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from record import EXPECTED, check

PAIRS = [
    (name, library, cell["fingerprint"])
    for name, row in json.loads(EXPECTED.read_text()).items()
    for library, cell in row.items()
    if "fingerprint" in cell
]

Checks = dict[tuple[str, str], Future[dict[str, str]]]


@pytest.fixture(scope="module")
def checks() -> Checks:
    """All comparisons, on every core: each starts Python and imports a library."""
    pool = ThreadPoolExecutor(os.cpu_count())
    return {(name, library): pool.submit(check, name, library) for name, library, _ in PAIRS}


@pytest.mark.parametrize(
    ("name", "library", "fingerprint"), PAIRS, ids=[f"{name}-{library}" for name, library, _ in PAIRS]
)
def test_family_equals_library(name: str, library: str, fingerprint: str, checks: Checks) -> None:
    assert checks[name, library].result().get("fingerprint") == fingerprint
