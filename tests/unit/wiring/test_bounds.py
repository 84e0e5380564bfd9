"""Every number that a user can mistype is answered at once, and everything that is printed as JSON is JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sweep.cli.main import main
from sweep.errors import ConfigError
from sweep.report.formatting import json_text
from sweep.wiring import rooms
from sweep.wiring.compose import compose_config, freeze
from tests.helpers.tables import write_table
from trainer.room import Room


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["search.seeds=1000000000000"], "search.seeds=1000000000000 is not allowed; it must be between 1 and 1,000"),
        (["search.finalists=5000"], "search.finalists=5000 is not allowed; it must be between 0 and 1,000"),
        (["queue.workers=2147483648"], "queue.workers=2147483648 is not allowed; it must be between 1 and 100,000"),
        (["queue.slots=2147483648"], "queue.slots=2147483648 is not allowed; it must be between 1 and 1024, or auto"),
        (
            ["sampler=grid", "space.seed=range(0,12000000)", "space.optimizer.lr=choice(1,2)"],
            "sampler=grid cannot walk seed",
        ),
        (
            [
                "sampler=grid",
                "space.optimizer.lr=choice(1,2,3)",
                *(f"space.{key}=range(1,3001)" for key in ("seed", "epochs")),
            ],
            "cells, at most 100,000 are allowed",
        ),
    ],
)
def test_what_would_never_end_is_refused(words: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        freeze(compose_config(["space.model.lora_rank=null", "space.model.lora_alpha=null", *words]), "x")
    assert complaint in str(caught.value)


def test_workers_of_one_trial_each_are_simulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SWEEP_ROOMS", str(tmp_path / "rooms"))
    table = write_table(tmp_path / "curves.npz")
    words = ["queue=simulated", f"queue.table={table}", "space.optimizer.lr=tag(log,interval(1e-5,1e-1))"]
    words += ["objective=val_loss", "queue.trials_per_worker=1", "queue.workers=2", "search.trials=6", "pruner=none"]
    assert main(["run", "name=one", *words]) == 0
    assert main(["status", "one", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["state"] for row in rows] == ["complete"] * 6


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("search.trials=${nothing}", "the value cannot be read"),
        ("search.trials=${", "the value cannot be read"),
        ("search.trials=${int:x}", "the value cannot be read"),
        ("search.trials=${floordiv:1,0}", "the value cannot be read"),
        ("search.trials=[1", "the value cannot be read"),
        ("search.trials={a: b", "the value cannot be read"),
        ("search.trials=???", "search.trials"),
        ("search.trials=x", "search.trials: "),
        ("search.nope=1", "search: there is no key nope"),
        ("queue.env.HF_TOKEN=x", "queue"),
        ("queue.workers=2147483648", "between 1 and 100,000"),
    ],
)
def test_a_change_that_cannot_be_read_is_answered_in_a_sentence(tmp_path: Path, word: str, complaint: str) -> None:
    settings = freeze(compose_config(["search.trials=2"]), "x").settings
    room = Room(tmp_path / "x")
    room.root.mkdir()
    rooms.save_settings(room, settings)
    before = room.sweep.read_bytes()
    with pytest.raises(ConfigError) as caught:
        rooms.change_settings(room, [word])
    assert complaint in str(caught.value)
    assert room.sweep.read_bytes() == before


def test_a_change_may_refer_to_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORE", "7")
    room = Room(tmp_path / "x")
    room.root.mkdir()
    rooms.save_settings(room, freeze(compose_config(["search.trials=2"]), "x").settings)
    rooms.change_settings(room, ["search.trials=${oc.decode:${oc.env:MORE}}"])
    assert rooms.load_settings(room).search.trials == 7


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [math.nan, math.inf, -math.inf, 1.5]}, '{"a": [null, null, null, 1.5]}'),
        ((1, None, True, "x"), '[1, null, true, "x"]'),
        ({"path": Path("/a")}, '{"path": "/a"}'),
        ({1: {"b": math.nan}}, '{"1": {"b": null}}'),
    ],
)
def test_what_is_printed_as_json_is_json(value: Any, text: str) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json_text(value) == text
    json.loads(json_text(value), parse_constant=refuse)
