"""Ranges that values of a section must lie in.

Invariant: a range is a test and the words that an error puts behind "it must be".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

Range = tuple[Callable[[Any], bool], str]

# Of whole numbers: what is larger overflows in a clock, a database or a table.
LARGEST = 2**63 - 1

POSITIVE: Range = (lambda value: value > 0, "above 0")
NOT_NEGATIVE: Range = (lambda value: 0 <= value <= LARGEST, "0 or more, and below 2**63")
SHARE: Range = (lambda value: 0 <= value <= 1, "between 0 and 1")
AT_LEAST_ONE: Range = (lambda value: 1 <= value <= LARGEST, "at least 1, and below 2**63")
# Between two looks: a clock cannot sleep for ever.
PAUSE: Range = (lambda value: 0 < value <= 86_400, "above 0 and at most 86,400")
FINITE: Range = (math.isfinite, "a finite number")


def between(low: int, high: int) -> Range:
    """The range of numbers from `low` to `high`. A bound keeps a typing error from being worked on for hours."""
    return (lambda value: low <= value <= high, f"between {low} and {high:_}".replace("_", ","))
