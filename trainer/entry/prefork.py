"""A process that has imported what workers need, and makes workers by forking, or by becoming one.

    python -m trainer prefork SOCKET [--forks]

It reads requests from an inherited Unix socket. `probe` counts a configuration's data (`trainer.entry.probe`). `start`
makes a worker, which holds the lock whose open file came with the request.

Invariants: a process that forks never uses CUDA, which does not survive a fork. It keeps no lock that a worker has, and
ends when the other end of its socket is closed.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from trainer.socket_messages import receive_message, send_message


def main(fileno: int, forks: bool) -> int:
    """Serve requests until the controller ends; returns the exit code.

    Args:
        fileno: of the socket.
        forks: make each worker by a fork; otherwise become the first one.
    """
    import torch  # noqa: F401 - imported here once, for all workers

    from trainer import worker  # noqa: F401
    from trainer.entry.probe import answer
    from trainer.working_directory import enter_directory

    gc.collect()
    gc.freeze()  # the pages of all imports stay shared with the workers
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # so that no worker stays as a zombie, as nothing waits for it
    channel = socket.socket(fileno=fileno)
    while True:
        try:
            data, files = receive_message(channel)
        except ConnectionError:  # the controller ended with an answer unread
            return 0
        if data is None:
            return 0
        request = json.loads(data)
        if request["verb"] == "probe":
            enter_directory(request.get("directory", ""), request["components"])
            send_message(channel, answer(request).encode())
        elif not forks or os.fork() == 0:
            channel.close()
            _become_worker(request, files)
        for file in files:
            os.close(file)


def _become_worker(request: dict[str, Any], files: list[int]) -> None:
    """Turn this process into a worker; does not return.

    Args:
        files: its log, then its lock, which stays open.
    """
    code = 1
    try:
        with contextlib.suppress(PermissionError):  # a process that was not forked already leads its session
            os.setsid()
        log = files[0]
        with Path(os.devnull).open(encoding="utf-8") as nothing:
            os.dup2(nothing.fileno(), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        os.environ.update(request["env"])
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        import torch

        from trainer import logs
        from trainer.presence import room_token
        from trainer.room import Room
        from trainer.worker import Worker, run_worker

        logs.configure()
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        room = Room(Path(request["room"]))
        serving = Worker(
            room,
            request["worker"],
            request["trials"],
            request["idle_seconds"],
            slots=request["slots"],
            token=request.get("token") or room_token(room),
        )
        code = run_worker(room, serving, lock_held=True)
    except SystemExit as error:  # a sentence, such as that the room was deleted
        print(error, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)
