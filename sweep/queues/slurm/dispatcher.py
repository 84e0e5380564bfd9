"""Workers as jobs of a SLURM cluster, submitted through submitit.

Invariants: what is meant to be submitted is written down before it is, under a job name that no other submission ever
has; so a restarted controller finds what the old one submitted, also where it died in between, and submits nothing
twice. A worker's name belongs to one process: when SLURM requeues the job of `w0003`, its next process is `w0003r1`,
and whatever the first one still writes is another worker's. The scheduler is asked at most once a poll, and not more
often than every `query_seconds`; in between, and for whoever only looks, the last answer holds.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sweep.controller.ports import WorkerSpec
from sweep.errors import GiveUp, RetryLater, SweepError
from sweep.model import Job, JobState
from sweep.queues.slurm import commands
from sweep.queues.slurm.submit import Submission, job_log
from trainer.room import Room, read_json, write_atomic

# A submission of a controller that died may still be on its way to the scheduler for this long.
INTENT_SECONDS = 60.0


@dataclass(slots=True)
class Record:
    """What `job.json` says of a worker.

    Args:
        name: SLURM's name of the submission, in which the worker is number `index`.
        restarts: how often SLURM had requeued the job when this worker's process began.
        id: SLURM's job id, empty until it is known.
        end: how the job ended, empty until it has.
    """

    worker: str
    place: int
    name: str
    index: int
    restarts: int = 0
    id: str = ""
    end: str = ""

    def job(self, state: JobState | None = None, node: str = "", reason: str = "") -> Job:
        if self.end or state is None:
            return Job(self.place, JobState.GONE, self.id, node, self.end)
        return Job(self.place, state, self.id, node, reason)


@dataclass(slots=True)
class SlurmDispatcher:
    """A `Dispatcher` (see `ports`) for SLURM.

    Args:
        submission: turns workers into jobs.
        query_seconds: at least so long between two questions to the scheduler.
        reads: only look: write nothing, and believe what a running controller wrote down.
    """

    room: Room
    submission: Submission
    query_seconds: float = 10.0
    reads: bool = False
    _records: dict[str, Record] = field(default_factory=dict)
    _seen: dict[str, Job] = field(default_factory=dict)
    _asked: float = float("-inf")
    _cancelled: dict[str, float] = field(default_factory=dict)
    _not_cancelled: float = float("-inf")
    _bad_nodes: set[str] = field(default_factory=set)
    _forgotten: list[Record] = field(default_factory=list)
    _max_array: int = 0

    def start(self, workers: Sequence[WorkerSpec]) -> None:
        new = [worker for worker in workers if not self.room.worker(worker.name).job.exists()]
        for chunk in self._chunks(new):
            self._submit(chunk)

    def poll(self) -> Mapping[str, Job]:
        self._load()
        waiting = [record for record in self._records.values() if not record.end]
        for record in waiting:
            if isinstance(said := read_json(self.room.worker(record.worker).exit), dict):
                self._take_word(record, said)
        if any(not record.end for record in waiting):
            with suppress(SweepError) if self.reads else nullcontext():  # who only looks may have no scheduler
                self._refresh()
        return {name: self._job(record) for name, record in self._records.items()}

    def cancel(self, workers: Sequence[str]) -> None:
        self._load()
        now = time.monotonic()
        if now - self._not_cancelled < self.query_seconds:  # asked for again by then; other effects have their turn
            return
        due = [n for n in workers if n in self._records and now - self._cancelled.get(n, -1e9) >= self.query_seconds]
        jobs = {name: self._records[name].id for name in due if self._records[name].id and not self._records[name].end}
        if jobs:
            try:
                commands.cancel(list(jobs.values()))
            except RetryLater:
                self._not_cancelled = time.monotonic()
                raise
            self._cancelled.update(dict.fromkeys(jobs, now))

    def preview(self, workers: Sequence[WorkerSpec]) -> str:
        return self.submission.script(self.submission.name(workers[0].name), [worker.name for worker in workers])

    # --- submitting -------------------------------------------------------------------------------------------

    def _chunks(self, workers: Sequence[WorkerSpec]) -> Iterator[Sequence[WorkerSpec]]:
        if len(workers) > 1 and not self._max_array:
            self._max_array = commands.max_array()
        size = max(1, self._max_array)
        for first in range(0, len(workers), size):
            yield workers[first : first + size]

    def _submit(self, workers: Sequence[WorkerSpec]) -> None:
        name = self.submission.name(workers[0].name)
        records = [Record(worker.name, worker.place, name, index) for index, worker in enumerate(workers)]
        for record in records:
            self._write(record)
        try:
            ids = self.submission.submit(name, [record.worker for record in records], sorted(self._bad_nodes))
        except GiveUp as error:
            for record in records:  # the scheduler refused: there is nothing to be found under this name
                shutil.rmtree(self.room.worker(record.worker).path, ignore_errors=True)
                self._records.pop(record.worker, None)
            if self._bad_nodes:  # perhaps too few are left without them
                nodes = ", ".join(sorted(self._bad_nodes))
                self._bad_nodes.clear()
                raise RetryLater(f"{error}; trying again with {nodes}, where a worker had failed to start") from error
            raise
        for record, job in zip(records, ids, strict=True):
            record.id = job
            self._write(record)
            self._seen[record.worker] = record.job(JobState.PENDING, reason="just submitted")

    # --- looking ----------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Take in workers that another controller, or a requeued job, has made; when only looking, their ends too."""
        for name in self.room.workers():
            if name not in self._records or self.reads:
                raw = read_json(self.room.worker(name).job)
                if isinstance(raw, dict):
                    known = {key: raw[key] for key in Record.__slots__ if key in raw}
                    self._records[name] = Record(**{"name": "", "index": 0, **known, "worker": name})

    def _refresh(self) -> None:
        """Ask the scheduler, if it is time to."""
        due = time.monotonic() - self._asked >= self.query_seconds
        if not due or (self.reads and self._believe_the_controller()):
            return
        try:
            self._ask()
        finally:  # a scheduler that takes long to fail is not asked again at once: in between the last answer holds
            self._asked = time.monotonic()

    def _ask(self) -> None:
        if self._forgotten:
            self._take_forgotten()
            return
        names = sorted({record.name for record in self._records.values() if not record.end})
        found = {(job.name, job.index): job for job in commands.queue(names)}
        for record in [r for r in self._records.values() if not r.end]:
            if job := found.get((record.name, record.index)):
                self._take(record, job)
            else:
                self._miss(record)
        if not self.reads:
            seen = {name: [job.state, job.node, job.reason] for name, job in self._seen.items() if name in self._open()}
            write_atomic(self._answer, json.dumps({"asked": time.time(), "jobs": seen}), durable=False)

    def _take(self, record: Record, job: commands.QueuedJob) -> None:
        if not record.id:  # a controller died between the submission and this
            record.id = job.id
            if not self.reads:
                self.submission.complete(record.id, record.worker)
                self._write(record)
        if job.restarts > record.restarts:
            self._end(record, "SLURM requeued its job", self._seen_node(record))
            self._drain(record)  # its process may go on, but has nothing left to do
            self._succeed(record, job)
        elif job.waits:
            self._seen[record.worker] = record.job(JobState.PENDING, job.node, commands.why_it_waits(job.reason))
        elif job.runs:
            self._seen[record.worker] = record.job(JobState.RUNNING, job.node)
        else:
            self._end(record, commands.ended(job.state, job.node), job.node, job.state in commands.NODE_TO_BLAME)
            if job.state == "NODE_FAIL":
                self._drain(record)  # the node may only have lost its network

    def _succeed(self, record: Record, job: commands.QueuedJob) -> None:
        """The requeued job's next process is a worker of its own."""
        base = record.worker.partition("r")[0]
        after = replace(record, worker=f"{base}r{job.restarts}", restarts=job.restarts, end="")
        if after.worker not in self._records:
            self._records[after.worker] = after
            if not self.reads:
                self._write(after)
        self._take(self._records[after.worker], job)

    def _take_word(self, record: Record, said: Mapping[str, Any]) -> None:
        """What a worker wrote when it ended. One that was told to may be requeued, which only the scheduler knows."""
        reason, node = str(said["reason"]), str(said["node"])
        if not said["signalled"]:
            self._end(record, reason, node, to_blame=bool(said["failed"]))
            return
        self._seen[record.worker] = record.job(JobState.RUNNING, node, reason)
        self._drain(record)  # it takes no more

    def _miss(self, record: Record) -> None:
        """The scheduler does not show its job: forgotten since it ended, or never submitted."""
        if record.id:
            self._forgotten.append(record)
        elif time.time() - self.room.worker(record.worker).job.stat().st_mtime < INTENT_SECONDS:
            self._seen[record.worker] = record.job(JobState.PENDING, reason="looking for its submission")
        else:
            self._end(record, "it was never submitted")
            self._drain(record)  # should it turn up after all

    def _take_forgotten(self) -> None:
        ends = commands.accounted([record.id for record in self._forgotten])
        for record in self._forgotten:
            self._end(record, ends.get(record.id, "SLURM does not know its job any more"), self._seen_node(record))
            self._drain(record)
        self._forgotten.clear()

    def _end(self, record: Record, how: str, node: str = "", to_blame: bool = False) -> None:
        record.end = how
        self._seen[record.worker] = record.job(node=node)
        if self.reads:
            return
        files = self.room.worker(record.worker)
        if to_blame and node and not files.beat.exists() and not files.drain.exists():
            self._bad_nodes.add(node)  # nothing starts there: without this it would draw every next job
        self._write(record)

    def _drain(self, record: Record) -> None:
        drain = self.room.worker(record.worker).drain
        if not self.reads and not drain.exists():
            write_atomic(drain, "")

    def _job(self, record: Record) -> Job:
        if record.end:
            return record.job(node=self._seen_node(record))
        return self._seen.get(record.worker) or record.job(JobState.PENDING, reason="not looked at yet")

    def _seen_node(self, record: Record) -> str:
        return self._seen[record.worker].node if record.worker in self._seen else ""

    def _open(self) -> set[str]:
        return {name for name, record in self._records.items() if not record.end}

    # --- files ------------------------------------------------------------------------------------------------

    @property
    def _answer(self) -> Path:
        """What the scheduler last said, for whoever looks beside a controller."""
        return self.room.root / "queue.json"

    def _believe_the_controller(self) -> bool:
        answer = read_json(self._answer)
        if not isinstance(answer, dict) or time.time() - answer["asked"] > 2 * self.query_seconds:
            return False
        for name, (state, node, reason) in answer["jobs"].items():
            if name in self._records:
                self._seen[name] = self._records[name].job(JobState(state), node, reason)
        return all(name in self._seen for name in self._open())

    def _write(self, record: Record) -> None:
        self._records[record.worker] = record
        job = {key: getattr(record, key) for key in Record.__slots__ if key != "worker"}
        log = {"log": str(job_log(self.room, record.id))} if record.id else {}
        write_atomic(self.room.worker(record.worker).job, json.dumps({"queue": "slurm", **job, **log}))
