"""Builds the sampler and the pruner that a configuration names by `_target_`.

Invariant: every `_target_`, also within arguments, is checked against an allow-list before anything is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from hydra.errors import HydraException
from hydra.utils import instantiate

from sweep.config.settings import Settings
from sweep.errors import ConfigError
from sweep.resources import conf_dir

ALLOWED_TARGETS = {"sampler": ("optuna.samplers.", "sweep."), "pruner": ("optuna.pruners.", "sweep.")}
# Names of our classes in version 0.1, which the frozen configurations of its rooms contain.
MOVED = {
    "sweep.sampler.ForecastSampler": "sweep.search.forecast_sampler.ForecastSampler",
    "sweep.strategy.AsynchronousHalving": "sweep.search.strategy.halving.AsynchronousHalving",
    "sweep.strategy.freeze_thaw.FreezeThaw": "sweep.search.strategy.freeze_thaw.FreezeThaw",
}
# Methods by which a sampler and a pruner are recognised.
METHODS = {"sampler": ("sample_relative",), "pruner": ("prune", "verdict")}
# Types of arguments that are checked before anything runs, as error messages name them.
PLAIN = {"int": "a whole number", "float": "a number", "str": "a word", "bool": "true or false", "None": "null"}


def build_sampler(settings: Settings, seed: int) -> Any:
    """The Optuna sampler of a configuration, with this seed if its class takes one and the configuration sets none.

    Raises:
        ConfigError: the target is no sampler, refuses its arguments, or cannot search the space.
    """
    node = _current(settings.sampler)
    kind = _class_of("sampler", node)
    if kind.__name__ == "GridSampler":
        from sweep.search.distributions import grid_of

        node["search_space"] = grid_of(settings.space)
    if node.get("seed") is None and "seed" in inspect.signature(kind).parameters:
        node["seed"] = seed
    return _build("sampler", node, kind)


def build_pruner(settings: Settings) -> Any:
    """The pruner of a configuration: one of Optuna, or a strategy of ours, which is given the objective's metric.

    Raises:
        ConfigError: the target is no pruner, or refuses its arguments.
    """
    node = _current(settings.pruner)
    kind = _class_of("pruner", node)
    if "metric" in inspect.signature(kind).parameters:
        node.setdefault("metric", settings.metric)
    return _build("pruner", node, kind)


def _check_types(section: str, node: Mapping[str, Any], kind: type) -> None:
    """Raise a ConfigError for an argument of a wrong type, which would fail in the middle of a sweep."""
    for key, parameter in inspect.signature(kind).parameters.items():
        annotation = parameter.annotation
        # as text: names in an annotation may be imported for the type checker alone
        text = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
        names = text.split(" | ")
        if key not in node or not PLAIN.keys() >= set(names):
            continue
        given = "None" if node[key] is None else type(node[key]).__name__
        if given not in names and (given, "float" in names) != ("int", True):
            words = " or ".join(PLAIN[name] for name in names)
            raise ConfigError(f"{section}.{key}={node[key]} must be {words} ({kind.__name__})")


def keeps_one_seed(settings: Settings) -> bool:
    """Whether the sampler's seed identifies a sequence that all trials share."""
    return str(settings.sampler["_target_"]).endswith((".GridSampler", ".QMCSampler", ".BruteForceSampler"))


def targets(node: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """The dotted key and the value of every `_target_` in a plain configuration."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "_target_":
                yield f"{at}{key}", str(value)
            yield from targets(value, f"{at}{key}.")
    elif isinstance(node, list):
        for value in node:
            yield from targets(value, at)


def check_target(section: str, target: str) -> None:
    """Check that the target of a section, `sampler` or `pruner`, is allowed.

    Raises:
        ConfigError: it is not; the message names what is.
    """
    allowed = ALLOWED_TARGETS[section]
    if not target.startswith(allowed):
        raise ConfigError(f"{section}: _target_={target} is not allowed; it must begin with {' or '.join(allowed)}")


def _current(node: Any) -> Any:
    """A section in which the names of version 0.1 are replaced, also within arguments."""
    if isinstance(node, Mapping):
        return {key: MOVED.get(value, value) if key == "_target_" else _current(value) for key, value in node.items()}
    return [_current(value) for value in node] if isinstance(node, list) else node


def _class_of(section: str, node: Mapping[str, Any]) -> type:
    if "_target_" not in node:
        known = ", ".join(sorted(path.stem for path in (conf_dir() / section).glob("*.yaml")))
        raise ConfigError(f"{section} has no _target_; choose one by {section}=NAME, allowed: {known}")
    for _, target in targets(node):
        check_target(section, target)
    module, _, name = str(node["_target_"]).rpartition(".")
    kind = getattr(_module(section, module), name, None)
    if not isinstance(kind, type) or not any(hasattr(kind, method) for method in METHODS[section]):
        raise ConfigError(f"{section}._target_={module}.{name} is no {section}; see {ALLOWED_TARGETS[section][0]}*")
    return kind


def _module(section: str, name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"{section}._target_: {name} cannot be imported: {error}") from error


def _build(section: str, node: Mapping[str, Any], kind: type) -> Any:
    _check_types(section, node, kind)
    try:
        return instantiate(dict(node), _convert_="all")
    except HydraException as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ConfigError(f"{section}: {node['_target_']} refuses its arguments: {reason}") from error
