"""Exports a trial as a YAML for `tune run`, and verifies that torchtune reproduces it.

Invariants: the YAML differs from the user's own only in the changed keys and in those that torchtune needs besides. The
verification runs the command that a person is told to run, on the file that the person gets, and compares each
optimizer step with the one that the trial recorded.
"""

from __future__ import annotations

import json
import math
import shlex
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml import YAMLError

from sweep.config.exported_yaml import exported_yaml
from sweep.config.settings import Settings
from sweep.config.torchtune import path_changes, resolve, seed_of_final, trial_changes
from sweep.errors import ConfigError, GiveUp
from sweep.model.summary import TrialRow
from sweep.processes import clean_env, python_command
from sweep.report.reader import read_outcome, read_steps
from trainer.contract import LOSSES, Step
from trainer.entry.tune_run import FAILURE, STEPS, TRUSTED, remove_places
from trainer.environment import MissingVariableError, mask, reveal
from trainer.process_end import how_it_ended, last_line
from trainer.room import NOT_THE_VALUE, Room, read, reason_of, write_atomic
from trainer.shortening import short_text

RECIPE = "lora_finetune_single_device"
# The command `tune` by its module, since Ray installs another command of that name.
TUNE = (*python_command("-m", "torchtune._cli.tune"),)
# The same, with a log of each step.
OBSERVED_TUNE = (*python_command("-m", "trainer.entry.tune_run"),)
# Largest relative difference of two runs that count as the same, by dtype. Losses are computed in fp32 for fp64 too.
TOLERANCE = {"fp64": 1e-6, "fp32": 1e-6, "bf16": 2e-2}
# The same for a trial that may have been packed: its sums have another order, and AdamW amplifies their rounding over
# the steps. In bf16 it is twice the largest difference that stable trials showed (docs/performance.md).
PACKED_TOLERANCE = {"fp64": 1e-4, "fp32": 1e-4, "bf16": 5e-2}


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences between a trial and `tune run`.

    Args:
        steps: optimizer steps that both have.
        expected: optimizer steps that the trial recorded.
        loss, grad_norm: the largest relative differences; NaN if torchtune logged no value.
        tolerance: the largest relative difference that counts as reproduced.
        unlogged: steps whose loss torchtune logged as NaN, since a micro-batch has no label; their norms are compared.
    """

    steps: int
    expected: int
    loss: float
    grad_norm: float
    tolerance: float
    unlogged: int = 0

    @property
    def ok(self) -> bool:
        """Whether all steps were compared and each is within the tolerance."""
        measured = [value for value in (self.loss, self.grad_norm) if not math.isnan(value)]
        return self.steps == self.expected > 0 and bool(measured) and max(measured) <= self.tolerance


def export_text(room: Room, settings: Settings, row: TrialRow) -> str:
    """The YAML of a trial, with its hyperparameters, its seed, and what torchtune needs besides."""
    changes = {**settings.changes, **trial_changes(settings.torchtune, row.params, settings.derive)}
    paths = path_changes(settings.torchtune, row.params, settings.derive, settings.directory)
    changes |= paths
    trained = _trained(settings, row)
    added: dict[str, Any] = {}
    if settings.torchtune.get("seed") is None and "seed" not in changes:
        added["seed"] = trained["seed"]
    elif row.final is not None:
        changes["seed"] = trained["seed"]
    header = [
        f"Trial {row.number} of the sweep {settings.name}: {settings.metric} {row.value}{_metrics_text(settings, row)}",
        *(f"  {key} = {short_text(str(value))}" for key, value in row.params.items()),
        *([f"Paths are absolute: they were relative to {settings.directory}"] if paths else []),
    ]
    outcome = read_outcome(room, row.number)
    if outcome and outcome.leftover_batches:
        # The trial skipped an epoch's last micro-batches, which fill no step; torchtune adds them to the next epoch.
        added["max_steps_per_epoch"] = trained["max_steps_per_epoch"] = outcome.steps_per_epoch
    return _edited(room.root / "recipe.yaml", changes, added, trained, "\n".join(header))


def _metrics_text(settings: Settings, row: TrialRow) -> str:
    """The direction of an objective that is no loss, and what else was measured, as an addition to a line."""
    objective = settings.objectives[0]
    others = [metric.name for metric in settings.measured if metric.name != objective.name]
    said = [f"{name} {value}" for name in others if (value := row.measured(name)) is not None]
    direction = "" if objective.name in LOSSES else f" ({objective.direction})"
    return ", ".join([direction, *said])


def _trained(settings: Settings, row: TrialRow) -> dict[str, Any]:
    """The configuration that a trial was trained with, as plain values; references to the environment stay."""
    trained = resolve(settings.torchtune, row.params, settings.derive, settings.directory)
    if trained.get("seed") is None:
        trained["seed"] = settings.search.seed
    if row.final is not None:
        trained["seed"] = seed_of_final(int(trained["seed"]), row.final[1])
    return trained


def _edited(
    recipe: Path, changes: Mapping[str, Any], added: Mapping[str, Any], trained: Mapping[str, Any], header: str
) -> str:
    """A room's own YAML as a trial's configuration; see `exported_yaml`.

    Raises:
        ConfigError: it is damaged, or a key cannot be changed in it.
    """
    text = read(recipe, str)
    if not isinstance(text, str):
        raise ConfigError(f"{text or f'{recipe}: it is gone'}; put a copy of the torchtune configuration there")
    try:
        return exported_yaml(text, changes, added, trained, header)
    except ConfigError as error:
        raise ConfigError(f"{recipe}: {error}") from error
    except (AssertionError, YAMLError, *NOT_THE_VALUE) as error:
        raise ConfigError(
            f"{recipe}: it is no torchtune configuration any more ({reason_of(error)}); put a copy there"
        ) from error


def write_export(room: Room, settings: Settings, row: TrialRow, output: Path | None, best: bool = True) -> Path:
    """Write a trial's YAML and return its absolute path.

    Args:
        output: the file; None: `best.yaml` or `trial-N.yaml` in the room.
        best: the trial is the sweep's best.
    """
    path = (output or room.root / ("best.yaml" if best else f"trial-{row.number}.yaml")).absolute()
    write_atomic(path, export_text(room, settings, row))
    return path


def tune_run_line(path: Path) -> str:
    """The command that trains with an exported YAML, as a shell takes it."""
    return shlex.join(["tune", "run", RECIPE, "--config", str(path)])


def verify(room: Room, settings: Settings, row: TrialRow, path: Path) -> Comparison:
    """Train an exported YAML with `tune run` and compare every optimizer step with the trial's.

    Args:
        path: the file that `write_export` wrote.

    Raises:
        ConfigError: the trial has recorded no step. GiveUp: `tune run` failed; the text has its last words.
    """
    recorded = read_steps(room, row.number)
    if not recorded:
        raise ConfigError(
            f"trial {row.number} has recorded no optimizer step to compare with; choose a trial that has trained"
        )
    trained = _trained(settings, row)
    with suppress(MissingVariableError):  # `tune run` will say so
        reveal(trained)  # so that no value of the environment is shown
    logged = run_tune(tune_run_line(path), settings.recipe.components)
    tolerance = TOLERANCE if settings.queue.slots == 1 else PACKED_TOLERANCE
    return compare(recorded, logged, tolerance.get(str(trained["dtype"]), tolerance["fp32"]))


def run_tune(line: str, trusted: Sequence[str] = ()) -> dict[int, dict[str, float]]:
    """Run a command as `tune_run_line` returns it; see `trainer.entry.tune_run`.

    Args:
        trusted: further prefixes of components, as in `recipe.components`.

    Returns:
        loss and grad_norm by optimizer step.

    Raises:
        GiveUp: the recipe failed, or was ended.
    """
    env = {"TIKTOKEN_CACHE_DIR": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **clean_env()}
    with tempfile.TemporaryDirectory(prefix="sweep-verify-") as scratch:
        directory = Path(scratch)
        (directory / TRUSTED).write_text(json.dumps(list(trusted)), encoding="utf-8")
        try:
            result = subprocess.run(
                [*OBSERVED_TUNE, scratch, *shlex.split(line)[1:]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env=env,
                check=False,
            )
        finally:
            remove_places(directory)
        if result.returncode != 0:
            raise GiveUp(f"`{line}` failed: {mask(_last_words(directory, result.returncode, result.stderr))}")
        return read_steps_log(directory / STEPS)


def _last_words(directory: Path, code: int, errors: bytes) -> str:
    """Why `tune run` ended: its error, else the signal or the exit code with the last line of its output."""
    with suppress(OSError):
        return (directory / FAILURE).read_text(encoding="utf-8")
    words = last_line(errors.decode(errors="replace"))
    return f"it ended with {how_it_ended(code)}; its last words: {words or 'none'}"


def read_steps_log(path: Path) -> dict[int, dict[str, float]]:
    """Metrics by step, as `trainer.entry.tune_run` has written them; empty without a file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    steps: list[dict[str, Any]] = [json.loads(line) for line in lines]
    return {int(step.pop("step")): step for step in steps}


def compare(recorded: list[Step], logged: dict[int, dict[str, float]], tolerance: float) -> Comparison:
    """The largest relative differences between recorded steps and torchtune's log of steps.

    Args:
        logged: torchtune's metrics by step, as `run_tune` returns them.
    """
    both = [(step, logged[step.step]) for step in recorded if step.step in logged]
    # torchtune logs NaN for a step with a micro-batch without labels, though it trains as we do
    losses = [_relative(step.loss, other["loss"]) for step, other in both if not math.isnan(other["loss"])]
    norms = [_relative(step.grad_norm, other["grad_norm"]) for step, other in both if "grad_norm" in other]
    loss, norm = (max(values, default=math.nan) for values in (losses, norms))
    return Comparison(len(both), len(recorded), loss, norm, tolerance, unlogged=len(both) - len(losses))


def verify_text(compared: Comparison) -> str:
    """The result of a verification in one line."""
    verdict = "reproduced" if compared.ok else "NOT reproduced"
    without = f", {compared.unlogged} of them without a loss, which torchtune logs as NaN" if compared.unlogged else ""
    return (
        f"{verdict} by tune run: {compared.steps} of {compared.expected} steps compared{without}; largest relative "
        f"differences: loss {compared.loss:.2e}, grad_norm {compared.grad_norm:.2e} "
        f"(tolerance {compared.tolerance:.0e})"
    )


def _relative(ours: float, theirs: float) -> float:
    if ours == theirs or (math.isnan(ours) and math.isnan(theirs)):
        return 0.0
    if math.isnan(ours) or math.isnan(theirs):
        return math.inf
    return abs(ours - theirs) / max(abs(ours), abs(theirs), 1e-30)
