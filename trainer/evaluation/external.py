"""Runs a user's program on a finished adapter, and reads its scores.

Invariants: no shell is used. Only known placeholders are replaced; other braces stay. The program's output is kept in a
file. The program and all processes of its group end with the worker, with a stop, or when its time is over.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.contract import DROPPED_ENV, StopCause, StopSignal
from trainer.evaluation import supervisor
from trainer.process_end import how_it_ended, last_line

POLL_SECONDS = 0.1
END_SECONDS = 10.0  # from SIGTERM to SIGKILL


class EvaluationError(Exception):
    """A program failed, took too long or left no score; another attempt may succeed."""


class StoppedError(Exception):
    """The evaluation was asked to stop."""

    def __init__(self, cause: StopCause, reason: str) -> None:
        super().__init__(reason)
        self.cause, self.reason = cause, reason


def fill_placeholders(command: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """A command with `{name}` replaced by its value, for these names only."""
    return [re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), word) for word in command]


def run_program(
    command: Sequence[str], log: Path, seconds: float | None, should_stop: StopSignal, key: str = "evaluate"
) -> None:
    """Run a program to its end.

    Args:
        log: the file for its output and errors.
        seconds: after which it is ended; None: no limit.
        key: of the section in the configuration, for error texts.

    Raises:
        FileNotFoundError, PermissionError: there is no such program, or it may not be executed.
        EvaluationError: it failed, or took too long.
        StoppedError: it was asked to stop.
    """
    _check_program(command[0])
    guarded = [sys.executable, "-I", "-S", supervisor.__file__, str(os.getpid()), str(END_SECONDS), *command]
    env = {key: value for key, value in os.environ.items() if key not in DROPPED_ENV}
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    with (
        log.open("wb") as output,
        subprocess.Popen(
            guarded,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,  # so that it outlives a kill of the worker's group, and ends the program
        ) as child,
    ):
        try:
            while child.poll() is None:
                if stop := should_stop():
                    raise StoppedError(*stop)
                if time.monotonic() > deadline:
                    raise EvaluationError(f"{command[0]} timed out after {key}.seconds={seconds:g}")
                time.sleep(POLL_SECONDS)
        finally:
            _end(child)
    if child.returncode != 0:
        said = last_line(log.read_text(encoding="utf-8", errors="replace")) or "it printed nothing"
        raise EvaluationError(f"{Path(command[0]).name} failed with {how_it_ended(child.returncode)}: {said}")


def read_scores(output: Path, log: Path) -> dict[str, float]:
    """The scores in a program's JSON file, or in the tables that it printed if it wrote no such file.

    Raises:
        EvaluationError: there are none.
    """
    if output.exists():
        try:
            raw = json.loads(output.read_text(encoding="utf-8"))
        except ValueError as error:
            raise EvaluationError(f"the evaluation's {{output}} file is no JSON: {error}") from error
        scores = numbers(raw.get("results", raw) if isinstance(raw, dict) else raw)
    else:
        scores = table_scores(log.read_text(encoding="utf-8", errors="replace"))
    if not scores:
        raise EvaluationError(
            "the evaluation has no score; write JSON numbers to {output}, or print a table as lm-eval does"
        )
    return scores


def numbers(raw: Any, name: str = "") -> dict[str, float]:
    """Every number in nested mappings, by its path, joined by `/`."""
    if isinstance(raw, Mapping):
        scores: dict[str, float] = {}
        for key, value in raw.items():
            part = str(key).removesuffix(",none")  # lm-eval appends the name of a filter to a metric
            scores |= numbers(value, f"{name}/{part}" if name else part)
        return scores
    return {name: float(raw)} if name and isinstance(raw, int | float) and not isinstance(raw, bool) else {}


def table_scores(text: str) -> dict[str, float]:
    """The scores in tables as lm-eval prints them: a row for each metric, `|Tasks|…|Metric|…|Value|…|`."""
    scores: dict[str, float] = {}
    heads: list[str] = []
    task = ""
    for line in text.splitlines():
        if line.count("|") < 3:
            heads = []
            continue
        cells = [cell.strip() for cell in line[line.index("|") :].strip().strip("|").split("|")]
        if "Metric" in cells and "Value" in cells:
            heads, task = cells, ""
        elif heads and len(cells) == len(heads):
            row = dict(zip(heads, cells, strict=True))
            task = row.get("Tasks") or row.get("Groups") or task
            value = _number(row["Value"])
            if row["Metric"] and value is not None:
                scores["/".join(filter(None, [task.lstrip("- "), row["Metric"]]))] = value
    return scores


def _check_program(name: str) -> None:
    """Raise what starting a program would raise if it cannot be executed."""
    if shutil.which(name) is not None:
        return
    if Path(name).exists():
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.poll() is not None:
        return
    child.terminate()
    try:
        child.wait(2 * END_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
