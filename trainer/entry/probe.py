"""Checks that trials can be built, counts their data, and measures the training speed on request.

Invariants: it leaves no file behind, and trains at most `SPEED_BATCHES` micro-batches. Counting may take minutes; it
ends if the process that asked for it is killed.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from trainer.base import Cache
from trainer.build_check import BuildCheck, BuildError, Case, steps_per_epoch
from trainer.components import ComponentError, UntrustedError
from trainer.configuration import trusted_config
from trainer.contract import ContractError, Metric, from_plain
from trainer.environment import mask
from trainer.failures import describe
from trainer.metrics.errors import MetricError
from trainer.recipe import LoraRecipe
from trainer.rows import RowError
from trainer.working_directory import enter_directory

SPEED_BATCHES = 6
PARENT_SECONDS = 1.0  # between two looks at the parent


@dataclass(frozen=True, slots=True)
class Probe:
    """The size of a configuration's data, and its speed.

    Args:
        rows, validation_rows: rows of the training data, and of `dataset_val`.
        trial_rows: rows that one trial trains on, repeats over epochs included.
        trial_tokens: label tokens of these, estimated from a sample (see `trainer.rows`).
        tokens_per_second: label tokens that a trial trains in a second; 0 if it was not measured.
        notes: sentences that a person should know of.
        base_elsewhere: the base is not on this machine, so that nothing was built on it.
    """

    rows: int
    validation_rows: int
    trial_rows: int
    trial_tokens: int
    tokens_per_second: float = 0.0
    notes: tuple[str, ...] = ()
    base_elsewhere: bool = False


def probe(
    config: Mapping[str, Any],
    cases: Sequence[Case],
    components: Sequence[str],
    metrics: Sequence[Metric] = (),
    *,
    device_here: bool,
    speed: bool,
) -> Probe:
    """Check that trials can be built, and count the data of the base configuration.

    Args:
        config: the resolved base configuration.
        cases: trials that the search may propose.
        components: further allowed prefixes of components.
        metrics: what trials measure.
        device_here: trials train on this machine.
        speed: also measure the speed.

    Raises:
        UntrustedError: a configuration names code that is not trusted.
        BuildError, RowError, ComponentError: a trial cannot be built, or its data cannot be used.
        MetricError: trials cannot be measured.
    """
    check = BuildCheck(components, device_here, metrics)
    rows, validation = check.base(config)
    for case in cases:
        check.case(case)
    cfg = trusted_config(config, components)
    trial_batches = steps_per_epoch(cfg, rows.count) * int(cfg.gradient_accumulation_steps) * int(cfg.epochs)
    trial_rows = trial_batches * int(cfg.batch_size)
    return Probe(
        rows=rows.count,
        validation_rows=validation.count if validation else 0,
        trial_rows=trial_rows,
        trial_tokens=round(trial_rows * rows.label_tokens),
        tokens_per_second=_speed(cfg, Cache()) if speed else 0.0,
        notes=tuple(check.notes),
        base_elsewhere=check.base_elsewhere,
    )


def answer(request: Mapping[str, Any]) -> str:
    """A `Probe` as JSON, or `{"error": sentence}`.

    With an error stands `"untrusted": true` if the request names code that is not trusted, and `"metric": true` if
    trials could train but not be measured.

    Args:
        request: config, components, cases, metrics, device_here and speed; see `probe`.
    """
    cases = [Case(case["params"], case["config"]) for case in request.get("cases", ())]
    here, speed = bool(request.get("device_here", True)), bool(request.get("speed"))
    try:
        metrics = [from_plain(Metric, raw) for raw in request.get("metrics", ())]
        with ends_with_parent():
            counted = probe(request["config"], cases, request["components"], metrics, device_here=here, speed=speed)
        return json.dumps(asdict(counted))
    except UntrustedError as error:
        return json.dumps({"error": mask(str(error)), "untrusted": True})
    except MetricError as error:
        return json.dumps({"error": mask(str(error)), "metric": True})
    except (BuildError, RowError, ComponentError, ContractError) as error:
        return json.dumps({"error": mask(str(error))})
    except Exception as error:
        return json.dumps({"error": describe(error)})


@contextmanager
def ends_with_parent(seconds: float = PARENT_SECONDS) -> Iterator[None]:
    """End this process if its parent ends while the block runs.

    Args:
        seconds: between two looks.
    """
    parent, done = os.getppid(), threading.Event()

    def watch() -> None:
        while not done.wait(seconds):
            if os.getppid() != parent:
                os._exit(1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()  # a process that forks has no other thread


def main(text: str, speed: bool) -> int:
    """Answer one request; returns the exit code, 2 for an error.

    Args:
        text: the request, as JSON.
    """
    request = json.loads(text)
    enter_directory(request.get("directory", ""), request["components"])
    line = answer({**request, "speed": speed})
    print(line)
    return 2 if "error" in json.loads(line) else 0


def _speed(cfg: DictConfig, cache: Cache) -> float:
    with tempfile.TemporaryDirectory() as scratch:
        recipe = LoraRecipe(cfg, cache, Path(scratch))
        began, before = time.perf_counter(), 0
        for batch in recipe.train():
            if batch.position == 1:  # the first one includes the warm-up
                began, before = time.perf_counter(), batch.tokens
            if batch.position >= min(SPEED_BATCHES, recipe.total):
                return (batch.tokens - before) / max(time.perf_counter() - began, 1e-9)
    return 0.0
