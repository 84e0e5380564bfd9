"""Asks the trainer, in a process of its own, what a torchtune configuration would train on.

Invariant: the controller's process never imports torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from sweep.errors import ConfigError


@dataclass(frozen=True, slots=True)
class DataProbe:
    """What `trainer.probe` printed; see there."""

    rows: int
    validation_rows: int
    trial_rows: int
    trial_tokens: int
    tokens_per_second: float = 0.0


def probe_data(config: dict[str, Any], components: list[str], speed: bool = False) -> DataProbe:
    """Rows and label tokens of a resolved torchtune configuration, and its speed on this machine if asked.

    Raises:
        ConfigError: the data, the tokenizer or (for the speed) the base cannot be loaded, or it trains zero steps.
    """
    command = [sys.executable, "-m", "trainer", "probe", *(["--speed"] if speed else [])]
    env = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}
    result = subprocess.run(
        command,
        input=json.dumps({"config": config, "components": components}),
        capture_output=True,
        text=True,
        env=env | {"OMP_NUM_THREADS": env.get("OMP_NUM_THREADS", "1")},
        check=False,
    )
    lines = result.stdout.strip().splitlines()
    answer = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    if "error" in answer or not answer:
        tail = result.stderr.strip().splitlines()[-1:] or ["no output"]
        raise ConfigError(
            f"the torchtune configuration cannot train here: {answer.get('error', tail[0])}; "
            "mend recipe.config or recipe.overrides, or set objective.milestone_tokens where the data lie elsewhere"
        )
    return DataProbe(**answer)
