"""The controller of a sweep as a job of its own queue, so that it needs no machine of the person's.

Invariant: `controller.json` in the room names the last such job, and is written before the job is submitted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from trainer.room import Room, json_object, read_bytes, write_atomic

CONTROLLER_RECORD = "controller.json"
# What a controller's job runs: a module-level function of the room's directory and the token of the sweep's creation.
RunController = Callable[[str, str], None]


class ControllerJob(Protocol):
    """The jobs in which the controller of one sweep runs, one after the other; `sweep run --detach` submits the first.

    The methods of the second half are for the process of such a job.
    """

    def submit(self) -> str:
        """Submit the job of a controller; returns the job as a person reads it, e.g. "SLURM job 7".

        Raises:
            RetryLater: the queue does not answer, or a job of the controller waits or runs.
            GiveUp: the queue refuses.
        """

    def status(self) -> str:
        """What the queue says of a job that waits or runs; empty if there is none or the queue does not answer."""

    def cancel(self) -> str:
        """Cancel jobs that wait or run; returns their ids, or nothing if there is none.

        Raises:
            RetryLater: the queue does not answer.
        """

    def log(self) -> Path | None:
        """Where the last job writes its output; None if no job was ever submitted."""

    def replaced_by(self) -> str:
        """The job that the room names instead of the one that this process is in; empty if it names this one."""

    def continues(self) -> bool:
        """Whether an earlier job of the controller ended before this one began."""

    def ends_by(self, signal: int) -> bool:
        """Whether this signal says that the job's time limit is near, so that a successor must be submitted."""

    def hand_over(self, signalled_at: float) -> str:
        """Submit the successor, repeatedly until shortly before the end of this job; returns its id.

        Args:
            signalled_at: when the signal arrived, on the monotonic clock.

        Raises:
            RetryLater: the queue has not answered in all that time. GiveUp: it refuses.
        """


def controller_record(room: Room) -> dict[str, Any]:
    """What is known of the last job of the controller; empty if there was none.

    Always its `number`. On SLURM its `name`, its `id` (empty until the scheduler has answered) and until then the id of
    the job `before`. On a Launch queue its `run`, its `item` once it is pushed, and whether it was `withdrawn`.
    """
    data = read_bytes(room.root / CONTROLLER_RECORD)
    return checked_record(data) if isinstance(data, bytes) else {}


def checked_record(data: bytes) -> dict[str, Any]:
    """The record in the bytes of a file or an object; empty if they are damaged. See `controller_record`."""
    try:
        record = json_object(data.decode())
    except (ValueError, RecursionError):
        return {}
    if type(record.get("number")) is not int:
        return {}
    return {key: value for key, value in record.items() if type(value) in (int, str, bool)}


def record_controller(room: Room, record: Mapping[str, Any]) -> None:
    """Replace what is known of the last job of the controller."""
    write_atomic(room.root / CONTROLLER_RECORD, json.dumps(record), root=room.root)
