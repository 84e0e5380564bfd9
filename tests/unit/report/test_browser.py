"""The report's own JavaScript in a headless Chromium: sorting, figures. Skipped if none is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sweep.report.figures import plots
from sweep.report.html import page
from tests.helpers.recorded import METRIC, finished_study, midway_state

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="needs Chromium")]
VALUE_COLUMN = 3


def after(script: str, folder: Path, with_figures: bool = False) -> str:
    """The document of the recorded sweep's report after its scripts and this one have run."""
    text = page(midway_state(), plots(finished_study(), METRIC) if with_figures else ())
    path = folder / "report.html"
    path.write_text(text.replace("</body>", f"<script>{script}</script></body>"))
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    waits = ["--virtual-time-budget=20000", "--dump-dom"]
    command = [BROWSER or "", *options, *waits, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


def values(document: str) -> list[float]:
    """The objective in each row of the last table."""
    table = document[document.index('id="all-trials"') :]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)[1:]
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row)[VALUE_COLUMN] for row in rows]
    return [float(cell) for cell in cells]


def test_the_figures_are_drawn(tmp_path: Path) -> None:
    document = after("", tmp_path, with_figures=True)
    assert ">This browser cannot draw" not in document
    assert document.count('class="figure js-plotly-plot"') == 7


@pytest.mark.parametrize(("clicks", "order"), [(1, "ascending"), (2, "descending")])
def test_a_click_on_a_heading_sorts_by_its_numbers(clicks: int, order: str, tmp_path: Path) -> None:
    button = f"document.querySelectorAll('#all-trials th button')[{VALUE_COLUMN}]"
    document = after(f"{button}.click();" * clicks, tmp_path)
    shown = values(document)
    assert len(shown) == 16
    assert shown == sorted(shown, reverse=order == "descending")
    headings = re.findall(r'aria-sort="(\w+)"', document[document.index('id="all-trials"') :])
    assert headings[VALUE_COLUMN] == order
    assert set(headings[:VALUE_COLUMN] + headings[VALUE_COLUMN + 1 :]) == {"none"}
