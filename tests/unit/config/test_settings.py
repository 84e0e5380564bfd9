"""Settings as a value: what is computed from them is computed once, and never from another's values."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from sweep.config import space_grammar
from sweep.config.sections import Objective, Recipe, Search, Trial, WarmStart
from sweep.config.settings import Settings, read_queue, settings_from_json
from sweep.config.space import Space
from sweep.config.space_grammar import parse_space


def settings(**space: str) -> Settings:
    return Settings(
        name="first",
        recipe=Recipe("lora.yaml"),
        torchtune={},
        changes={},
        space_raw=space,
        derive={},
        sampler={},
        pruner={},
        queue=read_queue({}),
        objective=Objective(),
        search=Search(),
        trial=Trial(),
        warm_start=WarmStart(),
    )


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Any]]:
    """Every space that is parsed, in order."""
    parses: list[Mapping[str, Any]] = []

    def count(raw: Mapping[str, Any]) -> Space:
        parses.append(raw)
        return parse_space(raw)

    monkeypatch.setattr(space_grammar, "parse_space", count)
    return parses


def test_the_space_is_parsed_once(parsed: list[Mapping[str, Any]]) -> None:
    frozen = settings(lr="interval(0.1, 0.2)")
    assert parsed == []
    spaces = [frozen.space for _ in range(400)]
    assert parsed == [{"lr": "interval(0.1, 0.2)"}]
    assert all(space is spaces[0] for space in spaces)


def test_a_replaced_space_is_parsed_anew(parsed: list[Mapping[str, Any]]) -> None:
    frozen = settings(lr="interval(0.1, 0.2)")
    assert frozen.space.describe() == {"lr": "interval(0.1, 0.2)"}
    other = replace(frozen, space_raw={"rank": "choice(1, 2)"})
    assert other.space.describe() == {"rank": "choice(1, 2)"}
    assert frozen.space.describe() == {"lr": "interval(0.1, 0.2)"}
    assert len(parsed) == 2


def test_a_parsed_space_is_no_part_of_the_value() -> None:
    frozen, untouched = settings(lr="interval(0.1, 0.2)"), settings(lr="interval(0.1, 0.2)")
    before = frozen.to_json()
    assert len(frozen.space) == 1
    assert frozen == untouched
    assert repr(frozen) == repr(untouched)
    assert frozen.to_json() == before
    assert settings_from_json(before, "here") == frozen
    assert copy.deepcopy(frozen) == frozen
    assert pickle.loads(pickle.dumps(frozen)).space == frozen.space
