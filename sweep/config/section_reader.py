"""Reads a section of a configuration from plain values.

Invariant: OmegaConf checks a value's type, the section's `RANGES` its range. What depends on another section is checked
when all of them are known, in `wiring.compose`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from sweep.config.queues import CHANNELS, RESOURCES
from sweep.config.ranges import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, SHARE, Range
from sweep.errors import ConfigError, unknown_key

T = TypeVar("T")


def read_section(kind: type[T], raw: Any, where: str) -> T:
    """A section from plain values.

    Args:
        kind: the dataclass of the section.
        raw: a mapping from its keys to values.
        where: the section's name in error texts.

    Raises:
        ConfigError: an unknown key, a value of another type, or one out of range.
    """
    from omegaconf import OmegaConf  # late: the command line completes keys without it
    from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

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
    for key, (holds, text) in ranges_of(kind, where).items():
        value = getattr(section, key, None)
        if value is not None and not holds(value):
            raise ConfigError(f"{where}.{key}={value} is not allowed; it must be {text}")
    return section


def ranges_of(kind: type, where: str) -> Mapping[str, Range]:
    """By key, the values that a section's fields may have."""
    return {**(_QUEUE_RANGES if where == "queue" or where.startswith("queue.") else {}), **getattr(kind, "RANGES", {})}


_QUEUE_RANGES: dict[str, Range] = {
    "timeout_min": AT_LEAST_ONE,
    "cpus_per_task": AT_LEAST_ONE,
    "gpus_per_node": NOT_NEGATIVE,
    "mem_gb": POSITIVE,
    "slurm_array_parallelism": AT_LEAST_ONE,
    "slurm_signal_delay_s": AT_LEAST_ONE,
    "query_seconds": POSITIVE,
    "workers": AT_LEAST_ONE,
    "slots": (lambda value: value == "auto" or (isinstance(value, int) and value >= 1), "at least 1, or auto"),
    "trials_per_worker": AT_LEAST_ONE,
    "threads": AT_LEAST_ONE,
    "idle_seconds": POSITIVE,
    "silence_seconds": POSITIVE,
    "start_seconds": POSITIVE,
    "stop_grace_seconds": POSITIVE,
    "poll_seconds": POSITIVE,
    "name": (lambda value: 0 < len(value) <= 64 and not set(value) & set("/:"), "1 to 64 characters without / and :"),
    "resource": (lambda value: value in RESOURCES, f"one of {', '.join(RESOURCES)}"),
    "channel": (lambda value: value in CHANNELS, " or ".join(CHANNELS)),
    "priority": (lambda value: 0 <= value <= 3, "0 (critical), 1 (high), 2 (medium) or 3 (low)"),
    "max_jobs": (lambda value: value >= 1 or value == -1, "at least 1, or -1 for no limit"),
    "pending_seconds": POSITIVE,
    "trial_seconds": POSITIVE,
    "straggler_factor": POSITIVE,
    "look_seconds": POSITIVE,
    **dict.fromkeys(
        ("slot_cost", "startup_seconds", "startup_spread", "wait_seconds", "speed_spread", "stop_seconds"), NOT_NEGATIVE
    ),
    **dict.fromkeys(("stragglers", "crashes", "preemptions"), SHARE),
}
