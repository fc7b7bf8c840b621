"""The page of a report in a real browser: on a phone, by day and by night, with no network.

Chromium is taken from `SMELT_CHROMIUM` or the path; without one only the page's text is looked at.
`look.js` says what the browser makes of the page.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import SAMPLE, Smelt

NAMES = ["chromium", "chromium-browser", "google-chrome", "chrome"]
LOOK = Path(__file__).with_name("look.js")

WIDTHS = [360, 1200]
"""A phone and a desk."""

SCHEMES = {"dark": 0, "light": 1}
"""As Chromium counts them."""

LEAST_CONTRAST = 4.5
"""of text, by WCAG 2.2 AA; shapes need 3"""

LEAST_SIZE = 9
"""Pixels of the letters in drawings, which are scaled to the page."""

FRAME = """<!doctype html><title>frame</title><script>{script}</script><pre id=found></pre>
<iframe src="{page}" style="width:{width}px;height:800px;border:0"
  onload="found.textContent = '@@' + JSON.stringify(look(this)) + '@@'"></iframe>
"""


def page_of(smelt: Smelt, folder: Path, *options: str) -> Path:
    smelt.run("quantize", SAMPLE, "-o", folder / "model", *options)
    smelt.run("report", folder / "model", "-o", folder / "page.html")
    return folder / "page.html"


@pytest.fixture(scope="module")
def pages(smelt: Smelt, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """With the model left and right on the frontier; without one, but with rules and notes."""
    budgets = [
        ("--target-bpw", "4.2"),
        ("--target-bpw", "7"),
        ("--override", "gate=8", "--bits", "3"),
    ]
    budgets[2] += ("--override", "no_such=6")
    folders = [tmp_path_factory.mktemp("report") for _ in budgets]
    return [
        page_of(smelt, folder, *options) for folder, options in zip(folders, budgets, strict=True)
    ]


def chromium(folder: Path, *args: str) -> str:
    """What it prints."""
    binary = os.environ.get("SMELT_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if binary is None:
        pytest.skip("no Chromium is installed, and SMELT_CHROMIUM names none")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    local = ["--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}"]
    command = [binary, *flags, *local, *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


def look(page: Path, width: int, scheme: str, folder: Path) -> dict[str, Any]:
    """What a reader has before them."""
    frame = folder / "frame.html"
    frame.write_text(FRAME.format(script=LOOK.read_text(), page=page.as_uri(), width=width))
    color = f"--blink-settings=preferredColorScheme={SCHEMES[scheme]}"
    dom = chromium(folder, color, "--virtual-time-budget=5000", "--dump-dom", frame.as_uri())
    found = re.search(r"@@(\{.*\})@@</pre>", dom, re.DOTALL)
    assert found, dom[:2000]
    return json.loads(html.unescape(found[1]))


def faults(seen: dict[str, Any], width: int, scheme: str) -> list[Any]:
    """What keeps a page from being read."""
    texts, shapes = seen["texts"], seen["shapes"]
    pale = [text for text in texts if text["contrast"] < LEAST_CONTRAST]
    small = [text for text in texts if text["size"] < LEAST_SIZE]
    unseen = [shape for shape in shapes if shape["contrast"] < 3]
    paper = seen["paper"] < 0.05 if scheme == "dark" else seen["paper"] > 0.8
    wide = [("scrolls sideways", seen["wide"])] if seen["wide"] > width else []
    return [
        *wide,
        *pale,
        *small,
        *unseen,
        *seen["cut"],
        *seen["crossed"],
        *([] if paper else [scheme]),
    ]


def test_nothing_is_fetched_or_run(pages: list[Path]) -> None:
    for page in pages:
        text = page.read_text()
        assert "<script" not in text
        assert "javascript:" not in text
        assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)
        assert not re.search(r"@import|url\(\s*[\"']?(https?:)?//", text)
        assert not re.search(r"<(link|iframe|object|embed|form)\b", text)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_can_be_read(pages: list[Path], width: int, scheme: str, tmp_path: Path) -> None:
    for page in pages:
        seen = look(page, width, scheme, tmp_path)
        assert len(seen["texts"]) > 60
        assert len(seen["shapes"]) > 40
        assert seen["high"] > 800
        assert faults(seen, width, scheme) == []


@pytest.mark.parametrize(
    "spoiled",
    [
        "main { min-width: 30rem; }",
        "td { color: var(--paper); }",
        "h2 { color: var(--tile); }",
        "svg text { font-size: 5px !important; }",
        "svg rect { stroke: none; }",
        "svg.chart text { transform: translateY(-12px); }",
        ":root { --paper: #777; }",
    ],
)
def test_a_page_that_can_not_be_read_is_noticed(
    pages: list[Path], spoiled: str, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text(pages[0].read_text().replace("</style>", spoiled + "</style>"))
    width, scheme = WIDTHS[0], "light"
    assert faults(look(page, width, scheme, tmp_path), width, scheme)
