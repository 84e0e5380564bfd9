"""The commands of docs/launch.md run, in its order, against the stand-in, with two unmodified agents."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from sweep.cli.launch_controller import check_controller
from sweep.queues.launch.section import LaunchQueue
from sweep.wiring.compose import compose_config, freeze
from tests.helpers.warm import write_python
from tests.standin.plugin import environment, standin
from tests.standin.server import StandIn

__all__ = ["standin"]  # a fixture

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "launch.md").read_text()
LIMIT_SECONDS = 1800.0  # a sweep that never ends shall not hold the other tests up
MARK = "-- that line has ended --"


def lines() -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@contextmanager
def shell(standin: StandIn, directory: Path) -> Iterator[subprocess.Popen[str]]:
    """A shell in which `sweep`, `wandb` and `python` are this interpreter's; whatever it started ends with it."""
    programs = directory / "bin"
    programs.mkdir()
    for name, words in (("sweep", "-m sweep.cli"), ("wandb", "-m wandb"), ("python", "")):
        (programs / name).write_text(f'#!/bin/sh\nexec {sys.executable} {words} "$@"\n')
        (programs / name).chmod(0o755)
    env = {**environment(standin), "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    env |= {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    env.pop("SWEEP_ROOMS", None)
    with (directory / "said").open("w") as said:
        process = subprocess.Popen(
            ["bash", "-e"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            cwd=directory,
            env=env,
            start_new_session=True,
        )
        watch = threading.Timer(LIMIT_SECONDS, os.killpg, (process.pid, signal.SIGKILL))
        watch.start()
        try:
            yield process
        finally:
            watch.cancel()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(process: subprocess.Popen[str], line: str, log: Path) -> str:
    """One line of the document; what it printed. One that ends in `&` goes on, and prints into its own file."""
    assert process.stdin is not None
    assert process.stdout is not None
    quiet = line.endswith("&")
    process.stdin.write(f"{line.removesuffix('&')} >>agent.log 2>&1 &\n" if quiet else f"{line}\n")
    process.stdin.write(f"echo '{MARK}'\n")
    process.stdin.flush()
    found: list[str] = []
    for said in process.stdout:
        if said.strip() == MARK:
            return "".join(found)
        found.append(said)
    raise AssertionError(f"{line} failed\n{''.join(found)}\n{log.read_text()}")


@pytest.mark.slow
def test_the_walk_through_runs(standin: StandIn, tmp_path: Path, warm: None) -> None:
    """The first agent starts fresh processes, the second has those of `tests.helpers.warm`."""
    assert len(lines()) >= 9
    write_python(tmp_path)
    directory = tmp_path / "here"
    directory.mkdir()
    with shell(standin, directory) as process:
        said = {}
        for line in lines():
            said[line] = run(process, line, directory / "said")
            if line.endswith("&"):
                run(process, f"export PATH={tmp_path}:$PATH", directory / "said")
        found = json.loads(run(process, "sweep status first --json", directory / "said"))
    (swept,) = (text for line, text in said.items() if "name=first" in line)
    assert "all 8 trials have ended" in swept
    rows = {row["number"]: row for row in found["rows"]}
    assert len(rows) == 8
    states = {number: row["state"] for number, row in rows.items()}
    assert set(states.values()) == {"complete", "pruned"}
    assert sum(state == "pruned" for state in states.values()) >= 1
    assert all(len(row["reports"]) >= 1 for row in rows.values()), "each was running when it was stopped"
    runs = {int(run.id.rpartition("-")[2]): run for run in standin.runs.values() if run.job_type == "trial"}
    assert {number: run.summary["trial/state"] for number, run in runs.items()} == states
    assert {run.state for run in runs.values()} == {"finished"}
    assert {run.exit_code for run in runs.values()} == {0}
    assert said["sweep sync first"] == "W&B had everything already\n"
    best = min((row for row in rows.values() if row["state"] == "complete"), key=lambda row: float(row["value"]))
    adapters = [artifact for artifact in standin.artifacts.values() if artifact.collection == "first-adapter"]
    (crowned,) = [standin.aliases(adapter) for adapter in adapters if "best" in standin.aliases(adapter)]
    assert f"trial-{best['number']}" in crowned
    assert len(standin.agents) == 2


def test_what_needs_a_cluster_to_run_is_taken_at_least(tmp_path: Path) -> None:
    runs = re.findall(r"^sweep run .*$", TEXT, re.MULTILINE)
    assert any("controller=launch" in line for line in runs)
    for line in runs:
        settings = freeze(compose_config(shlex.split(line)[2:], tmp_path), "s", tmp_path).settings
        if settings.controller == "launch":
            check_controller(settings)


def test_every_key_of_a_launch_queue_is_named() -> None:
    keys = {field.name for field in dataclasses.fields(LaunchQueue)} - {"kind"}
    assert [key for key in sorted(keys) if f"`{key}`" not in TEXT and f"`queue.{key}" not in TEXT] == []
