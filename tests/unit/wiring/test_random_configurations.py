"""Cases that once ended in a traceback, and some random ones; `python -m tests.fuzz.configuration` runs any number."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.configuration import CASES, ViolationError, run, run_many
from tests.fuzz.configurations import Case, draw

pytestmark = pytest.mark.filterwarnings("ignore")

CASES_HERE = 60


@pytest.fixture(autouse=True)
def own_rooms(rooms: Path) -> None:
    """No room of the person who runs the tests decides a name."""


@pytest.mark.parametrize("path", sorted(CASES.glob("*.json")), ids=lambda path: path.stem)
def test_a_case_that_was_kept(path: Path, tmp_path: Path) -> None:
    assert run(Case.from_json(path.read_text(encoding="utf-8")), tmp_path)  # each of them is refused


@pytest.mark.slow
def test_random_configurations(tmp_path: Path) -> None:
    count, taken, failed = run_many(CASES_HERE, 0, 60, tmp_path / "kept")
    assert failed == []
    assert count == CASES_HERE
    assert taken > 3


def test_a_case_is_drawn_from_its_seed_alone_and_can_be_kept() -> None:
    assert draw(7) == draw(7)
    assert len({repr(draw(seed)) for seed in range(50)}) == 50
    assert all(Case.from_json(draw(seed).to_json()) == draw(seed) for seed in range(50))


def test_a_traceback_and_an_empty_message_are_violations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sweep.errors import ConfigError
    from tests.fuzz import configuration

    def broken(words: object, own: object) -> None:
        raise KeyError("x")

    def silent(words: object, own: object) -> None:
        raise ConfigError("")

    for act in (broken, silent):
        monkeypatch.setattr(configuration, "compose", act)
        with pytest.raises(ViolationError):
            run(Case(("name=a",)), tmp_path)
