"""The live view and the tables of a sweep, as Rich renderables for a terminal.

Invariants: everything is drawn from the `SweepState` that a function gets; nothing is read from disk. No text is parsed
as Rich markup, and no control character reaches the terminal, since hyperparameters, reasons, names and paths are the
user's, or those of a room that somebody else wrote.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from sweep.model.facts import CANNOT_BE_SEEN, WorkerFacts
from sweep.model.states import JobState, TrialStatus
from sweep.model.summary import SweepState, TrialRow
from sweep.report.formatting import curve, duration, number, param, params_text, ranked, short_keys, sparkline
from trainer.names import harmless

# States in the order in which they are counted, and their colours.
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
# Lines of the live view apart from running trials and events.
FIXED_LINES = 18
# Problems of metrics that the live view shows, the last ones.
MOST_PROBLEMS = 2
CONTROLLER_HINT = "Ctrl-C: detach, running trials continue · twice: stop them with a checkpoint"
LEFT_COLUMNS = ("state", "curve")
NUMBER_COLUMNS = ("trial", "loss", "grad_norm", "tok/s")


def table_of(headings: Iterable[str], right: Iterable[str] = (), **options: Any) -> Table:
    """An empty table whose headings are plain text.

    Args:
        headings: of the columns; right: those of them that are aligned to the right.
        options: further ones of `rich.table.Table`.
    """
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, title_justify="left", **options)
    right = set(right)
    for heading in headings:
        table.add_column(Text(heading), justify="right" if heading in right else "left")
    return table


def add_plain_row(table: Table, *cells: RenderableType) -> None:
    """Add a row whose strings are not parsed as markup."""
    table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))


def live_view(state: SweepState, events: Sequence[str], height: int) -> RenderableType:
    """The whole live view for a terminal of `height` lines."""
    running = [row for row in state.rows if row.state in (TrialStatus.RUNNING, TrialStatus.WAITING)]
    event_lines = max(1, height - len(running) - FIXED_LINES)
    parts: list[RenderableType] = [_header(state), _running_table(state, running), _best_line(state)]
    if events:
        parts.append(Text("\n".join(events[-event_lines:]), style="dim", no_wrap=True, overflow="ellipsis"))
    hint = CONTROLLER_HINT if state.controller else "watching"
    return Panel(Group(*parts), title=Text(f"sweep {state.name}"), subtitle=Text(hint))


def trials_table(state: SweepState, rows: Sequence[TrialRow], limit: int | None = None) -> Table:
    """Trials as a table, best first; `limit` rows at most."""
    shown = ranked(rows, state.objective)[:limit]
    keys = list(dict.fromkeys(key for row in shown for key in row.params))
    names = short_keys(keys)
    scores = list(dict.fromkeys(name for row in shown for name in row.scores))
    others = [name for name in state.metrics if name != state.metric]
    headings = ["trial", "state", *(names[key] for key in keys), state.metric, *others, "grad_norm", "tokens"]
    headings += [*(f"eval {name}" for name in scores), "curve"]
    table = table_of(headings, right=[heading for heading in headings if heading not in LEFT_COLUMNS])
    for column in table.columns:
        column.no_wrap = True
    for row in shown:
        add_plain_row(
            table,
            str(row.number),
            Text(row.state, style=COLOURS[row.state]),
            *(param(row.params[key], key) if key in row.params else "–" for key in keys),
            number(row.value),
            *(number(row.measured(name)) for name in others),
            number(row.last.grad_norm if row.last else None, 3),
            f"{row.tokens:,}",
            *(_score(row, name) for name in scores),
            sparkline(curve(row, state.metric)),
        )
    return table


def _score(row: TrialRow, name: str) -> str:
    """A score of a trial; without it, the state of the trial's evaluation."""
    return number(row.scores[name]) if name in row.scores else row.evaluation or "–"


def base_text(state: SweepState) -> str:
    """What the base without an adapter scores, as an addition to a line; empty if nobody has measured it."""
    said = ", ".join(f"{name} {number(value)}" for name, value in state.base_scores.items())
    return f"; the base has {said}" if said else ""


def counts_text(state: SweepState) -> Text:
    """The number of trials in each state that occurs."""
    text = Text()
    for status, colour in COLOURS.items():
        if count := state.count(status):
            text.append(f"{count} {status}  ", style=colour)
    return text


def workers_table(state: SweepState, logs: Mapping[str, str]) -> Table:
    """The workers of a sweep.

    Args:
        logs: the path of each worker's log, by worker.
    """
    are_jobs = any(worker.handle for worker in state.workers)  # a cluster's jobs have an id and a node
    table = table_of(("worker", *(("job", "node") if are_jobs else ("place",)), "state", "trials", "log"))
    for column in table.columns:
        column.overflow = "fold"
    for worker in state.workers:
        trials = ", ".join(
            str(row.number) for row in state.rows if row.state is TrialStatus.RUNNING and row.worker == worker.name
        )
        position = (worker.handle or "–", worker.node or "–") if are_jobs else (str(worker.place),)
        add_plain_row(table, worker.name, *position, worker_status(worker), trials or "–", logs.get(worker.name, ""))
    return table


def worker_status(worker: WorkerFacts) -> str:
    """The state of a worker in a few words, with the queue's reason if its job is pending."""
    if worker.job is JobState.PENDING:
        return f"pending: {worker.reason}" if worker.reason else "pending"
    if worker.reason.startswith(CANNOT_BE_SEEN):
        return worker.reason
    return "draining" if worker.draining else ("ready" if worker.ready else "starting")


def waiting_text(workers: Sequence[WorkerFacts]) -> str:
    """The number of pending jobs for each reason that the queue gives; empty if no job is pending."""
    reasons = Counter(worker.reason for worker in workers if worker.job is JobState.PENDING)
    return "; ".join(f"{count} {'jobs' if count > 1 else 'job'} pending: {reason}" for reason, count in reasons.items())


def _header(state: SweepState) -> RenderableType:
    """Counts by state, the budget and what of it is used, and the pending jobs."""
    ended = sum(1 for row in state.rows if row.state is TrialStatus.ENDED or row.state.is_final)
    budget = Table.grid(padding=(0, 2))
    parts: list[RenderableType] = []
    if state.limits.trials:
        parts.append(ProgressBar(total=state.limits.trials, completed=ended, width=30))
        parts.append(Text(f"{ended}/{state.limits.trials} trials"))
    token_limit = f"/{state.limits.tokens:,}" if state.limits.tokens else ""
    time_limit = f"/{duration(state.limits.seconds)}" if state.limits.seconds else ""
    parts.append(Text(f"{state.tokens:,}{token_limit} tokens"))
    parts.append(Text(f"{duration(state.seconds)}{time_limit}"))
    budget.add_row(*parts)
    pending = waiting_text(state.workers)
    waits = [Text(text, style="yellow") for text in (state.waits, pending, *state.problems[-MOST_PROBLEMS:]) if text]
    aim = Text(f"{state.objective.verb} {state.metric}{base_text(state)}", style="dim")
    return Group(counts_text(state), aim, budget, *waits)


def _running_table(state: SweepState, running: Sequence[TrialRow]) -> RenderableType:
    if not running:
        return Text(_nothing_runs(state), style="dim")
    headings = ("trial", "hyperparameters", "progress", state.metric, "curve", "loss", "grad_norm", "tok/s")
    table = table_of(headings, right=NUMBER_COLUMNS, expand=True)
    for row in running:
        last = row.last
        trained = min(1.0, row.tokens / state.trial_tokens) if state.trial_tokens else 0.0
        attempts = f" ·{row.attempts}" if row.attempts > 1 else ""
        add_plain_row(
            table,
            Text(f"{row.number}{attempts}", style=COLOURS[row.state]),
            Text(params_text(row.params), no_wrap=True, overflow="ellipsis"),
            ProgressBar(total=1.0, completed=trained, width=10),
            number(row.value),
            sparkline(curve(row, state.metric)),
            number(last.loss if last else None),
            number(last.grad_norm if last else None, 3),
            f"{last.tokens_per_second:,.0f}" if last else "–",
        )
    return table


def _nothing_runs(state: SweepState) -> str:
    starting = sum(1 for worker in state.workers if not worker.ready and worker.job is JobState.RUNNING)
    if not starting:
        return "no trial is running"
    return f"{starting} workers are starting" if starting > 1 else "a worker is starting"


def _best_line(state: SweepState) -> RenderableType:
    best = state.best
    if best is not None:
        details = f"  {state.metric} {number(best.value)}{base_text(state)}  {params_text(best.params)}"
        return Text.assemble(("best ", "bold"), (f"trial {best.number}", "green"), details)
    if state.unsure:
        return Text(state.unsure, style="yellow")
    turn = state.objective.minimised
    reported = [(turn(row.value), row.number) for row in state.rows if row.value is not None]
    if not reported:
        return Text("no trial is complete yet", style="dim")
    best_value, leader = min(reported)
    value = turn(best_value)
    return Text(f"no trial is complete yet; trial {leader} leads with {state.metric} {number(value)}", style="dim")


class PlainConsole(Console):
    """A console for which every text is plain: no markup, no emoji code, no control character of the text's own."""

    def __init__(self, width: int | None = None) -> None:
        super().__init__(width=width, markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable; those that Rich itself makes to control the terminal stay."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)


def console() -> Console:
    """A console on standard output: as wide as the terminal, or 140 columns if the output is no terminal."""
    plain = PlainConsole()
    return plain if plain.is_terminal else PlainConsole(width=140)
