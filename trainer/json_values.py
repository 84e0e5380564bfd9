"""Values with numbers that JSON lacks (NaN and the infinities), as JSON values.

Invariants: standard library only. `unpack(pack(value))` equals the value, except that tuples become lists and keys
become strings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """A value with such numbers as strings, for fields whose type says that they are numbers."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def pack(value: Any) -> Any:
    """A value of any type with such numbers marked, as `{"$float": "inf"}`; a `$` that begins a key is doubled."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if isinstance(value, Mapping):
        return {f"${key}" if str(key).startswith("$") else key: pack(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [pack(item) for item in value]
    return value


def unpack(value: Any) -> Any:
    """The value that `pack` returned a JSON value for."""
    if isinstance(value, Mapping):
        if set(value) == {"$float"}:
            return float(value["$float"])
        return {key[1:] if key.startswith("$$") else key: unpack(item) for key, item in value.items()}
    return [unpack(item) for item in value] if isinstance(value, list) else value
