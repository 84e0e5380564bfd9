"""The worlds of this process, and the files that their attempts leave in rooms.

Invariants: a world lives as long as its process. The files of an attempt are written when it has ended; a world in
another process continues from them, with all workers gone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sweep.queues.simulated.state import SimulatedAttempt
from sweep.queues.simulated.world import World
from trainer.contract import ContractError, Outcome, Report, TrialSpec, decode, encode, read_message, read_stop
from trainer.room import Damage, Room, read, read_text, usable

CLOCK = "clock"

_worlds: dict[Path, World] = {}


def world_of(room: Room, make: Callable[[], World]) -> World:
    """The world of a room in this process; if there is none yet, a new one that continues from the room's files."""
    if room.root not in _worlds:
        world = make()
        _recover(room, world)
        recorder = Recorder(room, world)
        world.ended, world.recorded, world.keeps_ended = recorder.write, recorder.read, False
        _worlds[room.root] = world
    return _worlds[room.root]


@dataclass(slots=True)
class Recorder:
    """Writes the files that an attempt of a real worker leaves in a room, once the attempt has ended or was lost."""

    room: Room
    world: World

    def write(self, attempt: SimulatedAttempt) -> None:
        files = self.room.attempt(attempt.spec.trial, attempt.spec.attempt)
        files.path.mkdir(parents=True, exist_ok=True)
        files.reports.write_text("".join(f"{encode(report)}\n" for report in attempt.reports), encoding="utf-8")
        if attempt.stop is not None:
            files.stop.write_text(f"{attempt.stop}\n{attempt.stop_reason}", encoding="utf-8")
        if attempt.outcome is not None:
            files.outcome.write_text(encode(attempt.outcome), encoding="utf-8")
        (self.room.root / CLOCK).write_text(repr(self.world.now), encoding="utf-8")
        # last: an attempt exists once its specification does
        files.spec.write_text(encode(attempt.spec), encoding="utf-8")

    def read(self, trial: int) -> dict[int, SimulatedAttempt]:
        """The attempts of a trial that were written, by number."""
        attempts = (
            (number, _read_attempt(self.room, self.world, trial, number)) for number in self.room.attempts(trial)
        )
        return {number: attempt for number, attempt in attempts if attempt is not None}


def simulated_seconds(room: Room) -> float:
    """The time on the simulated clock of a room, in seconds, when it was last written."""
    return usable(read(room.root / CLOCK, _seconds)) or 0.0


def _seconds(text: str) -> float:
    seconds = float(text)
    if not math.isfinite(seconds):
        raise ValueError(f"{text[:40]} is no time")
    return seconds


def _recover(room: Room, world: World) -> None:
    """Take over the trials that another process left."""
    world.advance(simulated_seconds(room))
    for trial in room.trials():
        for number in room.attempts(trial):
            if (attempt := _read_attempt(room, world, trial, number)) is not None:
                world.adopt(attempt)


def _read_attempt(room: Room, world: World, trial: int, number: int) -> SimulatedAttempt | None:
    files = room.attempt(trial, number)
    spec, outcome = read_message(TrialSpec, files.spec), read_message(Outcome, files.outcome)
    try:
        reports = [decode(Report, line) for line in (read_text(files.reports) or "").splitlines()]
    except ContractError:
        return None
    if not isinstance(spec, TrialSpec) or isinstance(outcome, Damage):
        return None
    stop = read_stop(files.stop)
    attempt = world.attempt(spec)
    attempt.reports, attempt.outcome = reports, outcome
    attempt.stop, attempt.stop_reason = stop if isinstance(stop, tuple) else (None, "")
    return attempt
