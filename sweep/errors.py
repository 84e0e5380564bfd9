"""Errors, named after what the caller has to do about them.

Invariant: the text of an error is one or two sentences for a person: the key, its value, what is allowed, what to do.
It has at most `LONGEST` characters: an error may repeat what it was given, such as a list of thousands of files.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from trainer.shortening import short_text

LONGEST = 1400
NAMED_KEYS = 24


class SweepError(Exception):
    """An error that is shown to the user without a traceback.

    Args:
        text: its middle is left out if it is too long.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(short_text(text, LONGEST))


class ConfigError(SweepError):
    """The input is wrong and has to be fixed; nothing was started."""


class RetryLater(SweepError):
    """The same call may succeed later, for example because a scheduler is busy or another controller runs."""


class GiveUp(SweepError):
    """The sweep cannot continue as it is; the text says why, and what is kept."""


class UntrustedCodeError(ConfigError):
    """A configuration names code that is not on the allow-list, on whatever machine it runs."""


def unknown_key(section: str, key: str, allowed: Iterable[str]) -> ConfigError:
    """The error for a key that does not exist in a section; it lists the allowed keys and suggests the closest one.

    Of many allowed keys it lists those that are most like the key.
    """
    names = sorted(set(allowed))
    close = get_close_matches(key, names, n=1)
    meant = f" (did you mean {close[0]}?)" if close else ""
    listed = names if len(names) <= NAMED_KEYS else sorted(get_close_matches(key, names, n=NAMED_KEYS, cutoff=0.0))
    more = f" and {len(names) - len(listed)} more" if len(names) > len(listed) else ""
    return ConfigError(f"{section}: there is no key {short_text(key)}{meant}; allowed: {', '.join(listed)}{more}")
