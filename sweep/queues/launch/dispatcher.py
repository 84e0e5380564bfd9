"""Workers as jobs of a W&B Launch queue, started by its agents.

Invariants: a worker is planned, then given its first trials, then pushed, once; what is meant to be pushed is written
down before it is. So a restarted controller pushes nothing twice: where the old one died during a push, the
job is looked for, for a while, and then given up with its name, under which no late process will be listened to.
What a job is doing is read from its run and from what its worker says in the room, not from the queue's item, which
stays claimed for ever; the item only tells that a job never started. W&B is asked once every `query_seconds`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from sweep.config.queues import LaunchQueue
from sweep.controller.ports import WorkerSpec
from sweep.errors import RetryLater
from sweep.model import Job, JobState
from sweep.queues.launch.api import LaunchApi, Push, RunFacts, Runs
from trainer.contract import StopCause, TrialSpec, decode
from trainer.room import UNWANTED, Room, WorkerDir, read_json, read_text, write_atomic

# A push of a controller that died may still be on its way for this long.
INTENT_SECONDS = 60.0
# A job that was told to end and is not heard of is counted as gone after this long.
CANCEL_SECONDS = 60.0
# What an item's state means to a person while no run has begun.
WAITING = {
    "pending": "in the queue: no agent has taken it yet",
    "leased": "an agent is taking it",
    "claimed": "an agent starts it",
}


@dataclass(slots=True)
class Record:
    """What `job.json` says of a worker.

    Args:
        run: the id of the job's run; empty until it is pushed.
        item: the queue's item; empty until it is known.
        pushed: when the push was begun, seconds since the epoch; 0 while it is planned.
        serves: its run is its own and not its only trial's, and says what else it is given.
        cancelled: when it was told to end; 0 while it was not.
        end: how the job ended, empty until it has.
    """

    worker: str
    place: int
    run: str = ""
    item: str = ""
    pushed: float = 0.0
    serves: bool = False
    cancelled: float = 0.0
    end: str = ""


@dataclass(slots=True)
class LaunchDispatcher:
    """A `Dispatcher` (see `ports`) for a W&B Launch queue.

    Args:
        payload: what a job is told, from its worker's name and its first specifications.
        run_of: the id of the run of a job with these specifications.
        stopping: told of each run before W&B is asked to stop it.
        reads: only look at what the room says: write nothing, ask nobody.
    """

    room: Room
    queue: LaunchQueue
    api: LaunchApi
    runs: Runs
    payload: Callable[[str, Sequence[TrialSpec]], Mapping[str, Any]]
    run_of: Callable[[str, Sequence[TrialSpec]], str]
    stopping: Callable[[str], None]
    reads: bool = False
    _records: dict[str, Record] = field(default_factory=dict)
    _items: dict[str, str] = field(default_factory=dict)
    _turn: int = 0

    def start(self, workers: Sequence[WorkerSpec]) -> None:
        self._load()
        for worker in workers:
            record = self._records.get(worker.name)
            if record is None:
                self._write(Record(worker.name, worker.place))
            elif not record.pushed and not record.end and (specs := self._specs(worker.name)):
                self._push(record, specs)

    def poll(self) -> Mapping[str, Job]:
        self._load()
        sent = [record for record in self._records.values() if record.pushed and not record.end]
        for record in sent:
            if isinstance(said := read_json(self._dir(record).exit), dict):
                self._end(record, str(said["reason"]))
        sent = [record for record in sent if not record.end]
        if not self.reads and sent:
            self._ask(sent)
            self._stop_late_ones()
        return {name: self._job(record) for name, record in self._records.items()}

    def cancel(self, workers: Sequence[str]) -> None:
        self._load()
        for record in [self._records[name] for name in workers if name in self._records]:
            if record.end or record.cancelled:
                continue
            if not record.pushed:
                self._end(record, "it was never pushed")
                continue
            if record.item:
                self.api.delete_item(record.item)
            if self._own(record) is not None:
                self._stop(record)
            record.cancelled = time.time()
            self._leave(record)  # should it start after all
            self._write(record)

    def preview(self, workers: Sequence[WorkerSpec]) -> str:
        queue = self.queue
        pushed = {key: getattr(queue, key) for key in ("resource", "job", "docker_image", "priority", "variables")}
        lines = [f"{key}: {value}" for key, value in pushed.items() if value not in (None, {})]
        return "\n".join(
            [f"queue: {queue.name}", *lines, f"run config: {json.dumps(self.payload(workers[0].name, ()))}"]
        )

    def ended(self) -> int:
        """How many jobs have ended, as far as is known."""
        return sum(1 for record in self._records.values() if record.end)

    # --- pushing -----------------------------------------------------------------------------------------------

    def _specs(self, worker: str) -> list[TrialSpec]:
        tasks = self.room.worker(worker).assignments()
        return [decode(TrialSpec, read_text(self.room.attempt(*task).spec) or "") for task in tasks]

    def _push(self, record: Record, specs: Sequence[TrialSpec]) -> None:
        record.run, record.pushed = self.run_of(record.worker, specs), time.time()
        record.serves = all(spec.tracking is None or spec.tracking.run != record.run for spec in specs)
        self._write(record)
        try:
            record.item = self.api.push(Push(record.run, record.worker, self.payload(record.worker, specs)))
        except RetryLater:
            raise  # it may have arrived: looked for in `_ask_for_item`
        except BaseException:
            record.run, record.pushed = "", 0.0
            self._write(record)
            raise
        self._items[record.worker] = "pending"
        self._write(record)

    # --- looking -----------------------------------------------------------------------------------------------

    def _load(self) -> None:
        for name in self.room.workers():
            if name not in self._records or self.reads:
                raw = read_json(self.room.worker(name).job)
                if isinstance(raw, dict):
                    known = {key: raw[key] for key in Record.__slots__ if key in raw}
                    self._records[name] = Record(**{"place": 0, **known, "worker": name})

    def _ask(self, sent: Sequence[Record]) -> None:
        self.runs.want("jobs", [record.run for record in [*sent, *self._late]])
        looked = self.runs.look()
        for record in sent:
            facts = self._own(record)
            if facts is not None and facts.ended and not self._beats_on(record):
                self._end(record, f"its run is {facts.state}")
            elif self._alone and self._begun(record) and self.runs.deleted(record.run):
                self._end(record, "its run was deleted in W&B")
            elif record.cancelled and facts is not None and not facts.told_to_stop:
                self._stop(record)  # it began after all
            elif record.cancelled and time.time() - record.cancelled > CANCEL_SECONDS:
                self._end(record, "it was told to end, and is not heard of any more")
        waiting = [
            record for record in sent if not record.end and self._own(record) is None and not self._begun(record)
        ]
        if looked and waiting:
            self._turn += 1
            self._ask_for_item(waiting[self._turn % len(waiting)])

    def _ask_for_item(self, record: Record) -> None:
        """One of those that have not started, in turn: a request a look, however many wait."""
        if not record.item:
            if time.time() - record.pushed > INTENT_SECONDS:
                self._end(record, "its push was never confirmed", late=True)
            return
        state = self.api.item_state(record.item)
        self._items[record.worker] = state or "unknown"
        limit = self.queue.pending_seconds
        if state is None:
            self._end(record, "its item is gone from the queue", late=True)
        elif state == "failed":
            self._end(record, "the agent could not start it; see the agent's log")
        elif state == "pending" and limit is not None and time.time() - record.pushed > limit:
            self.api.delete_item(record.item)
            self._end(record, f"no agent took it within {limit:g} s (queue.pending_seconds)", late=True)
        elif limit is not None and time.time() - record.pushed > limit:
            self._end(
                record, f"an agent took it, and it did not start in {limit:g} s (queue.pending_seconds)", late=True
            )

    @property
    def _alone(self) -> bool:
        """Whether W&B is all that the jobs share with us."""
        return self.queue.channel == "wandb"

    @property
    def _late(self) -> list[Record]:
        """Jobs that were given up before they began, and that no file of ours would keep from it."""
        records = self._records.values() if self._alone else ()
        return [record for record in records if record.end and record.pushed and not self._begun(record)]

    def _stop_late_ones(self) -> None:
        for record in self._late:
            facts = self._own(record)
            if facts is not None and not facts.ended and not facts.told_to_stop:
                self.api.stop(record.run, StopCause.CANCELLED)

    def _stop(self, record: Record) -> None:
        self.stopping(record.run)
        self.api.stop(record.run, StopCause.INTERRUPTED)

    def _leave(self, record: Record) -> None:
        """Nobody waits for this job any more. Where no file of ours reaches it, its runs are left to it as well."""
        write_atomic(self._dir(record).drain, UNWANTED)
        if self._alone and not self._begun(record):
            tracked = [spec.tracking.run for spec in self._specs(record.worker) if spec.tracking is not None]
            for run in dict.fromkeys([record.run, *tracked]):
                self.stopping(run)

    def _own(self, record: Record) -> RunFacts | None:
        """Its run, once the job itself has begun it: an earlier attempt of the trial has left one of the same id."""
        facts = self.runs.facts.get(record.run)
        return facts if facts is not None and facts.sweep.get("worker") == record.worker else None

    def _begun(self, record: Record) -> bool:
        return self._dir(record).beat.exists()

    def _beats_on(self, record: Record) -> bool:
        """Its trial's run has ended, but not the worker: it says so itself when it does."""
        beat = self._dir(record).beat
        return not self._alone and beat.exists() and time.time() - beat.stat().st_mtime < CANCEL_SECONDS

    def _job(self, record: Record) -> Job:
        if record.end:
            return Job(record.place, JobState.GONE, record.run, reason=record.end)
        if not record.pushed:
            return Job(record.place, JobState.PLANNED, reason="waits for its first trial")
        if self._begun(record) or self._own(record) is not None:
            return Job(record.place, JobState.RUNNING, record.run)
        state = self._items.get(record.worker, "pending")
        return Job(record.place, JobState.PENDING, record.run, reason=WAITING.get(state, f"its item is {state}"))

    # --- files -------------------------------------------------------------------------------------------------

    def _dir(self, record: Record) -> WorkerDir:
        return self.room.worker(record.worker)

    def _end(self, record: Record, how: str, late: bool = False) -> None:
        record.end = how
        if self.reads:
            return
        if late:  # its process may still start
            self._leave(record)
        self._write(record)

    def _write(self, record: Record) -> None:
        self._records[record.worker] = record
        write_atomic(self._dir(record).job, json.dumps({"queue": "launch", **asdict(record)}))
