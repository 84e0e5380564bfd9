"""Where a worker finds relative paths and modules of the user's own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from sweep.processes import clean_env, python_command

PROGRAM = """
import json, os, sys
from trainer.components import ComponentError, load_function
from trainer.working_directory import enter_directory
{before}
enter_directory({directory!r}, {components!r})
try:
    thing = load_function("wandb.hook", "mine.thing", ["mine"])()
except ComponentError as error:
    thing = str(error)
import random
print(json.dumps([os.getcwd(), sys.path, thing, random.__file__]))
"""


def process(start: Path, directory: str, components: list[str], before: str = "") -> tuple[str, list[str], str, str]:
    """Its directory, its module search path, what `mine.thing` returns or why it cannot be found, and `random`."""
    program = PROGRAM.format(directory=directory, components=components, before=before)
    command = python_command("-c", program)
    done = subprocess.run(command, cwd=start, env=clean_env(), capture_output=True, text=True, check=True)
    here, path, thing, module = json.loads(done.stdout)
    return here, path, thing, module


@pytest.fixture
def home(tmp_path: Path) -> Path:
    place = tmp_path / "first [dir]"
    place.mkdir()
    (place / "mine.py").write_text("def thing():\n    return 'of the first directory'\n")
    (place / "random.py").write_text("raise SystemExit('not this one')")
    return place


def test_its_own_modules_come_last(home: Path, tmp_path: Path) -> None:
    here, path, thing, module = process(tmp_path, str(home), ["mine"])
    assert here == str(home)
    assert path[-1] == str(home)
    assert thing == "of the first directory"
    assert str(home) not in module


@pytest.mark.parametrize("components", [["mine"], []])
def test_a_module_that_is_not_there_is_said_with_the_places(components: list[str], home: Path, tmp_path: Path) -> None:
    (home / "mine.py").unlink()
    _, _, thing, _ = process(tmp_path, str(home), components)
    assert thing.startswith("wandb.hook=mine.thing cannot be used: there is no module mine: it was looked for among")
    assert f"in PYTHONPATH and in {home}" in thing


def test_without_components_no_module_is_looked_for_there(home: Path, tmp_path: Path) -> None:
    _, path, thing, _ = process(tmp_path, str(home), [])
    assert str(home) not in path
    assert "there is no module mine" in thing


def test_a_directory_that_this_machine_lacks_is_left_out(home: Path, tmp_path: Path) -> None:
    here, path, _, _ = process(tmp_path, "/nowhere/at/all", ["mine"])
    assert here == str(tmp_path)
    assert "/nowhere/at/all" not in path


def test_a_directory_that_was_deleted_is_left(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    here, _, _, _ = process(tmp_path / "gone", "", [], before="os.rmdir(os.getcwd())")
    assert here == "/"
