"""Composes a sweep's configuration with Hydra, checks it as a whole, and freezes it.

Invariants: Hydra is used here and in `grammar` only. Samplers and pruners come from an allow-list. What `freeze`
returns needs neither Hydra nor the files that it was composed from. Nothing is written here.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep import recipe as torchtune_recipe
from sweep.errors import ConfigError, unknown_key
from sweep.grammar import flatten, parse_space
from sweep.resources import conf_dir, launch_queues_dir
from sweep.settings import (
    SECTIONS,
    Objective,
    Queue,
    Recipe,
    Search,
    Settings,
    Trial,
    WarmStart,
    read_section,
)

ALLOWED_TARGETS = ("optuna.samplers.", "optuna.pruners.", "sweep.")
TOP_KEYS = ("name", "storage", "experiment", "space", "derive", "sampler", "pruner", *SECTIONS)
# Sections in which a command line may name new keys without Hydra's `+`.
OPEN_SECTIONS = ("recipe.overrides.", "space.", "derive.", "sampler.", "pruner.", "queue.")


@dataclass(frozen=True)
class Composed:
    """A composed configuration and the texts of the files behind it.

    Args:
        recipe_text: the torchtune YAML as the user wrote it, which an export changes.
    """

    settings: Settings
    recipe_text: str


def compose_config(overrides: Sequence[str], config_dir: Path | None = None) -> DictConfig:
    """Hydra's composition of `conf/` (and the user's own directory) with overrides.

    Raises:
        ConfigError: an unknown group, option or key, or an override that cannot be read.
    """
    _register_queues()
    words = [_opened(word) for word in overrides]
    keys = {word.partition("=")[0].lstrip("+") for word in words}
    if "recipe.config" in keys and "recipe" not in keys:  # another configuration: the default's overrides are not its
        words.insert(0, "recipe=torchtune")
    if config_dir is not None:
        if not config_dir.is_dir():
            raise ConfigError(f"--config-dir={config_dir} is no directory")
        words.append(f"hydra.searchpath=[file://{config_dir.resolve()}]")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir()), version_base="1.3", job_name="sweep"):
            return compose("config", overrides=words)
    except (HydraException, OmegaConfBaseException) as error:
        raise _hydra_error(error) from error


def freeze(cfg: DictConfig, name: str, config_dir: Path | None = None) -> Composed:
    """Check a composition as a whole and make it independent of its files.

    Raises:
        ConfigError: anything that would keep a trial from starting and can be seen without training.
    """
    sections = {key: _section(cfg, key) for key in ("queue", "objective", "search", "trial", "sampler", "pruner")}
    recipe = _recipe(cfg, config_dir)
    path = torchtune_recipe.find_torchtune_config(recipe.config)
    torchtune, changes = torchtune_recipe.load_torchtune_config(path, recipe.overrides)
    torchtune_recipe.check_trusted(torchtune, recipe.components)
    for _, target in targets({"sampler": sections["sampler"], "pruner": sections["pruner"]}):
        check_target(target)
    space_raw = dict(flatten(_unresolved(cfg, "space")))
    derive = {key: str(value) for key, value in flatten(_unresolved(cfg, "derive")) if value is not None}
    trial = read_section(Trial, sections["trial"], "trial")
    settings = Settings(
        name=name,
        recipe=Recipe(str(path), recipe.overrides, recipe.components),
        torchtune=torchtune,
        changes=changes,
        space_raw=space_raw,
        derive=torchtune_recipe.equal_data(torchtune, space_raw) | derive if trial.equal_data else derive,
        sampler=sections["sampler"],
        pruner=sections["pruner"],
        queue=read_section(Queue, sections["queue"], "queue"),
        objective=read_section(Objective, sections["objective"], "objective"),
        search=read_section(Search, sections["search"], "search"),
        trial=trial,
        warm_start=read_section(WarmStart, _section(cfg, "warm_start"), "warm_start"),
        storage=cfg.get("storage"),
    )
    check(settings)
    return Composed(settings, path.read_text())


def check(settings: Settings) -> None:
    """Refuse settings whose sections do not fit each other.

    Raises:
        ConfigError: with the key, its value and what is allowed.
    """
    space = parse_space(settings.space_raw)
    torchtune_recipe.check_space(settings.torchtune, space, settings.derive)
    if settings.metric == "val_loss" and not settings.torchtune.get("dataset_val"):
        raise ConfigError(
            "objective.metric=val_loss needs validation data: add +dataset_val to recipe.overrides, "
            "or set objective.metric=loss"
        )
    for index, params in enumerate(settings.warm_start.enqueue):
        space.check(params, f"warm_start.enqueue[{index}]")
    search = settings.search
    if search.trials is None and search.tokens is None and search.seconds is None and search.target is None:
        raise ConfigError("search has no limit: set search.trials, search.tokens, search.seconds or search.target")
    base = torchtune_recipe.resolve(settings.torchtune, {}, {})
    if str(base["dtype"]) == "fp16":
        raise ConfigError("dtype=fp16 is not supported by torchtune's LoRA recipe; set recipe.overrides.dtype=bf16")
    if base["output_dir"] and str(base["output_dir"]).startswith(str(base["checkpointer"]["checkpoint_dir"]) + "/"):
        raise ConfigError(
            f"output_dir={base['output_dir']} lies inside checkpointer.checkpoint_dir; torchtune refuses that: "
            "set recipe.overrides.output_dir"
        )
    if settings.derive:
        first = {p.key: _any_value(p.domain) for p in space if not p.when}
        torchtune_recipe.resolve(settings.torchtune, first, settings.derive)
    build_sampler(settings, 0)
    build_pruner(settings)


def build_sampler(settings: Settings, seed: int) -> Any:
    """The Optuna sampler of a configuration with a seed of its own where its class takes one.

    Raises:
        ConfigError: Optuna refuses the arguments, or the space does not fit the sampler.
    """
    node = dict(settings.sampler)
    target = node["_target_"]
    if target.endswith(".GridSampler"):
        from sweep.study import grid_of

        node["search_space"] = grid_of(settings.space)
    if node.get("seed") is None and _takes_seed(target):
        node["seed"] = seed
    return _build("sampler", node)


def build_pruner(settings: Settings) -> Any:
    """The Optuna pruner of a configuration.

    Raises:
        ConfigError: Optuna refuses the arguments.
    """
    return _build("pruner", settings.pruner)


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


def check_target(target: str) -> None:
    """Refuse code outside the allow-list.

    Raises:
        ConfigError: naming what is allowed.
    """
    if not target.startswith(ALLOWED_TARGETS):
        raise ConfigError(f"_target_={target} is not allowed; it must begin with one of {', '.join(ALLOWED_TARGETS)}")


def _build(where: str, node: Mapping[str, Any]) -> Any:
    for _, target in targets(node):
        check_target(target)
    try:
        return instantiate(dict(node), _convert_="all")
    except HydraException as error:
        cause = error.__cause__ or error
        raise ConfigError(f"{where}: {node['_target_']} refuses its arguments: {str(cause).splitlines()[0]}") from error


def _takes_seed(target: str) -> bool:
    check_target(target)
    return "seed" in inspect.signature(get_class(target)).parameters


def _any_value(domain: Any) -> Any:
    return domain.values[0] if hasattr(domain, "values") else (int(domain.low) if domain.integer else domain.low)


def _recipe(cfg: DictConfig, config_dir: Path | None) -> Recipe:
    """The recipe section; where its `config` names a file of the group, that file's config with both overrides."""
    section = read_section(Recipe, {**_unresolved(cfg, "recipe"), "config": recipe_name(cfg)}, "recipe")
    for directory in filter(None, (config_dir, conf_dir())):
        named = directory / "recipe" / f"{section.config}.yaml"
        if named.is_file():
            plain = OmegaConf.to_container(OmegaConf.load(named), resolve=False)
            inner = read_section(Recipe, plain, "recipe")  # type: ignore[arg-type]
            config = str(OmegaConf.select(OmegaConf.create({"c": inner.config}), "c"))
            overrides = {**dict(flatten(inner.overrides)), **dict(flatten(section.overrides))}
            return Recipe(config, overrides, [*inner.components, *section.components])
    return section


def recipe_name(cfg: DictConfig) -> str:
    """What `recipe.config` comes to.

    Raises:
        ConfigError: it, or a key that it is made of, has not been set.
    """
    try:
        return str(cfg.recipe.config)
    except OmegaConfBaseException as error:
        missing = re.search(r"Missing mandatory value: ([\w.]+)|Interpolation key '([\w.]+)'", str(error))
        key = next(filter(None, missing.groups()), "") if missing else "recipe.config"
        raise ConfigError(f"{key} is not set; name it on the command line: {key}=…") from error


def _section(cfg: DictConfig, key: str) -> dict[str, Any]:
    if key not in cfg or cfg[key] is None:
        return {}
    try:
        return OmegaConf.to_container(cfg[key], resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or key}: {str(error).splitlines()[0]}") from error


def _unresolved(cfg: DictConfig, key: str) -> dict[str, Any]:
    return OmegaConf.to_container(cfg[key], resolve=False) if cfg.get(key) is not None else {}  # type: ignore[return-value]


def _register_queues() -> None:
    store = ConfigStore.instance()
    for path in sorted(launch_queues_dir().glob("*.yaml")):
        store.store(group="queue", name=path.stem, node=OmegaConf.load(path))


def _opened(word: str) -> str:
    """An override as Hydra takes it: open sections need no `+`, and a space's sweeps are texts."""
    key, equals, value = word.partition("=")
    if not equals or not key.startswith(OPEN_SECTIONS):
        return word
    is_text = key.startswith(("space.", "derive.")) and value[:1] not in ("'", '"', "{") and value != "null"
    if is_text or not _readable(value):
        value = "'" + value.replace("'", "\\'") + "'"
    return f"++{key}={value}"


def _readable(value: str) -> bool:
    """Whether Hydra's grammar takes a value as it stands; `train[:64]` it does not."""
    try:
        OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return False
    return True


def _hydra_error(error: Exception) -> ConfigError:
    """Hydra's complaint in one sentence, with the allowed keys or options."""
    text = str(error)
    if key := re.search(r"Could not override '([\w.]+)'", text):
        section, _, name = key[1].rpartition(".")
        kind = SECTIONS.get(section)
        allowed = [field.name for field in dataclasses.fields(kind)] if kind else list(TOP_KEYS)
        return unknown_key(section or "configuration", name, allowed)
    if missing := re.search(r"Could not find '(\w+)/([\w./-]+)'", text):
        options = re.search(r"Available options in '\w+':\s*(.*?)\s*Config search path", text, re.DOTALL)
        known = sorted(set(options[1].split())) if options else []
        return ConfigError(f"{missing[1]}={missing[2]} does not exist; allowed: {', '.join(known)}")
    return ConfigError(" ".join(line.strip() for line in text.splitlines() if line.strip())[:400])
