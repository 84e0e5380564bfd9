"""The report of a sweep: one HTML file that loads nothing from elsewhere.

Invariants: the page is a Jinja template with autoescape on, and nothing is marked as safe, so that no name, choice or
reason of a user's becomes markup. Plotly's script stands in the page itself, packed with gzip.
"""

from __future__ import annotations

import base64
import gzip
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sweep.controller.ledger import Account, Entry, account, read_ledger
from sweep.model.states import Ruling, TrialStatus
from sweep.model.summary import SweepState, TrialRow
from sweep.report.answers import Answers, answers_of
from sweep.report.figures import metric_histories, plots
from sweep.report.formatting import duration, number, params_text, ranked, scores_text
from sweep.report.plot import Plot
from sweep.report.reader import SweepReader
from sweep.search.significance import finalists_text
from sweep.search.storage import load_study, own_trials
from sweep.wiring.backends import job_viewer
from sweep.wiring.rooms import load_settings
from sweep.wiring.session import reading_storage
from trainer.room import Room, write_atomic

COUNTED = (
    TrialStatus.COMPLETE,
    TrialStatus.PRUNED,
    TrialStatus.PAUSED,
    TrialStatus.FAILED,
    TrialStatus.RUNNING,
)
# The page needs nothing but itself. So no text in it could load or send anything, even if it were not escaped.
POLICY = {
    "http-equiv": "Content-Security-Policy",
    "content": "; ".join(
        (
            "default-src 'none'",
            "script-src 'unsafe-inline' 'unsafe-eval'",
            "style-src 'unsafe-inline'",
            "img-src data: blob:",
            "font-src data:",
            "worker-src blob:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    ),
}
EXPLAINED = {TrialStatus.PRUNED: "Why trials were pruned", TrialStatus.FAILED: "Why trials failed"}


@dataclass(frozen=True, slots=True)
class Section:
    """A heading of the page with what stands below it.

    Args:
        kind: `text`, `finalists`, `plot`, `answers`, `reasons`, `ledger` or `trials`: how the template shows the
            content.
    """

    heading: str
    kind: str
    content: Any

    @property
    def anchor(self) -> str:
        return self.heading.lower().replace(" ", "-")


@dataclass(frozen=True, slots=True)
class Ledger:
    """A pruner's decisions, and what they saved and risked."""

    account: Account
    entries: Sequence[Entry]


@dataclass(frozen=True, slots=True)
class Trials:
    """All trials, best first.

    Args:
        scores: names of the scores that any of them has from an evaluation.
        metrics: names of what they measure beside the objective.
    """

    rows: Sequence[TrialRow]
    scores: Sequence[str]
    metrics: Sequence[str] = ()

    @property
    def score_headings(self) -> list[tuple[str, bool]]:
        return [*((name, True) for name in self.metrics), *((f"eval {name}", True) for name in self.scores)]


def write_report(room: Room, to: Path) -> Path:
    """Write the report of a sweep and return its absolute path.

    Raises:
        GiveUp: the room's storage holds no study.
    """
    settings = load_settings(room)
    study = load_study(reading_storage(room, settings), settings.name)
    state = SweepReader(room, settings, lambda: own_trials(study), job_viewer(room, settings)).state()
    drawn = [*plots(study, state.metric), *metric_histories(state)]
    generated = [metric.name for metric in settings.measured if metric.source == "generate"]
    answers = answers_of(room, state.best.number, generated) if state.best is not None else []
    write_atomic(to.absolute(), page(state, drawn, read_ledger(room), answers))
    return to.absolute()


def page(
    state: SweepState, drawn: Sequence[Plot] = (), entries: Sequence[Entry] = (), answers: Sequence[Answers] = ()
) -> str:
    """The whole document from a state, its plots, its ledger and some answers of its best trial."""
    environment = Environment(
        loader=PackageLoader("sweep.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters.update(
        number=number,
        params=params_text,
        scores=scores_text,
        duration=duration,
        thousands=lambda count: f"{count:,}",
        percent=lambda share: f"{share:.0%}",
        basis=lambda basis: ", ".join(f"{key} {value:.4g}" for key, value in basis.items()),
    )
    return environment.get_template("report.html.jinja").render(
        state=state,
        best=state.best,
        written=time.strftime("%Y-%m-%d %H:%M"),
        cards=_cards(state),
        sections=_sections(state, drawn, entries, answers),
        policy=POLICY,
        plotly=_packed_plotly() if any(plot.figures for plot in drawn) else "",
    )


def _sections(
    state: SweepState, drawn: Sequence[Plot], entries: Sequence[Entry], answers: Sequence[Answers]
) -> list[Section]:
    sections = []
    if state.problems:
        sections.append(Section("Problems of metrics", "text", "\n".join(state.problems)))
    if state.notes or state.unsure:
        sections.append(Section("Damaged files", "text", "\n".join(filter(None, (*state.notes, state.unsure)))))
    if state.finals:
        sections.append(Section("Finals", "finalists", finalists_text(state.finals, state.objective)))
    sections += [Section(plot.heading, "plot", plot) for plot in drawn]
    sections += [Section(f"Answers for {one.metric}", "answers", one) for one in answers]
    for status, heading in EXPLAINED.items():
        if rows := [row for row in state.rows if row.state is status]:
            sections.append(Section(heading, "reasons", _reasons(rows, entries)))
    if entries:
        sections.append(Section("Ledger", "ledger", Ledger(account(state, entries), entries)))
    scores = list(dict.fromkeys(name for row in state.rows for name in row.scores))
    metrics = [name for name in state.metrics if name != state.metric]
    sections.append(Section("All trials", "trials", Trials(ranked(state.rows, state.objective), scores, metrics)))
    return sections


def _cards(state: SweepState) -> Mapping[str, str]:
    """The numbers at the top of the page, by their names."""
    cards = {status.value: str(count) for status in COUNTED if (count := state.count(status))}
    cards["tokens trained"] = f"{state.tokens:,}"
    saved = sum(max(0, state.trial_tokens - row.tokens) for row in state.rows if row.state is TrialStatus.PRUNED)
    if saved:
        cards["of all tokens saved by pruning"] = f"{saved / (state.trial_tokens * len(state.rows)):.0%}"
    return cards


def _reasons(rows: Sequence[TrialRow], entries: Sequence[Entry]) -> list[tuple[TrialRow, str]]:
    """Each trial with the reason of its end; of one that was paused to the end, the reason of that pause first."""
    last = {entry.trial: entry for entry in entries}
    pauses = {trial: entry.reason for trial, entry in last.items() if entry.ruling == Ruling.PAUSE.value}
    return [(row, "; ".join(filter(None, (pauses.get(row.number), row.reason)))) for row in rows]


def _packed_plotly() -> str:
    """Plotly's script, packed with gzip, in base64: 2 MB in place of 5."""
    from plotly.offline import get_plotlyjs

    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()
