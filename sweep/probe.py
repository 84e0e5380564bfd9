"""Asks the trainer, in a process of its own, what a torchtune configuration would train on.

Invariant: the controller's process never imports torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from sweep.errors import ConfigError
from sweep.nursery import OWN_ENV, Nursery, clean_env
from sweep.recipe import resolve
from sweep.settings import Settings


@dataclass(frozen=True, slots=True)
class DataProbe:
    """What `trainer.probe` printed; see there."""

    rows: int
    validation_rows: int
    trial_rows: int
    trial_tokens: int
    tokens_per_second: float = 0.0


def probe_data(settings: Settings, nursery: Nursery | None = None, speed: bool = False) -> DataProbe:
    """Rows and label tokens of a sweep's base configuration.

    Args:
        nursery: who counts; None: a process that ends afterwards.
        speed: also train a few micro-batches, on the device of the configuration; not in a nursery.

    Raises:
        ConfigError: the data, the tokenizer or (for the speed) the base cannot be loaded, or it trains zero steps.
    """
    request: dict[str, Any] = {
        "verb": "probe",
        "config": resolve(settings.torchtune, {}, {}),
        "components": settings.recipe.components,
        "speed": speed,
    }
    answer = nursery.ask(request) if nursery and not speed else _ask_once(request)
    if "error" in answer:
        raise ConfigError(
            f"the torchtune configuration cannot train here: {answer['error']}; "
            "mend recipe.config or recipe.overrides, or set objective.milestone_tokens where the data lie elsewhere"
        )
    return DataProbe(**answer)


def _ask_once(request: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "trainer", "probe", *(["--speed"] if request["speed"] else [])]
    result = subprocess.run(
        command, input=json.dumps(request), capture_output=True, text=True, env=OWN_ENV | clean_env(), check=False
    )
    lines = result.stdout.strip().splitlines()
    if lines and lines[-1].startswith("{"):
        answer: dict[str, Any] = json.loads(lines[-1])
        return answer
    return {"error": (result.stderr.strip().splitlines() or ["no output"])[-1]}
