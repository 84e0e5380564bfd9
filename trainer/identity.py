"""Which process holds a lock: its id together with what tells it from every other process.

A process id alone means nothing: after a restart, on another machine or in another container it is somebody else's.

    4711 start=81734 boot=1b4e28ba-2fa1-11d2-883f-0016d3cca427 pids=4026531836 host=node7

Invariants: standard library only. Nothing is signalled unless the id, its start, the boot, the process namespace and
the host all match. A text of version 0.1 or 0.2 is an id alone; that process is signalled only if it has the lock open.
"""

from __future__ import annotations

import os
import re
import signal
import socket
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


def own_identity() -> str:
    """This process as text for a lock."""
    return f"{os.getpid()} {_facts(os.getpid())}"


def process_id(text: str) -> int | None:
    """The process id in the text of a lock; None if there is none."""
    match = re.match(r"(\d+)\b", text)
    return int(match[1]) if match else None


def is_alive(text: str, lock: Path) -> bool:
    """Whether the process that wrote this text into `lock` runs on this machine."""
    pid = process_id(text)
    if pid is None:
        return False
    facts = text.strip().partition(" ")[2]
    if not facts:
        return _has_open(pid, lock)
    return facts == _facts(pid) and "start= " not in facts


def kill_group(text: str, lock: Path) -> bool:
    """Kill the process that holds a lock, with its process group if it leads one.

    Returns:
        False if no process of this machine is that one; nothing was signalled then.
    """
    pid = process_id(text)
    if pid is None or not is_alive(text, lock):
        return False
    with suppress(ProcessLookupError):  # it has just ended
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
    return True


def _facts(pid: int) -> str:
    """What tells a process from all others that ever had its id; without a start if there is no such process."""
    boot = namespace = start = ""
    with suppress(OSError):
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    with suppress(OSError):
        namespace = re.sub(r"\D", "", str((PROC / "self/ns/pid").readlink()))
    with suppress(OSError, IndexError):
        stat = (PROC / str(pid) / "stat").read_text(encoding="utf-8")
        start = stat[stat.rindex(")") + 2 :].split()[19]  # the program's name before it may hold anything
    return f"start={start} boot={boot} pids={namespace} host={socket.gethostname()}"


def _has_open(pid: int, path: Path) -> bool:
    with suppress(OSError):
        for entry in (PROC / str(pid) / "fd").iterdir():
            with suppress(OSError):
                if os.path.samestat(entry.stat(), path.stat()):
                    return True
    return False
