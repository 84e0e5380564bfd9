"""The benchmark's clocks: `python -m tests.bench.dispatch` and `gpu_dispatch.py` use them; nothing runs by itself.

Invariants: nothing of the measured programs is changed. Writes are seen through inotify, so that watching costs no
processor time between two of them. A process's own time is the kernel's count, its children left out.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_MODIFY, _CREATE, _ONLYDIR, _ISDIR = 0x2, 0x100, 0x01000000, 0x40000000
_EVENT = struct.Struct("iIII")
_BUFFER = 1 << 16
_libc = ctypes.CDLL(None, use_errno=True)


class ArmFailed(Exception):
    """An arm of the benchmark did not do what it should; its message ends with its last output."""


class FirstWrites:
    """Notes when each file below a directory is first written to, from the moment the block is entered.

    A directory is no longer watched once a file in it has been noted: later writes cost nothing.

    Args:
        root: exists already.
        wanted: whether a file's first write counts.
    """

    def __init__(self, root: Path, wanted: Callable[[Path], bool]) -> None:
        self.times: dict[Path, float] = {}
        self._root, self._wanted = root, wanted
        self._paths: dict[int, Path] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> FirstWrites:
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "inotify is not available")
        self._add(self._root)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()
        os.close(self._fd)

    def _watch(self) -> None:
        while not self._done.is_set():
            if not select.select([self._fd], [], [], 0.2)[0]:
                continue
            now, data, offset = time.time(), os.read(self._fd, _BUFFER), 0
            while offset < len(data):
                watch, mask, _, length = _EVENT.unpack_from(data, offset)
                offset += _EVENT.size + length
                name = os.fsdecode(data[offset - length : offset].rstrip(b"\0"))
                if watch in self._paths and name:
                    self._event(watch, mask, self._paths[watch] / name, now)

    def _event(self, watch: int, mask: int, path: Path, now: float) -> None:
        if mask & _ISDIR:
            self._add(path)
        elif mask & _MODIFY and self._wanted(path):
            self.times.setdefault(path, now)
            _libc.inotify_rm_watch(self._fd, watch)

    def _add(self, directory: Path) -> None:
        watch = _libc.inotify_add_watch(self._fd, os.fsencode(directory), _CREATE | _MODIFY | _ONLYDIR)
        if watch < 0:
            return  # it has gone again, as a trainer's scratch directory does
        self._paths[watch] = directory
        for entry in os.scandir(directory):  # what came before the watch
            if entry.is_dir(follow_symlinks=False):
                self._add(Path(entry.path))
            elif entry.stat().st_size and self._wanted(Path(entry.path)):
                self.times.setdefault(Path(entry.path), time.time())


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that ran to its end.

    Args:
        began: seconds since the epoch.
        seconds: from its start to its end.
        cpu: user and system seconds of the process alone.
    """

    began: float
    seconds: float
    cpu: float


def run_to_end(command: Sequence[str], env: Mapping[str, str], log: Path) -> Ended:
    """Run a command with its output in a file.

    Raises:
        ArmFailed: it failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        began, started = time.time(), time.perf_counter()
        process = subprocess.Popen(
            command, env=dict(env), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie still has its times
        ended = Ended(began, time.perf_counter() - started, cpu_seconds(process.pid))
    if process.wait() != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise ArmFailed(f"{' '.join(command[:6])} … failed with code {process.returncode}:\n{tail}")
    return ended


def cpu_seconds(pid: int) -> float:
    """User and system seconds of a process, all its threads, children left out."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
