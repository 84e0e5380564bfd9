"""Reads the state of a sweep, as a person sees it, from its room and its study.

Invariants: nothing is written, so a reader may run while a controller does. A trial that has ended is read only once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sweep.config.settings import Settings
from sweep.controller.disk import read_notice
from sweep.controller.ledger import read_ledger
from sweep.evaluation.controller import read_ending
from sweep.evaluation.jobs import evaluations_room
from sweep.model.facts import Job, WorkerFacts
from sweep.model.states import Ending, EvaluationStatus, JobState, Ruling, TrialStatus
from sweep.model.summary import SweepState, TrialRow
from sweep.report.contradictions import Doubt, doubt_of, overlooked, unsure_text
from sweep.report.metric_notes import base_scores, problems_of
from sweep.wiring.backends import backend_of, job_viewer
from sweep.wiring.rooms import controller_runs, journal_path, load_settings, unseen_controller
from sweep.wiring.session import reading_storage
from trainer.contract import (
    LOSSES,
    ContractError,
    Outcome,
    OutcomeKind,
    Report,
    Step,
    StopCause,
    decode,
    read_message,
    read_stop,
)
from trainer.names import harmless, name_or_empty
from trainer.room import Damage, DamageKind, Room, Tail, read_object, usable

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

T = TypeVar("T")
# Milestones of a report beyond this many times those of a whole trial are damage.
MILESTONES_MARGIN, LEAST_MILESTONES = 64, 10_000


@dataclass(frozen=True, slots=True)
class EvaluationState:
    """The state of a trial's evaluation, why it failed, and its scores by name."""

    state: EvaluationStatus = EvaluationStatus.NONE
    reason: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass
class TrialFiles:
    """What the files of a trial say at one moment, and which of them are damaged.

    Args:
        attempts: their numbers, oldest first.
    """

    room: Room
    number: int
    attempts: list[int]
    damages: list[Damage] = field(default_factory=list)

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The specification of the last attempt as plain JSON; empty if there is none that can be read."""
        if not self.attempts:
            return {}
        return self._noted(read_object(self.room.attempt(self.number, self.attempts[-1]).spec)) or {}

    @property
    def worker(self) -> str:
        """The name of the worker that the last attempt was assigned to."""
        return name_or_empty(self.spec.get("worker"))

    @property
    def config(self) -> Any:
        """The configuration that the last attempt was trained with, as JSON."""
        return self.spec.get("config")

    @cached_property
    def outcome(self) -> Outcome | None:
        """The outcome of the last attempt; None before that has ended, or if it cannot be read."""
        if not self.attempts:
            return None
        return self._noted(read_message(Outcome, self.room.attempt(self.number, self.attempts[-1]).outcome))

    def counted(self, attempt: int) -> int | None:
        """How many bytes of an attempt's reports count; None if all do."""
        files = self.room.attempt(self.number, attempt)
        fence = files.read_fence()
        if isinstance(fence, Damage):
            self.damages.append(fence)
        return files.counted()

    def was_stopped(self) -> bool:
        """Whether any attempt was asked to stop because its trial was pruned, or the last one because it was paused."""
        stops = [read_stop(self.room.attempt(self.number, attempt).stop) for attempt in self.attempts]
        causes = [stop[0] if isinstance(stop, tuple) else None for stop in stops]
        return StopCause.PRUNED in causes or causes[-1:] == [StopCause.PAUSED]

    def _noted(self, value: T | Damage | None) -> T | None:
        if isinstance(value, Damage):
            self.damages.append(value)
        return usable(value)


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
    _bad_lines: dict[int, dict[Path, int]] = field(default_factory=dict)
    _notes: dict[int, str] = field(default_factory=dict)
    _doubts: dict[int, Doubt] = field(default_factory=dict)

    def state(self) -> SweepState:
        """The state of the sweep at this moment."""
        workers = self._workers()
        unseen = unseen_controller(self.room)
        running = not unseen and controller_runs(self.room)
        alive = {worker.name for worker in workers}
        evaluated = set(evaluations_room(self.room).trials())
        with_files = self.room.trials()  # before the study, which knows a trial before the room does
        rows = tuple(self._with_evaluation(self._row(trial, alive), evaluated) for trial in self.trials())
        state = SweepState(
            name=self.settings.name,
            objectives=self.settings.objectives,
            rows=rows,
            workers=workers,
            limits=self.settings.limits(self.settings.queue.workers or len(workers)),
            seconds=self._seconds(running),
            trial_tokens=self.settings.trial_tokens,
            controller=running,
            waits=read_notice(self.room) if running else "",
            unseen=unseen,
            notes=tuple(note for row in rows if (note := self._notes.get(row.number))),
            metrics=tuple(metric.name for metric in self.settings.measured),
            base_scores=base_scores(rows),
            problems=problems_of(rows, self.settings.measured),
        )
        self._doubt_unknown(set(with_files) - {row.number for row in rows})
        best = state.best
        known = None if best is None or best.value is None or state.finals else state.objective.minimised(best.value)
        unsure = unsure_text(known, self._doubts)
        return replace(state, unsure=unsure) if unsure else state

    @property
    def doubts(self) -> list[str]:
        """Of the last state, a sentence for each trial of which study and files say different things."""
        return [f"trial {number}: {doubt.text}" for number, doubt in sorted(self._doubts.items())]

    def _doubt_unknown(self, numbers: Collection[int]) -> None:
        """Note trials that have completed and that the study does not know: its journal has lost its end."""
        for number in numbers:
            files = TrialFiles(self.room, number, self.room.attempts(number))
            has_completed = files.outcome is not None and files.outcome.kind is OutcomeKind.COMPLETED
            doubt = overlooked(self.settings.objectives[0], self._read_reports(files)) if has_completed else None
            if doubt is not None:
                self._doubts[number] = doubt

    def _doubt(self, trial: FrozenTrial, status: TrialStatus, files: TrialFiles, reports: tuple[Report, ...]) -> None:
        """Note what the files of an ended trial say against the study."""
        doubt = None
        if status is TrialStatus.COMPLETE:
            doubt = doubt_of(self.settings, trial, files.config, reports)
        elif status.is_final and files.outcome is not None and files.outcome.kind is OutcomeKind.COMPLETED:
            doubt = overlooked(self.settings.objectives[0], reports)
            if doubt is not None and (files.was_stopped() or self._was_judged(trial.number)):
                doubt = None
        self._doubts.pop(trial.number, None)
        if doubt is not None:
            self._doubts[trial.number] = doubt

    def _was_judged(self, trial: int) -> bool:
        """Whether the ledger says that a trial was stopped, or paused at last."""
        rulings = [entry.ruling for entry in read_ledger(self.room) if entry.trial == trial]
        return Ruling.STOP in rulings or rulings[-1:] == [Ruling.PAUSE]

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
        from sweep.search.attributes import REASON
        from sweep.search.distributions import decode_params
        from sweep.search.storage import final_of

        number, attempts = trial.number, self.room.attempts(trial.number)
        files = TrialFiles(self.room, number, attempts)
        worker = files.worker
        reports = self._read_reports(files)
        outcome = files.outcome  # also of a trial that has ended: its damage is noted
        status = final_status(trial) or open_status(outcome, has_worker=worker in alive)
        self._doubt(trial, status, files, reports)
        doubt = self._doubts.get(number)
        self._notes[number] = note_of(number, files.damages, doubt.text if doubt else "")
        is_doubtful = doubt is not None and status is TrialStatus.COMPLETE
        return TrialRow(
            number=number,
            state=status,
            params=decode_params(self.settings.space, trial),
            value=None if is_doubtful else self._value(trial, status, reports),
            reason=str(trial.user_attrs.get(REASON, "")),
            attempts=len(attempts),
            worker=worker,
            reports=reports,
            adapter=self._adapter(number, attempts),
            final=final_of(trial),
        )

    def _value(self, trial: FrozenTrial, status: TrialStatus, reports: tuple[Report, ...]) -> float | None:
        """The objective of a complete trial, else the last one that was reported."""
        if status is TrialStatus.COMPLETE:
            return trial.value
        metric = self.settings.metric
        if metric in LOSSES:
            return getattr(reports[-1], metric) if reports else None
        values = [report.scores[metric] for report in reports if metric in report.scores]  # not each report has it
        return values[-1] if values else None

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

    def _read_reports(self, files: TrialFiles) -> tuple[Report, ...]:
        """All reports of a trial by milestone; a later attempt's report replaces an earlier one's."""
        trial = files.number
        longest = max(LEAST_MILESTONES, MILESTONES_MARGIN * self.settings.reports_per_trial)
        merged, bad = self._reports.setdefault(trial, {}), self._bad_lines.setdefault(trial, {})
        for number in files.attempts:
            path = self.room.attempt(trial, number).reports
            tail = self._tails.setdefault((trial, number), Tail(path))
            for line in tail.lines(files.counted(number)):
                report = _decode_or_none(Report, line)
                if report is not None and 1 <= report.milestone <= longest:
                    merged[report.milestone] = report
                else:
                    bad[path] = bad.get(path, 0) + 1
            if tail.damage is not None:
                files.damages.append(tail.damage)
        files.damages += [bad_lines(path, count) for path, count in bad.items()]
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

    from sweep.search.attributes import CANCELLED

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
    return usable(read_message(Outcome, room.attempt(trial, attempts[-1]).outcome)) if attempts else None


def read_evaluation(room: Room, trial: int) -> EvaluationState:
    """The evaluation of a trial, from the evaluations' room within the sweep's room."""
    evaluations = evaluations_room(room)
    ended, outcome = read_ending(evaluations, trial), read_outcome(evaluations, trial)
    scores = outcome.scores if outcome else {}
    if ended is not None and ended.ending is not Ending.COMPLETE:
        return EvaluationState(EvaluationStatus.FAILED, ended.reason, scores)
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
    return [value for line in lines if (value := _decode_or_none(kind, line)) is not None]


def _decode_or_none(kind: type[T], line: str) -> T | None:
    try:
        return decode(kind, line)
    except ContractError:
        return None


def bad_lines(path: Path, count: int) -> Damage:
    """The damage of a file in which this many lines cannot be read."""
    return Damage(path, DamageKind.NO_VALUE, f"{count} {'lines' if count > 1 else 'line'} cannot be read")


def note_of(trial: int, damages: Sequence[Damage], doubt: str = "") -> str:
    """What is damaged of a trial, as one sentence; empty if nothing is."""
    said = [*dict.fromkeys(f"{damage.path.parent.name}/{damage.path.name}: {damage.reason}" for damage in damages)]
    said += [doubt] if doubt else []
    return harmless(f"trial {trial}: {'; '.join(said)}") if said else ""
