"""Whole sweeps for a maximised metric, in the simulated queue and through the verbs."""

from __future__ import annotations

import html
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from sweep.cli.main import main
from sweep.controller.ledger import read_ledger
from sweep.errors import ConfigError
from sweep.report.reader import open_reader
from sweep.wiring import creation
from sweep.wiring.compose import compose_config, freeze
from sweep.wiring.room_repair import repair_room
from sweep.wiring.rooms import find_room, journal_path
from tests.helpers.tables import write_table
from trainer.contract import TrialSpec, read_message
from trainer.room import Room

WORDS = [
    "space.optimizer.lr=tag(log,interval(1e-5,1e-1))",
    "queue=simulated",
    "queue.workers=2",
    "queue.charge=false",
    "objective.metrics.exact_match.direction=maximize",
    "metric.perplexity.every=2",
]


@pytest.fixture
def rooms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SWEEP_ROOMS", str(tmp_path / "rooms"))
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "curves.npz")
    return tmp_path


def words(*more: str) -> list[str]:
    return [*WORDS, "queue.table=curves.npz", *more]


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def rows_of(room: Room) -> dict[int, Any]:
    return {row.number: row for row in open_reader(room).state().rows}


def test_a_sweep_for_a_metric_is_what_its_verbs_say(rooms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ran(capsys, "run", "name=a", *words("search.trials=8", "search.finalists=2", "search.seeds=1"))
    assert "all 8 trials have ended" in out
    room = find_room("a")
    state = json.loads(ran(capsys, "status", "a", "--json"))
    assert (state["metric"], state["direction"], state["metrics"]) == (
        "exact_match",
        "maximize",
        ["perplexity", "exact_match"],
    )
    complete = {r["number"]: r["value"] for r in state["rows"] if r["state"] == "complete" and r["final"] is None}
    finalists = {row["final"][0] for row in state["rows"] if row["final"]}
    assert set(sorted(complete, key=lambda n: -complete[n])[:1]) <= finalists
    assert state["best"] in finalists
    assert all(0 <= value <= 1 for value in complete.values()), "values are those that were measured"
    reports = [report for row in state["rows"] for report in row["reports"]]
    assert all("exact_match" in report["scores"] for report in reports)
    assert all(("perplexity" in report["scores"]) == (report["milestone"] % 2 == 0) for report in reports)
    assert state["base_scores"].keys() == {"perplexity", "exact_match"}
    first = read_message(TrialSpec, room.attempt(0, 1).spec)
    others = [read_message(TrialSpec, room.attempt(n, 1).spec) for n in room.trials() if n]
    assert isinstance(first, TrialSpec)
    assert first.measure_base
    assert not any(isinstance(spec, TrialSpec) and spec.measure_base for spec in others)
    assert {entry.ruling for entry in read_ledger(room)} >= {"pause"}
    assert any("exact_match" in entry.reason for entry in read_ledger(room))
    best = json.loads(ran(capsys, "best", "a", "--json"))
    assert (best["metric"], best["direction"], best["trial"]) == ("exact_match", "maximize", state["best"])
    assert ran(capsys, "export", "a", "-o", "-").startswith(
        f"# Trial {state['best']} of the sweep a: exact_match {complete[state['best']]} (maximize), perplexity "
    )
    replayed = json.loads(ran(capsys, "replay", "a", "pruner=none", "--json"))
    assert (replayed["best_then"], replayed["winner"]) == (complete[state["best"]], state["best"])
    assert replayed["best"] >= replayed["best_then"] or replayed["cut"]
    ran(capsys, "report", "a", "-o", "report.html")
    text = html.unescape(Path("report.html").read_text())
    assert "The sweep maximises exact_match" in text
    assert "History of perplexity" in text


def test_a_target_and_another_budget_count_upwards(rooms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran(capsys, "run", "name=t", *words("search.trials=14", "search.target=0.2", "sampler=random", "pruner=none"))
    values = [row.value for row in rows_of(find_room("t")).values() if row.state == "complete"]
    assert len(values) < 14
    assert max(values) >= 0.2
    ran(capsys, "resume", "t", "search.trials=16", "search.target=0.99")
    later = [row.value for row in rows_of(find_room("t")).values() if row.state == "complete"]
    assert len(later) > len(values)
    assert open_reader(find_room("t")).state().best.value == max(later)  # type: ignore[union-attr]


def test_a_study_that_is_lost_is_rebuilt_from_what_trials_measured(
    rooms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran(capsys, "run", "name=r", *words("search.trials=8", "sampler=random", "pruner=asha"))
    room = find_room("r")
    before = {n: (row.state, row.value) for n, row in rows_of(room).items()}
    assert open_reader(room).doubts == []
    journal_path(room).unlink()
    list(repair_room(room))
    after = {n: (row.state, row.value) for n, row in rows_of(room).items()}
    assert {n: value for n, value in after.items() if value[0] == "complete"} == {
        n: value for n, value in before.items() if value[0] == "complete"
    }
    best = open_reader(room).state().best
    assert best is not None
    assert best.value == max(value for status, value in before.values() if status == "complete")


def test_another_objective_teaches_nothing(rooms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ran(capsys, "run", "name=a", *words("search.trials=2", "sampler=random", "pruner=none"))
    for more, said in (
        (["objective.metrics.exact_match.direction=minimize"], "a maximised exact_match, this sweep minimises exact_"),
        (["metric.exact_match.rows=32"], "a measured exact_match in another way"),
    ):
        composed = freeze(compose_config(words("warm_start.import_from=[a]", *more)), "b")
        with pytest.raises(ConfigError, match=said):
            creation.create_room(composed, 8000)
    same = freeze(compose_config(words("warm_start.import_from=[a]", "search.trials=2")), "c")
    assert creation.create_room(same, 8000).sweep.exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["metric.peak_memory_gib={}"], "metric.peak_memory_gib: a simulated trial needs no memory"),
        (
            ["metric.mine.source=command", f"metric.mine.command=[{sys.executable}]"],
            "metric.mine: a simulated trial has no source",
        ),
    ],
)
def test_what_the_table_cannot_give_is_refused(more: list[str], said: str, rooms: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        freeze(compose_config(words(*more)), "s")
