"""The controller's end of `trainer.entry.prefork`: processes that import torch while the data are counted.

On the CPU one process imports torch, counts, and forks every worker in milliseconds. CUDA does not survive a fork,
and torchtune asks for a GPU's capability when it is imported: there one spare process a place is started with
that place's environment, and becomes its worker itself.

Invariants: started at the first use and no sooner. Everything works without them, only slower: where none is
left, workers are started by themselves. They end with the controller; workers that came from them do not.
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
    """This process's environment, less what must not be handed down."""
    return {key: value for key, value in os.environ.items() if key not in DROPPED_ENV}


class PreforkServer:
    """Processes that have imported what workers need. May be used by one controller.

    Args:
        spares: for each place the environment of its worker; empty: one process forks them all.
        env: further variables of the one that forks.
    """

    def __init__(self, spares: Sequence[Mapping[str, str]] = (), env: Mapping[str, str] | None = None) -> None:
        self._envs = tuple(spares) or ({**OWN_ENV, **(env or {})},)
        self._forks = not spares
        self._processes: list[_Process] = []

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer; `{"error": sentence}` where the process died."""
        process = self._at(0)
        data = process.channel.recv(ANSWER_BYTES) if process.send(request, ()) else b""
        answer: dict[str, Any] = json.loads(data) if data else {"error": process.last_words()}
        return answer

    def start(self, place: int, request: dict[str, Any], files: Sequence[int]) -> bool:
        """Have a worker made of a request and its open files; False where no process is left to do it."""
        index = 0 if self._forks else place
        if index >= len(self._envs):
            return False
        process = self._at(index)
        if process.taken or not process.send(request, files):
            return False
        process.taken = not self._forks
        return True

    def close(self) -> None:
        """Let go of the processes: what is no worker by now ends."""
        for process in self._processes:
            process.close()

    def _at(self, index: int) -> _Process:
        if not self._processes:
            self._processes = [_Process(env, self._forks) for env in self._envs]
        return self._processes[index]


class _Process:
    """One process with its end of the socket."""

    def __init__(self, env: Mapping[str, str], forks: bool) -> None:
        self.taken = False
        # a sequenced packet is one request: none is ever cut or joined with the next
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
                start_new_session=True,  # a Ctrl-C in the terminal is the controller's
            )

    def send(self, request: dict[str, Any], files: Sequence[int]) -> bool:
        """False where the process is gone."""
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
        try:
            self.channel.sendmsg([json.dumps(request).encode()], rights)
        except OSError:
            return False
        return self.popen.poll() is None

    def last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no output"

    def close(self) -> None:
        self.channel.close()
        self._errors.close()
