"""Attempts of one small trial, run in this process; and what they left in their room."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.conftest import embedded_config
from trainer.attempt import Attempt
from trainer.base import Cache
from trainer.contract import (
    Outcome,
    Report,
    Step,
    StopCause,
    TrialSpec,
    decode,
    encode,
)
from trainer.reporter import RoomReporter
from trainer.room import Room, Tail, write_atomic

Stops = Callable[[], tuple[StopCause, str] | None]


def spec(number: int = 1, **changes: Any) -> TrialSpec:
    return TrialSpec("s", 0, number, "w0001", embedded_config(**changes), milestone_tokens=180)


def run(room: Room, cache: Cache, wanted: TrialSpec, stop: Stops = lambda: None) -> Outcome:
    files = room.attempt(wanted.trial, wanted.attempt)
    write_atomic(files.spec, encode(wanted))
    reporter = RoomReporter(files)
    try:
        return Attempt(room, wanted, cache, reporter, stop).run()
    finally:
        reporter.close(None)


def stop_after(count: int, cause: StopCause) -> Stops:
    calls = iter(range(count))
    return lambda: None if next(calls, None) is not None else (cause, "enough")


def reports(room: Room, number: int = 1) -> list[Report]:
    return [decode(Report, line) for line in Tail(room.attempt(0, number).reports).lines()]


def steps(room: Room, number: int = 1) -> list[Step]:
    return [decode(Step, line) for line in Tail(room.attempt(0, number).steps).lines()]
