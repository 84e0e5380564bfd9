"""The W&B runs of a room that the controller asked W&B to stop.

Invariant: a run is written down before W&B is asked. No later attempt of its trial resumes it, since the request may
stay with the run.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from trainer.room import LineFile, Room, read_text


def mark_stopped(room: Room, run: str) -> None:
    """Write down that W&B is about to be asked to stop this run."""
    with closing(LineFile(_path(room))) as file:
        file.append(run)


def stopped_runs(room: Room) -> set[str]:
    """The ids of the runs that W&B was asked to stop."""
    return set((read_text(_path(room)) or "").split())


def _path(room: Room) -> Path:
    return room.root / "stopped_runs"
