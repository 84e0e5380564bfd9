"""Checks that a machine can run a sweep, and says what to do where it cannot.

Invariant: changes nothing; each check is independent, so that one failure does not hide the next.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from sweep.config.queues import LaunchQueue, SlurmQueue
from sweep.config.settings import Settings
from sweep.errors import SweepError
from sweep.queues.launch.doctor import launch_looks
from sweep.queues.slurm.doctor import cluster_looks
from sweep.report.export import TUNE
from sweep.wiring import backends, rooms
from sweep.wiring.compose import compose_config, freeze
from sweep.wiring.probe import check_base, probe_data

# What torchtune 0.6.1 is known to work with; other versions fail at import.
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
    """One thing that was looked at."""

    name: str
    ok: bool
    found: str


def checks(overrides: Sequence[str], config_dir: Path | None) -> list[Check]:
    """Look at this machine and at the configuration that these overrides compose."""
    found = [_check("packages", _packages), _check("versions", _versions)]
    tried = _try_torchtune()
    found += [_check("torchtune imports", lambda: _imports(tried)), _check("command tune", lambda: _tune(tried))]
    found.append(_check("rooms", _rooms))
    composed: list[Settings] = []

    def compose() -> str:
        composed.append(freeze(compose_config(overrides, config_dir), "doctor", config_dir).settings)
        return f"{composed[0].recipe.config} over {', '.join(composed[0].space.describe())}"

    found.append(_check("configuration", compose))
    if composed:
        found.append(_check("queue", lambda: _queue(composed[0])))
        if isinstance(queue := composed[0].queue, SlurmQueue):
            looks = cluster_looks(queue, backends.on_gpu(composed[0]), rooms.rooms_dir())
            found += [_check(name, look) for name, look in looks]
        if isinstance(composed[0].queue, LaunchQueue):
            found += [_check(name, look) for name, look in launch_looks(composed[0])]
        found.append(_check("data", lambda: _data(composed[0])))
        found.append(_check("base", lambda: check_base(composed[0])))
    return found


def checks_table(found: Sequence[Check]) -> Table:
    """The checks for a terminal."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for check in found:
        mark = Text("ok", style="green") if check.ok else Text("wrong", style="bold red")
        table.add_row(mark, check.name, Text(check.found))
    return table


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except SweepError as error:
        return Check(name, False, str(error))


def _packages() -> str:
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)


def _versions() -> str:
    for name, wanted in VERSIONS.items():
        version = importlib.metadata.version(name)
        if version != wanted:
            raise SweepError(
                f"{name} {version} is installed; torchtune's recipe needs {name}=={wanted}: pip install it"
            )
    return "as tested"


def _try_torchtune() -> Completed:
    """Import torchtune, say what torch sees, have `tune` say its usage: in one process, since either imports torch."""
    return subprocess.run([sys.executable, "-c", TRY_TORCHTUNE], capture_output=True, text=True, check=False)


def _imports(tried: Completed) -> str:
    said = [line for line in tried.stdout.splitlines() if line.startswith(IMPORTED)]
    if not said:
        raise SweepError(f"import torchtune fails: {_last_words(tried)}")
    _, version, gpus = said[0].split()
    return f"torch {version}, {gpus} CUDA devices"


def _tune(tried: Completed) -> str:
    if tried.returncode != 0:
        raise SweepError(f"`tune` does not run ({_last_words(tried)}); `sweep export --verify` needs torchtune==0.6.1")
    return " ".join(TUNE[1:])


def _last_words(tried: Completed) -> str:
    return (tried.stderr.strip().splitlines() or ["no output"])[-1]


def _rooms() -> str:
    found = rooms.rooms_dir().resolve()
    parent = next(path for path in (found, *found.parents) if path.exists())
    if not os.access(parent, os.W_OK):
        raise SweepError(f"{found} is not writable; set SWEEP_ROOMS to a directory that is")
    free = shutil.disk_usage(parent).free / 2**30
    if free < MIN_FREE_GIB:
        raise SweepError(f"{parent} has {free:.1f} GiB free; checkpoints need room, set SWEEP_ROOMS elsewhere")
    return f"{found}, {free:.0f} GiB free"


def _queue(settings: Settings) -> str:
    workers = backends.worker_count(settings)
    return f"{settings.queue.kind}: {workers} workers on {'GPUs' if backends.on_gpu(settings) else 'the CPU'}"


def _data(settings: Settings) -> str:
    found = probe_data(settings)
    rows = f"{found.rows:,} rows, {found.validation_rows:,} for validation"
    return f"{rows}; a trial sees {found.trial_tokens:,} label tokens"
