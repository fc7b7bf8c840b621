"""Every family gives the layout that the installed library gives, on every recorded manifest."""

from __future__ import annotations

import json

import pytest
from record import EXPECTED, check

PAIRS = [
    pytest.param(name, library, cell["fingerprint"], id=f"{name}-{library}")
    for name, row in json.loads(EXPECTED.read_text()).items()
    for library, cell in row.items()
    if "fingerprint" in cell
]


@pytest.mark.parametrize(("name", "library", "fingerprint"), PAIRS)
def test_family_equals_library(name: str, library: str, fingerprint: str) -> None:
    assert check(name, library).get("fingerprint") == fingerprint
