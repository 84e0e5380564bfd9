"""A controller without a terminal: a process in the background, or a small SLURM job of its own.

Invariants: one controller job a room is wanted at a time, and `controller.json` names it before it is submitted. A
controller job that must end leaves the sweep as it is; only the one whose time limit nears submits a successor, since
SLURM starts a requeued one again by itself.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from sweep.cli.foreground import drive
from sweep.cli.run_control import RunControl
from sweep.config.queues import SlurmQueue, Submitit
from sweep.config.settings import controller_job
from sweep.errors import RetryLater, SweepError
from sweep.model import Finish, Finished
from sweep.processes import PreforkServer, clean_env
from sweep.queues.slurm import commands
from sweep.queues.slurm.submit import complete_call, executor_parameters, job_log, job_name, submit_calls, submitit_dir
from sweep.wiring.rooms import controller_record, controller_runs, load_settings, record_controller
from trainer import logs
from trainer.exit_guard import limit_exit
from trainer.room import Room

START_SECONDS = 30.0
LOCK_SECONDS = 120.0
# Between two questions to a cluster's queue about a controller that is on its way.
COMING_SECONDS = 5.0
# So long before its job's end a controller that could not hand over says so, while there is still somebody to say it.
LAST_WORD_SECONDS = 20.0
logger = logging.getLogger(__name__)


def start_detached(room: Room) -> str:
    """Start a controller that outlives this terminal; what to tell the person.

    Raises:
        RetryLater: the scheduler does not answer, or a controller's job is there already. GiveUp: it refuses.
    """
    name = room.root.name
    how = f"`sweep watch {name}`, `sweep stop {name}`"
    if _on_slurm(room):
        if there := find_controller(room):
            _adopt(room, there)
            raise RetryLater(f"the controller's job {there.id} is there already and {_doing(there)}")
        job = _submit(room, _next_number(room))
        return f"{name} runs as SLURM job {job}; {how}, `sweep logs {name} --controller`"
    return f"{name} runs in the background; {how}; its log is {_start_process(room)}"


def coming_controller(room: Room) -> str:
    """What the queue says of a controller's job that is on its way, for a person; empty where none is."""
    if _on_slurm(room):
        with suppress(SweepError):
            if found := find_controller(room):
                return f"the controller's job {found.id} {_doing(found)}"
    return ""


def take_over(room: Room) -> str:
    """End a controller's job that waits in the queue, which would later undo what is done now; its id, if any.

    Raises:
        RetryLater: the scheduler does not answer.
    """
    there = [job.id for job in _controllers(room)] if _on_slurm(room) else []
    if there:  # two, where a submission was taken after all that had no answer
        commands.cancel(there)
    return " and ".join(there)


def find_controller(room: Room) -> commands.QueuedJob | None:
    """The controller's job while it waits or runs.

    Raises:
        RetryLater: the scheduler does not answer.
    """
    return next(iter(_controllers(room)), None)


def controller_log(room: Room) -> Path:
    """Where the last detached controller wrote what it did."""
    job = _last_job(room)
    return job_log(room, job) if job else _process_log(room)


def control(root: str) -> None:
    """What the controller's job runs."""
    limit_exit()
    logs.configure()
    room = Room(Path(root))
    mine, wanted = os.environ.get("SLURM_JOB_ID"), controller_record(room).get("id")
    if mine and wanted and mine != wanted:  # its submission had no answer, and another was made in its place
        logger.info("the controller's job is %s, not %s: this one ends", wanted, mine)
        return
    run_control = RunControl(room, in_job=True)
    finish = _drive(room, run_control)
    logger.info("%s: %s", finish.how, finish.reason)
    if finish.how is Finished.HANDED_OVER and run_control.handover_signal == signal.SIGUSR2:
        try:
            job = _hand_over(room, run_control.handover_at)
        except (SweepError, OSError) as error:
            how = f"continue with `sweep resume {room.root.name} --detach`"
            raise SystemExit(f"no controller follows: {error}; the workers train on, {how}") from None
        logger.info("the next controller is job %s", job)


def _hand_over(room: Room, handover_at: float) -> str:
    """Submit the next controller, again and again until shortly before this job's end; its job.

    Raises:
        RetryLater: the scheduler has not answered in all that time. GiveUp: it refuses.
    """
    until = handover_at + _words(room).slurm_signal_delay_s - LAST_WORD_SECONDS
    number = _next_number(room)
    announced = False
    while True:
        try:
            if announced and (there := find_controller(room)):  # it was taken, and only the answer was lost
                _adopt(room, there)
                return there.id
            announced = True
            return _submit(room, number)
        except RetryLater as error:
            if time.monotonic() + COMING_SECONDS > until:
                raise
            logger.warning("error, retrying: %s", error)
            time.sleep(COMING_SECONDS)


def _drive(room: Room, run_control: RunControl) -> Finish:
    """Run the controller; an earlier one may take a moment to let go of the room."""
    deadline = time.monotonic() + LOCK_SECONDS
    continues = controller_record(room)["number"] > 1 or commands.restarts() > 0
    while True:
        try:
            return drive(room, run_control, PreforkServer(), continues)
        except RetryLater:
            if time.monotonic() > deadline:
                raise
            time.sleep(1.0)


def _submit(room: Room, number: int) -> str:
    settings = load_settings(room)
    assert isinstance(settings.queue, SlurmQueue)
    name = job_name(room, settings.name, f"controller-{number}")
    record_controller(room, {"name": name, "number": number, "id": "", "before": _last_job(room)})
    parameters = executor_parameters(_words(room), name)
    [job] = submit_calls(submitit_dir(room), parameters, [(control, (str(room.root),))], settings.queue.python)
    record_controller(room, {"name": name, "number": number, "id": job})
    return job


def _adopt(room: Room, job: commands.QueuedJob) -> None:
    """Write down the job of a submission that had no answer, and give it what it runs."""
    named = controller_record(room)
    if not named.get("id"):
        complete_call(submitit_dir(room), job.id, _words(room).timeout_min, (control, (str(room.root),)))
        record_controller(room, {"name": named["name"], "number": named["number"], "id": job.id})


def _last_job(room: Room) -> str:
    """The last submission's job; while that has no answer, the job before."""
    named = controller_record(room)
    return str(named.get("id") or named.get("before") or "")


def _next_number(room: Room) -> int:
    return int(controller_record(room).get("number", 0)) + 1


def _words(room: Room) -> Submitit:
    """What the controller's job asks for."""
    queue = load_settings(room).queue
    assert isinstance(queue, SlurmQueue)
    return controller_job(queue)


def _controllers(room: Room) -> list[commands.QueuedJob]:
    """The jobs of the last controller's name that wait or run."""
    name = controller_record(room).get("name")
    return [job for job in commands.queue([name]) if job.waits or job.runs] if name else []


def _start_process(room: Room) -> Path:
    log = _process_log(room)
    with log.open("ab") as output:
        subprocess.Popen(
            [sys.executable, "-m", "sweep.cli", "resume", str(room.root)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=clean_env(),
        )
    deadline = time.monotonic() + START_SECONDS
    while not controller_runs(room) and time.monotonic() < deadline:
        time.sleep(0.1)
    return log


def _on_slurm(room: Room) -> bool:
    return isinstance(load_settings(room).queue, SlurmQueue)


def _doing(job: commands.QueuedJob) -> str:
    return f"runs on {job.node}" if job.runs else f"waits: {commands.why_it_waits(job.reason)}"


def _process_log(room: Room) -> Path:
    return room.root / "controller.log"
