"""Checks that this machine and the queue can run a sweep, and says what to do if not.

Invariant: nothing is changed. Checks are independent of each other, so that one failure does not hide the next.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.table import Table
from rich.text import Text

from sweep.config.settings import Settings
from sweep.errors import SweepError
from sweep.processes import python_command
from sweep.report.export import TUNE
from sweep.wiring import backends, rooms
from sweep.wiring.access import writable_by_others
from sweep.wiring.compose import compose_config, freeze
from sweep.wiring.probe import check_base, probe_data
from trainer.process_end import how_it_ended, last_line
from trainer.room import read_json

# The versions that torchtune 0.6.1 works with; it fails to import with others.
VERSIONS = {"torchtune": "0.6.1", "torchao": "0.15.0"}
PACKAGES = ("torch", "torchtune", "torchao", "optuna", "hydra-core", "omegaconf", "rich", "plotly")
MIN_FREE_GIB = 1.0
IMPORTED = "imported"
TRY_TORCHTUNE = f"""
import sys
import torch, torchtune
print("{IMPORTED}", torch.__version__, torch.cuda.device_count(), flush=True)
from torchtune._cli.tune import main
sys.argv[1:] = ["validate", "--help"]
main()
"""

Completed = subprocess.CompletedProcess[str]


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check: what was found, or what is wrong."""

    name: str
    ok: bool
    found: str


def checks(overrides: Sequence[str], config_dir: Path | None) -> list[Check]:
    """Check this machine and the configuration that these overrides compose."""
    torchtune = _try_torchtune()
    results = [
        _check("packages", _packages),
        _check("versions", _versions),
        _check("torchtune imports", lambda: _imports(torchtune)),
        _check("command tune", lambda: _tune(torchtune)),
        _check("rooms", _rooms),
        _check("permissions", _permissions),
    ]
    composed: list[Settings] = []

    def compose() -> str:
        composed.append(freeze(compose_config(overrides, config_dir), "doctor", config_dir).settings)
        return f"{composed[0].recipe.config} over {', '.join(composed[0].space.describe())}"

    results.append(_check("configuration", compose))
    for settings in composed:
        results.append(_check("queue", partial(_queue, settings)))
        results += [_check(*named) for named in backends.backend_of(settings).doctor(settings, rooms.rooms_dir())]
        results.append(_check("data", partial(_data, settings)))
        results.append(_check("base", partial(check_base, settings)))
    return results


def checks_table(results: Sequence[Check]) -> Table:
    """The checks as a table for a terminal."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for check in results:
        mark = Text("ok", style="green") if check.ok else Text("wrong", style="bold red")
        table.add_row(mark, check.name, Text(check.found))
    return table


def _check(name: str, check: Callable[[], str]) -> Check:
    try:
        return Check(name, True, check())
    except SweepError as error:
        return Check(name, False, str(error))


def _packages() -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)


def _versions() -> str:
    for name, required in VERSIONS.items():
        version = importlib.metadata.version(name)
        if version != required:
            raise SweepError(
                f"{name} {version} is installed; torchtune's recipe needs {name}=={required}: pip install it"
            )
    return "as tested"


def _try_torchtune() -> Completed:
    """Import torchtune, count torch's GPUs and print the usage of `tune`, in one process since each imports torch."""
    return subprocess.run(
        python_command("-c", TRY_TORCHTUNE),
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


def _imports(process: Completed) -> str:
    lines = [line for line in process.stdout.splitlines() if line.startswith(IMPORTED)]
    if not lines:
        raise SweepError(f"import torchtune fails: {_last_line(process)}")
    _, version, gpus = lines[0].split()
    return f"torch {version}, {gpus} CUDA devices"


def _tune(process: Completed) -> str:
    if process.returncode != 0:
        raise SweepError(f"`tune` does not run ({_last_line(process)}); `sweep export --verify` needs torchtune==0.6.1")
    return " ".join(TUNE[1:])


def _last_line(process: Completed) -> str:
    return last_line(process.stderr) or how_it_ended(process.returncode)


def _rooms() -> str:
    directory = rooms.rooms_dir().resolve()
    parent = next(path for path in (directory, *directory.parents) if path.exists())
    if not os.access(parent, os.W_OK):
        raise SweepError(f"{directory} is not writable; set SWEEP_ROOMS to a directory that is")
    free = shutil.disk_usage(parent).free / 2**30
    if free < MIN_FREE_GIB:
        raise SweepError(f"{parent} has {free:.1f} GiB free; checkpoints need space, set SWEEP_ROOMS to another disk")
    return f"{directory}, {free:.0f} GiB free"


def _permissions() -> str:
    """Which rooms others than their owner may change; that is a warning and no failure."""
    directory = rooms.rooms_dir()
    warnings = []
    if who := writable_by_others(directory):
        warnings.append(f"{who} may exchange the rooms in {directory}: `chmod go-w {directory}`")
    for path in sorted(directory.glob("*/sweep.json")):
        raw = read_json(path)
        section = raw.get("room") if isinstance(raw, dict) else None
        shared = isinstance(section, dict) and bool(section.get("group"))
        if who := writable_by_others(path.parent, group_allowed=shared):
            warnings.append(f"{who} may write to the room {path.parent.name}: `chmod go-w {path.parent}`")
    if not warnings:
        return "nobody else may write to the rooms"
    more = f"; and {len(warnings) - 3} more" if len(warnings) > 3 else ""
    return f"warning: {'; '.join(warnings[:3])}{more} (docs/security.md)"


def _queue(settings: Settings) -> str:
    workers = backends.worker_count(settings)
    return f"{settings.queue.kind}: {workers} workers on {'GPUs' if backends.on_gpu(settings) else 'the CPU'}"


def _data(settings: Settings) -> str:
    data = probe_data(settings)
    rows = f"{data.rows:,} rows, {data.validation_rows:,} for validation"
    return "; ".join([f"{rows}; a trial sees {data.trial_tokens:,} label tokens", *data.notes])
