"""Reads a search space written in Hydra's override grammar.

    model.lora_rank: choice(4, 8, 16)
    optimizer.lr: tag(log, interval(1e-5, 1e-3))
    epochs: range(1, 4)                                  # Hydra's range excludes its upper end
    +optimizer.momentum:                                 # `+`: a key that the configuration lacks
      value: interval(0.0, 0.95)
      when: {optimizer._component_: torch.optim.SGD}     # or a list of values

Invariant: every error names the key, what was written and what is allowed.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, QuotedString, RangeSweep

from sweep.config.grammar import GrammarError, holds_sweep, parse_value
from sweep.config.space import LARGEST, Choice, Domain, Interval, Parameter, Space
from sweep.errors import ConfigError
from trainer.shortening import short_text

FORMS = (
    "choice(a, b, …), interval(low, high), tag(log, interval(low, high)), int(interval(low, high)), "
    "range(start, stop, step)"
)


def parse_space(raw: Mapping[str, Any]) -> Space:
    """A space from the section `space` of a configuration.

    Args:
        raw: domains by dotted or nested key; a null takes the key out of the space.

    Raises:
        ConfigError: a value that is no sweep of Hydra's grammar, an empty one, or a condition that cannot hold.
    """
    return Space(tuple(_parameter(key, value) for key, value in flatten(raw) if value is not None))


def merged(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings joined into one with flat keys; a later mapping overrides an earlier one.

    Dotted and nested keys are the same key, and so are `a.b`, `+a.b` and `a.+b`; the key of the result begins with `+`
    if any of them has one. A leaf also replaces everything below its key. A leaf with `value` or `when` alone keeps the
    other one.
    """
    joined: dict[str, Any] = {}
    for name, value in (item for layer in layers for item in flatten(layer)):
        key = name.replace("+", "")
        overridden = [old for old in joined if f"{old.removeprefix('+')}.".startswith(f"{key}.")]
        adds = "+" in name or f"+{key}" in overridden
        before = {old.removeprefix("+"): joined.pop(old) for old in overridden}.get(key)
        joined["+" * adds + key] = _joined(before, value)
    return joined


def flatten(raw: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted key and the value of each leaf; a mapping with `value`, or with `when` alone, is a leaf."""
    for key, value in raw.items():
        if isinstance(value, Mapping) and not _is_leaf(value):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def parse_domain(key: str, text: Any) -> Domain:
    """The domain that a text of the section `space` describes.

    Raises:
        ConfigError: the text cannot be read, does not vary, or describes an impossible domain.
    """
    try:
        domain = _domain(str(text), isinstance(text, str))
    except GrammarError as error:
        raise ConfigError(f"space.{key}={shown(text)} cannot be read ({error}); write one of {FORMS}") from error
    except ConfigError as error:
        raise ConfigError(f"space.{key}: {error}") from error
    if domain is None:
        raise ConfigError(
            f"space.{key}={shown(text)} does not vary; write one of {FORMS}, or put a fixed value into recipe.overrides"
        )
    return domain


@functools.lru_cache(maxsize=256)  # a choice of thousands of values takes seconds to parse
def _domain(text: str, is_text: bool) -> Domain | None:
    """The domain of a text in Hydra's grammar; None if it does not vary."""
    integer = is_text and "int(" in text.replace(" ", "")
    match parse_value(text).value():
        case ChoiceSweep(list=values):
            if any(map(holds_sweep, values)):
                raise ConfigError("a value of a choice cannot vary itself; list all values in one choice")
            return Choice(tuple(_plain(value) for value in values))
        case IntervalSweep(start=low, end=high, tags=tags):
            return _interval(low, high, tags, integer)
        case RangeSweep(start=start, stop=stop, step=step, tags=tags):
            return _range(start, stop, step, tags)
    return None


def shown(value: Any, limit: int = 200) -> str:
    """A value for an error text, cut if it is long."""
    return short_text(str(value), limit)


def _joined(before: Any, value: Any) -> Any:
    if before is None or not (isinstance(value, Mapping) and _is_leaf(value)):
        return value
    return {**(before if isinstance(before, Mapping) else {"value": before}), **value}


def _parameter(key: str, value: Any) -> Parameter:
    adds, key = "+" in key, key.replace("+", "")
    if not isinstance(value, Mapping):
        return Parameter(key, parse_domain(key, value), adds=adds)
    unknown = set(value) - {"value", "when"}
    if unknown:
        raise ConfigError(f"space.{key}: there is no key {unknown.pop()}; a conditional parameter has value and when")
    if "value" not in value:
        raise ConfigError(f"space.{key} has when, but no value; write {{value: …, when: …}} with one of {FORMS}")
    when = value.get("when") or {}
    if not isinstance(when, Mapping):
        raise ConfigError(f"space.{key}.when={when} must map keys of the space to values")
    conditions = tuple(
        (other, tuple(values) if isinstance(values, list | tuple) else (values,)) for other, values in flatten(when)
    )
    return Parameter(key, parse_domain(key, value["value"]), conditions, adds)


def _interval(low: float | None, high: float | None, tags: set[str], integer: bool) -> Interval:
    unknown = tags - {"log", "int"}
    if unknown:
        raise ConfigError(f"tag {unknown.pop()} is unknown; the tags are log and int")
    if low is None or high is None:
        raise ConfigError("an interval needs two ends")
    integer = integer or "int" in tags
    return Interval(low, high, log="log" in tags, integer=integer)


def _range(start: float | None, stop: float | None, step: float, tags: set[str]) -> Interval:
    if start is None or stop is None or step <= 0 or not all(-LARGEST <= n <= LARGEST for n in (start, stop, step)):
        shape = ", ".join(shown(number, 40) for number in (start, stop, step))
        raise ConfigError(
            f"range({shape}) needs two finite ends, between -{LARGEST:g} and {LARGEST:g}, and a step above 0"
        )
    low, end, width = (Decimal(str(number)) for number in (start, stop, step))  # 0.9 is three times 0.3 in decimals
    high = low + (math.ceil((end - low) / width) - 1) * width  # Hydra's range excludes its upper end
    integer = all(float(number).is_integer() for number in (start, stop, step))
    return Interval(start, int(high) if integer else float(high), log="log" in tags, step=step, integer=integer)


def _is_leaf(value: Mapping[str, Any]) -> bool:
    return "value" in value or set(value) == {"when"}


def _plain(value: Any) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(_plain(k)): _plain(v) for k, v in value.items()}
    return value
