"""The controller of a sweep as a small SLURM job of its own.

Invariants: a room has one controller job at a time, and `controller.json` names it before it is submitted. A job whose
time limit is near submits its successor. A job that SLURM requeues does not: SLURM starts it again by itself.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweep.errors import RetryLater, SweepError
from sweep.queues.controller_job import RunController, controller_record, record_controller
from sweep.queues.slurm import commands
from sweep.queues.slurm.section import SlurmQueue
from sweep.queues.slurm.submit import complete_call, executor_parameters, job_log, job_name, submit_calls, submitit_dir
from trainer.room import Room

# Seconds between two attempts to submit a successor.
RETRY_SECONDS = 5.0
# Seconds before the end of a job at which it gives up submitting a successor, so that it can still report that.
REPORT_SECONDS = 20.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SlurmControllerJob:
    """A `ControllerJob` (see `sweep.queues.controller_job`) for SLURM.

    Args:
        sweep: name of the sweep.
        run: what the job runs, with the room's directory and the token.
        token: of the sweep's creation.
    """

    room: Room
    sweep: str
    queue: SlurmQueue
    run: RunController
    token: str = ""

    def submit(self) -> str:
        if job := self._open_job():
            self._adopt(job)
            raise RetryLater(f"the controller's job {job.id} is there already and {_state_text(job)}")
        return f"SLURM job {self._submit(self._next_number())}"

    def status(self) -> str:
        with suppress(SweepError):
            if job := self._open_job():
                return f"the controller's job {job.id} {_state_text(job)}"
        return ""

    def cancel(self) -> str:
        jobs = [job.id for job in self._open_jobs()]
        if jobs:  # two, if a submission without an answer was accepted after all
            commands.cancel(jobs)
        return " and ".join(jobs)

    def log(self) -> Path | None:
        job = self._last_job()
        return job_log(self.room, job) if job else None

    def replaced_by(self) -> str:
        own, recorded = os.environ.get("SLURM_JOB_ID"), str(controller_record(self.room).get("id") or "")
        return recorded if own and recorded != own else ""

    def continues(self) -> bool:
        return controller_record(self.room).get("number", 0) > 1 or commands.restarts() > 0

    def ends_by(self, signal_number: int) -> bool:
        return signal_number == signal.SIGUSR2

    def hand_over(self, signalled_at: float) -> str:
        deadline = signalled_at + self.queue.controller_job.slurm_signal_delay_s - REPORT_SECONDS
        number = self._next_number()
        tried = False
        while True:
            try:
                if tried and (job := self._open_job()):  # it was accepted, and only the answer was lost
                    self._adopt(job)
                    return job.id
                tried = True
                return self._submit(number)
            except RetryLater as error:
                if time.monotonic() + RETRY_SECONDS > deadline:
                    raise
                logger.warning("error, retrying: %s", error)
                time.sleep(RETRY_SECONDS)

    def _submit(self, number: int) -> str:
        name = job_name(self.room, self.sweep, f"controller-{number}", self.token)
        record_controller(self.room, {"name": name, "number": number, "id": "", "before": self._last_job()})
        parameters = executor_parameters(self.queue.controller_job, name)
        [job] = submit_calls(submitit_dir(self.room), parameters, [self._call], self.queue.python)
        record_controller(self.room, {"name": name, "number": number, "id": job})
        return job

    def _adopt(self, job: commands.QueuedJob) -> None:
        """Write down the job of a submission that had no answer, and give it the call that it runs."""
        record = controller_record(self.room)
        if not record.get("id"):
            timeout_min = self.queue.controller_job.timeout_min
            complete_call(submitit_dir(self.room), job.id, timeout_min, self._call)
            submitted = {key: value for key, value in record.items() if key != "before"}
            record_controller(self.room, {**submitted, "id": job.id})

    @property
    def _call(self) -> tuple[RunController, tuple[Any, ...]]:
        return self.run, (str(self.room.root), self.token)

    def _last_job(self) -> str:
        """The id of the last submission's job; that of the job before while the scheduler has not answered."""
        record = controller_record(self.room)
        return str(record.get("id") or record.get("before") or "")

    def _next_number(self) -> int:
        return int(controller_record(self.room).get("number", 0)) + 1

    def _open_job(self) -> commands.QueuedJob | None:
        return next(iter(self._open_jobs()), None)

    def _open_jobs(self) -> list[commands.QueuedJob]:
        """The jobs of the last submission's name that wait or run.

        Raises:
            RetryLater: the scheduler does not answer.
        """
        name = controller_record(self.room).get("name")
        return [job for job in commands.queue([name]) if job.waits or job.runs] if name else []


def _state_text(job: commands.QueuedJob) -> str:
    return f"runs on {job.node}" if job.runs else f"waits: {commands.why_it_waits(job.reason)}"
