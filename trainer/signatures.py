"""Checks the arguments of a configuration's components against their signatures, before anything is built.

Invariants: nothing is called. An argument is refused only if torchtune would fail on it, or would train with another
value than the configuration says: an unknown name, a missing one, or a value of another kind than the annotation.
"""

from __future__ import annotations

import functools
import inspect
import json
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch

from trainer.components import ComponentError, current_path, look_up
from trainer.shortening import short_text


@dataclass(frozen=True, slots=True)
class Role:
    """What the recipe itself passes to a component.

    Args:
        positions: how many arguments by position.
        names: arguments by name.
    """

    positions: int = 0
    names: tuple[str, ...] = ()


ROLES: Mapping[str, Role] = {
    "model": Role(),
    "tokenizer": Role(),
    "checkpointer": Role(names=("output_dir",)),
    "optimizer": Role(positions=1),
    "lr_scheduler": Role(positions=1, names=("num_training_steps", "last_epoch")),
    "loss": Role(),
    "dataset": Role(positions=1),
    "dataset_val": Role(positions=1),
}
# `tune run` builds these from an exported file, and trials do not. A class of another package may be absent here.
EXPORTED_ROLES: Mapping[str, Role] = {"metric_logger": Role(names=("log_dir",)), "profiler": Role()}
EXPORTED_PACKAGE = "torchtune.training."
_PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}


class ArgumentError(ComponentError):
    """A component cannot be called with the arguments of a configuration."""


def check_arguments(config: Mapping[str, Any]) -> None:
    """Refuse a configuration whose components cannot be called with their arguments.

    Args:
        config: plain values, with all interpolations resolved; its components exist and are trusted.

    Raises:
        ArgumentError: with the key, the value and what the component takes.
    """
    for name, role in ROLES.items():
        for key, section in _sections(name, config.get(name)):
            _check(key, section, role)
    for name, role in EXPORTED_ROLES.items():
        for key, section in _sections(name, config.get(name)):
            if current_path(str(section["_component_"])).startswith(EXPORTED_PACKAGE):
                _check(key, section, role)


def _sections(key: str, value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The mapping at a key with a component, or those in the list there."""
    if isinstance(value, Mapping) and "_component_" in value:
        yield key, value
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for index, item in enumerate(value):
            yield from _sections(f"{key}[{index}]", item)


def _check(key: str, section: Mapping[str, Any], role: Role) -> None:
    path = current_path(str(section["_component_"]))
    thing = look_up(path)
    try:
        parameters = list(inspect.signature(thing).parameters.values())
    except (TypeError, ValueError):  # it is built in, and has none
        return
    given = {name: value for name, value in section.items() if name != "_component_"}
    hints = _hints(thing)
    named = _named(parameters, role.positions)
    if not any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters):
        _check_names(key, path, given, [name for name in named if name not in role.names])
    for name, parameter in named.items():
        if name in given:
            _check_kind(f"{key}.{name}", path, given[name], hints.get(name, Any), parameter.default)
        elif parameter.default is inspect.Parameter.empty and name not in role.names:
            raise ArgumentError(f"{key} lacks {name}, which {path} needs; add {key}.{name}")


def _named(parameters: Sequence[inspect.Parameter], positions: int) -> dict[str, inspect.Parameter]:
    """The parameters that a configuration may name: those that the recipe passes by position are left out."""
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = [parameter.name for parameter in parameters if parameter.kind in by_position][:positions]
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)
    return {p.name: p for p in parameters if p.name not in taken and p.kind not in variable}


def _check_names(key: str, path: str, given: Mapping[str, Any], names: Sequence[str]) -> None:
    for name, value in given.items():
        if name not in names and name != "output_dir":
            near = get_close_matches(name, names, n=1)
            meant = f"; did you mean {near[0]}?" if near else f"; it takes {', '.join(names)}" if names else ""
            raise ArgumentError(f"{key}.{name}={_shown(value)} is no argument of {path}{meant}")


def _check_kind(key: str, path: str, value: Any, hint: Any, default: Any) -> None:
    if (value is None and default is None) or _accepts(hint, value):
        return
    quoted = "; it is text: remove its quotes" if isinstance(value, str) and _accepts(hint, _number(value)) else ""
    raise ArgumentError(f"{key}={_shown(value)} must be {_words(hint)}, as {path} declares{quoted}")


def _hints(thing: Any) -> dict[str, Any]:
    while isinstance(thing, functools.partial):
        thing = thing.func
    try:
        return get_type_hints(thing.__init__ if inspect.isclass(thing) else thing)
    except Exception:  # the annotations of a user's own component may name what is not imported
        return {}


def _accepts(hint: Any, value: Any) -> bool:
    """Whether a plain value may stand for an annotation; true also for annotations that say nothing of plain values."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_accepts(part, value) for part in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if hint in _PLAIN:
        return _is_plain(hint, value)
    if (origin or hint) is list:
        parts = get_args(hint)
        return isinstance(value, list) and (not parts or all(_accepts(parts[0], item) for item in value))
    if (origin or hint) is dict:
        return isinstance(value, Mapping)
    return hint is not torch.Tensor  # no configuration holds one


def _is_plain(kind: Any, value: Any) -> bool:
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def _words(hint: Any) -> str:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_words(part) for part in get_args(hint) if part is not torch.Tensor))
    if origin is Literal:
        return " or ".join(map(str, get_args(hint)))
    if hint in _PLAIN:
        return _PLAIN[hint]
    if (origin or hint) is list:
        parts = get_args(hint)
        return f"a list of {' or '.join(_words(part) for part in parts)}" if parts else "a list"
    return "a mapping" if (origin or hint) is dict else getattr(hint, "__name__", str(hint))


def _shown(value: Any) -> str:
    return short_text(repr(value) if isinstance(value, str) else json.dumps(value, default=str))


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
