"""Runs a program in a terminal of its own, as a person does: with a size, keys and a screen.

Invariants: the program leads a session whose controlling terminal is a pseudo-terminal, so that Ctrl-C reaches its
process group and a change of size its SIGWINCH. What it prints is read all the time; a program that is not read from
would wait.
"""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

from tests.helpers.waiting import until

INTERRUPT = b"\x03"


class Terminal:
    """A program in a terminal.

    Args:
        command: the program and its arguments.
        size: rows and columns.
        environment: of the program; None: this process's own.
    """

    def __init__(
        self, command: Sequence[str], size: tuple[int, int] = (24, 80), environment: Mapping[str, str] | None = None
    ) -> None:
        self._screen, inner = pty.openpty()
        self._read: list[bytes] = []
        self.resize(*size)
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *command],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env={**(os.environ if environment is None else environment), "TERM": "xterm-256color"},
        )
        os.close(inner)
        threading.Thread(target=self._read_on, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._screen)

    @property
    def text(self) -> str:
        """Everything that the program has printed so far."""
        return b"".join(self._read).decode(errors="replace")

    def resize(self, rows: int, columns: int) -> None:
        """Give the terminal another size."""
        fcntl.ioctl(self._screen, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: bytes) -> None:
        """Press keys; `INTERRUPT` is Ctrl-C."""
        os.write(self._screen, keys)

    def wait_for(self, text: str, seconds: float = 300) -> None:
        """Wait until the program has printed this.

        Raises:
            AssertionError: it ended or the time passed before.
        """

        until(lambda: text in self.text, self.process, seconds)

    def wait(self, seconds: float = 300) -> int:
        """The exit code of the program.

        Raises:
            TimeoutExpired: it has not ended by then.
        """
        return self.process.wait(seconds)

    def _read_on(self) -> None:
        with suppress(OSError):  # the program has ended
            while data := os.read(self._screen, 1 << 16):
                self._read.append(data)
