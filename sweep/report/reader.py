"""A sweep as a person sees it, read from its room and its study.

Invariants: reads only; what has ended is read once. Works beside a running controller and without one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

from sweep.config.settings import Settings
from sweep.evaluation.controller import read_ending
from sweep.evaluation.jobs import evaluations_room
from sweep.model import Ending, EvaluationStatus, Job, JobState, SweepState, TrialRow, TrialStatus, WorkerFacts
from sweep.wiring.backends import backend_of, job_viewer
from sweep.wiring.rooms import controller_runs, journal_path, load_settings, worker_of
from sweep.wiring.session import reading_storage
from trainer.contract import ContractError, Outcome, Report, Step, StopCause, decode
from trainer.room import Room, Tail, read_text

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

T = TypeVar("T")
ENDED = {"COMPLETE": TrialStatus.COMPLETE, "PRUNED": TrialStatus.PRUNED}


@dataclass(frozen=True, slots=True)
class EvaluationState:
    """A trial's evaluation; see `TrialRow`."""

    state: EvaluationStatus = EvaluationStatus.NONE
    reason: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class SweepReader:
    """Reads a sweep again and again.

    Args:
        trials: this sweep's own trials in the study.
        jobs: what the queue says of its workers.
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
        workers = self._workers()
        running = controller_runs(self.room)
        alive = {worker.name for worker in workers}
        judged = set(evaluations_room(self.room).trials())
        rows = tuple(self._judged(row, judged) for row in (self._row(trial, alive) for trial in self.trials()))
        return SweepState(
            name=self.settings.name,
            metric=self.settings.metric,
            rows=rows,
            workers=workers,
            limits=self.settings.limits(self.settings.queue.workers or len(workers)),
            seconds=self._seconds(running),
            trial_tokens=self.settings.trial_tokens,
            controller=running,
        )

    def _seconds(self, running: bool) -> float:
        """Since the sweep was created, on its own clock."""
        seconds = backend_of(self.settings).seconds(self.room)
        return self._until(running) - self.settings.created if seconds is None else seconds

    def _until(self, running: bool) -> float:
        """Now, or when the study last changed where nobody is at work."""
        journal = journal_path(self.room)
        return journal.stat().st_mtime if journal.exists() and not running else time.time()

    def _row(self, trial: FrozenTrial, alive: set[str]) -> TrialRow:
        from sweep.search.distributions import decode_params
        from sweep.search.storage import CANCELLED, FINAL, REASON

        if trial.number in self._ended:
            return self._ended[trial.number]
        attempts = self.room.attempts(trial.number)
        files = self.room.attempt(trial.number, attempts[-1]) if attempts else None
        worker = worker_of(self.room, trial.number, attempts[-1]) if attempts else ""
        outcome = read_outcome(self.room, trial.number)
        unsuccessful = TrialStatus.CANCELLED if CANCELLED in trial.user_attrs else TrialStatus.FAILED
        state = ENDED.get(trial.state.name, unsuccessful)
        if not trial.state.is_finished():
            running = outcome is None and worker in alive
            goes_on = outcome is None or outcome.resumable
            paused = outcome is not None and outcome.cause is StopCause.PAUSED
            if running:
                state = TrialStatus.RUNNING
            elif paused:
                state = TrialStatus.PAUSED
            else:
                state = TrialStatus.WAITING if goes_on else TrialStatus.ENDED
        reports = self._read_reports(trial.number, attempts)
        last = getattr(reports[-1], self.settings.metric) if reports else None
        row = TrialRow(
            number=trial.number,
            state=state,
            params=decode_params(self.settings.space, trial),
            value=trial.value if trial.state.name == "COMPLETE" else last,
            reason=str(trial.user_attrs.get(REASON, "")),
            attempts=len(attempts),
            worker=worker,
            reports=reports,
            adapter=str(files.adapter) if files and files.adapter.is_dir() else None,
            final=tuple(trial.user_attrs[FINAL]) if FINAL in trial.user_attrs else None,
        )
        if trial.state.is_finished():
            self._ended[trial.number] = row
        return row

    def _judged(self, row: TrialRow, judged: set[int]) -> TrialRow:
        """The row with its evaluation, which may come after the trial's end."""
        if row.number not in judged:
            return row
        found = self._evaluations.get(row.number) or read_evaluation(self.room, row.number)
        if found.state.is_final:
            self._evaluations[row.number] = found
        return replace(row, evaluation=found.state, evaluation_reason=found.reason, scores=found.scores)

    def _read_reports(self, trial: int, attempts: list[int]) -> tuple[Report, ...]:
        merged = self._reports.setdefault(trial, {})
        for number in attempts:
            files = self.room.attempt(trial, number)
            tail = self._tails.setdefault((trial, number), Tail(files.reports))
            merged.update({report.milestone: report for report in _decoded(Report, tail.lines(files.counted()))})
        return tuple(merged[milestone] for milestone in sorted(merged))

    def _workers(self) -> tuple[WorkerFacts, ...]:
        found = []
        for name, job in self.jobs().items():
            if job.state is not JobState.GONE:
                files = self.room.worker(name)
                facts = WorkerFacts(
                    name=name,
                    place=job.place,
                    job=job.state,
                    ready=files.beat.exists(),
                    draining=files.drain.exists(),
                    handle=job.handle,
                    node=job.node,
                    reason=job.reason,
                )
                found.append(facts)
        return tuple(found)


def open_reader(room: Room) -> SweepReader:
    """A reader of a room, beside whoever runs it."""
    from sweep.search.storage import load_study, own_trials

    settings = load_settings(room)
    study = load_study(reading_storage(room, settings), settings.name)
    return SweepReader(room, settings, lambda: own_trials(study), job_viewer(room, settings))


def read_outcome(room: Room, trial: int) -> Outcome | None:
    """The outcome of a trial's last attempt, None where it has none yet."""
    attempts = room.attempts(trial)
    text = read_text(room.attempt(trial, attempts[-1]).outcome) if attempts else None
    try:
        return decode(Outcome, text) if text is not None else None
    except ContractError:
        return None


def read_evaluation(room: Room, trial: int) -> EvaluationState:
    """The evaluation of a trial of a sweep's room."""
    beside = evaluations_room(room)
    how, outcome = read_ending(beside, trial), read_outcome(beside, trial)
    if how is not None:
        scores = outcome.scores if outcome else {}
        if how["ending"] == Ending.COMPLETE:
            return EvaluationState(EvaluationStatus.COMPLETE, "", scores)
        return EvaluationState(EvaluationStatus.FAILED, how["reason"], scores)
    attempts = beside.attempts(trial)
    if outcome is not None and outcome.scores:
        return EvaluationState(EvaluationStatus.COMPLETE, "", outcome.scores)  # and not told yet: no controller runs
    begun = attempts and outcome is None and (beside.attempt(trial, attempts[-1]).reports).exists()
    return EvaluationState(EvaluationStatus.RUNNING if begun else EvaluationStatus.WAITING)


def read_steps(room: Room, trial: int) -> list[Step]:
    """The optimizer steps of a trial over all its attempts; from where a later attempt began, only the later's."""
    merged: dict[int, Step] = {}
    for number in room.attempts(trial):
        steps = {step.step: step for step in _decoded(Step, Tail(room.attempt(trial, number).steps).lines())}
        began = min(steps, default=math.inf)
        merged = {step: value for step, value in merged.items() if step < began} | steps
    return [merged[step] for step in sorted(merged)]


def _decoded(kind: type[T], lines: list[str]) -> list[T]:
    found = []
    for line in lines:
        try:
            found.append(decode(kind, line))
        except ContractError:
            continue
    return found
