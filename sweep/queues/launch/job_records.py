"""What the jobs of a Launch queue have come to, as `job.json` of each worker holds it.

Invariant: only the dispatcher writes these files, each before the act that it announces and after the answer to it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from functools import partial

from trainer.clock import WallAges
from trainer.contract import TrialSpec, from_plain, read_message
from trainer.room import Room, WorkerDir, json_object, read, write_atomic


@dataclass(slots=True)
class LaunchJobRecord:
    """What `job.json` of a worker holds on a Launch queue.

    Args:
        run: id of the job's run; empty until it is pushed.
        item: id of the queue's item; empty until W&B has answered the push.
        pushed: when the push was begun, in seconds since the epoch; 0 while the worker is planned.
        serves: the run is the job's own and not its only trial's, and carries further assignments.
        cancelled: when the job was cancelled, in seconds since the epoch; 0 if it was not.
        end: how the job ended; empty until it has.
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
class LaunchJobRecords:
    """The records of a room.

    Args:
        reads: another process writes the records, so each load reads all of them again.
        by_worker: the records, by name of the worker.
    """

    room: Room
    reads: bool = False
    by_worker: dict[str, LaunchJobRecord] = field(default_factory=dict)
    _ages: WallAges = field(default_factory=WallAges)

    def load(self) -> None:
        """Read the records of workers that are not known yet."""
        for name in self.room.workers():
            if name not in self.by_worker or self.reads:
                record = read(self.room.worker(name).job, partial(_record, name))
                if isinstance(record, LaunchJobRecord):
                    self._add(record)

    def write(self, record: LaunchJobRecord) -> None:
        """Write a record that was made or changed."""
        self._add(record)
        write_atomic(self.directory(record).job, json.dumps({"queue": "launch", **asdict(record)}), root=self.room.root)

    def seconds_since(self, record: LaunchJobRecord, what: str) -> float:
        """Since a job was pushed or cancelled; steps of the wall clock from the first call on change nothing.

        Args:
            what: `pushed` or `cancelled`.
        """
        return self._ages.age(f"{record.worker} {what}", getattr(record, what))

    def _add(self, record: LaunchJobRecord) -> None:
        self.by_worker[record.worker] = record
        for what in ("pushed", "cancelled"):
            self.seconds_since(record, what)

    def directory(self, record: LaunchJobRecord) -> WorkerDir:
        """The directory of a record's worker."""
        return self.room.worker(record.worker)

    def specs(self, worker: str) -> list[TrialSpec]:
        """The specifications of the trials that a worker was assigned, oldest first."""
        tasks = self.room.worker(worker).assignments()
        specs = (read_message(TrialSpec, self.room.attempt(*task).spec) for task in tasks)
        return [spec for spec in specs if isinstance(spec, TrialSpec)]

    def ready(self, record: LaunchJobRecord) -> bool:
        """Whether its worker has sent a heartbeat."""
        return self.directory(record).beat.exists()


def _record(worker: str, text: str) -> LaunchJobRecord:
    """The record of a worker in the text of its file.

    Raises:
        ValueError, RecursionError: it is damaged.
    """
    return from_plain(LaunchJobRecord, {"place": 0, **json_object(text), "worker": worker})
