"""Another person's room and configuration: what they could make this user run, and what is refused."""

from __future__ import annotations

import grp
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from omegaconf.basecontainer import BaseContainer

from sweep.cli.main import main
from sweep.config.resolvers import OWN_RESOLVERS
from sweep.config.sections import RoomAccess
from sweep.config.settings import Settings
from sweep.errors import ConfigError, SweepError
from sweep.wiring import creation, trust
from sweep.wiring.compose import compose_config, freeze
from sweep.wiring.session import reading_storage
from sweep.wiring.trust import check_owner, programs
from tests.helpers.kill_points import composed
from trainer.room import Room

DEMO = ("experiment=demo",)
STRANGER = os.geteuid() + 4242


def settings_of(*words: str) -> Settings:
    return freeze(compose_config([*DEMO, *words]), "theirs").settings


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    """A room of another user's."""
    (tmp_path / "sweep.json").touch()
    monkeypatch.setattr(trust, "_owner", lambda room: STRANGER)
    return Room(tmp_path)


NAMED: dict[str, tuple[str, ...]] = {
    "evaluate.command": ("evaluate=command", 'evaluate.command="python score.py {output}"'),
    "evaluate.recipe": ("evaluate=torchtune", "evaluate.config=eleuther_evaluation", "evaluate.recipe=mine.py"),
    "metric.mine.command": (
        "objective.metrics.mine.direction=maximize",
        "metric.mine={source: command, command: [python, score.py]}",
    ),
    "recipe.components": ("recipe.components=[mine]",),
    "wandb.hook": ("recipe.components=[mine]", "wandb.hook=mine.values"),
    "wandb.init.settings": ("+wandb.init.settings.program=x",),
    "queue.env": ("+queue.env.LD_PRELOAD=/tmp/x.so",),
    "queue.slurm_setup": ("queue=slurm", "queue.workers=1", "queue.slurm_setup=[echo]"),
    "queue.slurm_teardown": ("queue=slurm", "queue.workers=1", "queue.slurm_teardown=[echo]"),
    "queue.slurm_srun_args": ("queue=slurm", "queue.workers=1", "queue.slurm_srun_args=['--task-prolog=/tmp/x']"),
    "queue.python": ("queue=slurm", "queue.workers=1", "queue.python=/tmp/python"),
    "queue.controller": ("queue=slurm", "queue.workers=1", "queue.controller={slurm_setup: [echo]}"),
    "queue.kind": ("queue=slurm", "queue.workers=1"),
    "queue.template": ("queue=launch_kubernetes",),
    "sampler": ("sampler=cma_es",),
    "storage": ("storage=sqlite:////tmp/theirs.db",),
}


@pytest.mark.parametrize("key", NAMED)
def test_a_strangers_room_that_names_programs_is_not_resumed(key: str, room: Room) -> None:
    settings = settings_of(*NAMED[key])
    assert key in dict(programs(settings))
    with pytest.raises(
        ConfigError, match=f"belongs to user {STRANGER}, and its configuration would act as you: "
    ) as said:
        check_owner(room, settings)
    assert "copy the room if you trust it" in str(said.value)
    with pytest.raises(ConfigError, match=f"would act as you: {key}="):
        check_owner(room, settings, used=(key,))


def test_a_room_that_names_none_is_resumed(room: Room) -> None:
    settings = settings_of()
    assert list(programs(settings)) == []
    check_owner(room, settings)
    check_owner(room, settings_of(*NAMED["evaluate.command"]), used=("recipe.components",))


def test_a_room_of_ones_own_or_of_ones_group_is_trusted(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(*NAMED["recipe.components"])
    os.chown(room.root, -1, os.getegid())
    check_owner(room, replace(settings, room=RoomAccess(grp.getgrgid(os.getegid()).gr_name)))
    with pytest.raises(ConfigError):
        check_owner(room, replace(settings, room=RoomAccess("no-such-group")))
    monkeypatch.setattr(trust, "group_id", lambda name: os.getegid() + 1)
    with pytest.raises(ConfigError):  # the room does not belong to the group that it names
        check_owner(room, settings)
    for owner in (0, os.geteuid()):
        monkeypatch.setattr(trust, "_owner", lambda room, owner=owner: owner)
        check_owner(room, settings)


def test_a_strangers_database_is_not_opened(room: Room, tmp_path: Path) -> None:
    database = tmp_path / "theirs.db"
    settings = settings_of(f"storage=sqlite:///{database}")
    with pytest.raises(ConfigError, match="would act as you: storage=sqlite"):
        reading_storage(room, settings)
    assert not database.exists()


def test_resume_is_refused_in_one_sentence_and_starts_nothing(
    rooms: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    room = creation.create_room(composed("evaluate=command", "evaluate.command=touch {output}"), 40)
    before = {path: path.read_bytes() for path in room.root.rglob("*") if path.is_file()}
    monkeypatch.setattr(trust, "_owner", lambda room: STRANGER)
    for words in (["resume", "s"], ["resume", "s", "search.trials=9"], ["resume", "s", "--detach"]):
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.startswith(
            f"sweep: {room.root} belongs to user {STRANGER}, and its configuration would act as you: "
        )
        assert "evaluate.command=" in said
        assert said.count("\n") == 1
    assert {path: path.read_bytes() for path in room.root.rglob("*") if path.is_file()} == before
    assert main(["status", "s"]) == 0


# --- a stranger's --config-dir ------------------------------------------------------------------------------------

GLOBAL = "# @package _global_\n"
EVIL = {
    "search path": {"experiment/evil.yaml": f"{GLOBAL}hydra:\n  searchpath: [pkg://evil_package]\n"},
    "callbacks": {"experiment/evil.yaml": f"{GLOBAL}hydra:\n  callbacks: {{x: {{_target_: evil_package.C}}}}\n"},
    "launcher": {
        "experiment/evil.yaml": f"{GLOBAL}defaults:\n  - override /hydra/launcher: evil\n",
        "hydra/launcher/evil.yaml": "_target_: evil_package.Launcher\n",
    },
    "logging": {
        "experiment/evil.yaml": f"{GLOBAL}defaults:\n  - override /hydra/job_logging: evil\n",
        "hydra/job_logging/evil.yaml": "version: 1\nhandlers: {x: {class: evil_package.H}}\nroot: {handlers: [x]}\n",
    },
    "_target_ of an option": {
        "experiment/evil.yaml": f"{GLOBAL}defaults:\n  - override /sampler: evil\n",
        "sampler/evil.yaml": "_target_: evil_package.Sampler\n",
    },
    "_target_ within": {
        "experiment/evil.yaml": f"{GLOBAL}defaults:\n  - override /sampler: evil\n",
        "sampler/evil.yaml": "_target_: optuna.samplers.TPESampler\ngamma: {_target_: evil_package.Gamma}\n",
    },
    "component": {
        "experiment/evil.yaml": f"{GLOBAL}recipe:\n  overrides: {{loss._component_: evil_package.Loss}}\n",
    },
    "another primary configuration": {
        "config.yaml": "hydra:\n  searchpath: [pkg://evil_package]\n",
        "experiment/evil.yaml": GLOBAL,
    },
}


@pytest.mark.parametrize("way", EVIL)
def test_a_config_dir_imports_no_package(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it may name are options of the groups; Hydra's own settings in it mean nothing."""
    package, folder, mark = tmp_path / "path" / "evil_package", tmp_path / "theirs", tmp_path / "was-run"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"open({str(mark)!r}, 'w')\n")
    monkeypatch.syspath_prepend(str(package.parent))
    for name, text in EVIL[way].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    words = [*(() if way == "another primary configuration" else ("experiment=evil",)), "search.trials=1"]
    answer = composed_or_refused(words, folder)
    assert "evil_package" not in sys.modules
    assert not mark.exists()
    if way not in ("callbacks", "another primary configuration", "logging", "launcher"):
        assert isinstance(answer, SweepError)


def composed_or_refused(words: list[str], folder: Path) -> Any:
    try:
        return freeze(compose_config([*words, "space.optimizer.lr=choice(1e-4,1e-3)"], folder), "x", folder)
    except SweepError as error:
        return error


def test_no_resolver_runs_code() -> None:
    """Those of OmegaConf, Hydra and ours; nothing that evaluates, imports or reads a file."""
    compose_config(list(DEMO))
    known = {"oc.create", "oc.decode", "oc.deprecated", "oc.dict.keys", "oc.dict.values", "oc.env", "oc.select"}
    known |= {"hydra", "now", "python_version", *OWN_RESOLVERS}
    assert set(BaseContainer._resolvers) <= known
    assert OmegaConf.has_resolver("embedded")
