"""The controller's end of `trainer.nursery`: one process imports torch, counts the data, and forks the workers.

Invariants: started at its first use and no sooner. Everything works without it, only slower: where it has died,
workers are started by themselves. It ends with the controller; workers that it forked do not.
"""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO, Any

ANSWER_BYTES = 1 << 16
# A worker or nursery must not attach to the W&B service of whoever started it: its run would never end.
DROPPED_ENV = ("WANDB_SERVICE",)
# Ask for devices without initialising CUDA, which would not survive the fork.
OWN_ENV = {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def clean_env() -> dict[str, str]:
    """This process's environment, less what must not be handed down."""
    return {key: value for key, value in os.environ.items() if key not in DROPPED_ENV}


class Nursery:
    """A process that has imported what workers need. May be used by one controller."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._errors: IO[bytes] | None = None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request and wait for its answer; `{"error": sentence}` where the process died."""
        if not self._send(request, ()):
            return {"error": self._last_words()}
        assert self._channel is not None
        data = self._channel.recv(ANSWER_BYTES)
        answer: dict[str, Any] = json.loads(data) if data else {"error": self._last_words()}
        return answer

    def start(self, request: dict[str, Any], files: Sequence[int]) -> bool:
        """Hand a worker's request over with its open files; False where there is no process to take it."""
        return self._send(request, files)

    def close(self) -> None:
        """Let the process end."""
        if self._channel is not None:
            self._channel.close()
        if self._errors is not None:
            self._errors.close()

    def _send(self, request: dict[str, Any], files: Sequence[int]) -> bool:
        if self._process is None:
            self._spawn()
        assert self._process is not None
        assert self._channel is not None
        if self._process.poll() is not None:
            return False
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
        try:
            self._channel.sendmsg([json.dumps(request).encode()], rights)
        except OSError:
            return False
        return True

    def _spawn(self) -> None:
        # a sequenced packet is one request: none is ever cut or joined with the next
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "trainer", "nursery", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                env=clean_env() | OWN_ENV,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # a Ctrl-C in the terminal is the controller's
            )

    def _last_words(self) -> str:
        if self._errors is None:
            return "no output"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "no output"
