"""Runs a program of somebody else's on a finished adapter, and reads the scores that it leaves.

Invariants: no shell; only our placeholders are filled in, other braces stay. What the program says is kept in a file.
It ends with the worker, with a stop, or when its time is over.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trainer.contract import DROPPED_ENV, StopCause

POLL_SECONDS = 0.1
END_SECONDS = 10.0

Ask = Callable[[], tuple[StopCause, str] | None]


class EvaluationError(Exception):
    """A program failed or left no score; the next attempt may do better."""


class StoppedError(Exception):
    """It was asked to stop."""

    def __init__(self, cause: StopCause, reason: str) -> None:
        super().__init__(reason)
        self.cause, self.reason = cause, reason


def filled(words: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Words with `{name}` replaced by its value, for these names only."""
    found = []
    for word in words:
        for name, value in values.items():
            word = word.replace(f"{{{name}}}", value)  # noqa: PLW2901 - the word as filled so far
        found.append(word)
    return found


def run_program(words: Sequence[str], said: Path, seconds: float | None, should_stop: Ask) -> None:
    """Run a program to its end; its output and errors go to the file `said`.

    Raises:
        FileNotFoundError: there is no such program. EvaluationError: it failed, or took too long. StoppedError.
    """
    env = {key: value for key, value in os.environ.items() if key not in DROPPED_ENV}
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    with (
        said.open("wb") as output,
        subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env) as child,
    ):
        try:
            while child.poll() is None:
                if stop := should_stop():
                    raise StoppedError(*stop)
                if time.monotonic() > deadline:
                    raise EvaluationError(f"{words[0]} was ended after {seconds:g} s (evaluate.seconds)")
                time.sleep(POLL_SECONDS)
        finally:
            _end(child)
    if child.returncode != 0:
        lines = said.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
        raise EvaluationError(f"{Path(words[0]).name} ended with code {child.returncode}: {lines[-1].strip()[:300]}")


def read_scores(output: Path, said: Path) -> dict[str, float]:
    """The scores in a JSON file, or where that was not written, in the tables that a program printed.

    Raises:
        EvaluationError: there are none.
    """
    if output.exists():
        try:
            raw = json.loads(output.read_text())
        except ValueError as error:
            raise EvaluationError(f"the evaluation wrote no JSON: {error}") from error
        scores = numbers(raw.get("results", raw) if isinstance(raw, dict) else raw)
    else:
        scores = table_scores(said.read_text(errors="replace"))
    if not scores:
        raise EvaluationError("the evaluation left no score, neither in {output} nor in a printed table")
    return scores


def numbers(raw: Any, name: str = "") -> dict[str, float]:
    """Every number of nested mappings, by the names on its way, joined by `/`."""
    if isinstance(raw, Mapping):
        found: dict[str, float] = {}
        for key, value in raw.items():
            part = str(key).removesuffix(",none")  # lm-eval's metrics carry the name of a filter
            found |= numbers(value, f"{name}/{part}" if name else part)
        return found
    return {name: float(raw)} if name and isinstance(raw, int | float) and not isinstance(raw, bool) else {}


def table_scores(text: str) -> dict[str, float]:
    """The scores in tables as lm-eval prints them: a row a metric, `|Tasks|…|Metric|…|Value|…|`, the task once."""
    found: dict[str, float] = {}
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
                found["/".join(filter(None, [task.lstrip("- "), row["Metric"]]))] = value
    return found


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
        child.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
