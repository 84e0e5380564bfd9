"""Counts the data of a torchtune configuration, and measures its training speed on request.

Invariant: it leaves no file behind, and trains at most `SPEED_BATCHES` micro-batches.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from trainer.attempt import describe
from trainer.base import Cache
from trainer.components import UntrustedError
from trainer.configuration import trusted_config
from trainer.data import build_dataset
from trainer.recipe import LoraRecipe

SAMPLE_ROWS = 512
SPEED_BATCHES = 6


@dataclass(frozen=True, slots=True)
class Probe:
    """The size of a configuration's data, and its speed.

    Args:
        rows, validation_rows: rows of the training data, and of `dataset_val`.
        trial_rows: rows that one trial trains on, repeats over epochs included.
        trial_tokens: label tokens of these, estimated from a sample of about `SAMPLE_ROWS` rows.
        tokens_per_second: label tokens that a trial trains in a second; 0 if it was not measured.
    """

    rows: int
    validation_rows: int
    trial_rows: int
    trial_tokens: int
    tokens_per_second: float = 0.0


def probe(cfg: DictConfig, speed: bool) -> Probe:
    """Count the data of a resolved configuration.

    Args:
        speed: also measure the speed.

    Raises:
        ValueError: the configuration would train zero steps.
        FileNotFoundError: it names files that do not exist. torchtune raises further errors.
    """
    cache = Cache()
    dataset = build_dataset(cfg.dataset, cfg, cache, "dataset")
    rows = len(dataset)
    stride = max(1, rows // SAMPLE_ROWS)
    sample = [dataset[index]["labels"] for index in range(0, rows, stride)]
    tokens_per_row = sum(sum(1 for label in labels if int(label) != -100) for labels in sample) / max(1, len(sample))
    if sample and not tokens_per_row:
        raise ValueError(
            f"none of {len(sample)} rows of dataset has a label token, so that there is nothing to learn: prompts fill "
            "tokenizer.max_seq_len; raise it, or name data with shorter prompts"
        )
    batch, accumulation = int(cfg.batch_size), int(cfg.gradient_accumulation_steps)
    steps = rows // batch // accumulation
    if cfg.get("max_steps_per_epoch") is not None:
        steps = min(steps, int(cfg.max_steps_per_epoch))
    trial_rows = steps * accumulation * batch * int(cfg.epochs)
    if trial_rows < 1:
        raise ValueError(
            f"this configuration trains zero steps: {rows} rows make no step of batch_size={batch} and "
            f"gradient_accumulation_steps={accumulation}; lower one of them or add data"
        )
    validation = cfg.get("dataset_val")
    validation_rows = 0 if validation is None else len(build_dataset(validation, cfg, cache, "dataset_val"))
    rate = _speed(cfg, cache) if speed else 0.0
    return Probe(rows, validation_rows, trial_rows, round(trial_rows * tokens_per_row), rate)


def answer(config: dict[str, Any], components: list[str], speed: bool) -> str:
    """A `Probe` as JSON, or `{"error": sentence}`, with `"untrusted": true` if it names code that is not trusted."""
    try:
        return json.dumps(asdict(probe(trusted_config(config, components), speed)))
    except UntrustedError as error:
        return json.dumps({"error": str(error), "untrusted": True})
    except Exception as error:
        return json.dumps({"error": describe(error)})


def main(text: str, speed: bool) -> int:
    """Answer one request; returns the exit code, 2 for an error.

    Args:
        text: the request, as JSON.
    """
    request = json.loads(text)
    line = answer(request["config"], request["components"], speed)
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
