"""How processes of our own are started, and those that have imported torch before a worker is needed.

On the CPU one process imports torch, counts the data, and then forks every worker in milliseconds. CUDA does not
survive a fork, and torchtune queries a GPU's capability when it is imported. So on GPUs one process for each place
is started with that place's environment, and becomes the place's worker itself.

Invariants: no process of ours looks for modules in the directory in which it is started (`python_command`). No process
is started before the first use. They only save time: if none is left, workers are started without them. They end with
the controller, but workers that were made of them do not.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from sweep.errors import GiveUp
from trainer.contract import DROPPED_ENV
from trainer.process_end import how_it_ended, last_line
from trainer.socket_messages import receive_message, send_message

OWN_ENV = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
# A process that has closed its socket ends within this time, in seconds, or is killed.
END_SECONDS = 10.0
LAST_WORDS_BYTES = 1 << 16


def python_command(*words: str) -> list[str]:
    """A command line of this Python, which does not look for modules in the working directory.

    A file such as `random.py` or `trainer.py` in the user's directory would be imported in place of Python's or ours.
    """
    return [sys.executable, "-P", *words]


def clean_env() -> dict[str, str]:
    """This process's environment without the variables that a child process must not inherit.

    Entries of PYTHONPATH are made absolute. An empty one, as `PYTHONPATH=$PYTHONPATH:/x` has it where it was not set,
    is left out: Python takes it for the working directory.
    """
    env = {key: value for key, value in os.environ.items() if key not in DROPPED_ENV}
    if "PYTHONPATH" in env:
        entries = [entry for entry in env["PYTHONPATH"].split(os.pathsep) if entry]
        env["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, entries))
    return env


def ended_unexpectedly(what: str, code: int, errors: str) -> GiveUp:
    """The error for a process that ended without an answer.

    Args:
        what: names the process.
        code: its exit code; negative for a signal.
        errors: what it wrote to standard error.
    """
    said = last_line(errors)
    words = f"its last words: {said}" if said else "it wrote nothing"
    advice = "retry, or run it where its limits are higher" if code < 0 else "`sweep doctor` checks what it needs"
    return GiveUp(f"{what} ended with {how_it_ended(code)}; {words}; {advice}")


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
        """Send a request and wait for its answer.

        Raises:
            GiveUp: the process ended without an answer; the text has its signal or exit code and its last words.
        """
        process = self._at(0)
        try:
            data = process.receive() if process.send(request, ()) else None
        except BaseException:  # Ctrl-C: the process has a session of its own, and would count on
            process.kill()
            raise
        if data is None:
            raise ended_unexpectedly("the process that reads the data", process.end(), process.errors())
        answer: dict[str, Any] = json.loads(data)
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

    def kill(self, place: int) -> None:
        """Kill the process that is to make the worker of this place, and has not done so: it may take long to import.

        Workers that it has made go on.
        """
        index = 0 if self._forks else place
        if index < len(self._processes):
            self._processes[index].kill()

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
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        command = python_command("-m", "trainer", "prefork", str(theirs.fileno()))
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
        try:
            send_message(self.channel, json.dumps(request).encode(), files)
        except OSError:
            return False
        return self.popen.poll() is None

    def receive(self) -> bytes | None:
        """The next answer; None if the process has ended without one."""
        try:
            return receive_message(self.channel)[0]
        except OSError:
            return None

    def end(self) -> int:
        """Wait for the end of a process that does not answer any more; returns its exit code."""
        self.channel.close()
        try:
            return self.popen.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()

    def errors(self) -> str:
        """The end of what the process wrote to standard error."""
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - LAST_WORDS_BYTES))
        return self._errors.read().decode(errors="replace")

    def kill(self) -> None:
        """Kill the process and those that it has started; workers that it has forked have sessions of their own."""
        with suppress(ProcessLookupError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def close(self) -> None:
        self.channel.close()
        self._errors.close()
