"""Values of a configuration that name an environment variable, as `${oc.env:HF_TOKEN}`, and secrets in texts.

A resolved configuration keeps such a reference as text, wherever it is stored, tracked or shown. Only the process that
builds the trial's components replaces it (`reveal`), by the variable of its own environment.

Invariants: standard library only. The text of a reference is the only interpolation that a resolved configuration has
(`check_plain`). A value that `reveal` has read is never printed afterwards: `mask` replaces it by its reference.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

# `${oc.env:NAME}`, `${oc.env:NAME,null}` or `${oc.env:NAME,"text"}`, the forms that `reference` returns.
_REFERENCE = re.compile(r"\$\{oc\.env:([^\W\d]\w*)(?:,(null|\"[^\"\\${}\n]*\"))?\}")
# Shorter values are words of everyday texts, such as `1` or `cuda`.
_SHORTEST_SECRET = 8

_revealed: dict[str, str] = {}


class MissingVariableError(ValueError):
    """An environment variable that a configuration names is not set."""


class InterpolationLeftError(ValueError):
    """A resolved configuration holds an interpolation that nothing may resolve any more."""


def reference(name: str, *default: object) -> str:
    """The text that names an environment variable.

    Args:
        default: at most one value, for a process that has no such variable.

    Raises:
        ValueError: the name is no name of a variable, or the default cannot stand in such a text.
    """
    given = "".join("," + ("null" if value is None else f'"{value}"') for value in default)
    text = f"${{oc.env:{name}{given}}}"
    if not _REFERENCE.fullmatch(text):
        raise ValueError(f"oc.env:{name}{given} must have a plain name, and a default without quotes, $ and braces")
    return text


def texts(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """The dotted key and the text of every string in plain values.

    Args:
        at: the key of `value` itself.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from texts(item, _join(at, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from texts(item, f"{at}[{index}]")
    elif isinstance(value, str):
        yield at, value


def references(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """The dotted key and the text of every string in plain values that has a reference."""
    for key, text in texts(value, at):
        if _REFERENCE.search(text):
            yield key, text


def reveal(value: Any, env: Mapping[str, str] = os.environ, at: str = "") -> Any:
    """Plain values with every reference replaced by the variable's value; a text of one with default null may be None.

    Raises:
        MissingVariableError: a variable is not set and has no default. Names the key and the variable.
    """
    if isinstance(value, Mapping):
        return {key: reveal(item, env, _join(at, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [reveal(item, env, f"{at}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, str) or not _REFERENCE.search(value):
        return value
    whole = _REFERENCE.fullmatch(value)
    if whole and whole[1] not in env and whole[2] == "null":
        return None
    return _REFERENCE.sub(lambda match: _value(match, env, at), value)


def check_plain(value: Any, at: str = "") -> None:
    """Refuse resolved values that hold an interpolation: torchtune would resolve it to a value that was not checked.

    Raises:
        InterpolationLeftError: with the key and the text.
    """
    for key, text in texts(value, at):
        if "${" in _REFERENCE.sub("", text):
            raise InterpolationLeftError(
                f"{key}={text} still has ${{…}} after all interpolations were resolved; torchtune would resolve it "
                "again, so write the value itself"
            )


def mask(text: str) -> str:
    """A text in which every value that `reveal` has read is replaced by its reference."""
    for secret, shown in _revealed.items():
        text = text.replace(secret, shown)
    return text


def _value(match: re.Match[str], env: Mapping[str, str], at: str) -> str:
    name, default = match[1], match[2]
    if name in env:
        if len(env[name]) >= _SHORTEST_SECRET:
            _revealed[env[name]] = reference(name)
        return env[name]
    if default is None:
        raise MissingVariableError(
            f"{at}={match[0]}: the environment variable {name} is not set for this process; set it where the trial runs"
        )
    return "" if default == "null" else default[1:-1]


def _join(at: str, key: object) -> str:
    return f"{at}.{key}" if at else str(key)
