"""The search space: which torchtune keys vary, over which values, and under which conditions.

Invariants: values are validated on construction, so that a `Space` is always usable. A parameter's conditions name
parameters that precede it in the space. Nothing is sampled here, and neither Hydra nor Optuna is imported.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from sweep.errors import ConfigError
from trainer.shortening import short_text

# Bounds of numbers in a space, far beyond any hyperparameter: samplers add, square and divide them as floats.
LARGEST = 1e100
LARGEST_INTEGER = 2**53


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several values; lists and mappings are allowed.

    Raises:
        ConfigError: fewer than two values, or one of them twice.
    """

    values: tuple[Any, ...]
    _by_label: dict[str, Any] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.values) < 2:
            raise ConfigError(f"choice({', '.join(map(label, self.values))}) has fewer than two values")
        equal: dict[Any, str] = {}  # of values that are equal, such as 1 and 1.0, the label of the first
        for value in self.values:
            text = label(value)
            if text in self._by_label:
                raise ConfigError(f"choice(…) holds {short_text(text)} twice; remove one")
            first = equal.setdefault(_comparable(value), text)
            if first != text:
                raise ConfigError(f"choice(…) holds {short_text(first)} twice, once as {short_text(text)}; remove one")
            self._by_label[text] = value

    def __contains__(self, value: object) -> bool:
        text = label(value)
        return text in self._by_label and isinstance(value, str) == isinstance(self._by_label[text], str)

    def __str__(self) -> str:
        return f"choice({', '.join(map(label, self.values))})"


@dataclass(frozen=True, slots=True)
class Interval:
    """Numbers from low to high, both included.

    Args:
        log: the scale is logarithmic.
        step: the distance between allowed numbers, from `low` on; None: every number is allowed.
        integer: whole numbers only.

    Raises:
        ConfigError: an end is out of bounds, the interval is empty, or scale, step and integer do not fit each other.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None
    integer: bool = False

    def __post_init__(self) -> None:
        numbers = [self.low, self.high, *([] if self.step is None else [self.step])]
        if not all(isinstance(number, int | float) and _is_bounded(number, self.integer) for number in numbers):
            limit = f"{LARGEST_INTEGER:,}" if self.integer else f"{LARGEST:g}"
            ends = ", ".join(str(number)[:30] for number in numbers)
            raise ConfigError(f"interval({ends}) needs finite ends, between -{limit} and {limit}")
        text = str(self)
        if self.low >= self.high:
            raise ConfigError(f"{text} is empty; its low end must be below its high end")
        if self.log and self.low <= 0:
            raise ConfigError(f"{text} has a logarithmic scale, so its low end must be above 0")
        if self.log and self.low < 1 / LARGEST:
            raise ConfigError(f"{text} has a logarithmic scale, so its low end must be at least {1 / LARGEST:g}")
        if self.integer and not all(float(number).is_integer() for number in (self.low, self.high, self.step or 1)):
            raise ConfigError(f"{text} holds whole numbers only, so its ends and its step must be whole")
        if self.log and self.step not in (None, 1):
            raise ConfigError(f"{text} cannot have both a logarithmic scale and a step")
        if self.step is not None and self.step <= 0:
            raise ConfigError(f"{text} needs a step above 0")
        if self.step is not None and (self.high - self.low) / self.step > LARGEST_INTEGER:
            raise ConfigError(f"{text} has more steps than {LARGEST_INTEGER:,}; choose a larger one, or none")

    def __str__(self) -> str:
        step = f", step={self.step:g}" if self.step is not None else ""
        ends = f"{self.low:g}, {self.high:g}{step}"
        body = f"int(interval({ends}))" if self.integer else f"interval({ends})"
        return f"tag(log, {body})" if self.log else body


Domain = Choice | Interval


@dataclass(frozen=True, slots=True)
class Parameter:
    """A torchtune key that varies.

    Args:
        when: conditions, as keys of other parameters with their allowed values. The parameter exists if all hold.
        adds: the torchtune configuration lacks the key (written `+key`).
    """

    key: str
    domain: Domain
    when: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    adds: bool = False

    def exists(self, params: Mapping[str, Any]) -> bool:
        """Whether the conditions hold for these values of other parameters."""
        return all(key in params and params[key] in values for key, values in self.when)


@dataclass(frozen=True, slots=True)
class Space:
    """Parameters, each after those that its conditions name.

    Raises:
        ConfigError: no parameter, a key twice, or a condition that names no parameter, never holds, or is circular.
    """

    parameters: tuple[Parameter, ...]

    def __post_init__(self) -> None:
        if not self.parameters:
            raise ConfigError(
                "space is empty: name at least one torchtune key, e.g. optimizer.lr: interval(1e-5, 1e-3)"
            )
        keys = {parameter.key: parameter for parameter in self.parameters}
        if len(keys) < len(self.parameters):
            names = [parameter.key for parameter in self.parameters]
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"space.{twice} is there twice, with `+` and without; remove one")
        for parameter in self.parameters:
            for other, values in parameter.when:
                _check_condition(parameter, other, values, keys)
        graph = {p.key: [other for other, _ in p.when] for p in self.parameters}
        try:
            order = list(TopologicalSorter(graph).static_order())
        except CycleError as error:
            raise ConfigError(
                f"space: the conditions of these parameters are circular: {' -> '.join(error.args[1])}"
            ) from error
        if any(list(graph).index(other) > list(graph).index(key) for key, others in graph.items() for other in others):
            object.__setattr__(self, "parameters", tuple(keys[key] for key in order))

    def __iter__(self) -> Iterator[Parameter]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    def __getitem__(self, key: str) -> Parameter:
        return next(parameter for parameter in self.parameters if parameter.key == key)

    def __contains__(self, key: object) -> bool:
        return any(parameter.key == key for parameter in self.parameters)

    def check(self, params: Mapping[str, Any], where: str) -> None:
        """Refuse values that this space could not have proposed.

        Args:
            where: what holds the values, for error texts.

        Raises:
            ConfigError: an unknown key, or a value outside its domain.
        """
        for key, value in params.items():
            if key not in self:
                known = ", ".join(p.key for p in self.parameters)
                raise ConfigError(f"{where}: {key} is not in the space; its keys are {known}")
            if not contains(self[key].domain, value):
                raise ConfigError(
                    f"{where}: {key}={short_text(str(value))} is outside {short_text(str(self[key].domain), 400)}"
                )

    def describe(self) -> dict[str, str]:
        """By key, the domain and its conditions as a text. Spaces with the same texts are equal."""
        return {
            p.key: f"{p.domain}" + "".join(f" when {k} in {[label(v) for v in vs]}" for k, vs in p.when)
            for p in self.parameters
        }


def contains(domain: Domain, value: Any) -> bool:
    """Whether a value belongs to a domain."""
    match domain:
        case Choice():
            return value in domain
        case Interval(low, high, _, step, integer):
            if isinstance(value, bool) or not isinstance(value, int | float):
                return False
            on_grid = step is None or math.isclose((value - low) / step, round((value - low) / step), abs_tol=1e-9)
            return low <= value <= high and on_grid and (not integer or float(value).is_integer())


def label(value: Any) -> str:
    """A text that identifies a choice: a string as it is, any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _is_bounded(number: float, integer: bool) -> bool:
    return -LARGEST_INTEGER <= number <= LARGEST_INTEGER if integer else -LARGEST <= number <= LARGEST


def _comparable(value: Any) -> Any:
    """A value that can be a key of a dictionary, equal for equal values: for 1 and 1.0, and for lists of them."""
    if isinstance(value, Mapping):
        return "mapping", frozenset((key, _comparable(item)) for key, item in value.items())
    return ("list", tuple(map(_comparable, value))) if isinstance(value, list | tuple) else value


def _check_condition(parameter: Parameter, other: str, values: tuple[Any, ...], keys: Mapping[str, Parameter]) -> None:
    if other not in keys:
        raise ConfigError(
            f"space.{parameter.key}: its condition names {other}, which does not vary; conditions may name "
            f"{', '.join(sorted(set(keys) - {parameter.key}))}"
        )
    never = [label(value) for value in values if not contains(keys[other].domain, value)] if values else ["[]"]
    if never:
        raise ConfigError(
            f"space.{parameter.key}: its condition {other}={never[0]} can never hold; {other} is "
            f"{short_text(str(keys[other].domain), 400)}"
        )
