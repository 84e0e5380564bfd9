"""The verbs that look at a sweep and change nothing: `status`, `watch` and `logs`.

Invariant: as in `run_verbs`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sweep.cli.groups import Verb
from sweep.cli.options import json_option, name_argument, trial_option

if TYPE_CHECKING:
    from sweep.model.facts import WorkerFacts
    from sweep.model.summary import SweepState
    from trainer.room import Room

WATCH_SECONDS = 1.0
# A sweep of which nobody can see whether it runs is followed until nothing has changed for so long.
UNSEEN_SECONDS = 30.0
MAX_LOG_BYTES = 2**32


@click.command(cls=Verb, examples=("sweep status", "sweep status first --json"))
@name_argument()
@json_option
def status(name: str | None, as_json: bool) -> int:
    """Show trials and workers."""
    from sweep.report.formatting import json_text
    from sweep.report.reader import open_reader
    from sweep.wiring.rooms import current_room

    room = current_room(name)
    state = open_reader(room).state()
    if as_json:
        print(json_text(_state_json(state)))
    else:
        show_status(room, state)
    return 0


@click.command(cls=Verb, examples=("sweep watch", "sweep watch first"))
@name_argument()
def watch(name: str | None) -> int:
    """Follow a sweep live until it ends."""
    import time

    from rich.live import Live

    from sweep.cli.background import COMING_SECONDS, coming_controller
    from sweep.report.reader import open_reader
    from sweep.report.terminal import console, live_view
    from sweep.wiring.rooms import current_room

    room = current_room(name)
    reader = open_reader(room)
    out = console()
    with Live(console=out, auto_refresh=False, transient=out.is_terminal) as live:
        queued, asked_at = "", float("-inf")
        follow = UnseenController()
        while True:
            state = reader.state()
            if not state.controller and time.monotonic() - asked_at > COMING_SECONDS:
                queued, asked_at = coming_controller(room), time.monotonic()
            live.update(live_view(state, [line for line in (queued, state.unseen) if line], out.height), refresh=True)
            if state.unseen:
                if follow.is_over(state):
                    break
            elif not state.controller and not queued and not any(runs_or_waits(worker) for worker in state.workers):
                break
            time.sleep(WATCH_SECONDS)
    room = current_room(name)
    show_status(room, open_reader(room).state())
    return 0


class UnseenController:
    """Whether a sweep is over whose locks this user cannot open: nothing of it has changed for a while."""

    def __init__(self) -> None:
        self._last: Any = None
        self._since = 0.0

    def is_over(self, state: SweepState) -> bool:
        """Whether `UNSEEN_SECONDS` have passed without a new report, a new trial or another end."""
        import time

        now, seen = time.monotonic(), [(row.state, row.tokens, row.attempts) for row in state.rows]
        if seen != self._last:
            self._last, self._since = seen, now
        return now - self._since >= UNSEEN_SECONDS


def runs_or_waits(worker: WorkerFacts) -> bool:
    """Whether a worker is seen to run or to wait; not if its lock cannot be opened by this user."""
    from sweep.model.facts import CANNOT_BE_SEEN

    return not worker.reason.startswith(CANNOT_BE_SEEN)


@click.command(cls=Verb, examples=("sweep logs first --trial 3", "sweep logs first --controller -n 200"))
@name_argument()
@trial_option
@click.option("--controller", is_flag=True, help="the log of the detached controller")
@click.option("-n", "lines", type=int, default=40, metavar="N", help="lines of each log; default: 40")
def logs(name: str | None, trial: int | None, controller: bool, lines: int) -> int:
    """Print the logs of workers, of one trial or of the controller."""
    from sweep.cli.background import controller_log
    from sweep.wiring.rooms import current_room

    room = current_room(name, light=False)
    if controller:
        _print_log(controller_log(room), lines)
        return 0
    paths = _worker_logs(room) if trial is None else _trial_logs(room, trial)
    for path in dict.fromkeys(paths):  # a requeued job continues its log
        _print_log(path, lines)
    return 0


def show_status(room: Room, state: SweepState) -> None:
    """Print where the controller is, the trials, the workers, and what failed."""
    from rich.text import Text

    from sweep.report.terminal import base_text, console, counts_text, trials_table, workers_table
    from sweep.wiring.rooms import worker_log
    from trainer.names import harmless

    out = console()
    controller = _controller_text(room, state)
    head = Text.assemble((state.name, "bold"), f" in {room.root} – {controller}")
    out.print(head, soft_wrap=True)
    if state.waits:
        out.print(Text(harmless(state.waits), style="yellow"), soft_wrap=True)
    out.print(counts_text(state))
    out.print(Text(harmless(f"{state.objective.verb} {state.metric}{base_text(state)}")), soft_wrap=True)
    out.print(trials_table(state, state.rows))
    if state.workers:
        out.print(workers_table(state, {worker.name: str(worker_log(room, worker.name)) for worker in state.workers}))
    for line in _failures(state):
        out.print(line, markup=False, soft_wrap=True)
    print_notes(state)


def print_notes(state: SweepState) -> None:
    """Print what is damaged in the room, and what can be done."""
    from sweep.report.terminal import console

    out = console()
    for problem in state.problems:
        out.print(problem, soft_wrap=True)
    for note in state.notes:
        out.print(f"damaged: {note}", soft_wrap=True)
    if state.unsure:
        out.print(state.unsure, soft_wrap=True)
    if state.notes or state.unsure:
        out.print(f"`sweep doctor --room {state.name}` lists what is damaged", soft_wrap=True)


def _controller_text(room: Room, state: SweepState) -> str:
    """Where the controller runs, or waits; one on another machine may have been killed and still hold its lease."""
    from sweep.cli.background import coming_controller
    from sweep.wiring.rooms import controller_elsewhere, controller_whereabouts

    if state.controller:
        return f"controller: {controller_whereabouts(room)}"
    if state.unseen:
        return state.unseen
    if elsewhere := controller_elsewhere(room):
        return f"controller: {elsewhere}, unless it was killed there"
    return coming_controller(room) or "no controller is running"


def _failures(state: SweepState) -> Iterator[str]:
    from sweep.model.states import EvaluationStatus, TrialStatus

    for row in state.rows:
        if row.state is TrialStatus.FAILED:
            yield f"trial {row.number} failed: {row.reason}"
        if row.evaluation is EvaluationStatus.FAILED:
            yield f"evaluation of trial {row.number} failed: {row.evaluation_reason}"


def _worker_logs(room: Room) -> list[Path]:
    """The logs of all workers, those of evaluations last."""
    from sweep.evaluation.jobs import evaluations_room
    from sweep.wiring.rooms import worker_log

    parts = (room, evaluations_room(room))
    return [worker_log(part, worker) for part in parts for worker in part.workers()]


def _trial_logs(room: Room, trial: int) -> list[Path]:
    """The logs of the workers that had this trial, those of its evaluation last.

    Raises:
        ConfigError: there is no such trial.
    """
    from sweep.errors import ConfigError
    from sweep.evaluation.jobs import evaluations_room
    from sweep.wiring.rooms import worker_log, worker_of

    if not room.attempts(trial):
        raise ConfigError(f"--trial={trial}: this sweep has no such trial; it has {room.trials()}")
    parts = (room, evaluations_room(room))
    return [worker_log(part, worker_of(part, trial, n)) for part in parts for n in part.attempts(trial)]


def _print_log(path: Path, lines: int) -> None:
    from trainer.names import harmless
    from trainer.room import read_bytes

    print(harmless(f"==> {path} <=="))
    data = read_bytes(path, MAX_LOG_BYTES)
    text = "(nothing is written yet)" if data is None else str(data)
    if isinstance(data, bytes):
        text = data.decode("utf-8", errors="replace")
    print(harmless("\n".join(text.splitlines()[-lines:])))


def _state_json(state: SweepState) -> dict[str, Any]:
    import dataclasses

    raw = dataclasses.asdict(state)
    raw["best"] = state.best.number if state.best else None
    raw["metric"], raw["direction"] = state.metric, state.objective.direction.value
    raw["objectives"] = [{"name": one.name, "direction": one.direction.value} for one in state.objectives]
    for row in raw["rows"]:  # most reports have no metrics, as in their files
        row["reports"] = [{key: value for key, value in report.items() if value != {}} for report in row["reports"]]
    return raw
