"""Pause and promote with real training: a trial that was paused and went on has the numbers of one that never was.

The sweeps train the same four configurations; one sweep never pauses. Where one pauses, the second configuration, whose
rate is half of the first's, comes behind it at the one rung; once the two small rates have come behind both, it
is among the better half, and goes on.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from sweep.controller.ledger import read_ledger
from tests.helpers.cli import SMALL, status, sweep
from trainer.contract import Outcome, StopCause, decode
from trainer.room import Room, read_text

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]

# Trials of some seconds, so that a pause stops them well before their end.
LONGER = {"recipe.overrides.dataset.split": "train[:192]", "objective.milestone_tokens": "720"}
TRIALS = tuple(
    f"{{model.lora_rank:{rank},optimizer.lr:{rate},gradient_accumulation_steps:1}}"
    for rank, rate in ((16, 2.4e-3), (16, 1.2e-3), (4, 1e-4), (8, 1e-4))
)
WORDS = (
    *(word for word in SMALL if word.partition("=")[0] not in {*LONGER, "search.trials"}),
    *(f"{key}={value}" for key, value in LONGER.items()),
    "search.trials=4",
    f"warm_start.enqueue=[{','.join(TRIALS)}]",
    "queue.workers=1",
    "queue.poll_seconds=0.05",
)
PAUSING = ("pruner=asha", "pruner.min_resource=2", "pruner.reduction_factor=2")
NUMBERS = ("milestone", "tokens", "step", "loss", "val_loss", "grad_norm")


def rows_of(name: str, *more: str) -> list[dict[str, Any]]:
    sweep("run", *WORDS, f"name={name}", *more)
    rows: list[dict[str, Any]] = status(name)["rows"]
    return rows


@pytest.fixture(scope="module")
def rooms_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pausing")
    os.environ["SWEEP_ROOMS"] = str(root)
    return root


@pytest.fixture(scope="module")
def unpaused(rooms_root: Path) -> list[dict[str, Any]]:
    rows = rows_of("whole", "pruner=none")
    assert {row["state"] for row in rows} == {"complete"}
    return rows


@pytest.mark.parametrize(("slots", "tolerance"), [(1, 0.0), (2, 1e-4)], ids=["plain", "packed"])
def test_a_promoted_trial_ends_as_one_that_was_never_paused(
    slots: int, tolerance: float, unpaused: list[dict[str, Any]], rooms_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit by itself; in a pack up to the order of sums (grad_norm ten times as far)."""
    monkeypatch.setenv("SWEEP_ROOMS", str(rooms_root))
    name = f"slots{slots}"
    rows = rows_of(name, *PAUSING, f"queue.slots={slots}")
    room = Room(rooms_root / name)
    assert 1 in {entry.trial for entry in read_ledger(room) if entry.ruling == "promote"}
    assert (rows[1]["state"], rows[1]["attempts"]) == ("complete", 2)
    first = decode(Outcome, read_text(room.attempt(1, 1).outcome) or "")
    assert first.cause is StopCause.PAUSED
    assert read_text(room.attempt(1, 2).reports), "it trained on"
    for row, whole in zip(rows, unpaused, strict=True):
        assert row["params"] == whole["params"]
        for ours, theirs in zip(row["reports"], whole["reports"], strict=False):
            for key in NUMBERS:
                allowed = 10 * tolerance if key == "grad_norm" else tolerance
                assert ours[key] == pytest.approx(theirs[key], rel=allowed, abs=0.0), (row["number"], key)
        if row["state"] == "complete":
            assert len(row["reports"]) == len(whole["reports"])
