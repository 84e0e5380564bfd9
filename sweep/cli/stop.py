"""Stops a sweep: through the controller that runs it, here or elsewhere, or without one.

Invariant: if no controller obeys, this process takes the sweep over and stops its trials itself.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from sweep.cli.background import take_over
from sweep.cli.foreground import drive
from sweep.cli.run_control import RunControl, has_request, request_mode
from sweep.errors import GiveUp
from sweep.model.facts import Job
from sweep.model.states import Finished, JobState, Mode
from sweep.processes import PreforkServer
from sweep.wiring import backends, rooms
from trainer.names import harmless
from trainer.room import Room

POLL_SECONDS = 0.1


def stop_sweep(name: str | None, mode: Mode) -> int:
    """Bring a sweep to this mode and wait for it; returns the exit code.

    Raises:
        ConfigError: there is no such sweep. GiveUp: this user cannot see whether a controller runs.
    """
    room = rooms.find_room(name)
    if withdrawn := _withdraw_controller(room):
        print(withdrawn, flush=True)
    if stop_elsewhere(room, mode):
        print(f"stopped: {room.root.name}")
        return 0
    list_jobs = backends.job_viewer(room, rooms.load_settings(room))
    live = [worker for worker, job in list_jobs().items() if job.state is not JobState.GONE]
    if _stop_here(room, mode):
        print(f"stopped: {room.root.name}{_ended_jobs(live, list_jobs())}")
        return 0
    if job := take_over(room):
        print(f"cancelled the controller's job {job}")
    finish = drive(room, RunControl(room, mode), PreforkServer())
    print(harmless(f"{finish.how}: {finish.reason}{_ended_jobs(live, list_jobs())}"))
    return 1 if finish.how is Finished.FAILED else 0


def stop_elsewhere(room: Room, mode: Mode) -> bool:
    """Ask a controller on another machine for this mode and wait until it ends; False if no controller obeyed."""
    from sweep.store.remote import await_controller_end, send_mode

    url, where = rooms.load_settings(room).store_url, rooms.controller_elsewhere(room)
    if url is None or not where:
        return False
    send_mode(url, mode)
    print(harmless(f"asked the controller ({where}) to {mode}; waiting until it ends"), flush=True)
    if await_controller_end(url):
        return True
    print("the controller does not answer, or ended before it saw the request; this machine takes over", flush=True)
    return False


def _stop_here(room: Room, mode: Mode) -> bool:
    """Ask a controller on this machine for this mode and wait until it ends; False if no controller obeyed."""
    if unseen := rooms.unseen_controller(room):
        raise GiveUp(f"{unseen}; ask the owner of {room.root} to stop the sweep")
    if not rooms.controller_runs(room):
        return False
    request_mode(room, mode)
    while rooms.controller_runs(room):
        time.sleep(POLL_SECONDS)
    return not has_request(room)  # if it is still there, the controller handed over before it read it


def _withdraw_controller(room: Room) -> str:
    if rooms.load_settings(room).controller != "launch":
        return ""
    from sweep.cli.launch_controller import withdraw_controller

    return withdraw_controller(room)


def _ended_jobs(names: Sequence[str], jobs: Mapping[str, Job]) -> str:
    """A line for each of these workers whose queue has a handle for its job: what became of it."""
    submitted = [(name, jobs[name]) for name in names if jobs[name].handle]
    return harmless("".join(f"\n  {name}, job {job.handle}: {job.reason or job.state}" for name, job in submitted))
