"""The sampler and the pruner that a configuration names by `_target_`.

Invariant: they come from an allow-list, those within their arguments too; nothing else is imported for a configuration.
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
# Where version 0.1 kept its own: the configurations frozen into its rooms name them so.
MOVED = {
    "sweep.sampler.ForecastSampler": "sweep.search.forecast_sampler.ForecastSampler",
    "sweep.strategy.AsynchronousHalving": "sweep.search.strategy.halving.AsynchronousHalving",
    "sweep.strategy.freeze_thaw.FreezeThaw": "sweep.search.strategy.freeze_thaw.FreezeThaw",
}
# What tells a sampler and a pruner from other classes.
METHODS = {"sampler": ("sample_relative",), "pruner": ("prune", "verdict")}
# What arguments are checked to be before anything runs.
PLAIN = {"int": "a whole number", "float": "a number", "str": "a word", "bool": "true or false", "None": "null"}


def build_sampler(settings: Settings, seed: int) -> Any:
    """The Optuna sampler of a configuration with a seed of its own where its class takes one.

    Raises:
        ConfigError: it is none, Optuna refuses the arguments, or the space does not fit the sampler.
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
    """The pruner of a configuration: Optuna's, or one of `sweep.search.strategy`, which is told the objective.

    Raises:
        ConfigError: it is none, or Optuna refuses the arguments.
    """
    node = _current(settings.pruner)
    kind = _class_of("pruner", node)
    if "metric" in inspect.signature(kind).parameters:
        node.setdefault("metric", settings.metric)
    return _build("pruner", node, kind)


def _check_types(section: str, node: Mapping[str, Any], kind: type) -> None:
    """Refuse a number or a word of another type than the class asks for, which would fail in the middle of a sweep."""
    for key, parameter in inspect.signature(kind).parameters.items():
        asked = parameter.annotation
        # as it is written: other names in a signature may be there for the type checker alone
        names = (asked if isinstance(asked, str) else getattr(asked, "__name__", str(asked))).split(" | ")
        if key not in node or not PLAIN.keys() >= set(names):
            continue
        given = "None" if node[key] is None else type(node[key]).__name__
        if given not in names and (given, "float" in names) != ("int", True):
            words = " or ".join(PLAIN[name] for name in names)
            raise ConfigError(f"{section}.{key}={node[key]} must be {words} ({kind.__name__})")


def keeps_one_seed(settings: Settings) -> bool:
    """Whether the sampler's seed names a sequence that all trials share."""
    return str(settings.sampler["_target_"]).endswith((".GridSampler", ".QMCSampler", ".BruteForceSampler"))


def targets(node: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Every `(key, value)` of `_target_` in a plain configuration."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key == "_target_":
                yield f"{at}{key}", str(value)
            yield from targets(value, f"{at}{key}.")
    elif isinstance(node, list):
        for value in node:
            yield from targets(value, at)


def check_target(section: str, target: str) -> None:
    """Refuse code outside the allow-list of a section, `sampler` or `pruner`.

    Raises:
        ConfigError: naming what is allowed.
    """
    allowed = ALLOWED_TARGETS[section]
    if not target.startswith(allowed):
        raise ConfigError(f"{section}: _target_={target} is not allowed; it must begin with {' or '.join(allowed)}")


def _current(node: Any) -> Any:
    """A section with today's names of our own classes, those within its arguments too."""
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
    found = getattr(_module(section, module), name, None)
    if not isinstance(found, type) or not any(hasattr(found, method) for method in METHODS[section]):
        raise ConfigError(f"{section}._target_={module}.{name} is no {section}; see {ALLOWED_TARGETS[section][0]}*")
    return found


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
