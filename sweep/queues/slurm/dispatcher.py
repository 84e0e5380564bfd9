"""Workers as jobs of a SLURM cluster, submitted through submitit.

Invariants:
- What is about to be submitted is written down before it is, under a job name that no other submission ever has. So a
  restarted controller finds the jobs of the old one, even if that died during a submission, and submits nothing twice.
- A worker's name belongs to one process. If SLURM requeues the job of `w0003`, the job's next process is `w0003r1`, and
  what the first process still writes belongs to another worker.
- The scheduler is queried at most once a poll, and once every `query_seconds`. In between the last answer holds, also
  for processes that only read.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from sweep.controller.ports import WorkerSpec
from sweep.errors import GiveUp, RetryLater, SweepError
from sweep.model.facts import Job
from sweep.model.states import JobState
from sweep.queues.slurm import commands
from sweep.queues.slurm.submit import Submission, job_log
from trainer.clock import WallAges
from trainer.contract import WorkerExit, from_plain, read_exit
from trainer.room import Room, json_object, read, write_atomic

# A submission of a controller that died may reach the scheduler this many seconds later.
INTENT_SECONDS = 60.0


@dataclass(slots=True)
class SlurmJobRecord:
    """What `job.json` of a worker holds on SLURM.

    Args:
        name: SLURM's name of the submission, in which the worker has the number `index`.
        restarts: how often SLURM had requeued the job when this worker's process started.
        id: SLURM's job id; empty until it is known.
        end: how the job ended; empty until it has.
    """

    worker: str
    place: int
    name: str
    index: int
    restarts: int = 0
    id: str = ""
    end: str = ""

    def job(self, state: JobState | None = None, node: str = "", reason: str = "") -> Job:
        """The job in this state; GONE if it has ended or no state is given."""
        if self.end or state is None:
            return Job(self.place, JobState.GONE, self.id, node, self.end)
        return Job(self.place, state, self.id, node, reason)


@dataclass(slots=True)
class SlurmDispatcher:
    """A `Dispatcher` (see `ports`) for SLURM.

    Args:
        submission: turns workers into jobs.
        query_seconds: seconds between two queries of the scheduler, at least.
        reads: only read: write nothing, and use the answer that a running controller wrote down.
    """

    room: Room
    submission: Submission
    query_seconds: float = 10.0
    reads: bool = False
    _records: dict[str, SlurmJobRecord] = field(default_factory=dict)
    _seen: dict[str, Job] = field(default_factory=dict)
    _queried: float = float("-inf")
    _cancelled: dict[str, float] = field(default_factory=dict)
    _cancel_failed: float = float("-inf")
    _bad_nodes: set[str] = field(default_factory=set)
    _forgotten: list[SlurmJobRecord] = field(default_factory=list)
    _max_array: int = 0
    _ages: WallAges = field(default_factory=WallAges)

    def start(self, workers: Sequence[WorkerSpec]) -> None:
        new = [worker for worker in workers if not self.room.worker(worker.name).job.exists()]
        for chunk in self._chunks(new):
            self._submit(chunk)

    def poll(self) -> Mapping[str, Job]:
        self._load()
        waiting = [record for record in self._records.values() if not record.end]
        for record in waiting:
            if isinstance(said := read_exit(self.room.worker(record.worker).exit), WorkerExit):
                self._take_exit(record, said)
        if any(not record.end for record in waiting):
            with suppress(SweepError) if self.reads else nullcontext():  # a reader may have no scheduler
                self._refresh()
        return {name: self._job(record) for name, record in self._records.items()}

    def cancel(self, workers: Sequence[str]) -> None:
        self._load()
        now = time.monotonic()
        if now - self._cancel_failed < self.query_seconds:  # the controller repeats the call; other effects go first
            return
        due = [n for n in workers if n in self._records and now - self._cancelled.get(n, -1e9) >= self.query_seconds]
        jobs = {name: self._records[name].id for name in due if self._records[name].id and not self._records[name].end}
        if jobs:
            try:
                commands.cancel(list(jobs.values()))
            except RetryLater:
                self._cancel_failed = time.monotonic()
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
        records = [SlurmJobRecord(worker.name, worker.place, name, index) for index, worker in enumerate(workers)]
        for record in records:
            self._write(record)
        try:
            ids = self.submission.submit(name, [record.worker for record in records], sorted(self._bad_nodes))
        except GiveUp as error:
            for record in records:  # the scheduler refused: no job has this name
                shutil.rmtree(self.room.worker(record.worker).path, ignore_errors=True)
                self._records.pop(record.worker, None)
            if self._bad_nodes:  # too few nodes may be left without them
                nodes = ", ".join(sorted(self._bad_nodes))
                self._bad_nodes.clear()
                raise RetryLater(f"{error}; retrying with {nodes}, where a worker had failed to start") from error
            raise
        for record, job in zip(records, ids, strict=True):
            record.id = job
            self._write(record)
            self._seen[record.worker] = record.job(JobState.PENDING, reason="just submitted")

    # --- polling ----------------------------------------------------------------------------------------------

    def _load(self) -> None:
        """Read the records of workers that another controller or a requeued job has added; a reader reads all anew."""
        for name in self.room.workers():
            if name not in self._records or self.reads:
                record = read(self.room.worker(name).job, partial(_record, name))
                if isinstance(record, SlurmJobRecord):
                    self._records[name] = record
                    if not self._records[name].id:
                        self._seconds_since_intent(self._records[name])

    def _refresh(self) -> None:
        """Query the scheduler if it is time to."""
        due = time.monotonic() - self._queried >= self.query_seconds
        if not due or (self.reads and self._use_controller_answer()):
            return
        try:
            self._query()
        finally:  # a scheduler that takes long to fail is not queried again at once
            self._queried = time.monotonic()

    def _query(self) -> None:
        """Ask for the end of jobs that squeue did not show the last time, otherwise ask squeue for all open jobs."""
        if self._forgotten:
            self._take_forgotten()
            return
        names = sorted({record.name for record in self._records.values() if not record.end})
        queued = {(job.name, job.index): job for job in commands.queue(names)}
        for record in [r for r in self._records.values() if not r.end]:
            if job := queued.get((record.name, record.index)):
                self._take(record, job)
            else:
                self._miss(record)
        if not self.reads:
            seen = {name: [job.state, job.node, job.reason] for name, job in self._seen.items() if name in self._open()}
            write_atomic(
                self._answer, json.dumps({"asked": time.time(), "jobs": seen}), durable=False, root=self.room.root
            )

    def _take(self, record: SlurmJobRecord, job: commands.QueuedJob) -> None:
        if not record.id:  # a controller died before it had the answer to its submission
            record.id = job.id
            if not self.reads:
                self.submission.complete(record.id, record.worker)
                self._write(record)
        if job.restarts > record.restarts:
            self._end(record, "SLURM requeued its job", self._seen_node(record))
            self._drain(record)  # its process may still run, but has nothing left to do
            self._add_successor(record, job)
        elif job.waits:
            self._seen[record.worker] = record.job(JobState.PENDING, job.node, commands.why_it_waits(job.reason))
        elif job.runs:
            self._seen[record.worker] = record.job(JobState.RUNNING, job.node)
        else:
            self._end(record, commands.ended(job.state, job.node), job.node, job.state in commands.NODE_TO_BLAME)
            if job.state == "NODE_FAIL":
                self._drain(record)  # the node may only have lost its network

    def _add_successor(self, record: SlurmJobRecord, job: commands.QueuedJob) -> None:
        """Record the next process of a requeued job, which is a worker of its own."""
        base = record.worker.partition("r")[0]
        after = replace(record, worker=f"{base}r{job.restarts}", restarts=job.restarts, end="")
        if after.worker not in self._records:
            self._records[after.worker] = after
            if not self.reads:
                self._write(after)
        self._take(self._records[after.worker], job)

    def _take_exit(self, record: SlurmJobRecord, said: WorkerExit) -> None:
        """Act on what a worker wrote when it ended. If it was signalled, its job may be requeued, which only the
        scheduler knows; the job then stays open."""
        if not said.signalled:
            self._end(record, said.reason, said.node, to_blame=said.failed)
            return
        self._seen[record.worker] = record.job(JobState.RUNNING, said.node, said.reason)
        self._drain(record)  # it takes no further trial

    def _miss(self, record: SlurmJobRecord) -> None:
        """Act on a job that squeue does not show: it ended long ago, or it was never submitted."""
        if record.id:
            self._forgotten.append(record)
        elif self._seconds_since_intent(record) < INTENT_SECONDS:
            self._seen[record.worker] = record.job(JobState.PENDING, reason="looking for its submission")
        else:
            self._end(record, "it was never submitted")
            self._drain(record)  # it may still turn up

    def _seconds_since_intent(self, record: SlurmJobRecord) -> float:
        """Since a submission without an answer was written down; steps of the wall clock do not change it."""
        return self._ages.age(record.worker, self.room.worker(record.worker).job.stat().st_mtime)

    def _take_forgotten(self) -> None:
        ends = commands.accounted([record.id for record in self._forgotten])
        for record in self._forgotten:
            self._end(record, ends.get(record.id, "SLURM does not know its job any more"), self._seen_node(record))
            self._drain(record)
        self._forgotten.clear()

    def _end(self, record: SlurmJobRecord, how: str, node: str = "", to_blame: bool = False) -> None:
        record.end = how
        self._seen[record.worker] = record.job(node=node)
        if self.reads:
            return
        files = self.room.worker(record.worker)
        if to_blame and node and not files.beat.exists() and not files.drain.exists():
            self._bad_nodes.add(node)  # nothing starts on it, so that it would get every next job
        self._write(record)

    def _drain(self, record: SlurmJobRecord) -> None:
        drain = self.room.worker(record.worker).drain
        if not self.reads and not drain.exists():
            write_atomic(drain, "", root=self.room.root)

    def _job(self, record: SlurmJobRecord) -> Job:
        if record.end:
            return record.job(node=self._seen_node(record))
        return self._seen.get(record.worker) or record.job(JobState.PENDING, reason="not looked at yet")

    def _seen_node(self, record: SlurmJobRecord) -> str:
        return self._seen[record.worker].node if record.worker in self._seen else ""

    def _open(self) -> set[str]:
        return {name for name, record in self._records.items() if not record.end}

    # --- files ------------------------------------------------------------------------------------------------

    @property
    def _answer(self) -> Path:
        """The file with the scheduler's last answer, for processes that read while a controller runs."""
        return self.room.root / "queue.json"

    def _use_controller_answer(self) -> bool:
        """Use the last answer that a controller wrote down; returns whether it is recent and complete."""
        answer = read(self._answer, _answer)
        # an answer from the future was given before the wall clock was set back
        if not isinstance(answer, tuple) or not abs(time.time() - answer[0]) <= 2 * self.query_seconds:
            return False
        for name, (state, node, reason) in answer[1].items():
            if name in self._records:
                self._seen[name] = self._records[name].job(state, node, reason)
        return all(name in self._seen for name in self._open())

    def _write(self, record: SlurmJobRecord) -> None:
        self._records[record.worker] = record
        job = {key: getattr(record, key) for key in SlurmJobRecord.__slots__ if key != "worker"}
        log = {"log": str(job_log(self.room, record.id))} if record.id else {}
        path = self.room.worker(record.worker).job
        write_atomic(path, json.dumps({"queue": "slurm", **job, **log}), root=self.room.root)
        if not record.id:
            self._seconds_since_intent(record)  # from now on


def _record(worker: str, text: str) -> SlurmJobRecord:
    """The record of a worker in the text of its file.

    Raises:
        ValueError, RecursionError: it is damaged.
    """
    return from_plain(SlurmJobRecord, {"place": 0, "name": "", "index": 0, **json_object(text), "worker": worker})


def _answer(text: str) -> tuple[float, dict[str, tuple[JobState, str, str]]]:
    """When a controller asked the scheduler (seconds since the epoch), and state, node and reason of each worker's job.

    Raises:
        ValueError, TypeError, KeyError, AttributeError, RecursionError: the text is damaged.
    """
    raw = json_object(text)
    jobs = {str(name): (JobState(state), str(node), str(why)) for name, (state, node, why) in raw["jobs"].items()}
    return float(raw["asked"]), jobs
