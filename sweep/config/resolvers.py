"""The resolvers of interpolations in configurations: arithmetic for `derive`, paths, and environment variables.

Invariant: while `environment_stays` is in effect, no value of the environment gets into a resolved text: `oc.env` then
returns a reference to the variable (`trainer.environment`). A number that is computed from a variable is resolved in
both cases, since it can be no secret and the controller must know it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from omegaconf import Container, Node, OmegaConf
from omegaconf.resolvers import oc

from sweep.resources import embedded_dir
from trainer.environment import MissingVariableError, reference, references, reveal

# Of a whole number that `pow` computes.
MAX_BITS = 1024

_stays: ContextVar[bool] = ContextVar("environment_stays", default=False)


def resolution_reason(error: Exception) -> str:
    """Why OmegaConf cannot resolve a value, on one line."""
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if absent := re.search(r"Interpolation key '([^'\n]+)' not found", reason):
        return f"${{{absent[1]}}} names a key that this configuration does not have; write the whole path of a key"
    return reason[:400]


@contextmanager
def environment_stays() -> Iterator[None]:
    """Let `oc.env` return references instead of values within the block."""
    token = _stays.set(True)
    try:
        yield
    finally:
        _stays.reset(token)


def _environment(name: str, *default: Any) -> str | None:
    return reference(name, *default) if _stays.get() else oc.env(name, *default)


def _decode(text: Any, _parent_: Container, _node_: Node) -> Any:
    """As `oc.decode`, but a text of the environment stays a reference; only a number, a list and so on is decoded."""
    if not (isinstance(text, str) and _stays.get() and any(references(text))):
        return oc.decode(text, _parent_, _node_)
    decoded = oc.decode(_revealed(text), _parent_, _node_)
    return text if isinstance(decoded, str) or decoded is None else decoded


def _on_values(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with the values of variables as arguments, if its result is no text."""

    def resolver(*arguments: Any) -> Any:
        if not any(references(list(arguments))):
            return function(*arguments)
        result = function(*map(_revealed, arguments))
        return function(*arguments) if isinstance(result, str) else result

    return resolver


def _revealed(value: Any) -> Any:
    try:
        return reveal(value)
    except MissingVariableError as error:
        raise KeyError(str(error)) from error  # as `oc.env` does


def _on_numbers(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of two numbers, whose result is bounded: a repeated text or a large power would fill the memory.

    No message has a value, which may be a secret.
    """

    def resolver(*values: Any) -> Any:
        both_texts = name == "add" and all(isinstance(value, str) for value in values)
        if len(values) != 2 or not (both_texts or all(isinstance(value, int | float) for value in values)):
            raise TypeError(f"{name} takes two numbers")
        a, b = values
        if name == "pow" and isinstance(a, int) and isinstance(b, int) and b * a.bit_length() > MAX_BITS:
            raise OverflowError(f"the power has more than {MAX_BITS} bits")
        return function(a, b)

    return resolver


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add": _on_numbers("add", operator.add),
    "sub": _on_numbers("sub", operator.sub),
    "mul": _on_numbers("mul", operator.mul),
    "div": _on_numbers("div", operator.truediv),
    "floordiv": _on_numbers("floordiv", operator.floordiv),
    "pow": _on_numbers("pow", operator.pow),
    "min": min,
    "max": max,
    "round": round,
    "int": int,
    "embedded": lambda *path: str(embedded_dir().joinpath(*path)),
}
OWN_RESOLVERS = tuple(_FUNCTIONS)  # those that OmegaConf does not have by itself
for _name, _function in _FUNCTIONS.items():
    OmegaConf.register_new_resolver(_name, _on_values(_function), replace=True)
OmegaConf.register_new_resolver("oc.env", _environment, replace=True)
OmegaConf.register_new_resolver("oc.decode", _decode, replace=True)
