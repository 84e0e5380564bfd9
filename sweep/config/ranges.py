"""Ranges that values of a section must lie in.

Invariant: a range is a test and the words that an error puts behind "it must be".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Range = tuple[Callable[[Any], bool], str]

POSITIVE: Range = (lambda value: value > 0, "above 0")
NOT_NEGATIVE: Range = (lambda value: value >= 0, "0 or more")
SHARE: Range = (lambda value: 0 <= value <= 1, "between 0 and 1")
AT_LEAST_ONE: Range = (lambda value: value >= 1, "at least 1")


def between(low: int, high: int) -> Range:
    """The range of numbers from `low` to `high`. A bound keeps a typing error from being worked on for hours."""
    return (lambda value: low <= value <= high, f"between {low} and {high:_}".replace("_", ","))
