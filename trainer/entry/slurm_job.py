"""The entry point of a cluster's job: a worker of a room.

Invariants: importing this module imports nothing heavy. Its functions take plain values, so that a pickled call holds a
name and these values only. After the call, signals reach this program's handlers only: at SIGUSR2, SIGTERM and SIGINT
the worker stops its trials with a checkpoint. It writes down why it ended, if it has the time.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any

from trainer import PROCESS_ENV, logs
from trainer.contract import DROPPED_ENV
from trainer.exit_guard import limit_exit
from trainer.identity import own_identity
from trainer.presence import RoomLostError, RoomPresence, room_token
from trainer.room import Room, held, make_directory, open_lock, write_atomic, write_lock

_log = logging.getLogger(__name__)

# submitit sends USR2 before a time limit and at a preemption; SLURM itself sends TERM
END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
CHECK_SECONDS = 60.0


class NoGpuError(Exception):
    """torch sees no GPU on this node, and the trials need one."""


# Runs a worker once its process is set up. Arguments: room, name, options, and when to end (monotonic clock, s).
# Returns why it ended, and whether a signal asked it to.
Work = Callable[[Room, str, Mapping[str, Any], float], tuple[str, bool]]


def serve(room: str, worker: str, options: Mapping[str, Any]) -> None:
    """Serve a room as a worker until it is drained, asked to end, or near the job's time limit.

    Args:
        options: `trials`, `idle_seconds`, `slots` and `token` (see `trainer.worker.Worker`); `seconds`: how long the
            worker may run; `gpu`: whether it needs a CUDA device; `env`: environment variables to set.

    Raises:
        RoomLostError: the room was deleted, or is another sweep's; nothing was written then.
    """
    run_job(room, worker, options, _train)


def run_job(room: str, worker: str, options: Mapping[str, Any], work: Work) -> None:
    """Set this process up as a worker, run it, and write down how it ended.

    If SLURM has requeued the job, the worker's name gets the number of the restart: `w0003r1`.
    """
    began = time.monotonic()
    limit_exit()
    for number in END_SIGNALS:
        signal.signal(number, _end_at_once)
    for name in DROPPED_ENV:
        os.environ.pop(name, None)
    os.environ.update(options["env"])
    logs.configure()
    restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
    name = f"{worker}r{restarts}" if restarts else worker
    options = {"token": room_token(Room(Path(room))), **options}  # old versions submit without a token
    presence = RoomPresence(Room(Path(room)), options["token"])
    presence.check()
    files = Room(Path(room)).worker(name)
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    _log.info("worker %s starts on %s", name, node)
    end = {"reason": "it ended without an error message", "node": node, "signalled": False, "failed": True}
    try:
        reason, signalled = work(Room(Path(room)), name, options, began + options["seconds"])
        end |= {"reason": reason, "signalled": signalled, "failed": False}
        _log.info("worker %s ends: %s", name, reason)
    except RoomLostError:
        raise
    except SystemExit as error:
        end |= {"reason": str(error), "signalled": True, "failed": False}
        raise
    except BaseException as error:
        end["reason"] = f"{type(error).__name__} on {node}: {' '.join(str(error).split())}"
        raise
    finally:
        with suppress(OSError):  # on a full disk, SLURM still knows that the job ended
            if not presence.problem() and not presence.absent:
                write_atomic(files.exit, json.dumps(end), root=Path(room))


def check(directory: str, env: Mapping[str, str]) -> None:
    """Write to `answer.json` what a worker finds on this node: packages, GPUs, and whether files and locks are shared.

    The process that submitted this job holds a lock on `lock`, and writes `ping` once it sees `hello`.

    Args:
        directory: shared by both.
        env: environment variables to set.
    """
    folder = Path(directory)
    os.environ.update(env)
    answer: dict[str, Any] = {"node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(), "error": ""}
    try:
        import torch
        import torchtune  # noqa: F401

        import trainer.worker  # noqa: F401

        answer |= {"torch": torch.__version__, "gpus": torch.cuda.device_count()}
    except Exception as error:
        answer["error"] = f"{type(error).__name__}: {' '.join(str(error).split())}"
    answer["python"] = ".".join(map(str, sys.version_info[:3]))
    answer["lock"] = held(folder / "lock")
    began = time.monotonic()
    write_atomic(folder / "hello", "")
    while not (folder / "ping").exists() and time.monotonic() - began < CHECK_SECONDS:
        time.sleep(0.02)
    write_atomic(folder / "answer.json", json.dumps({**answer, "seconds": time.monotonic() - began}))


def _train(room: Room, name: str, options: Mapping[str, Any], ends_at: float) -> tuple[str, bool]:
    for key, value in PROCESS_ENV.items():
        os.environ.setdefault(key, value)
    import torch

    from trainer.worker import Worker

    if options["gpu"] and not torch.cuda.is_available():
        raise NoGpuError("torch sees no CUDA device")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    worker = Worker(room, name, options["trials"], options["idle_seconds"], ends_at, options["slots"], options["token"])
    worker.check_room()
    make_directory(room.worker(name).path, room.root)
    with open_lock(room.worker(name).lock) as lock:
        write_lock(lock, own_identity())
    return worker.run(), worker.signalled


def _end_at_once(number: int, frame: FrameType | None) -> None:
    sys.exit(f"it received {signal.Signals(number).name} before it was ready")
