"""What a person reads when the program itself is at fault."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from sweep.cli.fault import FAULT, fault_text
from sweep.cli.main import cli, main
from trainer import environment


def broken(**options: Any) -> int:
    raise KeyError("something")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(cli.commands["status"], "callback", broken)
    return tmp_path / "state" / "sweep"


def test_a_fault_is_a_sentence_and_a_file(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "a"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"sweep: {FAULT}")
    assert "KeyError: 'something'" in said
    assert len(said.splitlines()) == 1
    (file,) = state.iterdir()
    assert str(file) in said
    assert file.stat().st_mode & 0o777 == 0o600
    assert "in broken" in file.read_text(encoding="utf-8")


def test_a_log_of_all_shows_the_traceback(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEP_LOG_LEVEL", "DEBUG")
    with pytest.raises(KeyError):
        main(["status", "a"])
    assert not state.exists()


def test_a_secret_is_in_neither(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_revealed", {"hunter2hunter2": "${oc.env:KEY}"})
    monkeypatch.setattr("sys.argv", ["sweep", "run", "x.password=hunter3"])
    said = fault_text(ValueError("no such key hunter2hunter2"))
    (file,) = state.iterdir()
    for text in (said, file.read_text(encoding="utf-8")):
        assert "hunter" not in text
        assert "${oc.env:KEY}" in text


def test_where_no_file_can_be_written_the_traceback_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert str(tempfile.gettempdir()) in fault_text(ValueError("x"))

    def refused(**options: Any) -> tuple[int, str]:
        raise PermissionError

    monkeypatch.setattr(tempfile, "mkstemp", refused)
    said = fault_text(ValueError("x"))
    assert "no file could be written" in said
    assert "ValueError: x" in said
