"""Reads a section of a configuration from plain values.

Invariant: OmegaConf checks a value's type and `RANGES` its range; what depends on another section is checked when
all of them are known, in `wiring.compose`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from sweep.config.queues import CHANNELS, RESOURCES
from sweep.config.sections import METRICS
from sweep.errors import ConfigError, unknown_key

T = TypeVar("T")


def read_section(kind: type[T], raw: Any, where: str) -> T:
    """A section from plain values.

    Args:
        kind: the dataclass of the section.
        raw: a mapping from its keys to values.
        where: the section's name in error texts; its part before the first dot selects the ranges.

    Raises:
        ConfigError: an unknown key, a value of another type, or one out of range.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}={raw} is no section; it must map keys to values")
    plain = {key: math.inf if value == ".inf" else value for key, value in raw.items()}  # Hydra's grammar has `inf`
    try:
        typed = OmegaConf.merge(OmegaConf.structured(kind), plain)
        section = kind(**OmegaConf.to_container(typed))  # type: ignore[arg-type]
    except ConfigKeyError as error:
        names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
        raise unknown_key(where, str(error.full_key or error.key), names) from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{where}.{error.full_key or error.key}: {reason}") from error
    for (name, key), allowed in RANGES.items():
        value = getattr(section, key, None) if name == where.partition(".")[0] else None
        if value is not None and not allowed.holds(value):
            raise ConfigError(f"{where}.{key}={value} is not allowed; it must be {allowed.text}")
    return section


@dataclass(frozen=True, slots=True)
class Range:
    """The values that a key may have.

    Args:
        holds: whether a value, never null, is allowed.
        text: what is allowed, in words that follow "it must be".
    """

    holds: Callable[[Any], bool]
    text: str


POSITIVE = Range(lambda value: value > 0, "above 0")
NOT_NEGATIVE = Range(lambda value: value >= 0, "0 or more")
SHARE = Range(lambda value: 0 <= value <= 1, "between 0 and 1")
AT_LEAST_ONE = Range(lambda value: value >= 1, "at least 1")
RATIO = Range(lambda value: value > 1, "above 1 (inf switches it off)")
# By section and key. A key that several kinds of a section share has one range.
RANGES: dict[tuple[str, str], Range] = {
    ("search", "trials"): AT_LEAST_ONE,
    ("search", "tokens"): AT_LEAST_ONE,
    ("search", "seconds"): POSITIVE,
    ("search", "max_attempts"): AT_LEAST_ONE,
    ("search", "gpu_hours"): POSITIVE,
    ("search", "min_gain_per_gpu_hour"): POSITIVE,
    ("search", "finalists"): NOT_NEGATIVE,
    ("search", "seeds"): AT_LEAST_ONE,
    ("search", "history"): Range(lambda value: value >= 50, "50 or more"),
    ("search", "max_failure_share"): SHARE,
    ("objective", "milestones"): AT_LEAST_ONE,
    ("objective", "milestone_tokens"): AT_LEAST_ONE,
    ("objective", "metric"): Range(lambda value: value in ("auto", *METRICS), "auto, val_loss or loss"),
    ("trial", "checkpoint_every"): NOT_NEGATIVE,
    ("trial", "loss_ratio"): RATIO,
    ("trial", "grad_norm_ratio"): RATIO,
    ("wandb", "mode"): Range(
        lambda value: value in ("online", "offline", "disabled"), "online, offline, disabled or null"
    ),
    ("wandb", "artifacts"): Range(lambda value: value in ("end", "milestones", "none"), "end, milestones or none"),
    ("evaluate", "batch_size"): AT_LEAST_ONE,
    ("evaluate", "max_tokens"): AT_LEAST_ONE,
    ("evaluate", "max_seq_length"): AT_LEAST_ONE,
    ("evaluate", "limit"): AT_LEAST_ONE,
    ("evaluate", "seconds"): POSITIVE,
    ("queue", "timeout_min"): AT_LEAST_ONE,
    ("queue", "cpus_per_task"): AT_LEAST_ONE,
    ("queue", "gpus_per_node"): NOT_NEGATIVE,
    ("queue", "mem_gb"): POSITIVE,
    ("queue", "slurm_array_parallelism"): AT_LEAST_ONE,
    ("queue", "slurm_signal_delay_s"): AT_LEAST_ONE,
    ("queue", "query_seconds"): POSITIVE,
    ("queue", "workers"): AT_LEAST_ONE,
    ("queue", "slots"): Range(
        lambda value: value == "auto" or (isinstance(value, int) and value >= 1), "at least 1, or auto"
    ),
    ("queue", "trials_per_worker"): AT_LEAST_ONE,
    ("queue", "threads"): AT_LEAST_ONE,
    ("queue", "idle_seconds"): POSITIVE,
    ("queue", "silence_seconds"): POSITIVE,
    ("queue", "start_seconds"): POSITIVE,
    ("queue", "stop_grace_seconds"): POSITIVE,
    ("queue", "poll_seconds"): POSITIVE,
    ("queue", "name"): Range(
        lambda value: 0 < len(value) <= 64 and not set(value) & set("/:"), "1 to 64 characters without / and :"
    ),
    ("queue", "resource"): Range(lambda value: value in RESOURCES, f"one of {', '.join(RESOURCES)}"),
    ("queue", "channel"): Range(lambda value: value in CHANNELS, " or ".join(CHANNELS)),
    ("queue", "priority"): Range(lambda value: 0 <= value <= 3, "0 (critical), 1 (high), 2 (medium) or 3 (low)"),
    ("queue", "max_jobs"): Range(lambda value: value >= 1 or value == -1, "at least 1, or -1 for no limit"),
    ("queue", "pending_seconds"): POSITIVE,
    ("queue", "trial_seconds"): POSITIVE,
    ("queue", "straggler_factor"): POSITIVE,
    ("queue", "look_seconds"): POSITIVE,
    **{
        ("queue", key): NOT_NEGATIVE
        for key in ("slot_cost", "startup_seconds", "startup_spread", "wait_seconds", "speed_spread", "stop_seconds")
    },
    **{("queue", key): SHARE for key in ("stragglers", "crashes", "preemptions")},
}
