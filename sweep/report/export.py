"""Exports a trial as a YAML for `tune run`, and verifies that torchtune reproduces it.

Invariants: the YAML differs from the user's own only in the changed keys. The verification runs torchtune's own recipe
through its command line and compares each optimizer step with the one that the trial recorded.
"""

from __future__ import annotations

import math
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sweep.config.settings import Settings
from sweep.config.torchtune import export_yaml, path_changes, seed_of_final, trial_changes
from sweep.errors import ConfigError, GiveUp
from sweep.model.summary import TrialRow
from sweep.processes import python_command
from sweep.report.reader import read_outcome, read_steps
from trainer.contract import Step
from trainer.process_end import how_it_ended
from trainer.room import Room, write_atomic
from trainer.shortening import short_text

RECIPE = "lora_finetune_single_device"
# The command `tune` by its module, since Ray installs another command of that name.
TUNE = (*python_command("-m", "torchtune._cli.tune"),)
# Largest relative difference of two runs that count as the same, by dtype.
TOLERANCE = {"fp32": 1e-6, "bf16": 2e-2}
# The same for a trial that may have been packed: its sums have another order, and AdamW amplifies their rounding over
# the steps. In bf16 it is twice the largest difference that stable trials showed (docs/performance.md).
PACKED_TOLERANCE = {"fp32": 1e-4, "bf16": 5e-2}
_FIELD = re.compile(r"(\w+):\s*([-+.\w]+)")


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
    """The YAML of a trial, with its hyperparameters and its seed."""
    changes = {**settings.changes, **trial_changes(settings.torchtune, row.params, settings.derive)}
    paths = path_changes(settings.torchtune, row.params, settings.derive, settings.directory)
    changes |= paths
    seed = changes.get("seed", settings.torchtune.get("seed"))
    if seed is None:
        seed = changes["seed"] = settings.search.seed
    if row.final is not None:
        changes["seed"] = seed_of_final(int(seed), row.final[1])
    header = [
        f"Trial {row.number} of the sweep {settings.name}: {settings.metric} {row.value}",
        *(f"  {key} = {short_text(str(value))}" for key, value in row.params.items()),
        *([f"Paths are absolute: they were relative to {settings.directory}"] if paths else []),
    ]
    outcome = read_outcome(room, row.number)
    if outcome and outcome.leftover_batches:
        # The trial skipped an epoch's last micro-batches, which fill no step; torchtune adds them to the next epoch.
        changes["max_steps_per_epoch"] = outcome.steps_per_epoch
    return export_yaml((room.root / "recipe.yaml").read_text(), changes, "\n".join(header))


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
    """The command that trains with an exported YAML."""
    return f"tune run {RECIPE} --config {path}"


def verify(room: Room, settings: Settings, row: TrialRow) -> Comparison:
    """Train the exported YAML with `tune run` and compare every optimizer step with the trial's.

    Raises:
        ConfigError: the trial has recorded no step. GiveUp: `tune run` failed; the text has its last lines.
    """
    recorded = read_steps(room, row.number)
    if not recorded:
        raise ConfigError(
            f"trial {row.number} has recorded no optimizer step to compare with; choose a trial that has trained"
        )
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "trial.yaml"
        path.write_text(export_text(room, settings, row))
        run_tune(path, Path(scratch), clip_is_set=settings.torchtune.get("clip_grad_norm") is not None)
        logged = read_tune_log(Path(scratch) / "logs")
    tolerance = TOLERANCE if settings.queue.slots == 1 else PACKED_TOLERANCE
    return compare(recorded, logged, tolerance[str(settings.torchtune["dtype"])])


def run_tune(config: Path, output: Path, clip_is_set: bool) -> None:
    """Run torchtune's own recipe, with a log of each step in `output`/logs.

    Args:
        clip_is_set: the configuration has a `clip_grad_norm`.

    Raises:
        GiveUp: the recipe failed.
    """
    overrides = [
        f"output_dir={output / 'out'}",
        f"checkpointer.output_dir={output / 'out'}",  # the YAML may not derive it from output_dir
        "metric_logger._component_=torchtune.training.metric_logging.DiskLogger",
        f"metric_logger.log_dir={output / 'logs'}",
        "log_every_n_steps=1",
        "resume_from_checkpoint=False",
        *([] if clip_is_set else ["clip_grad_norm=inf"]),  # makes torchtune log grad_norm, and clips nothing
    ]
    env = {"TIKTOKEN_CACHE_DIR": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **os.environ}
    result = subprocess.run(
        [*TUNE, "run", RECIPE, "--config", str(config), *overrides],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    if result.returncode != 0:
        tail = "\n".join(result.stderr.strip().splitlines()[-4:])
        raise GiveUp(f"`tune run` on {config} failed with {how_it_ended(result.returncode)}:\n{tail}")


def read_tune_log(directory: Path) -> dict[int, dict[str, float]]:
    """Metrics by step, from the newest file of torchtune's DiskLogger in a directory."""
    files = sorted(directory.glob("*.txt"))
    metrics: dict[int, dict[str, float]] = {}
    for line in files[-1].read_text().splitlines() if files else []:
        match = re.match(r"Step (\d+) \| (.*)", line)
        if match:
            metrics[int(match[1])] = {key: float(value) for key, value in _FIELD.findall(match[2])}
    return metrics


def compare(recorded: list[Step], logged: dict[int, dict[str, float]], tolerance: float) -> Comparison:
    """The largest relative differences between recorded steps and torchtune's log of steps.

    Args:
        logged: torchtune's metrics by step, as `read_tune_log` returns them.
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
