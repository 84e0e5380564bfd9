"""Whole sweeps that evaluate their best adapters, with W&B offline, and online against the stand-in."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from sweep.evaluation.jobs import evaluations_room
from sweep.report.reader import read_outcome
from tests.helpers.cli import SMALL, status, sweep
from tests.standin.plugin import standin
from tests.standin.server import StandIn
from trainer.contract import TrialSpec, decode
from trainer.room import Room

__all__ = ["standin"]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]
WORDS = (*SMALL, "search.trials=2", "pruner=none", "queue.workers=1", "evaluate=heldout")


def run_of(room: Room, trial: int) -> str:
    spec = decode(TrialSpec, room.attempt(trial, 1).spec.read_text())
    assert spec.tracking is not None
    return spec.tracking.run


def test_offline_the_scores_lie_in_the_room(rooms: Path) -> None:
    said = sweep("run", *WORDS, "name=off", "wandb=offline").stdout
    room, rows = Room(rooms / "off"), {row["number"]: row for row in status("off")["rows"]}
    judged = evaluations_room(room).trials()
    assert 0 in judged, "the first to end was the best then"
    for number in judged:
        assert f"evaluation of trial {number}: loss" in said
        assert rows[number]["evaluation"] == "complete"
        assert rows[number]["scores"]["loss"] == rows[number]["value"], "the trial's own last val_loss"
        assert not (evaluations_room(room).attempt(number, 1).path / "wandb").exists(), "`sweep sync` tells them"
        outcome = read_outcome(evaluations_room(room), number)
        assert outcome is not None
        assert outcome.tokens > 0
    best = json.loads(sweep("best", "off", "--json").stdout)
    assert best["scores"] == rows[best["trial"]]["scores"]
    assert "eval perplexity" in said
    report = Path(sweep("report", "off").stdout.strip()).read_text()
    assert re.search(r"<th[^>]*>eval loss", report)
    sweep("resume", "off")
    assert evaluations_room(room).attempts(best["trial"]) == [1], "what was judged is not judged again"


def test_online_the_scores_land_on_the_trial_s_run(
    rooms: Path, standin: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in standin.env.items():
        monkeypatch.setenv(name, value)
    sweep("run", *WORDS, "name=on", "wandb=online", "wandb.project=p")
    room, rows = Room(rooms / "on"), {row["number"]: row for row in status("on")["rows"]}
    for number in evaluations_room(room).trials():
        run = standin.runs[f"team/p/{run_of(room, number)}"]
        assert (run.state, run.exit_code, run.starts) == ("finished", 0, 2)
        assert run.summary["eval/loss"] == pytest.approx(rows[number]["value"])
        assert run.summary["val_loss"] == pytest.approx(rows[number]["value"]), "and nothing else is lost"
        assert run.summary["trial/state"] == "complete"
    judged = {run_of(room, number) for number in evaluations_room(room).trials()}
    others = {run_of(room, number) for number in rows} - judged
    assert all("eval/loss" not in standin.runs[f"team/p/{run}"].summary for run in others)
