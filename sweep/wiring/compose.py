"""Composes the configuration of a sweep with Hydra, checks it as a whole, and freezes it.

Invariants: Hydra is imported here and in `sweep.config` only. What `freeze` returns needs
neither Hydra nor the files that it was composed from. Nothing is written here.
"""

from __future__ import annotations

import copy
import functools
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.config import recipe_values, secrets
from sweep.config import torchtune as torchtune_recipe
from sweep.config.composition import compose_files
from sweep.config.overrides import (
    GIVEN,
    RESOLUTION_ERRORS,
    hydra_error,
    keyed_section,
    section_of,
    split_overrides,
    value_of,
)
from sweep.config.resolvers import environment_stays
from sweep.config.section_reader import read_section
from sweep.config.sections import Objective, Recipe, RoomAccess, Search, Trial, Wandb, WarmStart
from sweep.config.settings import Settings, read_evaluator, read_queue
from sweep.config.space_grammar import merged, parse_space, shown
from sweep.config.yaml_files import load_yaml, read_text_file
from sweep.errors import ConfigError
from sweep.evaluation import jobs
from sweep.queues import backend
from sweep.queues.backend import Recording
from sweep.resources import conf_dir, launch_queues_dir
from sweep.search.build import build_pruner, build_sampler
from sweep.tracking import runs
from sweep.wiring.access import group_id
from sweep.wiring.metric_definitions import check_metrics, compose_metrics
from trainer.names import is_name

# A file name has 255 bytes. Names that are made of a sweep's own have a number, a worker and a suffix beside it.
MAX_NAME_BYTES = 128
# What Hydra and OmegaConf raise, besides their own errors, for words and files that they do not expect.
COMPOSER_ERRORS = (ValueError, TypeError, AttributeError, KeyError, IndexError, AssertionError, RecursionError, OSError)
CORNERS = 16  # of a space, at which derived values are checked


@dataclass(frozen=True)
class Composed:
    """A composed and checked configuration.

    Args:
        recipe_text: the torchtune YAML as the user wrote it, which an export edits.
    """

    settings: Settings
    recipe_text: str


def compose_config(overrides: Sequence[str], config_dir: Path | None = None) -> DictConfig:
    """Hydra's composition of `conf/` and the user's own directory with overrides.

    Raises:
        ConfigError: an unknown group, option or key, or an override that cannot be read.
    """
    _register_queues()
    words, given = split_overrides(overrides)
    keys = {word.partition("=")[0].lstrip("+") for word in words}
    if "recipe.config" in keys and "recipe" not in keys:  # the overrides of the default recipe do not fit another one
        words.insert(0, "recipe=torchtune")
    if config_dir is not None and not config_dir.is_dir():
        raise ConfigError(f"--config-dir={config_dir} is not a directory")
    try:
        cfg = compose_files(words, config_dir.resolve() if config_dir else None)
        for key, value in given["recipe.overrides"].items():  # interpolations of the composition refer to them
            OmegaConf.update(cfg, f"recipe.overrides.{key.removeprefix('+')}", value, merge=False, force_add=True)
        OmegaConf.update(cfg, GIVEN, given, merge=False, force_add=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise hydra_error(error, words) from error
    except COMPOSER_ERRORS as error:
        if isinstance(error, FileNotFoundError) and error.filename is None:
            raise  # the current directory was deleted, which is no fault of the words
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        shown = " ".join(overrides)
        raise ConfigError(
            f"{shown[:300] or 'the configuration'} cannot be composed: {reason[:300]}; a group takes the name of one "
            "of its files, and a key a value of its own type"
        ) from error
    return cfg


def freeze(cfg: DictConfig, name: str, config_dir: Path | None = None) -> Composed:
    """Check a composition as a whole and make it independent of its files.

    Raises:
        ConfigError: anything that would keep a trial from starting and can be seen without training.
    """
    check_name(name)
    secrets.check_sections(cfg)
    queue = read_queue(section_of(cfg, "queue"))
    recording = backend(queue.kind).recording(queue)
    if recording is not None:
        cfg = _with_milestones_of(cfg, recording)
    recipe = _recipe(cfg, config_dir)
    path = torchtune_recipe.find_torchtune_config(recipe.config)
    torchtune, changes = torchtune_recipe.load_torchtune_config(path, recipe.overrides)
    metrics = compose_metrics(cfg, config_dir)
    space, derive = (keyed_section(cfg, key) for key in ("space", "derive"))
    trial = read_section(Trial, section_of(cfg, "trial"), "trial")
    if trial.equal_data:
        derive = torchtune_recipe.equal_data(torchtune, [key.removeprefix("+") for key in space]) | derive
    settings = Settings(
        name=name,
        directory=current_directory(),
        recipe=Recipe(str(path), recipe.overrides, recipe.components),
        torchtune=torchtune,
        changes=changes,
        space_raw=space,
        derive=derive,
        sampler=section_of(cfg, "sampler"),
        pruner=section_of(cfg, "pruner"),
        queue=queue,
        objective=read_section(Objective, section_of(cfg, "objective"), "objective"),
        search=read_section(Search, section_of(cfg, "search"), "search"),
        trial=trial,
        warm_start=read_section(WarmStart, section_of(cfg, "warm_start"), "warm_start"),
        wandb=read_section(Wandb, section_of(cfg, "wandb"), "wandb"),
        room=read_section(RoomAccess, section_of(cfg, "room"), "room"),
        evaluate=jobs.freeze_evaluator(read_evaluator(_evaluate(cfg))),
        metrics=metrics,
        storage=value_of(cfg, "storage"),
        controller=str(value_of(cfg, "controller")),
    )
    if recording is not None:
        settings = _as_recorded(settings, recording)
    check(settings)
    return Composed(settings, read_text_file(path))


def check_name(name: str) -> None:
    """Refuse a name that cannot be the name of a directory.

    Raises:
        ConfigError: it says which characters are allowed.
    """
    if not is_name(name):
        raise ConfigError(
            f"name={shown(name, 80)} is not allowed; it may have letters, digits, `.`, `_` and `-`, without a dot at "
            "its beginning"
        )
    if (size := len(name.encode())) > MAX_NAME_BYTES:
        raise ConfigError(
            f"name={shown(name, 40)} has {size} bytes, of which the names of a room's files leave {MAX_NAME_BYTES}; "
            "choose a shorter name"
        )


def current_directory() -> str:
    """The directory that relative paths mean.

    Raises:
        ConfigError: it was deleted.
    """
    try:
        return str(Path.cwd())
    except OSError as error:
        raise ConfigError("the current directory was deleted; change to another one") from error


def check(settings: Settings) -> None:
    """Refuse settings whose sections do not fit each other.

    Raises:
        ConfigError: with the key, its value and what is allowed.
    """
    space = parse_space(settings.space_raw)
    torchtune_recipe.check_space(settings.torchtune, space, settings.derive)
    torchtune_recipe.check_trusted(settings.torchtune, settings.recipe.components, space)
    if settings.storage is not None:
        from sweep.search.storage import check_url

        check_url(settings.storage)
    check_metrics(settings)
    if settings.metric == "val_loss" and not settings.torchtune.get("dataset_val"):
        raise ConfigError(
            "objective.metric=val_loss needs validation data: add +dataset_val to recipe.overrides, "
            "or set objective.metric=loss"
        )
    for index, params in enumerate(settings.warm_start.enqueue):
        space.check(params, f"warm_start.enqueue[{index}]")
    search = settings.search
    limits = (search.trials, search.tokens, search.seconds, search.target, search.gpu_hours)
    if all(limit is None for limit in (*limits, search.min_gain_per_gpu_hour)):
        raise ConfigError(
            "search has no limit: set search.trials, search.tokens, search.seconds, search.target, search.gpu_hours "
            "or search.min_gain_per_gpu_hour"
        )
    base = torchtune_recipe.resolve(settings.torchtune, {}, {}, settings.directory)
    secrets.check_torchtune(base)
    secrets.check_environment("queue.env", settings.queue.env)
    _check_base(base)
    _check_values(settings, base)
    backend(settings.queue.kind).check(settings)
    runs.check(settings)
    group_id(settings.room.group)
    if settings.controller not in ("here", "launch"):
        raise ConfigError(f"controller={settings.controller} is not allowed; it must be here or launch")
    jobs.check(settings)
    build_sampler(settings, 0)
    build_pruner(settings)


def _evaluate(cfg: DictConfig) -> dict[str, Any]:
    """The section `evaluate`, in which references to environment variables stay for the worker."""
    with environment_stays():
        return section_of(cfg, "evaluate")


def _with_milestones_of(cfg: DictConfig, recording: Recording) -> DictConfig:
    """The same composition with the milestones of recorded trials, to which samplers and pruners refer."""
    recorded = copy.deepcopy(cfg)
    OmegaConf.update(recorded, "objective.milestones", recording.milestones)
    return recorded


def _as_recorded(settings: Settings, recording: Recording) -> Settings:
    """The same settings with the milestones and the label tokens of recorded trials."""
    objective = replace(settings.objective, milestones=recording.milestones, milestone_tokens=None)
    return replace(settings, objective=objective, trial_tokens=recording.trial_tokens)


def _check_base(base: Mapping[str, Any]) -> None:
    if str(base["dtype"]) == "fp16":
        raise ConfigError("dtype=fp16 is not supported by torchtune's LoRA recipe; set recipe.overrides.dtype=bf16")
    source = base["checkpointer"]["checkpoint_dir"]
    own = base["checkpointer"].get("output_dir")
    for key, value in (("output_dir", base["output_dir"]), ("checkpointer.output_dir", own)):
        if value and Path(str(value)).resolve().is_relative_to(Path(str(source)).resolve()):
            raise ConfigError(
                f"{key}={value} is checkpointer.checkpoint_dir={source} or inside it, which torchtune refuses; "
                f"set recipe.overrides.{key}"
            )


def _check_values(settings: Settings, base: Mapping[str, Any]) -> None:
    """Refuse values that the recipe cannot take: of the base, of the space, and derived at the space's corners."""
    recipe_values.check_base(base, settings.changes, Path(settings.recipe.config).name)
    recipe_values.check_space(settings.space)
    corners = recipe_values.corners(settings.space, CORNERS) if settings.derive else ()
    for params, derived in torchtune_recipe.derived_values(settings.torchtune, corners, settings.derive):
        recipe_values.check_derived(derived, params)


def _recipe(cfg: DictConfig, config_dir: Path | None) -> Recipe:
    """The section `recipe`. If its `config` names a file of the group, that file's config with both overrides."""
    name, overrides = recipe_name(cfg), keyed_section(cfg, "recipe.overrides", keep_null=True)
    raw = section_of(cfg, "recipe", resolve=False)
    section = read_section(Recipe, {**raw, "config": name, "overrides": overrides}, "recipe")
    for directory in filter(None, (config_dir, conf_dir())):
        named = directory / "recipe" / f"{name}.yaml"
        if os.path.isfile(named):  # noqa: PTH113 - that of pathlib raises for a name that no file can have
            file = OmegaConf.create({"recipe": load_yaml(named)})
            raw = section_of(file, "recipe", resolve=False)
            inner = read_section(Recipe, {**raw, "config": _own_config(file, name)}, "recipe")
            components = [*inner.components, *section.components]
            return Recipe(inner.config, merged(inner.overrides, overrides), components)
    return section


def _own_config(file: DictConfig, name: str) -> str:
    if OmegaConf.is_missing(file.recipe, "config") or "config" not in file.recipe:
        raise ConfigError(
            f"recipe.config={name} names a file of the group recipe that has no config of its own; "
            "set recipe.config to a path or to a name that `tune ls` prints"
        )
    return recipe_name(file)


def recipe_name(cfg: DictConfig) -> str:
    """The value of `recipe.config`.

    Raises:
        ConfigError: it, or a key that it refers to, is not set.
    """
    if not isinstance(cfg.get("recipe"), DictConfig):
        raise ConfigError(f"recipe={cfg.get('recipe')} must be a mapping with the key config; see docs/recipes.md")
    try:
        return str(cfg.recipe.config)
    except RESOLUTION_ERRORS as error:
        missing = re.search(r"Missing mandatory value: ([\w.]+)|Interpolation key '([\w.]+)'", str(error))
        key = next(filter(None, missing.groups()), "") if missing else "recipe.config"
        raise ConfigError(f"{key} is not set; name it on the command line: {key}=…") from error


@functools.cache  # Hydra copies what it takes from its store
def _register_queues() -> None:
    store = ConfigStore.instance()
    for path in sorted(launch_queues_dir().glob("*.yaml")):
        store.store(group="queue", name=path.stem, node=OmegaConf.load(path))
