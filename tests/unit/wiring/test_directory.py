"""The directory of the first command is frozen with a sweep, and decides what its relative paths mean."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from sweep.config.settings import Settings
from sweep.errors import ConfigError
from sweep.model.identifiers import AttemptId
from sweep.wiring.compose import compose_config, freeze
from sweep.wiring.creation import create_room
from sweep.wiring.rooms import check_same_sweep, load_settings, save_settings
from sweep.wiring.specifications import trial_spec
from trainer.contract import TrialSpec, decode, encode
from trainer.room import Room

WORDS = ("experiment=demo", "name=mine", "objective.milestone_tokens=240")
DATA = "recipe.overrides.dataset.data_files=mine.jsonl"
CHOICE = "space.dataset_val.data_files=choice(a.jsonl,b.jsonl)"


@pytest.fixture
def first(tmp_path: Path, rooms: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory; `tmp_path/second` is another one."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "first")
    return tmp_path / "first"


def settings(*words: str) -> Settings:
    return freeze(compose_config([*WORDS, *words]), "mine").settings


def room(*words: str) -> Room:
    return create_room(freeze(compose_config([*WORDS, *words]), "mine"), 1000)


def test_it_is_frozen_and_travels_to_the_worker(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = load_settings(room(DATA, CHOICE))
    monkeypatch.chdir(first.parent / "second")
    assert frozen.directory == str(first)
    spec = trial_spec(frozen, {"dataset_val.data_files": "b.jsonl"}, AttemptId(0, 1, "w0001"))
    assert spec.directory == str(first)
    assert spec.config["dataset"]["data_files"] == f"{first}/mine.jsonl"
    assert spec.config["dataset_val"]["data_files"] == f"{first}/b.jsonl"
    assert decode(TrialSpec, encode(spec)) == spec


def test_a_specification_of_an_old_version_has_none(first: Path) -> None:
    spec = trial_spec(settings(), {}, AttemptId(0, 1, "w0001"))
    text = encode(spec).replace(f', "directory": "{first}"', "")
    assert "directory" not in text.replace("output_dir", "")
    assert decode(TrialSpec, text).directory == ""


def test_the_same_words_in_another_directory_are_another_sweep_only_if_a_path_is_read(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = room(DATA)
    check_same_sweep(made, settings(DATA))
    monkeypatch.chdir(first.parent / "second")
    with pytest.raises(ConfigError, match=f"with another directory: its relative paths mean {first}"):
        check_same_sweep(made, settings(DATA))


def test_the_embedded_recipe_means_the_same_everywhere(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = room()
    monkeypatch.chdir(first.parent / "second")
    check_same_sweep(made, settings())


def test_a_room_of_an_old_version_is_the_same_sweep_and_stays_as_it_was(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = room(DATA)
    save_settings(made, dataclasses.replace(load_settings(made), directory=""))
    monkeypatch.chdir(first.parent / "second")
    check_same_sweep(made, settings(DATA))
    spec = trial_spec(load_settings(made), {}, AttemptId(0, 1, "w0001"))
    assert spec.config["dataset"]["data_files"] == "mine.jsonl"


def test_a_path_that_no_shell_could_expand_is_refused_before_anything_starts(
    first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOPE", raising=False)
    with pytest.raises(ConfigError, match=r"dataset.data_files=\$NOPE/a.jsonl: the environment variable NOPE is not"):
        settings("recipe.overrides.dataset.data_files='$NOPE/a.jsonl'")
