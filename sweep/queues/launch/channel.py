"""A `Channel` whose far side shares nothing with the controller but W&B.

The controller's room is kept as if the workers wrote into it: what their runs say becomes the files that they would
have written. Reports and outcomes are read from the runs' summaries, all runs in one request (the client reads
histories run by run, a request each). A stop is `Run.stop()`, whose cause a tag says.

Invariants: a file that a worker would write is written here only, from a run that says it is this attempt's and this
worker's. An outcome comes with the reports behind it. What a person stops or deletes in W&B counts as cancelled.
A worker that serves several trials is told of an assignment before that counts as delivered. Before an attempt is lost
with its worker, W&B is asked once more; while W&B does not answer, no beat counts as missed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from sweep.controller.ports import Clock, ObservedAttempt, ObservedWorker
from sweep.controller.room_channel import RoomChannel
from sweep.errors import GiveUp
from sweep.queues.launch.api import LaunchApi, RunFacts, Runs
from trainer.contract import (
    JOB_KEY,
    OUTCOME_KEY,
    REPORTS_KEY,
    ContractError,
    Outcome,
    OutcomeKind,
    Step,
    StopCause,
    TrialSpec,
    decode,
    encode,
)
from trainer.room import AttemptDir, Room, read_json, read_text, write_atomic


@dataclass(slots=True)
class WandbChannel:
    """See the module.

    Args:
        stopping: told of each run before W&B is asked to stop it.
    """

    room: Room
    inner: RoomChannel
    api: LaunchApi
    runs: Runs
    stopping: Callable[[str], None]
    _taken: int = 0
    _gone: set[str] = field(default_factory=set)

    def assign(self, spec: TrialSpec) -> None:
        self.inner.write_spec(spec)
        self._tell_worker(spec.worker, (spec.trial, spec.attempt))
        self.inner.assign(spec)

    def stop(self, trial: int, attempt: int, cause: StopCause, reason: str) -> None:
        spec = self._spec(trial, attempt)
        if spec is not None and spec.tracking is not None and not self.room.attempt(trial, attempt).stop.exists():
            self.stopping(spec.tracking.run)
            self.api.stop(spec.tracking.run, cause)
        self.inner.stop(trial, attempt, cause, reason)

    def drain(self, worker: str) -> None:
        self._tell_worker(worker, drain=True)
        self.inner.drain(worker)

    def observe(
        self, trials: Sequence[int], workers: Sequence[str]
    ) -> tuple[dict[int, list[ObservedAttempt]], dict[str, ObservedWorker]]:
        self._pull(trials, workers)
        attempts, seen = self.inner.observe(trials, workers)
        blind = f" {self.runs.failures}"
        return attempts, {name: replace(one, beat=one.beat and one.beat + blind) for name, one in seen.items()}

    def wait(self, clock: Clock, seconds: float) -> None:
        self.inner.wait(clock, seconds)

    # --- to the workers ------------------------------------------------------------------------------------------

    def _tell_worker(self, worker: str, *more: tuple[int, int], drain: bool = False) -> None:
        """A job that goes on after its first trials reads in its run's configuration what else it is given."""
        record = read_json(self.room.worker(worker).job)
        if not isinstance(record, Mapping) or not record.get("pushed") or record.get("end") or not record.get("serves"):
            return
        files = self.room.worker(worker)
        tasks = sorted({*files.assignments(), *more})
        inbox = [json.loads(read_text(self.room.attempt(*task).spec) or "{}") for task in tasks]
        with suppress(GiveUp):  # its run is gone: the dispatcher will say so
            self.api.configure(str(record["run"]), {JOB_KEY: {"inbox": inbox, "drain": drain or files.drain.exists()}})

    # --- from the workers ----------------------------------------------------------------------------------------

    def _pull(self, trials: Sequence[int], workers: Sequence[str]) -> None:
        wanted = {}
        for trial in trials:
            numbers = self.room.attempts(trial)
            if numbers and not self.room.attempt(trial, numbers[-1]).outcome.exists():
                spec = self._spec(trial, numbers[-1])
                if spec is not None and spec.tracking is not None:
                    wanted[spec.tracking.run] = spec
        self.runs.want("trials", list(wanted))
        gone = {spec.worker for spec in wanted.values() if self._has_ended(spec.worker)} - self._gone
        if gone:  # the last look at their trials may be older than their end
            self.runs.look(now=True)
            self._gone |= gone
        if self.runs.looks == self._taken:
            return
        for name in workers:
            self._take_beat(name)
        for run, spec in wanted.items():
            facts = self.runs.facts.get(run)
            if facts is None:
                self._miss(run, spec)
            elif (facts.sweep.get("worker"), facts.sweep.get("attempt")) == (spec.worker, spec.attempt):
                self._take(spec, facts)
        self._taken = self.runs.looks

    def _has_ended(self, worker: str) -> bool:
        record = read_json(self.room.worker(worker).job)
        return isinstance(record, Mapping) and bool(record.get("pushed") and record.get("end"))

    def _take_beat(self, name: str) -> None:
        """A run that its job has begun is a sign of life; that it ended before we looked does not change that."""
        record = read_json(self.room.worker(name).job)
        facts = self.runs.facts.get(str(record.get("run"))) if isinstance(record, Mapping) else None
        known = self.room.worker(name).beat.exists()
        if facts is not None and facts.sweep.get("worker") == name and not (facts.ended and known):
            beat = facts.heartbeat or str(len(json.dumps(facts.summary, default=str)))
            if read_text(self.room.worker(name).beat) != beat:
                write_atomic(self.room.worker(name).beat, beat, durable=False)

    def _take(self, spec: TrialSpec, facts: RunFacts) -> None:
        files = self.room.attempt(spec.trial, spec.attempt)
        if not facts.ended and files.stop.exists() and not facts.told_to_stop:
            self._ask_again(files, facts)
        self._take_reports(files, _told(facts.summary.get(REPORTS_KEY), spec).get("reports", ()))
        told = _told(facts.summary.get(OUTCOME_KEY), spec).get("outcome")
        if told is None:
            return
        try:
            outcome = self._as_asked(files, decode(Outcome, told), facts)
        except ContractError:
            return
        if outcome.kind is OutcomeKind.COMPLETED and spec.evaluate is None:
            outcome = self._fetch(spec, files, outcome)
        write_atomic(files.outcome, encode(outcome))

    def _take_reports(self, files: AttemptDir, reports: Sequence[str]) -> None:
        """All that there are, in the place of what there was: no line is torn, none is there twice."""
        have = read_text(files.reports)
        if have is None or have.count("\n") < len(reports):
            write_atomic(files.reports, "".join(f"{line}\n" for line in reports), durable=False)

    def _ask_again(self, files: AttemptDir, facts: RunFacts) -> None:
        """It was to stop before it had begun, when there was no run to ask."""
        cause, _, _ = (read_text(files.stop) or "").partition("\n")
        self.stopping(facts.id)
        self.api.stop(facts.id, StopCause(cause))

    def _as_asked(self, files: AttemptDir, outcome: Outcome, facts: RunFacts) -> Outcome:
        """A job knows that it was stopped, we know why: and where we did not ask, a person did.

        A stop without a word in the room, but with our tag, was for the job and not for its trial, which goes on in
        the next one: its worker was silent for long.
        """
        if outcome.kind is not OutcomeKind.STOPPED or outcome.cause is StopCause.PREEMPTED:
            return outcome
        cause, _, reason = (read_text(files.stop) or "").partition("\n")
        if not cause and facts.told_to_stop:
            return replace(outcome, cause=StopCause.INTERRUPTED, reason="its job was told to end")
        if not cause:
            return replace(outcome, cause=StopCause.CANCELLED, reason="it was stopped in W&B")
        return replace(outcome, cause=StopCause(cause), reason=reason)

    def _fetch(self, spec: TrialSpec, files: AttemptDir, outcome: Outcome) -> Outcome:
        """Bring the adapter and the steps of a complete trial here, for `best`, `export` and its proof.

        Raises:
            RetryLater: W&B cannot give them now; the outcome waits for them.
        """
        assert spec.tracking is not None
        try:
            self.api.fetch_adapter(f"{spec.tracking.adapter}:trial-{spec.trial}", str(files.adapter))
            rows = [encode(step) for row in self.api.steps(spec.tracking.run) if (step := _step(row))]
        except GiveUp as error:
            lost = f"its adapter is in W&B and could not be fetched: {error}"
            return replace(outcome, adapter=None, reason="; ".join(filter(None, [outcome.reason, lost])))
        write_atomic(files.steps, "".join(f"{row}\n" for row in rows))
        return outcome

    def _miss(self, run: str, spec: TrialSpec) -> None:
        files = self.room.attempt(spec.trial, spec.attempt)
        if files.reports.exists():  # it has begun, though an earlier controller may have been the one that saw it
            self.runs.expect(run)
        if self.runs.deleted(run):
            outcome = Outcome(OutcomeKind.STOPPED, "its run was deleted in W&B", cause=StopCause.CANCELLED)
            write_atomic(files.outcome, encode(outcome))

    def _spec(self, trial: int, attempt: int) -> TrialSpec | None:
        text = read_text(self.room.attempt(trial, attempt).spec)
        return None if text is None else decode(TrialSpec, text)


def _told(text: Any, spec: TrialSpec) -> dict[str, Any]:
    """What a summary says in this key of this attempt; nothing where it speaks of another."""
    try:
        told = json.loads(text)
    except (TypeError, ValueError):
        return {}
    of = (told.get("attempt"), told.get("worker")) if isinstance(told, dict) else None
    return told if of == (spec.attempt, spec.worker) else {}


def _step(row: Mapping[str, Any]) -> Step | None:
    try:
        return Step(
            int(row["global_step"]), int(row["tokens"]), float(row["loss"]), float(row["grad_norm"]), float(row["lr"])
        )
    except (KeyError, TypeError, ValueError):
        return None
