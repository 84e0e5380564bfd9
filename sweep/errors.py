"""Errors, named by what the caller must do about them.

Invariant: the text of each is one or two sentences for a person: the key, its value, what is allowed, what to do.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class SweepError(Exception):
    """Something that a person is told without a traceback."""


class ConfigError(SweepError):
    """Fix the input: nothing was started."""


class RetryLater(SweepError):
    """The same call may succeed later: a busy scheduler, a full disk, another controller."""


class GiveUp(SweepError):
    """The sweep cannot go on as it is; the text says why and what was kept."""


def unknown_key(where: str, key: str, allowed: Iterable[str]) -> ConfigError:
    """An error for a key that does not exist, naming what does and what was probably meant."""
    names = sorted(set(allowed))
    close = get_close_matches(key, names, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    return ConfigError(f"{where}: there is no key {key}{meant}; allowed: {', '.join(names)}")
