"""One self-contained HTML file about a sweep.

Invariants: the figures are Optuna's own; the file loads nothing from elsewhere. What comes from a configuration
is escaped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.controller.ledger import Entry, account, read_ledger
from sweep.model import Ruling, SweepState, TrialRow
from sweep.report.formatting import duration, number, params_text, ranked, scores_text
from sweep.report.reader import SweepReader
from sweep.search.significance import standings_text
from sweep.search.storage import load_study, own_trials
from sweep.wiring.backends import job_viewer
from sweep.wiring.rooms import load_settings
from sweep.wiring.session import reading_storage
from trainer.room import Room, write_atomic

if TYPE_CHECKING:
    import optuna
    import plotly.graph_objects as go

CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2733; max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; margin-bottom: .2rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p.sub { color: #5c6b7a; margin-top: 0 }
.cards { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0 }
.card { border: 1px solid #dde4ea; border-radius: 8px; padding: .6rem 1rem; min-width: 8rem }
.card b { display: block; font-size: 1.25rem } .card span { color: #5c6b7a; font-size: .85rem }
table { border-collapse: collapse; width: 100%; font-size: .88rem }
th, td { text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #e8edf1; vertical-align: top }
td.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.complete { color: #18794e } .pruned { color: #9a4ca8 } .failed { color: #c62a2f }
.paused { color: #b7791f } .cancelled, .waiting { color: #8a97a3 }
.wide { overflow-x: auto } code { background: #f2f5f7; padding: .1rem .3rem; border-radius: 4px }
"""


def write_report(room: Room, to: Path) -> Path:
    """Write the report of a sweep.

    Raises:
        GiveUp: the room's storage holds no study.
    """
    settings = load_settings(room)
    study = load_study(reading_storage(room, settings), settings.name)
    state = SweepReader(room, settings, lambda: own_trials(study), job_viewer(room, settings)).state()
    write_atomic(to.absolute(), page(state, figures(study, state), read_ledger(room)))
    return to.absolute()


def page(state: SweepState, plots: Sequence[tuple[str, str, str]], entries: Sequence[Entry] = ()) -> str:
    """The whole document from a state, its figures (heading, explanation, HTML) and its ledger."""
    best = state.best
    lead = (
        f"Best: trial {best.number}, {escape(state.metric)} {number(best.value)} with "
        f"<code>{escape(params_text(best.params))}</code>"
        + (f"; evaluated: {escape(scores_text(best.scores))}" if best.scores else "")
        if best
        else "No trial is complete yet."
    )
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>sweep {escape(state.name)}</title>",
        f"<style>{CSS}</style><h1>sweep {escape(state.name)}</h1>",
        f"<p class=sub>{lead}<br>Made {time.strftime('%Y-%m-%d %H:%M')}, {duration(state.seconds)} after the start</p>",
        _cards(state),
    ]
    if state.finals:
        parts.append(f"<h2>Finals</h2><pre>{escape(standings_text(state.finals, state.metric))}</pre>")
    for heading, text, html in plots:
        parts.append(f"<h2>{escape(heading)}</h2><p>{escape(text)}</p><div class=wide>{html}</div>")
    for name, heading in (("pruned", "Why trials were pruned"), ("failed", "Why trials failed")):
        rows = [row for row in state.rows if row.state == name]
        if rows:
            parts.append(f"<h2>{heading}</h2>{_reasons(rows, state.metric, entries)}")
    if entries:
        parts.append(_ledger(state, entries))
    parts.append(f"<h2>All trials</h2>{_trials(state)}</html>")
    return "\n".join(parts)


def figures(study: optuna.Study, state: SweepState) -> list[tuple[str, str, str]]:
    """Optuna's figures of a study: heading, explanation, and HTML. One that cannot be drawn yet says why."""
    from optuna.visualization import (
        plot_intermediate_values,
        plot_optimization_history,
        plot_parallel_coordinate,
        plot_param_importances,
        plot_slice,
    )

    def curves() -> go.Figure:
        return mark_pruned(plot_intermediate_values(study), state)

    def importances() -> go.Figure:
        from optuna.importance import PedAnovaImportanceEvaluator

        return plot_param_importances(study, evaluator=PedAnovaImportanceEvaluator())

    metric = state.metric
    wanted: list[tuple[str, str, Callable[[], go.Figure]]] = [
        (
            "History",
            f"{metric} of complete trials in the order of their numbers.",
            lambda: plot_optimization_history(study, target_name=metric),
        ),
        (
            "Learning curves",
            f"{metric} at equal token milestones; dotted curves that end in a cross were pruned.",
            curves,
        ),
        ("Importance", "Share of each hyperparameter in good results (PED-ANOVA).", importances),
        (
            "Slices",
            f"{metric} against each hyperparameter; darker points came later.",
            lambda: plot_slice(study, target_name=metric),
        ),
        (
            "Parallel coordinates",
            "Each line is a complete trial.",
            lambda: plot_parallel_coordinate(study, target_name=metric),
        ),
    ]
    drawn: list[tuple[str, str, str]] = []
    for heading, text, draw in wanted:
        first = not any("plotly.js" in html for _, _, html in drawn)
        drawn.append((heading, text, _html(draw, first)))
    return drawn


def mark_pruned(figure: go.Figure, state: SweepState) -> go.Figure:
    """Draw pruned trials' curves dotted, with a cross at their end."""
    pruned = {f"Trial{row.number}" for row in state.rows if row.state == "pruned"}
    for trace in figure.data:
        if trace.name in pruned:
            points = len(trace.x or ())
            trace.update(line={"dash": "dot"}, opacity=0.55, marker={"symbol": ["circle"] * (points - 1) + ["x"]})
            trace.update(marker_size=[5] * (points - 1) + [10], name=f"{trace.name} (pruned)")
    figure.update_layout(xaxis_title="milestone", yaxis_title=state.metric)
    return figure


def _html(draw: Callable[[], Any], with_library: bool) -> str:
    try:
        figure = draw()
    except (ValueError, RuntimeError, ImportError) as error:
        return f"<p class=sub>Not drawn: {escape(str(error))}</p>"
    figure.update_layout(title=None, template="plotly_white", margin={"t": 30})
    library = "inline" if with_library else False
    html: str = figure.to_html(full_html=False, include_plotlyjs=library, config={"displaylogo": False})
    return html


def _cards(state: SweepState) -> str:
    saved = sum(max(0, state.trial_tokens - row.tokens) for row in state.rows if row.state == "pruned")
    whole = state.trial_tokens * len(state.rows)
    cards = {
        name: str(state.count(name))
        for name in ("complete", "pruned", "paused", "failed", "running")
        if state.count(name)
    }
    cards["tokens trained"] = f"{state.tokens:,}"
    if whole and saved:
        cards["of all tokens saved by pruning"] = f"{saved / whole:.0%}"
    return (
        "<div class=cards>"
        + "".join(
            f"<div class=card><b>{escape(value)}</b><span>{escape(name)}</span></div>" for name, value in cards.items()
        )
        + "</div>"
    )


def _ledger(state: SweepState, entries: Sequence[Entry]) -> str:
    """What the decisions saved and risked, and each with what it was based on."""
    found = account(state, entries)
    share = f" ({found.saved / found.whole:.0%} of what all would have trained)" if found.whole else ""
    text = (
        f"{found.saved:,} label tokens were saved{share}. "
        f"When it was given up, {found.ahead} of the pruned trials stood before the winner at the same milestone; "
        f"the winner itself was paused {found.pauses} time{'' if found.pauses == 1 else 's'}."
    )
    body = "".join(
        f"<tr><td class=n>{e.trial}<td>{escape(e.ruling)}<td class=n>{e.milestone or ''}<td class=n>{number(e.value)}"
        f"<td class=n>{f'{e.tokens:,}' if e.tokens else ''}<td>{escape(e.reason)}<td>"
        + escape(", ".join(f"{key} {value:.4g}" for key, value in e.basis.items()))
        for e in entries
    )
    head = "<tr><th>trial<th>ruling<th>milestone<th>value<th>tokens<th>reason<th>based on"
    return f"<h2>Ledger</h2><p>{text}</p><div class=wide><table>{head}{body}</table></div>"


def _reasons(rows: Sequence[TrialRow], metric: str, entries: Sequence[Entry]) -> str:
    """What a trial was told; where it was last paused, what it was paused for first."""
    last = {entry.trial: entry for entry in entries}
    paused = {trial: f"{entry.reason}; " for trial, entry in last.items() if entry.ruling == Ruling.PAUSE.value}
    body = "".join(
        f"<tr><td class=n>{row.number}<td>{escape(params_text(row.params))}<td class=n>{number(row.value)}"
        f"<td class=n>{row.tokens:,}<td>{escape(paused.get(row.number, '') + row.reason)}"
        for row in rows
    )
    head = f"<tr><th>trial<th>hyperparameters<th>last {escape(metric)}<th>tokens<th>reason"
    return f"<div class=wide><table>{head}{body}</table></div>"


def _trials(state: SweepState) -> str:
    scores = list(dict.fromkeys(name for row in state.rows for name in row.scores))
    body = "".join(
        f"<tr><td class=n>{row.number}<td class={row.state}>{row.state}<td>{escape(params_text(row.params))}"
        f"<td class=n>{number(row.value)}<td class=n>{number(row.last.grad_norm if row.last else None, 3)}"
        f"<td class=n>{row.tokens:,}<td class=n>{row.attempts}"
        + "".join(f"<td class=n>{number(row.scores.get(name))}" for name in scores)
        for row in ranked(state.rows)
    )
    head = f"<tr><th>trial<th>state<th>hyperparameters<th>{escape(state.metric)}<th>grad_norm<th>tokens<th>attempts"
    head += "".join(f"<th>eval {escape(name)}" for name in scores)
    return f"<div class=wide><table>{head}{body}</table></div>"
