"""The controller's side of `trainer.entry.prefork`: processes that have imported torch before a worker is needed.

On the CPU one process imports torch, counts the data, and then forks every worker in milliseconds. CUDA does not
survive a fork, and torchtune queries a GPU's capability when it is imported. So on GPUs one process for each place
is started with that place's environment, and becomes the place's worker itself.

Invariants: no process is started before the first use. They only save time: if none is left, workers are started
without them. They end with the controller, but workers that were made of them do not.
"""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.contract import DROPPED_ENV

ANSWER_BYTES = 1 << 16
OWN_ENV = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def clean_env() -> dict[str, str]:
    """This process's environment without the variables that a child process must not inherit."""
    return {key: value for key, value in os.environ.items() if key not in DROPPED_ENV}


class PreforkServer:
    """Processes that have imported what workers need, for one controller.

    Args:
        spares: by place, the environment of its worker; each place then has a process of its own. If it is empty, one
            process forks all workers.
        env: additional environment variables of the process that forks.
    """

    def __init__(self, spares: Sequence[Mapping[str, str]] = (), env: Mapping[str, str] | None = None) -> None:
        self._envs = tuple(spares) or ({**OWN_ENV, **(env or {})},)
        self._forks = not spares
        self._processes: list[_Process] = []

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer; `{"error": its last line of output}` if the process has died."""
        process = self._at(0)
        data = process.channel.recv(ANSWER_BYTES) if process.send(request, ()) else b""
        answer: dict[str, Any] = json.loads(data) if data else {"error": process.last_line()}
        return answer

    def start(self, place: int, request: dict[str, Any], files: Sequence[int]) -> bool:
        """Make a worker from a request and its open files, at this place; False if no process is left to do it."""
        index = 0 if self._forks else place
        if index >= len(self._envs):
            return False
        process = self._at(index)
        if process.taken or not process.send(request, files):
            return False
        process.taken = not self._forks
        return True

    def close(self) -> None:
        """Close the sockets: processes that have not become workers end."""
        for process in self._processes:
            process.close()

    def _at(self, index: int) -> _Process:
        if not self._processes:
            self._processes = [_Process(env, self._forks) for env in self._envs]
        return self._processes[index]


class _Process:
    """One such process and this end of its socket."""

    def __init__(self, env: Mapping[str, str], forks: bool) -> None:
        self.taken = False
        # SOCK_SEQPACKET keeps the boundaries of requests
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        command = [sys.executable, "-m", "trainer", "prefork", str(theirs.fileno())]
        with theirs:
            self.popen = subprocess.Popen(
                [*command, *(["--forks"] if forks else [])],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env=clean_env() | OWN_ENV | dict(env),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C in the terminal must reach the controller only
            )

    def send(self, request: dict[str, Any], files: Sequence[int]) -> bool:
        """Send a request with open files; False if the process has ended."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
        try:
            self.channel.sendmsg([json.dumps(request).encode()], rights)
        except OSError:
            return False
        return self.popen.poll() is None

    def last_line(self) -> str:
        """The last line that the process wrote to standard error."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no output"

    def close(self) -> None:
        self.channel.close()
        self._errors.close()
