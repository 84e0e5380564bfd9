"""Reads the state of a sweep, as a person sees it, from its room and its study.

Invariants: nothing is written, so a reader may run while a controller does. A trial that has ended is read only once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from sweep.config.settings import Settings
from sweep.controller.disk import read_notice
from sweep.evaluation.controller import read_ending
from sweep.evaluation.jobs import evaluations_room
from sweep.model.facts import Job, WorkerFacts
from sweep.model.states import Ending, EvaluationStatus, JobState, TrialStatus
from sweep.model.summary import SweepState, TrialRow
from sweep.wiring.backends import backend_of, job_viewer
from sweep.wiring.rooms import controller_runs, journal_path, load_settings, worker_of
from sweep.wiring.session import reading_storage
from trainer.contract import ContractError, Outcome, Report, Step, StopCause, decode
from trainer.room import Room, Tail, read_text

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EvaluationState:
    """The state of a trial's evaluation, why it failed, and its scores by name."""

    state: EvaluationStatus = EvaluationStatus.NONE
    reason: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class SweepReader:
    """Reads a sweep repeatedly.

    Args:
        trials: returns this sweep's own trials in the study.
        jobs: returns the queue's job of each worker, by the worker's name.
    """

    room: Room
    settings: Settings
    trials: Callable[[], list[FrozenTrial]]
    jobs: Callable[[], Mapping[str, Job]]
    _ended: dict[int, TrialRow] = field(default_factory=dict)
    _evaluations: dict[int, EvaluationState] = field(default_factory=dict)
    _tails: dict[tuple[int, int], Tail] = field(default_factory=dict)
    _reports: dict[int, dict[int, Report]] = field(default_factory=dict)

    def state(self) -> SweepState:
        """The state of the sweep at this moment."""
        workers = self._workers()
        running = controller_runs(self.room)
        alive = {worker.name for worker in workers}
        evaluated = set(evaluations_room(self.room).trials())
        rows = tuple(self._with_evaluation(self._row(trial, alive), evaluated) for trial in self.trials())
        return SweepState(
            name=self.settings.name,
            metric=self.settings.metric,
            rows=rows,
            workers=workers,
            limits=self.settings.limits(self.settings.queue.workers or len(workers)),
            seconds=self._seconds(running),
            trial_tokens=self.settings.trial_tokens,
            controller=running,
            waits=read_notice(self.room) if running else "",
        )

    def _seconds(self, running: bool) -> float:
        """Since the sweep was created, on its own clock."""
        seconds = backend_of(self.settings).seconds(self.room)
        return max(0.0, self._until(running) - self.settings.created) if seconds is None else seconds

    def _until(self, running: bool) -> float:
        """Now; if no controller is running, the time at which the study last changed."""
        journal = journal_path(self.room)
        return journal.stat().st_mtime if journal.exists() and not running else time.time()

    def _row(self, trial: FrozenTrial, alive: set[str]) -> TrialRow:
        """The row of a trial, without its evaluation; that of a trial that has ended comes from the cache."""
        row = self._ended.get(trial.number) or self._read_row(trial, alive)
        if row.state.is_final:
            self._ended[trial.number] = row
        return row

    def _read_row(self, trial: FrozenTrial, alive: set[str]) -> TrialRow:
        from sweep.search.distributions import decode_params
        from sweep.search.storage import FINAL, REASON, final_of

        number, attempts = trial.number, self.room.attempts(trial.number)
        worker = worker_of(self.room, number, attempts[-1]) if attempts else ""
        reports = self._read_reports(number, attempts)
        status = final_status(trial) or open_status(read_outcome(self.room, number), has_worker=worker in alive)
        return TrialRow(
            number=number,
            state=status,
            params=decode_params(self.settings.space, trial),
            value=self._value(trial, status, reports),
            reason=str(trial.user_attrs.get(REASON, "")),
            attempts=len(attempts),
            worker=worker,
            reports=reports,
            adapter=self._adapter(number, attempts),
            final=final_of(trial) if FINAL in trial.user_attrs else None,
        )

    def _value(self, trial: FrozenTrial, status: TrialStatus, reports: tuple[Report, ...]) -> float | None:
        """The objective of a complete trial, else the last one that was reported."""
        if status is TrialStatus.COMPLETE:
            return trial.value
        return getattr(reports[-1], self.settings.metric) if reports else None

    def _adapter(self, trial: int, attempts: list[int]) -> str | None:
        """The directory of the adapter that the last attempt exported."""
        adapter = self.room.attempt(trial, attempts[-1]).adapter if attempts else None
        return str(adapter) if adapter and adapter.is_dir() else None

    def _with_evaluation(self, row: TrialRow, evaluated: set[int]) -> TrialRow:
        """The row with its evaluation, which may come after the trial's end.

        Args:
            evaluated: numbers of the trials that have an evaluation.
        """
        if row.number not in evaluated:
            return row
        evaluation = self._evaluations.get(row.number) or read_evaluation(self.room, row.number)
        if evaluation.state.is_final:
            self._evaluations[row.number] = evaluation
        return replace(row, evaluation=evaluation.state, evaluation_reason=evaluation.reason, scores=evaluation.scores)

    def _read_reports(self, trial: int, attempts: list[int]) -> tuple[Report, ...]:
        """All reports of a trial by milestone; a later attempt's report replaces an earlier one's."""
        merged = self._reports.setdefault(trial, {})
        for number in attempts:
            files = self.room.attempt(trial, number)
            tail = self._tails.setdefault((trial, number), Tail(files.reports))
            merged.update({report.milestone: report for report in _decoded(Report, tail.lines(files.counted()))})
        return tuple(merged[milestone] for milestone in sorted(merged))

    def _workers(self) -> tuple[WorkerFacts, ...]:
        """The workers whose jobs have not ended."""
        return tuple(self._worker(name, job) for name, job in self.jobs().items() if job.state is not JobState.GONE)

    def _worker(self, name: str, job: Job) -> WorkerFacts:
        files = self.room.worker(name)
        return WorkerFacts(
            name=name,
            place=job.place,
            job=job.state,
            ready=files.beat.exists(),
            draining=files.drain.exists(),
            handle=job.handle,
            node=job.node,
            reason=job.reason,
        )


def final_status(trial: FrozenTrial) -> TrialStatus | None:
    """The status of a trial that the study knows the end of; None if the trial is open."""
    from optuna.trial import TrialState

    from sweep.search.storage import CANCELLED

    unsuccessful = TrialStatus.CANCELLED if CANCELLED in trial.user_attrs else TrialStatus.FAILED
    statuses = {
        TrialState.COMPLETE: TrialStatus.COMPLETE,
        TrialState.PRUNED: TrialStatus.PRUNED,
        TrialState.FAIL: unsuccessful,
    }
    return statuses.get(trial.state)


def open_status(outcome: Outcome | None, has_worker: bool) -> TrialStatus:
    """The status of an open trial.

    Args:
        outcome: of its last attempt; None before that has ended.
        has_worker: the worker of the last attempt is alive.
    """
    if outcome is None:
        return TrialStatus.RUNNING if has_worker else TrialStatus.WAITING
    if outcome.cause is StopCause.PAUSED:
        return TrialStatus.PAUSED
    return TrialStatus.WAITING if outcome.resumable else TrialStatus.ENDED


def open_reader(room: Room) -> SweepReader:
    """A reader of a room, whether or not a controller runs it.

    Raises:
        ConfigError: the room's settings cannot be read. GiveUp: its storage holds no study.
    """
    from sweep.search.storage import load_study, own_trials

    settings = load_settings(room)
    study = load_study(reading_storage(room, settings), settings.name)
    return SweepReader(room, settings, lambda: own_trials(study), job_viewer(room, settings))


def read_outcome(room: Room, trial: int) -> Outcome | None:
    """The outcome of a trial's last attempt; None if that has not ended, or its file cannot be decoded."""
    attempts = room.attempts(trial)
    text = read_text(room.attempt(trial, attempts[-1]).outcome) if attempts else None
    try:
        return decode(Outcome, text) if text is not None else None
    except ContractError:
        return None


def read_evaluation(room: Room, trial: int) -> EvaluationState:
    """The evaluation of a trial, from the evaluations' room within the sweep's room."""
    evaluations = evaluations_room(room)
    ended, outcome = read_ending(evaluations, trial), read_outcome(evaluations, trial)
    scores = outcome.scores if outcome else {}
    if ended is not None and ended["ending"] != Ending.COMPLETE:
        return EvaluationState(EvaluationStatus.FAILED, ended["reason"], scores)
    if ended is not None or scores:  # with scores alone, no controller has recorded the end yet
        return EvaluationState(EvaluationStatus.COMPLETE, "", scores)
    attempts = evaluations.attempts(trial)
    has_begun = bool(attempts) and evaluations.attempt(trial, attempts[-1]).reports.exists()
    return EvaluationState(EvaluationStatus.RUNNING if has_begun and outcome is None else EvaluationStatus.WAITING)


def read_steps(room: Room, trial: int) -> list[Step]:
    """The optimizer steps of a trial over all its attempts, ascending.

    A later attempt replaces all steps of the earlier ones from its own first step on.
    """
    merged: dict[int, Step] = {}
    for attempt in room.attempts(trial):
        steps = {step.step: step for step in _decoded(Step, Tail(room.attempt(trial, attempt).steps).lines())}
        first = min(steps, default=math.inf)
        merged = {number: step for number, step in merged.items() if number < first} | steps
    return [merged[step] for step in sorted(merged)]


def _decoded(kind: type[T], lines: list[str]) -> list[T]:
    """The values of these lines, without the lines that cannot be decoded."""
    values = []
    for line in lines:
        with suppress(ContractError):
            values.append(decode(kind, line))
    return values
