"""Builds the sampler and the pruner that a configuration names by `_target_`.

Invariants: a `_target_`, also within arguments, is the public path of a class that Optuna's samplers or pruners define,
or one of ours; the class that the path leads to is checked, not the path alone. A section is plain values and is built
as it is: no interpolation in it is resolved again, and Hydra's `_args_`, `_partial_` and the like have no meaning.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from sweep.config.settings import Settings
from sweep.errors import ConfigError
from sweep.model.objectives import Objective
from sweep.resources import conf_dir

# Modules whose classes a section may name, also as arguments of each other.
TRUSTED = ("optuna.samplers", "optuna.pruners")
OWN = frozenset(
    {
        "sweep.search.forecast_sampler.ForecastSampler",
        "sweep.search.strategy.freeze_thaw.FreezeThaw",
        "sweep.search.strategy.halving.AsynchronousHalving",
    }
)
# Names of our classes in version 0.1, which the frozen configurations of its rooms contain.
MOVED = {
    "sweep.sampler.ForecastSampler": "sweep.search.forecast_sampler.ForecastSampler",
    "sweep.strategy.AsynchronousHalving": "sweep.search.strategy.halving.AsynchronousHalving",
    "sweep.strategy.freeze_thaw.FreezeThaw": "sweep.search.strategy.freeze_thaw.FreezeThaw",
}
# The argument of our classes that is the sweep's objective.
OBJECTIVE = "objective"
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
    return _build("sampler", node, kind, settings.objectives[0])


def build_pruner(settings: Settings) -> Any:
    """The pruner of a configuration: one of Optuna, or a strategy of ours, which is given the objective.

    Raises:
        ConfigError: the target is no pruner, or refuses its arguments.
    """
    node = _current(settings.pruner)
    kind = _class_of("pruner", node)
    if "metric" in inspect.signature(kind).parameters:
        node.setdefault("metric", settings.metric)
    return _build("pruner", node, kind, settings.objectives[0])


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


def _current(node: Any) -> Any:
    """A section in which the names of version 0.1 are replaced, also within arguments."""
    if isinstance(node, Mapping):
        return {
            key: MOVED.get(str(value), value) if key == "_target_" else _current(value) for key, value in node.items()
        }
    return [_current(value) for value in node] if isinstance(node, list) else node


def _class_of(section: str, node: Mapping[str, Any]) -> type:
    if "_target_" not in node:
        known = ", ".join(sorted(path.stem for path in (conf_dir() / section).glob("*.yaml")))
        raise ConfigError(f"{section} has no _target_; choose one by {section}=NAME, allowed: {known}")
    kind = _trusted(section, node["_target_"])
    if not any(hasattr(kind, method) for method in METHODS[section]):
        raise ConfigError(f"{section}._target_={node['_target_']} is no {section}; see optuna.{section}s")
    return kind


def _trusted(key: str, target: object) -> type:
    """The class that a `_target_` names.

    Raises:
        ConfigError: it is not among the allowed classes, or cannot be imported.
    """
    path = str(target)
    module, _, name = path.rpartition(".")
    refusal = ConfigError(
        f"{key}._target_={path} is not allowed; it must be a class of optuna.samplers or optuna.pruners, or one of "
        f"{', '.join(sorted(OWN))}"
    )
    public = all(part and not part.startswith("_") for part in path.split("."))
    if path not in OWN and not (public and _is_trusted(module)):
        raise refusal
    kind = getattr(_module(key, module), name, None)
    if kind is None and _is_trusted(module):
        raise ConfigError(f"{key}._target_={path} does not exist; see the classes of {module}")
    if path in OWN and isinstance(kind, type):
        return kind
    if not isinstance(kind, type) or not _is_trusted(kind.__module__):
        raise refusal
    return kind


def _is_trusted(module: str) -> bool:
    return any(f"{module}.".startswith(f"{place}.") for place in TRUSTED)


def _module(key: str, name: str) -> ModuleType:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"{key}._target_: {name} cannot be imported: {error}") from error


def _build(key: str, node: Mapping[str, Any], kind: type, objective: Objective | None = None) -> Any:
    """An object of this class, with the objects that its arguments name by `_target_`.

    Args:
        key: the dotted key of the node, for error texts.
        objective: what a class of ours is given beside its arguments.
    """
    arguments = {str(name): _argument(f"{key}.{name}", value) for name, value in node.items() if name != "_target_"}
    if special := [name for name in arguments if not name.isidentifier() or name.startswith("_")]:
        raise ConfigError(f"{key}.{special[0]} is no argument of {kind.__name__}; remove it")
    _check_types(key, arguments, kind)
    if OBJECTIVE in arguments and f"{kind.__module__}.{kind.__name__}" in OWN:
        raise ConfigError(f"{key}.{OBJECTIVE} cannot be set; the section objective says what is searched for")
    if objective is not None and f"{kind.__module__}.{kind.__name__}" in OWN:
        arguments[OBJECTIVE] = objective
    try:
        return kind(**arguments)
    except (TypeError, ValueError, ImportError, AttributeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{key}: {node['_target_']} refuses its arguments: {reason}") from error


def _argument(key: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return _build(key, value, _trusted(key, value["_target_"]))
        return {name: _argument(f"{key}.{name}", item) for name, item in value.items()}
    if isinstance(value, list):
        return [_argument(f"{key}[{index}]", item) for index, item in enumerate(value)]
    return value
