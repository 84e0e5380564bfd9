"""A program of an evaluation ends with all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.helpers.waiting import until
from trainer.contract import StopCause
from trainer.evaluation import external
from trainer.evaluation.external import EvaluationError, StoppedError, run_program

# Starts a grandchild that obeys no SIGTERM, says both ids, and waits (or ends, or fails).
PROGRAM = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
with open(sys.argv[1] + ".part", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[1] + ".part", sys.argv[1])
if sys.argv[2] == "wait":
    time.sleep(600)
sys.exit(int(sys.argv[2]))
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return state[state.rindex(")") + 2] != "Z"


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external, "END_SECONDS", 0.5)


def command(tmp_path: Path, then: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, str(tmp_path / "pids"), then]


def ended(tmp_path: Path) -> bool:
    return not any(alive(int(pid)) for pid in (tmp_path / "pids").read_text().split())


def test_a_stop_ends_the_whole_group(tmp_path: Path) -> None:
    def stop() -> tuple[StopCause, str] | None:
        return (StopCause.CANCELLED, "a person") if (tmp_path / "pids").exists() else None

    with pytest.raises(StoppedError, match="a person"):
        run_program(command(tmp_path, "wait"), tmp_path / "log", None, stop)
    until(lambda: ended(tmp_path))


def test_the_time_limit_ends_the_whole_group(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"timed out after evaluate\.seconds=5"):
        run_program(command(tmp_path, "wait"), tmp_path / "log", 5, lambda: None)
    until(lambda: ended(tmp_path))


@pytest.mark.parametrize("code", [0, 3])
def test_what_a_program_leaves_behind_ends_too(tmp_path: Path, code: int) -> None:
    if code:
        with pytest.raises(EvaluationError, match="failed with exit code 3"):
            run_program(command(tmp_path, str(code)), tmp_path / "log", None, lambda: None)
    else:
        run_program(command(tmp_path, str(code)), tmp_path / "log", None, lambda: None)
    until(lambda: ended(tmp_path))


def test_a_worker_that_is_killed_takes_the_group_along(tmp_path: Path) -> None:
    words = f"run_program({command(tmp_path, 'wait')!r}, Path({str(tmp_path / 'log')!r}), None, lambda: None)"
    script = f"""
    from pathlib import Path
    from trainer.evaluation import external
    from trainer.evaluation.external import run_program
    external.END_SECONDS = 0.5
    {words}
    """
    worker = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], start_new_session=True)
    until((tmp_path / "pids").exists, worker)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    until(lambda: ended(tmp_path))


def test_how_a_program_ends_is_passed_on(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with pytest.raises(EvaluationError, match=r"failed with signal SIGKILL"):
        run_program([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], log, None, lambda: None)
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        run_program(["no-such-program"], log, None, lambda: None)
    (tmp_path / "data").write_text("")
    with pytest.raises(PermissionError):
        run_program([str(tmp_path / "data")], log, None, lambda: None)
