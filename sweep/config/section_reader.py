"""Reads a section of a configuration from plain values.

Invariants: OmegaConf checks a value's type, the section's `RANGES` its range. What depends on another section is
checked when all of them are known, in `wiring.compose`. OmegaConf is imported when a section is read and not before, so
that the command line can complete keys quickly.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from sweep.config.ranges import Range
from sweep.errors import ConfigError, unknown_key

T = TypeVar("T")

# Sections that were read, by their kind and the text of their raw values: one program reads a frozen sweep many times.
_known: dict[tuple[type, str], Any] = {}
MAX_KNOWN = 256
MAX_TEXT = 20_000


def read_section(kind: type[T], raw: Any, where: str) -> T:
    """A section from plain values.

    Args:
        kind: the dataclass of the section.
        raw: a mapping from its keys to values.
        where: the section's name in error texts.

    Raises:
        ConfigError: an unknown key, a value of another type, or one out of range.
    """
    try:
        key = (kind, repr(raw))
    except RecursionError:
        return _read(kind, raw, where)
    if key in _known:
        return copy.deepcopy(_known[key])  # type: ignore[no-any-return]
    section = _read(kind, raw, where)
    if len(key[1]) <= MAX_TEXT:
        if len(_known) >= MAX_KNOWN:
            _known.clear()
        _known[key] = copy.deepcopy(section)
    return section


def _read(kind: type[T], raw: Any, where: str) -> T:
    from omegaconf import OmegaConf
    from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}={str(raw)[:200]} is no section; it must map keys to values")
    plain = {key: math.inf if value == ".inf" else value for key, value in raw.items()}  # Hydra's grammar has `inf`
    try:
        typed = OmegaConf.merge(OmegaConf.structured(kind), plain)
        section = kind(**OmegaConf.to_container(typed))  # type: ignore[arg-type]
    except ConfigKeyError as error:
        names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
        raise unknown_key(where, str(error.full_key or error.key), names) from error
    except OmegaConfBaseException as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)[:400]
        raise ConfigError(f"{where}.{error.full_key or error.key}: {reason}") from error
    except (OverflowError, RecursionError) as error:
        raise ConfigError(f"{where}: a value is too large or nested too deeply ({str(error)[:100]})") from error
    for key, (holds, text) in ranges_of(kind).items():
        value = getattr(section, key, None)
        if value is not None and not holds(value):
            raise ConfigError(f"{where}.{key}={str(value)[:200]} is not allowed; it must be {text}")
    return section


def ranges_of(kind: type) -> Mapping[str, Range]:
    """By key, the values that a section's fields may have."""
    ranges: Mapping[str, Range] = getattr(kind, "RANGES", {})
    return ranges
