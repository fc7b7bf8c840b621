"""The page of a report in a real browser: on a phone, by day and by night, with no network.

Chromium is taken from `SMELT_CHROMIUM` or the path; without one only the page's text is looked at.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import SAMPLE, Smelt
from PIL import Image

NAMES = ["chromium", "chromium-browser", "google-chrome", "chrome"]
PHONE = 360

MEASURE = """<!doctype html><title>measure</title><pre id=found></pre>
<iframe src="{page}" style="width:{width}px;height:800px;border:0" onload="
  const page = this.contentDocument.documentElement;
  found.textContent = 'wide ' + page.scrollWidth + ' high ' + page.scrollHeight"></iframe>
"""


@pytest.fixture(scope="module")
def page(smelt: Smelt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model with a frontier."""
    folder = tmp_path_factory.mktemp("report")
    smelt.quantize(SAMPLE, folder / "model", "--target-bpw", "4.5")
    smelt.run("report", folder / "model", "-o", folder / "page.html")
    return folder / "page.html"


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


def test_nothing_is_fetched_or_run(page: Path) -> None:
    text = page.read_text()
    assert "<script" not in text
    assert "javascript:" not in text
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", text)
    assert not re.search(r"@import|url\(\s*[\"']?(https?:)?//", text)
    assert not re.search(r"<(link|iframe|object|embed|form)\b", text)


@pytest.mark.parametrize("width", [PHONE, 1200])
def test_nothing_scrolls_sideways(page: Path, width: int, tmp_path: Path) -> None:
    frame = tmp_path / "frame.html"
    frame.write_text(MEASURE.format(page=page.as_uri(), width=width))
    dom = chromium(tmp_path, "--virtual-time-budget=5000", "--dump-dom", frame.as_uri())
    found = re.search(r"wide (\d+) high (\d+)", dom)
    assert found, dom[:2000]
    wide, high = map(int, found.groups())
    assert wide <= width
    assert high > 800, "the page is empty"


def shot(page: Path, scheme: int, folder: Path) -> Image.Image:
    """A picture of the page: scheme 0 is dark, 1 light."""
    file = folder / f"{scheme}.png"
    look = ["--window-size=900,1200", f"--blink-settings=preferredColorScheme={scheme}"]
    chromium(folder, *look, f"--screenshot={file}", page.as_uri())
    with Image.open(file) as image:
        return image.convert("L")


def test_both_schemes_are_readable(page: Path, tmp_path: Path) -> None:
    dark, light = (shot(page, scheme, tmp_path) for scheme in (0, 1))
    paper = [image.getpixel((3, 600)) for image in (dark, light)]
    assert paper[0] < 70, "the dark page is not dark"
    assert paper[1] > 200, "the light page is not light"
    # What is written stands out from the paper.
    assert dark.getextrema()[1] > paper[0] + 130
    assert light.getextrema()[0] < paper[1] - 130
