"""What a person sees in a terminal: a live view, a line log, tables.

Invariant: draws a `SweepState` or a fact handed to it, and reads nothing itself.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sweep.model import JobState, SweepState, TrialRow, TrialStatus, WorkerFacts

BLOCKS = "▁▂▃▄▅▆▇█"
COLOURS = {
    TrialStatus.RUNNING: "cyan",
    TrialStatus.WAITING: "yellow",
    TrialStatus.PAUSED: "bright_yellow",
    TrialStatus.ENDED: "blue",
    TrialStatus.COMPLETE: "green",
    TrialStatus.PRUNED: "magenta",
    TrialStatus.FAILED: "red",
    TrialStatus.CANCELLED: "dim",
}


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """A curve in block characters, its last `width` points, lowest to highest over the finite ones."""
    shown = [value for value in values if math.isfinite(value)][-width:]
    if not shown:
        return ""
    low, span = min(shown) / 2, max(shown) / 2 - min(shown) / 2  # halves, as the span of all numbers is infinite
    return "".join(BLOCKS[round((value / 2 - low) / span * (len(BLOCKS) - 1)) if span else 0] for value in shown)


def number(value: float | None, digits: int = 4) -> str:
    """A figure for a table; a dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """Seconds as 1:02:03 or 2:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Names for the columns: the last part of each key where that is unique, abbreviated where it is long."""
    short = {key: key.rpartition(".")[2] for key in keys}
    names = {"gradient_accumulation_steps": "accum"}
    unique = {key: name if list(short.values()).count(name) == 1 else key for key, name in short.items()}
    return {key: names.get(name, name) for key, name in unique.items()}


def param(value: Any, key: str = "") -> str:
    """A hyperparameter for a table; a component is shown by its last name."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, str) and key.endswith("_component_") and re.fullmatch(r"\w+(\.\w+)+", value):
        return value.rpartition(".")[2]
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def params_text(params: Mapping[str, Any]) -> str:
    """Hyperparameters in one line."""
    names = short_keys(list(params))
    return " ".join(f"{names[key]}={param(value, key)}" for key, value in params.items())


def live_view(state: SweepState, events: Sequence[str], height: int) -> RenderableType:
    """The whole live view for a terminal of `height` rows."""
    running = [row for row in state.rows if row.state in (TrialStatus.RUNNING, TrialStatus.WAITING)]
    room_for_events = max(1, height - len(running) - 17)
    parts: list[RenderableType] = [_header(state), _running_table(state, running), _best_line(state)]
    if events:
        parts.append(Text("\n".join(events[-room_for_events:]), style="dim", no_wrap=True, overflow="ellipsis"))
    subtitle = "Ctrl-C: detach, running trials go on · twice: stop them with a checkpoint"
    return Panel(Group(*parts), title=f"sweep {state.name}", subtitle=subtitle if state.controller else "watching")


def trials_table(state: SweepState, rows: Sequence[TrialRow], limit: int | None = None) -> Table:
    """Trials as a table, best first; `limit` rows at most."""
    shown = ranked(rows)[:limit]
    keys = list(dict.fromkeys(key for row in shown for key in row.params))
    names = short_keys(keys)
    scores = list(dict.fromkeys(name for row in shown for name in row.scores))
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for heading in (
        "trial",
        "state",
        *(names[key] for key in keys),
        state.metric,
        "grad_norm",
        "tokens",
        *(f"eval {name}" for name in scores),
        "curve",
    ):
        table.add_column(heading, justify="left" if heading in ("state", "curve") else "right", no_wrap=True)
    for row in shown:
        last = row.last
        table.add_row(
            str(row.number),
            Text(row.state, style=COLOURS[row.state]),
            *(param(row.params[key], key) if key in row.params else "–" for key in keys),
            number(row.value),
            number(last.grad_norm if last else None, 3),
            f"{row.tokens:,}",
            *(_score(row, name) for name in scores),
            sparkline(curve(row, state.metric)),
        )
    return table


def _score(row: TrialRow, name: str) -> str:
    """A score of a row, or what its evaluation does."""
    return number(row.scores[name]) if name in row.scores else row.evaluation or "–"


def scores_text(scores: Mapping[str, float]) -> str:
    """An evaluation's scores in a line."""
    return "  ".join(f"{name} {number(value)}" for name, value in scores.items())


def ranked(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Complete trials first, best to worst, then the others by their last value."""
    return sorted(
        rows, key=lambda row: (row.state is not TrialStatus.COMPLETE, row.value if row.value is not None else math.inf)
    )


def curve(row: TrialRow, metric: str) -> list[float]:
    """A trial's objective at its milestones."""
    return [value for report in row.reports if (value := getattr(report, metric)) is not None]


def counts_text(state: SweepState) -> Text:
    """How many trials are in which state."""
    text = Text()
    for name, colour in COLOURS.items():
        if count := state.count(name):
            text.append(f"{count} {name}  ", style=colour)
    return text


def workers_table(state: SweepState, logs: Mapping[str, str]) -> Table:
    """The living workers of a sweep."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    queued = any(worker.handle for worker in state.workers)  # jobs of a cluster have a number and a node
    for heading in ("worker", *(("job", "node") if queued else ("place",)), "state", "trials", "log"):
        table.add_column(heading, overflow="fold")
    for worker in state.workers:
        trials = ", ".join(
            str(row.number) for row in state.rows if row.state is TrialStatus.RUNNING and row.worker == worker.name
        )
        where = (worker.handle or "–", worker.node or "–") if queued else (str(worker.place),)
        table.add_row(worker.name, *where, worker_status(worker), trials or "–", logs.get(worker.name, ""))
    return table


def worker_status(worker: WorkerFacts) -> str:
    """What a worker does, in a few words; why, where it waits for its queue."""
    if worker.job is JobState.PENDING:
        return f"waits: {worker.reason}" if worker.reason else "waits"
    return "draining" if worker.draining else ("ready" if worker.ready else "starting")


def waiting_text(workers: Sequence[WorkerFacts]) -> str:
    """How many jobs wait in their queue, and why; empty where none does."""
    reasons = Counter(worker.reason for worker in workers if worker.job is JobState.PENDING)
    parts = [f"{count} {'jobs wait' if count > 1 else 'job waits'}: {reason}" for reason, count in reasons.items()]
    return "; ".join(parts)


def _header(state: SweepState) -> RenderableType:
    ended = sum(1 for row in state.rows if row.state is TrialStatus.ENDED or row.state.is_final)
    table = Table.grid(padding=(0, 2))
    budget = state.limits.trials
    left: list[RenderableType] = []
    if budget:
        left.append(ProgressBar(total=budget, completed=ended, width=30))
        left.append(Text(f"{ended}/{budget} trials"))
    left.append(Text(f"{state.tokens:,}" + (f"/{state.limits.tokens:,}" if state.limits.tokens else "") + " tokens"))
    limit = state.limits.seconds
    left.append(Text(duration(state.seconds) + (f"/{duration(limit)}" if limit else "")))
    table.add_row(*left)
    waiting = waiting_text(state.workers)
    return Group(counts_text(state), table, *([Text(waiting, style="yellow")] if waiting else []))


def _running_table(state: SweepState, running: Sequence[TrialRow]) -> RenderableType:
    if not running:
        starting = sum(1 for worker in state.workers if not worker.ready and worker.job is JobState.RUNNING)
        many = f"{starting} workers are" if starting > 1 else "a worker is"
        return Text(f"{many} starting" if starting else "no trial is running", style="dim")
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, expand=True)
    for heading in (
        "trial",
        "hyperparameters",
        "progress",
        state.metric,
        "curve",
        "loss",
        "grad_norm",
        "tok/s",
    ):
        table.add_column(heading, justify="right" if heading in ("trial", "loss", "grad_norm", "tok/s") else "left")
    for row in running:
        last = row.last
        done = min(1.0, row.tokens / state.trial_tokens) if state.trial_tokens else 0.0
        again = f" ·{row.attempts}" if row.attempts > 1 else ""
        table.add_row(
            Text(f"{row.number}{again}", style=COLOURS[row.state]),
            Text(params_text(row.params), no_wrap=True, overflow="ellipsis"),
            ProgressBar(total=1.0, completed=done, width=10),
            number(getattr(last, state.metric) if last else None),
            sparkline(curve(row, state.metric)),
            number(last.loss if last else None),
            number(last.grad_norm if last else None, 3),
            f"{last.tokens_per_second:,.0f}" if last else "–",
        )
    return table


def _best_line(state: SweepState) -> RenderableType:
    best = state.best
    if best is None:
        leading = min(
            (row for row in state.rows if row.value is not None), key=lambda row: row.value or 0, default=None
        )
        ahead = f"; trial {leading.number} leads with {state.metric} {number(leading.value)}" if leading else ""
        return Text(f"no trial is complete yet{ahead}", style="dim")
    return Text.assemble(
        ("best ", "bold"),
        (f"trial {best.number}", "green"),
        f"  {state.metric} {number(best.value)}  {params_text(best.params)}",
    )


def console() -> Console:
    """Standard output, as wide as the terminal; 140 columns where it is none."""
    plain = Console()
    return plain if plain.is_terminal else Console(width=140)
