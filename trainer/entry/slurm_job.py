"""What a job of a cluster runs: a worker of a room.

Invariants: importing this module imports nothing heavy, and its function takes plain values, so that a pickle of the
call holds a name and these values only. Once called, no signal reaches a handler that is not ours: the worker obeys
USR2, TERM and INT by stopping its trials with a checkpoint. Why it ended is written down, if there is time to.
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
from trainer.room import Room, held, write_atomic

_log = logging.getLogger(__name__)

# submitit hands USR2 on before a time limit and at a preemption; SLURM itself sends TERM
END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
CHECK_SECONDS = 60.0


class NoGpuError(Exception):
    """The node shows no GPU, though the trials need one."""


# What a worker does once its process is set up: of (room, name, options, when to end on the monotonic clock); returns
# why it ended, and whether a signal told it to.
Work = Callable[[Room, str, Mapping[str, Any], float], tuple[str, bool]]


def serve(room: str, worker: str, options: Mapping[str, Any]) -> None:
    """Serve a room as a worker until drained, told to end, or near the job's time limit.

    Args:
        options: `trials`, `idle_seconds`, `slots` (see `Worker`), `seconds`: of the job that a worker may use; `gpu`: a
            CUDA device is needed; `env`: variables to set.
    """
    run_job(room, worker, options, _train)


def run_job(room: str, worker: str, options: Mapping[str, Any], work: Work) -> None:
    """Set this process up as a worker under the name that it has in this run of its job, and say how it ended."""
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
    files = Room(Path(room)).worker(name)
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    _log.info("worker %s starts on %s", name, node)
    end = {"reason": "it ended without a word", "node": node, "signalled": False, "failed": True}
    try:
        reason, signalled = work(Room(Path(room)), name, options, began + options["seconds"])
        end |= {"reason": reason, "signalled": signalled, "failed": False}
        _log.info("worker %s ends: %s", name, reason)
    except SystemExit as error:
        end |= {"reason": str(error), "signalled": True, "failed": False}
        raise
    except BaseException as error:
        end["reason"] = f"{type(error).__name__} on {node}: {' '.join(str(error).split())}"
        raise
    finally:
        with suppress(OSError):  # on a full disk the scheduler will tell
            write_atomic(files.exit, json.dumps(end))


def check(directory: str, env: Mapping[str, str]) -> None:
    """Say in `answer.json` what a worker would find on this node: packages, GPUs, the room's files and its locks.

    Whoever submitted this holds a lock on `lock`, and writes `ping` once it sees `hello`.

    Args:
        env: variables to set.
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
    worker = Worker(room, name, options["trials"], options["idle_seconds"], ends_at, options["slots"])
    room.worker(name).lock.write_text(f"{os.getpid()}\n")
    return worker.run(), worker.signalled


def _end_at_once(number: int, frame: FrameType | None) -> None:
    sys.exit(f"it was told to end by {signal.Signals(number).name} before it was ready")
