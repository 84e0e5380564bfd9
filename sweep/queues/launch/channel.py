"""A `Channel` between a controller and jobs that share nothing but W&B.

The controller's room is kept as if the workers wrote into it: what their runs say becomes the files that they would
have written. Reports and outcomes are read from the summaries of the runs, all in one request; the client would read
histories with a request for each run. A stop is `Run.stop()`, whose cause is a tag of the run.

Invariants:
- A file that a worker would write is written here only, from a run that names this attempt and this worker.
- An outcome is written after the reports that came with it. Reports that come later are still taken until the final
  one is there, since without it no trial ends as COMPLETE.
- A trial whose run a person stops or deletes in W&B counts as cancelled.
- A worker that serves several trials is sent an assignment before the assignment counts as delivered.
- Before an attempt is taken for lost with its worker, W&B is asked once more; while W&B does not answer, no heartbeat
  counts as missed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

from sweep.controller.ports import Channel, Clock, ObservedAttempt, ObservedWorker
from sweep.controller.room_channel import RoomChannel
from sweep.errors import GiveUp
from sweep.queues.launch.api import LaunchApi, ObservedRun
from sweep.queues.launch.dispatcher import LaunchDispatcher
from sweep.queues.launch.runs import Runs
from trainer.contract import (
    JOB_KEY,
    OUTCOME_KEY,
    REPORTS_KEY,
    ContractError,
    Outcome,
    OutcomeKind,
    Report,
    Step,
    StopCause,
    TrialSpec,
    decode,
    encode,
    read_message,
    read_stop,
)
from trainer.room import AttemptDir, Room, read_json, read_text, usable, write_atomic


@dataclass(slots=True)
class WandbChannel:
    """See the module.

    Args:
        inner: the channel over the controller's own room.
        stopping: is called with the id of a run before W&B is asked to stop it.
    """

    room: Room
    inner: RoomChannel
    api: LaunchApi
    runs: Runs
    stopping: Callable[[str], None]
    _seen_looks: int = 0
    _ended_workers: set[str] = field(default_factory=set)

    def assign(self, spec: TrialSpec) -> None:
        self.inner.write_spec(spec)
        self._notify_worker(spec.worker, (spec.trial, spec.attempt))
        self.inner.assign(spec)

    def stop(self, trial: int, attempt: int, cause: StopCause, reason: str) -> None:
        spec = self._spec(trial, attempt)
        if spec is not None and spec.tracking is not None and not self.room.attempt(trial, attempt).stop.exists():
            self.stopping(spec.tracking.run)
            self.api.stop(spec.tracking.run, cause)
        self.inner.stop(trial, attempt, cause, reason)

    def drain(self, worker: str) -> None:
        self._notify_worker(worker, drain=True)
        self.inner.drain(worker)

    def forget(self, trial: int) -> None:
        self.inner.forget(trial)

    def observe(
        self, trials: Sequence[int], workers: Sequence[str]
    ) -> tuple[dict[int, list[ObservedAttempt]], dict[str, ObservedWorker]]:
        self._pull(trials, workers)
        attempts, observed = self.inner.observe(trials, workers)
        failures = f" {self.runs.failures}"  # a query that failed counts as a heartbeat
        return attempts, {
            name: replace(worker, beat=worker.beat and worker.beat + failures) for name, worker in observed.items()
        }

    def wait(self, clock: Clock, seconds: float) -> None:
        self.inner.wait(clock, seconds)

    # --- to the workers ------------------------------------------------------------------------------------------

    def _notify_worker(self, worker: str, *more: tuple[int, int], drain: bool = False) -> None:
        """Write what a job is assigned after its first trials into the configuration of its run, where it reads it."""
        record = read_json(self.room.worker(worker).job)
        if not isinstance(record, Mapping) or not record.get("pushed") or record.get("end") or not record.get("serves"):
            return
        files = self.room.worker(worker)
        tasks = sorted({*files.assignments(), *more})
        specs = (usable(read_message(TrialSpec, self.room.attempt(*task).spec)) for task in tasks)
        inbox = [json.loads(encode(spec)) for spec in specs if spec is not None]
        with suppress(GiveUp):  # its run is gone, as the dispatcher will find
            self.api.configure(str(record["run"]), {JOB_KEY: {"inbox": inbox, "drain": drain or files.drain.exists()}})

    # --- from the workers ----------------------------------------------------------------------------------------

    def _pull(self, trials: Sequence[int], workers: Sequence[str]) -> None:
        """Turn what the last look at the runs showed into files of the room."""
        open_specs = self._open_specs(trials)
        self.runs.want("trials", list(open_specs))
        ended = {spec.worker for spec in open_specs.values() if self._has_ended(spec.worker)} - self._ended_workers
        if ended:  # the last look may be older than the end of their jobs
            self.runs.look(now=True)
            self._ended_workers |= ended
        if self.runs.looks == self._seen_looks:
            return
        for name in workers:
            self._take_beat(name)
        for run_id, spec in open_specs.items():
            run = self.runs.observed.get(run_id)
            if run is None:
                self._miss(run_id, spec)
            elif (run.sweep.get("worker"), run.sweep.get("attempt")) == (spec.worker, spec.attempt):
                self._take(spec, run)
        self._seen_looks = self.runs.looks

    def _open_specs(self, trials: Sequence[int]) -> dict[str, TrialSpec]:
        """By run, the specifications of the last attempts of which something is still to come."""
        specs = {}
        for trial in trials:
            numbers = self.room.attempts(trial)
            if numbers and _lacks_end(self.room.attempt(trial, numbers[-1])):
                spec = self._spec(trial, numbers[-1])
                if spec is not None and spec.tracking is not None:
                    specs[spec.tracking.run] = spec
        return specs

    def _has_ended(self, worker: str) -> bool:
        record = read_json(self.room.worker(worker).job)
        return isinstance(record, Mapping) and bool(record.get("pushed") and record.get("end"))

    def _take_beat(self, name: str) -> None:
        """A run that its job has begun is a heartbeat; also if the run had ended when it was first seen."""
        record = read_json(self.room.worker(name).job)
        run = self.runs.observed.get(str(record.get("run"))) if isinstance(record, Mapping) else None
        known = self.room.worker(name).beat.exists()
        if run is not None and run.sweep.get("worker") == name and not (run.ended and known):
            beat = run.heartbeat or str(len(json.dumps(run.summary, default=str)))
            if read_text(self.room.worker(name).beat) != beat:
                write_atomic(self.room.worker(name).beat, beat, durable=False, root=self.room.root)

    def _take(self, spec: TrialSpec, run: ObservedRun) -> None:
        files = self.room.attempt(spec.trial, spec.attempt)
        if not run.ended and files.stop.exists() and not run.stop_requested:
            self._stop_again(files, run)
        text = _said_of(spec, run.summary.get(OUTCOME_KEY)).get("outcome")
        reports = _said_of(spec, run.summary.get(REPORTS_KEY)).get("reports", ())
        self._take_reports(files, reports, durable=text is not None)
        if text is None or _outcome_of(files) is not None:
            return
        try:
            outcome = self._with_cause(files, decode(Outcome, text), run)
        except ContractError:
            return
        if outcome.kind is OutcomeKind.COMPLETED and spec.evaluate is None:
            outcome = self._fetch(spec, files, outcome)
        write_atomic(files.outcome, encode(outcome), root=self.room.root)

    def _take_reports(self, files: AttemptDir, reports: Sequence[str], durable: bool) -> None:
        """Replace the file by all reports that there are, so that no line is torn and none is there twice.

        Args:
            durable: an outcome follows, which must not survive a power cut without them.
        """
        have = read_text(files.reports)
        if have is None or have.count("\n") < len(reports) or (durable and not files.outcome.exists()):
            write_atomic(files.reports, "".join(f"{line}\n" for line in reports), durable, root=files.path)

    def _stop_again(self, files: AttemptDir, run: ObservedRun) -> None:
        """Ask again: the attempt was stopped before it had a run that could be asked."""
        stop = read_stop(files.stop)
        if isinstance(stop, tuple):
            self.stopping(run.id)
            self.api.stop(run.id, stop[0])

    def _with_cause(self, files: AttemptDir, outcome: Outcome, run: ObservedRun) -> Outcome:
        """The outcome of a stop with its cause: the job knows that it was stopped, and the controller knows why.

        Without a stop in the room a person stopped the run, unless it has our tag. Then the stop was meant for a silent
        worker and not for its trial, which goes on in the next job.
        """
        if outcome.kind is not OutcomeKind.STOPPED or outcome.cause is StopCause.PREEMPTED:
            return outcome
        stop = read_stop(files.stop)
        if isinstance(stop, tuple):
            return replace(outcome, cause=stop[0], reason=stop[1])
        if run.stop_requested:
            return replace(outcome, cause=StopCause.INTERRUPTED, reason="its job was told to end")
        return replace(outcome, cause=StopCause.CANCELLED, reason="it was stopped in W&B")

    def _fetch(self, spec: TrialSpec, files: AttemptDir, outcome: Outcome) -> Outcome:
        """Download the adapter and the steps of a complete trial, for `best`, `export` and its verification.

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
        write_atomic(files.steps, "".join(f"{row}\n" for row in rows), root=files.path)
        return outcome

    def _miss(self, run_id: str, spec: TrialSpec) -> None:
        """Cancel the attempt if its run was seen before and is deleted now."""
        files = self.room.attempt(spec.trial, spec.attempt)
        if files.reports.exists():  # the run existed, though perhaps only an earlier controller saw it
            self.runs.expect(run_id)
        if self.runs.deleted(run_id) and _outcome_of(files) is None:
            outcome = Outcome(OutcomeKind.STOPPED, "its run was deleted in W&B", cause=StopCause.CANCELLED)
            write_atomic(files.outcome, encode(outcome), root=self.room.root)

    def _spec(self, trial: int, attempt: int) -> TrialSpec | None:
        return usable(read_message(TrialSpec, self.room.attempt(trial, attempt).spec))


def make_channel(room: Room, dispatcher: LaunchDispatcher) -> Channel:
    """The channel of a room whose workers this dispatcher starts: over the room, or over W&B alone."""
    if not dispatcher.queue.reports_over_wandb:
        return RoomChannel(room)
    return WandbChannel(room, RoomChannel(room), dispatcher.api, dispatcher.runs, dispatcher.stopping)


def _said_of(spec: TrialSpec, text: Any) -> dict[str, Any]:
    """What a value of a run's summary says of this attempt; empty if it speaks of another one or cannot be read."""
    try:
        said = json.loads(text)
    except (TypeError, ValueError):
        return {}
    attempt = (said.get("attempt"), said.get("worker")) if isinstance(said, dict) else None
    return said if attempt == (spec.attempt, spec.worker) else {}


def _outcome_of(files: AttemptDir) -> Outcome | None:
    """The outcome in an attempt's directory; None if there is none that can be read."""
    return usable(read_message(Outcome, files.outcome))


def _lacks_end(files: AttemptDir) -> bool:
    """Whether an attempt has no readable outcome, or has completed without the final report being there."""
    outcome = _outcome_of(files)
    if outcome is None or outcome.kind is not OutcomeKind.COMPLETED or outcome.scores:
        return outcome is None
    for line in reversed((read_text(files.reports) or "").splitlines()):
        with suppress(ContractError):
            return not decode(Report, line).final
    return True


def _step(row: Mapping[str, Any]) -> Step | None:
    try:
        return Step(
            int(row["global_step"]), int(row["tokens"]), float(row["loss"]), float(row["grad_norm"]), float(row["lr"])
        )
    except (KeyError, TypeError, ValueError):
        return None
