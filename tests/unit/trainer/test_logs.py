"""The log lines of a process: their form, their level, and that other libraries keep theirs."""

from __future__ import annotations

import io
import logging
import re
import subprocess
import sys

import pytest

from trainer import logs

LOG = logging.getLogger("trainer.worker")


def lines(level: int | None = None) -> list[str]:
    """What a debug line, an information and a warning come to."""
    stream = io.StringIO()
    logs.configure(level, stream)
    LOG.debug("a %s", "detail")
    LOG.info("a fact")
    LOG.warning("a problem")
    return stream.getvalue().splitlines()


def test_a_line_has_time_and_level() -> None:
    assert [re.sub(r"\d", "0", line) for line in lines()] == [
        "0000-00-00 00:00:00 INFO a fact",
        "0000-00-00 00:00:00 WARNING a problem",
    ]


@pytest.mark.parametrize(
    ("value", "count"), [("DEBUG", 3), ("info", 2), ("WARNING", 1), ("ERROR", 0), ("", 2), ("loud", 2)]
)
def test_the_level_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, value: str, count: int) -> None:
    monkeypatch.setenv(logs.LEVEL_ENV, value)
    assert len(lines()) == count
    assert len(lines(logging.DEBUG)) == 3, "an argument overrides it"


def test_lines_go_to_the_standard_output_of_the_moment(capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure()
    logs.configure()
    LOG.info("once")
    assert capsys.readouterr().out.count("once") == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", other := io.StringIO())
        LOG.info("elsewhere")
    assert "elsewhere" in other.getvalue()
    assert capsys.readouterr().out == ""


def test_other_libraries_keep_their_levels() -> None:
    code = (
        "import logging; from trainer import logs; logs.configure(logging.DEBUG); logging.getLogger('x').info('theirs')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
