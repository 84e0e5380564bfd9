"""The processes of this machine, as Linux shows them in /proc."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A running process; the start time tells it from a later one under the same id."""

    pid: int
    start: int
    command: str
    parent: int
    session: int

    def alive(self) -> bool:
        now = look(self.pid)
        return now is not None and now.start == self.start

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            if self.alive():
                os.kill(self.pid, number)

    def environment(self) -> set[str]:
        """`NAME=value` as it was when the program started; empty where the process has written over it."""
        try:
            return set(Path(f"/proc/{self.pid}/environ").read_text(errors="replace").split("\0"))
        except OSError:
            return set()

    def opened(self) -> set[str]:
        """The paths of its open files."""
        paths = set()
        with suppress(OSError):
            for descriptor in Path(f"/proc/{self.pid}/fd").iterdir():
                with suppress(OSError):
                    paths.add(str(descriptor.readlink()))
        return paths


def look(pid: int) -> Process | None:
    """The process of this id, unless it has ended; one that nobody has waited for has ended, too."""
    try:
        before, _, after = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")
    except OSError:
        return None
    words = after.split()  # proc(5) counts from 1 and has id and command before: the state is its 3rd
    return (
        None
        if words[0] in "ZX"
        else Process(pid, int(words[19]), before.partition("(")[2], int(words[1]), int(words[3]))
    )


def everything() -> list[Process]:
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [found for pid in pids if (found := look(pid))]


def with_kin(some: set[Process], among: list[Process]) -> set[Process]:
    """These and all their descendants."""
    while more := {one for one in among if one.parent in {it.pid for it in some}} - some:
        some = some | more
    return some
