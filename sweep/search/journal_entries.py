"""Which JSON objects may be lines of a study's journal: the fields of each operation, and their types.

Optuna takes an entry as it is, and a text in place of a number surfaces when somebody compares it.

Invariant: an entry that this program or Optuna wrote passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sweep.search.attributes import CANCELLED, FINAL, IMPORTED, PROMOTED, REASON, SECONDS, STOPPED, TOKENS

Check = Callable[[Any], bool]


def check_entry(entry: Mapping[str, Any]) -> None:
    """Refuse what cannot be an entry of a journal.

    Raises:
        ValueError: a field is missing, or has another type.
    """
    operation = entry.get("op_code")
    if type(operation) is not int or operation not in FIELDS:
        raise ValueError(f"op_code={operation!r:.40} is no operation")
    for name, allows in {"worker_id": _text, **FIELDS[operation]}.items():
        if not allows(entry.get(name)):
            raise ValueError(f"{name}={entry.get(name)!r:.40} is not allowed")


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _number(value: Any) -> bool:
    return type(value) in (int, float) and (isinstance(value, float) or abs(value) < 2**63)


def _optional(allows: Check) -> Check:
    return lambda value: value is None or allows(value)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_number, value))


def _attributes(value: Any) -> bool:
    """Attributes of a trial; those of our own have their types."""
    return isinstance(value, dict) and all(OWN[key](item) for key, item in value.items() if key in OWN)


def _stopped(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and set(value) == {"milestone", "value", "reason", "basis"}
        and _whole(value["milestone"])
        and _number(value["value"])
        and _text(value["reason"])
        and isinstance(value["basis"], dict)
    )


def _pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_whole, value))


def _any_object(value: Any) -> bool:
    return isinstance(value, dict)


def _reported(value: Any) -> bool:
    return isinstance(value, dict) and all(step.isdigit() and _number(item) for step, item in value.items())


# Attributes of a trial that this program sets.
OWN: dict[str, Check] = {
    IMPORTED: _text,
    REASON: _text,
    CANCELLED: lambda value: isinstance(value, bool),
    TOKENS: _whole,
    SECONDS: _number,
    FINAL: _pair,
    PROMOTED: _whole,
    STOPPED: _stopped,
}
# By operation, as Optuna numbers them, the fields that are read and what they may hold.
FIELDS: dict[int, dict[str, Check]] = {
    0: {"study_name": _text, "directions": _numbers},
    1: {"study_id": _whole},
    2: {"study_id": _whole, "user_attr": _any_object},
    3: {"study_id": _whole, "system_attr": _any_object},
    4: {
        "study_id": _whole,
        "datetime_start": _optional(_text),
        "datetime_complete": _optional(_text),
        "state": _optional(_whole),
        "value": _optional(_number),
        "values": _optional(_numbers),
        "params": _optional(_any_object),
        "distributions": _optional(_any_object),
        "user_attrs": _optional(_attributes),
        "system_attrs": _optional(_any_object),
        "intermediate_values": _optional(_reported),
    },
    5: {"trial_id": _whole, "param_name": _text, "param_value_internal": _number, "distribution": _text},
    6: {"trial_id": _whole, "state": _whole, "values": _optional(_numbers)},
    7: {"trial_id": _whole, "step": _whole, "intermediate_value": _number},
    8: {"trial_id": _whole, "user_attr": _attributes},
    9: {"trial_id": _whole, "system_attr": _any_object},
    10: {},
}
