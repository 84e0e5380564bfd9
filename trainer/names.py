"""Which texts may become names of files or reach a terminal: sweeps, workers, keys of a store's objects, log lines.

A person, a file in a room and an object store may say any name. Whatever one of them says passes one of these functions
before it becomes part of a path, so that no name leads out of a room or of the directory of the rooms.

Invariants: standard library only. A name has no slash, no backslash and no control character, and does not begin with
a dot.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

_NAME = re.compile(r"[\w-][\w.-]*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# What a terminal obeys: controls apart from tab and newline, and the marks that reverse the direction of a text.
_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@cache
def is_name(text: str) -> bool:
    """Whether this may be the name of a sweep or a worker: letters, digits, `.`, `_` and `-`, no dot in front."""
    return _NAME.fullmatch(text) is not None


def name_or_empty(value: Any) -> str:
    """The name that a file holds; empty if it is none."""
    return value if isinstance(value, str) and is_name(value) else ""


def is_key(text: str) -> bool:
    """Whether this may be a path below a directory: names joined by `/`, none of them hidden or leading upwards."""
    return "\\" not in text and not has_control(text) and all(p and not p.startswith(".") for p in text.split("/"))


def has_control(text: str) -> bool:
    """Whether a text has a control character, which would end a line or change a terminal."""
    return _CONTROL.search(text) is not None


def harmless(text: str) -> str:
    """A text for a terminal or a log, in which nothing moves the cursor, changes a colour or hides a line.

    Control characters other than tab and newline become `\ufffd`.
    """
    return _OBEYED.sub("\ufffd", text)
