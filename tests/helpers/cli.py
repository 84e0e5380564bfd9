"""Runs the command line as a person does: in a process of its own.

If the test uses the fixture `warm`, a fork server makes that process (`tests.helpers.warm`).
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweep.cli.fault import FAULT
from tests.helpers.warm import WarmPopen, warm_processes

# A sweep on the embedded base whose trials take about a second: eight micro-batches of eight rows.
SMALL = (
    "experiment=demo",
    "recipe.overrides.dataset.split=train[:64]",
    "recipe.overrides.dataset_val.split=train[:16]",
    "objective.milestones=4",
    "objective.milestone_tokens=240",  # as measured: nothing needs to be counted before each sweep
    "queue.threads=1",
    "search.trials=4",
)


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "sweep.cli", *words]


def sweep(*words: str, code: int | None = 0, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
    """Run a verb.

    Raises:
        AssertionError: it ended with another exit code, or with a traceback.
    """
    with warm_processes():
        result = subprocess.run(command(*words), capture_output=True, text=True, timeout=timeout, check=False)
    assert code is None or result.returncode == code, f"exit {result.returncode}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    assert FAULT not in result.stderr
    return result


def run_commands(lines: Sequence[str], directory: Path) -> dict[str, str]:
    """Run the `sweep` commands of a page in this directory, in order and each afresh; returns what each printed.

    Raises:
        AssertionError: a line is no command of `sweep`, or ended with another exit code than 0.
    """
    printed: dict[str, str] = {}
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "sweep", line
        result = subprocess.run(
            command(*words), capture_output=True, text=True, cwd=directory, timeout=1800, check=False
        )
        assert result.returncode == 0, f"{line}\n{result.stdout}\n{result.stderr}"
        printed[line] = result.stdout
    return printed


def start(*words: str, log: Path) -> subprocess.Popen[bytes]:
    """Start a verb and let it run."""
    with log.open("wb") as output:
        return WarmPopen(command(*words), stdout=output, stderr=subprocess.STDOUT)


def status(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sweep("status", name, "--json").stdout)
    return found


def outline(name: str) -> list[tuple[Any, ...]]:
    """Number, state, hyperparameters and losses of every trial."""
    return [
        (
            row["number"],
            row["state"],
            row["params"],
            row["value"],
            [(r["milestone"], r["loss"], r["val_loss"]) for r in row["reports"]],
        )
        for row in status(name)["rows"]
    ]
