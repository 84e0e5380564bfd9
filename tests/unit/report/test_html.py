"""The page of a report, from states and entries made by hand."""

from __future__ import annotations

import re

from sweep.controller.ledger import Entry
from sweep.model import SweepState, TrialRow, TrialStatus
from sweep.report.html import page


def row(number: int, state: str, value: float, reason: str) -> TrialRow:
    return TrialRow(number, TrialStatus(state), {"optimizer.lr": 1e-3}, value, reason)


def entry(trial: int, ruling: str, milestone: int, reason: str) -> Entry:
    return Entry(trial, ruling, milestone, 2.0, 12_345, reason, {})


def reasons(html: str) -> dict[int, str]:
    """By trial, the reason in the table of what was pruned."""
    table = html.split("Why trials were pruned")[1].split("</table>", maxsplit=1)[0]
    found = re.findall(r"<tr><td class=n>(\d+)(?:<td[^>]*>[^<]*)*<td>([^<]*)", table)
    return {int(trial): reason for trial, reason in found}


ENDED = "it was paused, and not promoted before the end"
STATE = SweepState(
    "s",
    "val_loss",
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
    entry(0, "promote", 0, "which promises most"),
    entry(1, "promote", 0, "which promises most"),
    entry(1, "pause", 4, "expected to end <badly>"),
    entry(2, "stop", 2, "worse than the others"),
    entry(3, "pause", 1, "too early to say"),
    entry(3, "promote", 0, "which promises most"),
)


def test_what_was_paused_to_the_end_says_what_for() -> None:
    assert reasons(page(STATE, (), ENTRIES)) == {
        1: f"expected to end &lt;badly&gt;; {ENDED}",
        2: "worse than the others",
        3: "diverged: no number",
    }


def test_without_a_ledger_the_reasons_stand_alone() -> None:
    assert reasons(page(STATE, ())) == {1: ENDED, 2: "worse than the others", 3: "diverged: no number"}


def test_the_ledger_counts_in_words_that_agree() -> None:
    html = page(STATE, (), ENTRIES)
    assert "the winner itself was paused 1 time." in html
    assert "<td class=n>12,345" in html
