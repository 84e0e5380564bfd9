"""Workers as detached processes of this machine, one per GPU or per core.

Invariants: a worker outlives its controller. The controller takes the worker's lock before it starts the worker, which
inherits the lock and holds it until its end, however it ends. So the lock tells whether a worker lives: a restarted
controller cannot start it twice. The text of the lock says which process of which machine the worker is, and no other
process is ever signalled (`trainer.identity`).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from sweep.controller.ports import WorkerSpec
from sweep.errors import RetryLater
from sweep.model.facts import CANNOT_BE_SEEN, Job
from sweep.model.states import JobState
from sweep.processes import PreforkServer, clean_env, python_command
from trainer.identity import kill_group
from trainer.room import OWN_FILE, LockState, Room, held, lock_state, open_lock, read_object, read_text, write_atomic

MAX_PLACE = 2**20
# The reason of a job whose lock may be held by a worker, or not.
UNSEEN = f"{CANNOT_BE_SEEN}: this user may not read its lock"
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class LocalDispatcher:
    """A `Dispatcher` (see `ports`) for this machine.

    Args:
        gpus: ids for CUDA_VISIBLE_DEVICES, one for each place; empty: workers train on the CPU.
        threads: OMP_NUM_THREADS of each worker.
        trials: attempts after which a worker ends; 0: no limit.
        slots: attempts side by side in a worker; 0: the worker chooses the number by measuring.
        prefork: the server that forks workers in milliseconds; None: each worker imports torch by itself.
        token: of the sweep, with which the workers are started.
    """

    room: Room
    gpus: tuple[str, ...]
    threads: int
    trials: int = 0
    idle_seconds: float = 900.0
    slots: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    prefork: PreforkServer | None = None
    token: str = ""
    _foreign: set[str] = field(default_factory=set)
    _gone: dict[str, int] = field(default_factory=dict)
    _children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, workers: Sequence[WorkerSpec]) -> None:
        for worker in workers:
            self._start(worker)

    def poll(self) -> Mapping[str, Job]:
        for child in self._children.values():
            child.poll()  # reap zombies; they hold no lock
        states: dict[str, Job] = {}
        for name in self.room.workers():
            lock = LockState.FREE if name in self._gone else self._lock(name)
            if lock is LockState.FREE:
                self._gone.setdefault(name, self._place(name))
                states[name] = Job(self._gone[name], JobState.GONE)
            else:
                reason = UNSEEN if lock is LockState.UNSEEN else ""
                states[name] = Job(self._place(name), JobState.RUNNING, reason=reason)
        return states

    def _lock(self, name: str) -> LockState:
        """The state of a worker's lock. If no file is there, none can be held: the worker that was started with it has
        lost its name."""
        lock = self.room.worker(name).lock
        state = lock_state(lock)
        return LockState.FREE if state is LockState.UNSEEN and not lock.is_file() else state

    def cancel(self, workers: Sequence[str]) -> None:
        for name in workers:
            lock = self.room.worker(name).lock
            if not held(lock):
                continue
            text = (read_text(lock) or "").strip()
            if not text:
                self._end_start(name)
            elif not kill_group(text, lock) and name not in self._foreign:
                self._foreign.add(name)
                _log.warning("the worker %s is no process of this machine and cannot be ended here: %s", name, text)

    def preview(self, workers: Sequence[WorkerSpec]) -> str:
        first = workers[0]
        env = " ".join(f"{key}={value}" for key, value in self.own_env(first.place).items())
        return f"env {env} {' '.join(self._command(first.name))}"

    def _end_start(self, name: str) -> None:
        """End what is to become a worker and still imports, so that its lock names no process yet."""
        child = self._children.get(name)
        if child is not None:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        elif self.prefork is not None:
            self.prefork.kill(self._place(name))

    def _start(self, worker: WorkerSpec) -> None:
        files = self.room.worker(worker.name)
        write_atomic(files.job, json.dumps({"queue": "local", "place": worker.place}), root=self.room.root)
        with open_lock(files.lock) as lock, _open_log(files.log) as log:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return  # it is running already
            if self.prefork and self.prefork.start(worker.place, self._request(worker), (log.fileno(), lock.fileno())):
                return
            try:
                self._children[worker.name] = subprocess.Popen(
                    self._command(worker.name),
                    env=clean_env() | self.own_env(worker.place),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=(lock.fileno(),),
                )
            except OSError as error:
                raise RetryLater(f"worker {worker.name} could not be started: {error}") from error

    def _request(self, worker: WorkerSpec) -> dict[str, Any]:
        return {
            "verb": "start",
            "room": str(self.room.root),
            "worker": worker.name,
            "trials": self.trials,
            "idle_seconds": self.idle_seconds,
            "slots": self.slots,
            "token": self.token,
            "env": self.own_env(worker.place),
        }

    def _command(self, name: str) -> list[str]:
        command = python_command("-m", "trainer", "serve", "--room", str(self.room.root), "--worker", name)
        command += ["--trials", str(self.trials), "--idle-seconds", f"{self.idle_seconds:g}"]
        command += ["--token", self.token] if self.token else []
        return [*command, "--slots", str(self.slots), "--lock-held"]

    def own_env(self, place: int) -> dict[str, str]:
        """The variables that the worker at a place gets in addition to this process's environment."""
        env = {"OMP_NUM_THREADS": str(self.threads), "PYTHONUNBUFFERED": "1"}
        if self.gpus:
            env["CUDA_VISIBLE_DEVICES"] = self.gpus[place % len(self.gpus)]
        return env | dict(self.env)

    def _place(self, name: str) -> int:
        job = read_object(self.room.worker(name).job)
        place = job.get("place") if isinstance(job, dict) else None
        return place if type(place) is int and 0 <= place <= MAX_PLACE else 0


def _open_log(path: Path) -> IO[bytes]:
    """A worker's log, open to append to it; no symbolic link is followed."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | OWN_FILE, 0o666), "ab")


def visible_gpus() -> tuple[str, ...]:
    """The ids of this machine's GPUs, or those in CUDA_VISIBLE_DEVICES if it is set. torch is not imported."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(part.strip() for part in visible.split(",") if part.strip() not in ("", "-1"))
    try:
        listing = subprocess.run(
            ["nvidia-smi", "-L"],
            capture_output=True,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(str(index) for index, line in enumerate(listing.splitlines()) if line.startswith("GPU "))


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0))
