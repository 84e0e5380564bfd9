"""The page of a report, from states, plots and entries made by hand."""

from __future__ import annotations

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import sweep.report
from sweep.controller.ledger import Entry, read_ledger
from sweep.model.objectives import Objective
from sweep.model.states import TrialStatus
from sweep.model.summary import SweepState, TrialRow
from sweep.report.html import page
from sweep.report.plot import LegendEntry, Plot
from trainer.contract import Report
from trainer.room import Room

TEMPLATES = Path(sweep.report.__file__).parent / "templates"


class Page(HTMLParser):
    """What a browser would find: ids, links, tags with a source, and the texts of the cells by section and row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: dict[str, list[list[str]]] = {}
        self._section = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag == "section":
            self._section = attributes["id"] or ""
            self.rows[self._section] = []
        elif tag == "tr":
            self.rows[self._section].append([])
        elif tag in ("td", "th"):
            self.rows[self._section][-1].append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag in ("td", "th"):
            self.rows[self._section][-1][-1] += data.strip()

    def attributes(self, tag: str, name: str) -> list[str]:
        return [value for kind, attrs in self.tags if kind == tag and (value := attrs.get(name)) is not None]

    def table(self, section: str) -> list[list[str]]:
        """The rows of a section's table below its heading."""
        return self.rows[section][1:]


def row(number: int, state: str, value: float, reason: str) -> TrialRow:
    return TrialRow(number, TrialStatus(state), {"optimizer.lr": 1e-3}, value, reason)


def entry(trial: int, ruling: str, milestone: int, reason: str) -> Entry:
    return Entry(trial, ruling, milestone, 2.0, 12_345, reason, {})


def reasons(text: str) -> dict[int, str]:
    """By trial, the reason in the table of what was pruned."""
    return {int(cells[0]): cells[-1] for cells in Page(text).table("why-trials-were-pruned")}


ENDED = "it was paused, and not promoted before the end"
STATE = SweepState(
    "s",
    (Objective("val_loss"),),
    (
        row(0, "complete", 1.0, "it has reached its end"),
        row(1, "pruned", 2.0, ENDED),
        row(2, "pruned", 2.5, "worse than the others"),
        row(3, "pruned", 9.0, "diverged: no number"),
    ),
)
ENTRIES = (
    entry(1, "pause", 1, "too early to say"),
    entry(0, "pause", 1, "too early to say"),
    entry(0, "promote", 0, "its expected improvement is the largest"),
    entry(1, "promote", 0, "its expected improvement is the largest"),
    entry(1, "pause", 4, "forecast final loss <bad>"),
    entry(2, "stop", 2, "worse than the others"),
    entry(3, "pause", 1, "too early to say"),
    entry(3, "promote", 0, "its expected improvement is the largest"),
)
FIGURE = {"data": [{"name": "</script><script>alert(1)</script>"}], "layout": {"height": 300}}
PLOT = Plot("Slices", "One point a trial.", (FIGURE,), (LegendEntry("point", "pruned"),), 280)
MISSING = Plot("Importance", "", missing="only <one> trial")


def test_what_was_paused_to_the_end_says_what_for() -> None:
    text = page(STATE, (), ENTRIES)
    assert reasons(text) == {
        1: f"forecast final loss <bad>; {ENDED}",
        2: "worse than the others",
        3: "diverged: no number",
    }
    assert "forecast final loss &lt;bad&gt;" in text


def test_without_a_ledger_the_reasons_stand_alone() -> None:
    assert reasons(page(STATE, ())) == {1: ENDED, 2: "worse than the others", 3: "diverged: no number"}


def test_the_ledger_counts_in_words_that_agree() -> None:
    text = page(STATE, (), ENTRIES)
    assert "The winner was paused 1 time." in text
    assert Page(text).table("ledger")[0] == ["1", "pause", "1", "2.0000", "12,345", "too early to say", ""]


def test_the_ledger_is_folded() -> None:
    text = page(STATE, (), ENTRIES)
    (details,) = re.findall(r"<details[^>]*>.*?</details>", text, re.DOTALL)
    assert details.startswith("<details>"), "and not open"
    assert "All 8 decisions" in details
    assert details.count("<tr>") == 1 + len(ENTRIES)


def test_the_contents_lead_to_each_section() -> None:
    shown = Page(page(STATE, (PLOT, MISSING), ENTRIES))
    links = [link for link in shown.attributes("a", "href") if link.startswith("#")]
    expected = ["slices", "importance", "why-trials-were-pruned", "ledger", "all-trials"]
    assert links == [f"#{anchor}" for anchor in expected]
    assert shown.attributes("section", "id") == expected


@pytest.mark.parametrize("plots", [(), (PLOT,)], ids=["without figures", "with figures"])
def test_the_page_loads_nothing(plots: tuple[Plot, ...]) -> None:
    text = page(STATE, plots, ENTRIES)
    shown = Page(text)
    assert [attrs for tag, attrs in shown.tags if "src" in attrs or tag in ("link", "iframe", "object")] == []
    assert all(link.startswith("#") for link in shown.attributes("a", "href"))
    policies = [attrs["content"] for tag, attrs in shown.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert str(policies[0]).startswith("default-src 'none'; ")
    assert not re.search(r"https?:|\*|-src 'self'", str(policies[0]))
    assert ('id="plotly"' in text) is bool(plots)
    assert len(text) < 2_500_000
    for file in TEMPLATES.iterdir():
        assert "http" not in file.read_text(), file
        assert "|safe" not in file.read_text().replace(" ", ""), file


EVIL = "<img src=x onerror=alert(1)>"


def test_nothing_of_a_user_s_becomes_markup() -> None:
    reports = (Report(1, 1, 10, 0, 2.0, 0.5, 1e-3, 812.0, 3.0, val_loss=1.0),)
    rows = (
        TrialRow(0, TrialStatus.COMPLETE, {EVIL: EVIL}, 1.0, EVIL, reports=reports, scores={EVIL: 0.5}),
        TrialRow(1, TrialStatus.PRUNED, {EVIL: EVIL}, 2.0, EVIL),
        TrialRow(2, TrialStatus.FAILED, {EVIL: EVIL}, None, EVIL),
    )
    entries = (Entry(1, EVIL, 1, 2.0, 10, EVIL, {EVIL: 1.0}),)
    plots = (Plot(EVIL, EVIL, (FIGURE,), (LegendEntry("point", EVIL),)), Plot("Importance", "", missing=EVIL))
    text = page(SweepState(EVIL, (Objective("val_loss"),), rows), plots, entries)
    assert Page(text).attributes("img", "src") == []
    assert "<img" not in text
    assert "<script>alert" not in text
    assert html.unescape(text).count(EVIL) > 20


def test_a_numeric_column_sorts_by_the_number_and_not_by_its_text() -> None:
    rows = (
        TrialRow(
            0, TrialStatus.COMPLETE, {}, 1.23456, "", reports=(Report(1, 1, 12_345, 0, 2.0, 0.5, 1e-3, 1.0, 3.0),)
        ),
        TrialRow(1, TrialStatus.FAILED, {}, None, ""),
        TrialRow(2, TrialStatus.FAILED, {}, float("nan"), ""),
    )
    text = page(SweepState("s", (Objective("val_loss"),), rows), ())
    section = text[text.index('<section id="all-trials">') :]
    assert '<td class="number" data-value="1.23456">1.2346</td>' in section
    assert '<td class="number" data-value="12345">12,345</td>' in section
    assert "nan" not in section
    cells = [re.findall(r"<td.*?</td>", line) for line in section.splitlines() if line.startswith("<tr><td")]
    assert [line[3] for line in cells[1:]] == ['<td class="number">–</td>'] * 2
    headings = re.findall(r'<th scope="col"( class="number")?>(\w+)</th>', section)
    assert [heading for numeric, heading in headings if not numeric] == ["state", "hyperparameters"]


def test_a_plot_says_what_its_marks_mean_or_why_it_is_missing() -> None:
    text = page(STATE, (PLOT, MISSING))
    assert re.search(r'<ul class="legend">\s*<li><svg.*?<circle .*?</svg>pruned</li>', text)
    assert "Not drawn: only &lt;one&gt; trial" in text


def test_a_ledger_of_somebody_else_s_making_is_numbers_and_text(tmp_path: Path) -> None:
    """Numbers are numbers, or the entry is left out; texts are escaped."""
    script, room = "<script>alert(1)</script>", Room(tmp_path)
    good = {"trial": 1, "ruling": script, "milestone": 2, "value": 2.0, "tokens": 3, "reason": script, "basis": {}}
    bad = [{**good, key: script} for key in ("trial", "milestone", "value", "tokens", "basis")]
    bad += [{**good, "basis": {"x": script}}, {**good, "trial": [1]}, {**good, "milestone": None}]
    lines = [json.dumps(raw) for raw in (*bad, {**good, "basis": {script: 1.0}})] + ["[]", "7", "{"]
    (tmp_path / "ledger.jsonl").write_text("\n".join(lines) + "\n")
    entries = read_ledger(room)
    assert [(entry.trial, entry.ruling) for entry in entries] == [(1, script)]
    state = SweepState(script, (Objective("val_loss"),), (row(1, "pruned", 2.0, script),))
    assert page(state, entries=entries).count(script) == 0
