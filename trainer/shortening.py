"""Shortens long values for a person: a data set may have thousands of files, and a line has some hundred columns.

Invariants: standard library only. What is shortened is only shown, never read back. A short value stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

TEXT_LIMIT = 120
ITEM_LIMIT = 8
# Of a value in a configuration that another program shows.
CONFIG_TEXT_LIMIT = 2000
CONFIG_ITEM_LIMIT = 50


def short_text(text: str, limit: int = TEXT_LIMIT) -> str:
    """A text with its middle left out if it is longer than this many characters; says how many are left out."""
    if len(text) <= limit:
        return text
    head, tail = limit * 2 // 3, limit // 3
    return f"{text[:head]}… ({len(text) - head - tail} more) …{text[-tail:]}"


def short_list(texts: Sequence[str], separator: str = ",") -> str:
    """Texts on one line: the first of them, then how many are left out."""
    parts: list[str] = []
    length = 0
    for text in texts:
        shown = short_text(text)
        length += len(shown) + len(separator)
        if parts and (len(parts) >= ITEM_LIMIT or length > TEXT_LIMIT):
            return f"{separator.join(parts)}{separator}… ({len(texts) - len(parts)} more)"
        parts.append(shown)
    return separator.join(parts)


def short_values(value: Any) -> Any:
    """A configuration in which long lists and texts are cut; a cut list ends with how many items are left out."""
    if isinstance(value, Mapping):
        return {key: short_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        shown = [short_values(item) for item in value[:CONFIG_ITEM_LIMIT]]
        return [*shown, f"… ({len(value) - len(shown)} more)"] if len(value) > len(shown) else shown
    return short_text(value, CONFIG_TEXT_LIMIT) if isinstance(value, str) else value
