"""`sweep sync`: what did not arrive at W&B is uploaded in order and once, and W&B then says what the sweep knows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.cli import SMALL, status, sweep
from tests.standin.plugin import environment, standin
from tests.standin.server import StandIn

__all__ = ["standin"]  # a fixture

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]


@pytest.fixture
def online(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.delenv("WANDB_SERVICE", raising=False)
    for name, value in environment(standin).items():
        if name.startswith(("WANDB_", "NETRC", "NO_PROXY")):
            monkeypatch.setenv(name, value)
    yield standin


def test_an_offline_sweep_is_uploaded_once(rooms: Path, online: StandIn) -> None:
    words = ("wandb=offline", "wandb.project=p", "wandb.registry=adapters", "queue.workers=1", "search.trials=2")
    sweep("run", "name=away", *SMALL, *words, "evaluate=heldout")
    assert online.runs == {}
    said = sweep("sync", "away").stdout
    rows = status("away")["rows"]
    runs = sorted(online.runs.values(), key=lambda run: run.id)
    assert [run.summary["trial/state"] for run in runs] == [row["state"] for row in rows]
    for run, row in zip(runs, rows, strict=True):
        told = [entry["milestone"] for entry in run.history if "milestone" in entry]
        assert told == [report["milestone"] for report in row["reports"]]
        assert (run.state, run.exit_code) == ("finished", 0)
        scores = {f"eval/{name}": value for name, value in row["scores"].items()}
        assert scores.items() <= run.summary.items()
        assert {"val_loss", "loss", "tokens"} <= set(run.summary), "and nothing is lost for them"
    assert any(row["scores"] for row in rows)
    best = min((row for row in rows if row["state"] == "complete"), key=lambda row: float(row["value"]))
    assert f"trial {best['number']}'s adapter is linked to wandb-registry-model/adapters" in said
    (crowned,) = [
        a for a in online.artifacts.values() if a.collection == "away-adapter" and "best" in online.aliases(a)
    ]
    assert f"trial-{best['number']}" in online.aliases(crowned)
    before = {run.id: (len(run.history), run.starts) for run in runs}
    assert "everything already" in sweep("sync", "away").stdout
    assert {run.id: (len(run.history), run.starts) for run in online.runs.values()} == before


def test_a_sweep_that_is_not_tracked_has_nothing_to_upload(rooms: Path, online: StandIn) -> None:
    sweep("run", "name=here", *SMALL, "queue.workers=1", "search.trials=1")
    assert "is not tracked in W&B" in sweep("sync", "here", code=2).stderr
