"""Damaged rooms, drawn by fixed seeds: every verb and the controller can deal with them (`tests.fuzz.rooms`)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.rooms import Rooms, quick, run_case

# Seeds of rooms that failed once.
FAILED_ONCE = (20002,)
SEEDS = range(5000, 5020)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rooms]:
    with quick():
        yield Rooms(tmp_path_factory.mktemp("rooms"))


@pytest.mark.parametrize("seed", [*FAILED_ONCE, *SEEDS])
def test_a_damaged_room(known: Rooms, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setenv("SWEEP_ROOMS", str(tmp_path))  # the case sets its own
    case = run_case(known, seed, tmp_path)
    assert not case.violations, f"{case.source} {case.done}\n" + "\n".join(case.violations)
