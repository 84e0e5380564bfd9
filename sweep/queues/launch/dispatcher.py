"""Workers as jobs of a W&B Launch queue, started by its agents.

Invariants:
- A worker is planned, then assigned its first trials, then pushed, once. What is about to be pushed is written down
  before it is, so that a restarted controller pushes nothing twice. If the old controller died during a push, the new
  one looks for the job for a while and then gives it up together with its name; a process that starts late under this
  name is ignored.
- What a job does is read from its run and from what its worker writes in the room. The queue's item stays claimed after
  the job has ended, and is only asked whether a job failed to start (`transitions`).
- W&B is asked once every `query_seconds`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweep.controller.first_seen import FirstSeen
from sweep.controller.ports import WorkerSpec
from sweep.errors import RetryLater
from sweep.model.facts import Job
from sweep.model.states import JobState
from sweep.queues.launch import jobs, transitions
from sweep.queues.launch.api import LaunchApi, ObservedRun, Push
from sweep.queues.launch.job_records import LaunchJobRecord, LaunchJobRecords
from sweep.queues.launch.runs import Runs
from sweep.queues.launch.section import LaunchQueue, launch_queue
from sweep.queues.launch.transitions import EndJob, StopRun, judge_item, judge_run
from sweep.queues.launch.wandb_api import make_api
from sweep.tracking.runs import wandb_location
from sweep.tracking.stopped_runs import mark_stopped
from trainer import logs
from trainer.clock import boot_seconds
from trainer.contract import StopCause, TrialSpec, WorkerExit, read_exit
from trainer.room import UNWANTED, Room, write_atomic

if TYPE_CHECKING:
    from sweep.config.settings import Settings

# A push of a controller that died may arrive at W&B this many seconds later.
INTENT_SECONDS = 60.0
# A cancelled job that is silent for this many seconds is counted as ended.
CANCEL_SECONDS = 60.0
# What the state of an item means to a person while its job has no run.
WAITING = {
    "pending": "in the queue: no agent has taken it yet",
    "leased": "an agent is taking it",
    "claimed": "an agent starts it",
}


@dataclass(slots=True)
class LaunchDispatcher:
    """A `Dispatcher` (see `ports`) for a W&B Launch queue.

    Args:
        payload: the run configuration of a job, from its worker's name and its first specifications.
        run_of: the id of the run of a job, from the same.
        stopping: is called with the id of a run before W&B is asked to stop it.
        reads: only read what the room holds; write nothing and ask nobody.
    """

    room: Room
    queue: LaunchQueue
    api: LaunchApi
    runs: Runs
    payload: Callable[[str, Sequence[TrialSpec]], Mapping[str, Any]]
    run_of: Callable[[str, Sequence[TrialSpec]], str]
    stopping: Callable[[str], None]
    reads: bool = False
    _records: LaunchJobRecords = field(init=False)
    _items: dict[str, str] = field(default_factory=dict)
    _turn: int = 0
    _beats: FirstSeen = field(default_factory=FirstSeen)

    def __post_init__(self) -> None:
        self._records = LaunchJobRecords(self.room, self.reads)

    def start(self, workers: Sequence[WorkerSpec]) -> None:
        self._records.load()
        for worker in workers:
            record = self._records.by_worker.get(worker.name)
            if record is None:
                self._records.write(LaunchJobRecord(worker.name, worker.place))
            elif not record.pushed and not record.end and (specs := self._records.specs(worker.name)):
                self._push(record, specs)

    def poll(self) -> Mapping[str, Job]:
        self._records.load()
        open_jobs = [record for record in self._records.by_worker.values() if record.pushed and not record.end]
        for record in open_jobs:
            if isinstance(said := read_exit(self._records.directory(record).exit), WorkerExit):
                self._end(record, said.reason)
        open_jobs = [record for record in open_jobs if not record.end]
        if not self.reads and open_jobs:
            self._observe(open_jobs)
            self._stop_abandoned()
        return {name: self._job(record) for name, record in self._records.by_worker.items()}

    def cancel(self, workers: Sequence[str]) -> None:
        self._records.load()
        for name in workers:
            record = self._records.by_worker.get(name)
            if record is None or record.end or record.cancelled:
                continue
            if not record.pushed:
                self._end(record, "it was never pushed")
                continue
            if record.item:
                self.api.delete_item(record.item)
            if self._observed_run(record) is not None:
                self._stop(record)
            record.cancelled = time.time()
            self._abandon(record)  # it may still start
            self._records.write(record)

    def preview(self, workers: Sequence[WorkerSpec]) -> str:
        queue = self.queue
        pushed = {key: getattr(queue, key) for key in ("resource", "job", "docker_image", "priority", "variables")}
        lines = [f"{key}: {value}" for key, value in pushed.items() if value not in (None, {})]
        return "\n".join(
            [f"queue: {queue.name}", *lines, f"run config: {json.dumps(self.payload(workers[0].name, ()))}"]
        )

    def ended(self) -> int:
        """How many jobs are known to have ended."""
        return sum(1 for record in self._records.by_worker.values() if record.end)

    # --- pushing -----------------------------------------------------------------------------------------------

    def _push(self, record: LaunchJobRecord, specs: Sequence[TrialSpec]) -> None:
        record.run, record.pushed = self.run_of(record.worker, specs), time.time()
        record.serves = all(spec.tracking is None or spec.tracking.run != record.run for spec in specs)
        self._records.write(record)
        try:
            record.item = self.api.push(Push(record.run, record.worker, self.payload(record.worker, specs)))
        except RetryLater:
            raise  # it may have arrived: its item is looked for
        except BaseException:
            record.run, record.pushed = "", 0.0
            self._records.write(record)
            raise
        self._items[record.worker] = "pending"
        self._records.write(record)

    # --- observing ---------------------------------------------------------------------------------------------

    def _observe(self, open_jobs: Sequence[LaunchJobRecord]) -> None:
        """Ask W&B for the runs if it is time to, and act on what they say; then ask for the item of one job that has
        not started. The jobs take turns, so that a round costs one such request however many wait."""
        self.runs.want("jobs", [record.run for record in [*open_jobs, *self._abandoned]])
        asked = self.runs.look()
        for record in open_jobs:
            self._act(record, judge_run(self._run_facts(record)))
        waiting = [record for record in open_jobs if not record.end and not self._started(record)]
        if asked and waiting:
            self._turn += 1
            record = waiting[self._turn % len(waiting)]
            self._act(record, judge_item(self._item_facts(record)))

    def _run_facts(self, record: LaunchJobRecord) -> transitions.RunFacts:
        run, beat = self._observed_run(record), self._records.directory(record).beat
        return transitions.RunFacts(
            run_state=run.state if run is not None else None,
            run_ended=run is not None and run.ended,
            stop_requested=run is not None and run.stop_requested,
            run_deleted=self.runs.deleted(record.run),
            ready=beat.exists(),
            beating=beat.exists() and self._seconds_since_beat(record.worker, beat) < CANCEL_SECONDS,
            only_wandb=self.queue.reports_over_wandb,
            cancelled=bool(record.cancelled),
            cancel_expired=self._records.seconds_since(record, "cancelled") > CANCEL_SECONDS,
        )

    def _seconds_since_beat(self, worker: str, beat: Path) -> float:
        """Since this process first saw a worker's last heartbeat, whose time is that of another machine's clock."""
        self._beats.now = boot_seconds()
        return self._beats.now - self._beats.since("beat", worker, beat.stat().st_mtime_ns)

    def _item_facts(self, record: LaunchJobRecord) -> transitions.ItemFacts:
        """One request, if the item is known."""
        waited = self._records.seconds_since(record, "pushed")
        if not record.item:
            return transitions.ItemFacts(confirmed=False, push_expired=waited > INTENT_SECONDS)
        state = self.api.item_state(record.item)
        self._items[record.worker] = state or "unknown"
        return transitions.ItemFacts(
            confirmed=True, state=state, pending_seconds=self.queue.pending_seconds, waited_seconds=waited
        )

    def _act(self, record: LaunchJobRecord, action: StopRun | EndJob | None) -> None:
        match action:
            case StopRun():
                self._stop(record)
            case EndJob(reason, may_start, withdraw):
                if withdraw:
                    self.api.delete_item(record.item)
                self._end(record, reason, may_start)

    @property
    def _abandoned(self) -> list[LaunchJobRecord]:
        """Jobs that were given up before they began, and that no file of ours can keep from beginning."""
        records = self._records.by_worker.values() if self.queue.reports_over_wandb else ()
        return [record for record in records if record.end and record.pushed and not self._records.ready(record)]

    def _stop_abandoned(self) -> None:
        for record in self._abandoned:
            run = self._observed_run(record)
            if run is not None and not run.ended and not run.stop_requested:
                self.api.stop(record.run, StopCause.CANCELLED)

    def _stop(self, record: LaunchJobRecord) -> None:
        self.stopping(record.run)
        self.api.stop(record.run, StopCause.INTERRUPTED)

    def _abandon(self, record: LaunchJobRecord) -> None:
        """Tell a job that may still start that nobody waits for it. If no file reaches the job, no attempt resumes its
        runs any more."""
        write_atomic(self._records.directory(record).drain, UNWANTED, root=self.room.root)
        if self.queue.reports_over_wandb and not self._records.ready(record):
            tracked = [spec.tracking.run for spec in self._records.specs(record.worker) if spec.tracking is not None]
            for run in dict.fromkeys([record.run, *tracked]):
                self.stopping(run)

    def _observed_run(self, record: LaunchJobRecord) -> ObservedRun | None:
        """The run of a job once the job itself has begun it; an earlier attempt of the trial may have left one of the
        same id."""
        run = self.runs.observed.get(record.run)
        return run if run is not None and run.sweep.get("worker") == record.worker else None

    def _started(self, record: LaunchJobRecord) -> bool:
        return self._records.ready(record) or self._observed_run(record) is not None

    def _job(self, record: LaunchJobRecord) -> Job:
        if record.end:
            return Job(record.place, JobState.GONE, record.run, reason=record.end)
        if not record.pushed:
            return Job(record.place, JobState.PLANNED, reason="waits for its first trial")
        if self._started(record):
            return Job(record.place, JobState.RUNNING, record.run)
        state = self._items.get(record.worker, "pending")
        return Job(record.place, JobState.PENDING, record.run, reason=WAITING.get(state, f"its item is {state}"))

    def _end(self, record: LaunchJobRecord, reason: str, may_start: bool = False) -> None:
        record.end = reason
        if self.reads:
            return
        if may_start:
            self._abandon(record)
        self._records.write(record)


def make_dispatcher(room: Room, settings: Settings, gpu: bool, reads: bool = False) -> LaunchDispatcher:
    """The dispatcher of a room.

    Args:
        gpu: whether jobs train on CUDA.
        reads: see `LaunchDispatcher`.

    Raises:
        ConfigError: the queue is of another kind.
    """
    queue = launch_queue(settings)
    api = make_api(queue, wandb_location(settings), jobs.job_name(settings))
    pushed = replace(settings, queue=replace(queue, env={**logs.inherited_env(), **queue.env}))
    return LaunchDispatcher(
        room=room,
        queue=queue,
        api=api,
        runs=Runs(api, queue.query_seconds),
        payload=lambda worker, specs: jobs.payload(pushed, room, worker, specs, gpu),
        run_of=lambda worker, specs: jobs.run_of(settings, worker, specs),
        stopping=partial(mark_stopped, room),
        reads=reads,
    )
