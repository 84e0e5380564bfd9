"""The torchtune configuration of a sweep: finds it, applies overrides, checks it, resolves it for a trial, exports it.

Invariants: torchtune is not imported. The user's file is read once, when the sweep is created. An exported YAML differs
from the user's file in the changed keys alone, comments and order included.
"""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.config.paths import anchored, anchored_keys
from sweep.config.resolvers import environment_stays, resolution_reason
from sweep.config.space import Choice, Space
from sweep.config.space_grammar import flatten, merged, shown
from sweep.config.yaml_edit import edit_yaml
from sweep.config.yaml_files import load_yaml
from sweep.errors import ConfigError, unknown_key
from sweep.resources import embedded_dir, torchtune_recipes
from trainer.components import ComponentError, check_components, components, current_path
from trainer.environment import InterpolationLeftError, MissingVariableError, check_plain, reveal

# Keys that the trainer reads and that a torchtune configuration may lack.
OPTIONAL_KEYS = (
    "batch_size_val",
    "clip_grad_norm",
    "collate_fn",
    "dataset_val",
    "low_cpu_ram",
    "max_steps_per_epoch",
    "seed",
)
REQUIRED_KEYS = (
    "model._component_",
    "model.lora_rank",
    "model.lora_alpha",
    "model.lora_attn_modules",
    "model.apply_lora_to_mlp",
    "tokenizer._component_",
    "checkpointer._component_",
    "checkpointer.checkpoint_dir",
    "dataset",
    "shuffle",
    "batch_size",
    "optimizer._component_",
    "lr_scheduler._component_",
    "loss._component_",
    "epochs",
    "gradient_accumulation_steps",
    "device",
    "dtype",
    "output_dir",
)
# Keys at the top of a file that torchtune's argument parser stumbles over.
RESERVED_KEYS = ("config", "self")
# torchtune's other recipes with adapters, by a key of theirs that our recipe would ignore.
OTHER_RECIPES = {
    "teacher_model": "knowledge_distillation_single_device",
    "quantizer": "qat_lora_finetune_distributed",
}


def find_torchtune_config(name: str) -> Path:
    """The file of a torchtune configuration.

    Args:
        name: a path, or a name that `tune ls` prints.

    Raises:
        ConfigError: no such file, and no such name.
    """
    own = torchtune_recipes() / f"{name.removesuffix('.yaml')}.yaml"
    path = os.path.expanduser(name)  # noqa: PTH111 - that of pathlib raises where there is no home
    if os.path.isfile(path):  # noqa: PTH113 - likewise, for a name that no file can have
        return Path(path).resolve()
    if os.path.isfile(own):  # noqa: PTH113
        return own
    known = [
        str(p.relative_to(torchtune_recipes()))[:-5] for p in torchtune_recipes().rglob("*lora_single_device.yaml")
    ]
    near = get_close_matches(name[:200], known, n=3, cutoff=0.3) or ["llama3_2/1B_lora_single_device"]
    raise ConfigError(
        f"recipe.config={shown(name)} is no file, no name of conf/recipe and no name that `tune ls` prints; "
        f"near: {', '.join(near)}; `tune ls` shows all {len(known)} of its LoRA single-device configurations"
    )


def load_torchtune_config(path: Path, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A torchtune configuration with overrides, and the overrides as dotted keys. Interpolations stay unresolved.

    Raises:
        ConfigError: the file is no YAML mapping or no LoRA configuration, or an override names a key that it lacks.
    """
    cfg = load_yaml(path)
    if not isinstance(cfg, DictConfig):
        raise ConfigError(f"{path} holds no YAML mapping; recipe.config must name a torchtune configuration")
    changes: dict[str, Any] = {}
    for name, given in merged(overrides).items():
        adds, key = name.startswith("+"), name.removeprefix("+")
        if not adds and key.split(".")[0] not in OPTIONAL_KEYS:
            check_key(OmegaConf.to_container(cfg), key, "recipe.overrides", path.name)
        value = given.replace("${embedded:}", str(embedded_dir())) if isinstance(given, str) else given
        _set(cfg, key, value, "recipe.overrides")
        changes[key] = value
    plain: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    _check_kind(path, plain)
    return plain, changes


def _check_kind(path: Path, config: Mapping[str, Any]) -> None:
    start = f"{path} is no configuration of torchtune's lora_finetune_single_device: it"
    missing = [key for key in REQUIRED_KEYS if not has_key(config, key) or value_at(config, key) is None]
    if missing:
        raise ConfigError(f"{start} lacks {', '.join(missing)}")
    others = [f"{key}, which is {name}'s" for key, name in OTHER_RECIPES.items() if config.get(key) is not None]
    loss = str(config["loss"]["_component_"])
    if loss.startswith("torchtune.rlhf."):
        others.append(f"loss._component_={loss}, which is lora_dpo_single_device's")
    if others:
        raise ConfigError(f"{start} has {others[0]}; name a configuration for LoRA fine-tuning, `tune ls` shows them")
    for key in config:
        if not isinstance(key, str) or key in RESERVED_KEYS:
            raise ConfigError(f"{path} has the key {key}, which `tune run` cannot take; give the key another name")
    if _resumes(config):
        raise ConfigError(
            f"{path}: resume_from_checkpoint=True must be False, as a trial starts from the base and the sweep "
            "resumes it from checkpoints of its own; set recipe.overrides.resume_from_checkpoint=False"
        )


def _resumes(config: Mapping[str, Any]) -> bool:
    try:
        return bool(OmegaConf.create(dict(config)).get("resume_from_checkpoint"))
    except OmegaConfBaseException:
        return False  # an interpolation that cannot be resolved is refused where all are


def _set(config: DictConfig, key: str, value: Any, where: str) -> None:
    try:
        OmegaConf.update(config, key, value, merge=False, force_add=True)
    except (OmegaConfBaseException, TypeError, ValueError, IndexError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{where}: {key}={value} cannot be set ({reason}); mend the key or its value") from error


def has_key(config: Any, key: str) -> bool:
    """Whether a dotted key exists in nested mappings and lists."""
    try:
        value_at(config, key)
    except KeyError:
        return False
    return True


def value_at(config: Any, key: str) -> Any:
    """The value at a dotted key of nested mappings and lists.

    Raises:
        KeyError: there is none.
    """
    for part in key.split("."):
        if isinstance(config, list) and part.isdigit() and int(part) < len(config):
            config = config[int(part)]
        elif isinstance(config, Mapping) and part in config:
            config = config[part]
        else:
            raise KeyError(key)
    return config


def check_key(config: Any, key: str, section: str, file: str = "") -> None:
    """Refuse a key that a torchtune configuration lacks.

    Args:
        section: the section that names the key, for the error text.
        file: the file's name, for the error text.

    Raises:
        ConfigError: with the keys at the same level, and how to add one.
    """
    if has_key(config, key):
        return
    known = [name for name, _ in flatten(config)] + [str(name) for name in config]
    parent = key.rpartition(".")[0]
    near = [name for name in known if name.rpartition(".")[0] == parent] or known
    where = f"{section} ({file})" if file else section
    raise ConfigError(
        f"{unknown_key(where, key, near)}; to add it, write +{section}.{key}=… on the command line or +{key}: in YAML"
    )


def check_space(config: Mapping[str, Any], space: Space, derive: Mapping[str, Any]) -> None:
    """Refuse a space or a derivation that does not fit the torchtune configuration.

    Raises:
        ConfigError: an unknown key, or a key that is both varied and derived.
    """
    derived = {key.removeprefix("+") for key in derive}
    for parameter in space:
        if not parameter.adds and parameter.key not in OPTIONAL_KEYS:
            check_key(config, parameter.key, "space")
        if parameter.key in derived:
            raise ConfigError(f"derive.{parameter.key}: the key is in the space too; remove it from one of the two")
    for key in derive:
        if not key.startswith("+") and key not in OPTIONAL_KEYS:
            check_key(config, key, "derive")


def equal_data(config: Mapping[str, Any], space: Iterable[str]) -> dict[str, str]:
    """The derivation of `max_steps_per_epoch` with which every trial trains on the same rows; empty if none is needed.

    torchtune limits an epoch by optimizer steps only. If the rows of a step vary, one limit means different data.

    Args:
        space: the keys that vary.

    Raises:
        ConfigError: the limit, the batch size or the accumulation is no whole number.
    """
    keys = ("max_steps_per_epoch", "batch_size", "gradient_accumulation_steps")
    if config.get(keys[0]) is None or keys[0] in space or not set(keys) & set(space):
        return {}
    resolved = resolve(config, {}, {})
    rows = 1
    for key in keys:
        if not isinstance(resolved[key], int):
            raise ConfigError(f"{key}={resolved[key]} must be a whole number; or set trial.equal_data=false")
        rows *= resolved[key]
    per_step = "${mul:${batch_size},${gradient_accumulation_steps}}"
    return {keys[0]: "${max:1,${floordiv:" + str(rows) + f",{per_step}}}}}"}


def resolve(
    config: Mapping[str, Any], params: Mapping[str, Any], derive: Mapping[str, Any], directory: str = ""
) -> dict[str, Any]:
    """The torchtune configuration of a trial as plain values. Only references to environment variables stay.

    Args:
        config: the torchtune configuration of the sweep.
        params: the trial's hyperparameters, by dotted key.
        derive: the section `derive`.
        directory: relative paths are made absolute from it; empty: they stay.

    Raises:
        ConfigError: an interpolation names nothing or is left in a value, a derivation fails, or a path names an
            environment variable that is not set.
    """
    cfg = OmegaConf.create(dict(config))
    _set_all(cfg, params, derive)
    with _resolving(), environment_stays():
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        check_plain(plain)
    return anchored(plain, directory)  # type: ignore[no-any-return]


@contextmanager
def _resolving() -> Iterator[None]:
    """Turn an error of the block into a sentence with the key that cannot be resolved."""
    try:
        yield
    except OmegaConfBaseException as error:
        where = error.full_key or "derive"
        raise ConfigError(f"torchtune configuration, {where}: {resolution_reason(error)}") from error
    except InterpolationLeftError as error:
        raise ConfigError(f"torchtune configuration: {error}") from error


def _set_all(cfg: DictConfig, params: Mapping[str, Any], derive: Mapping[str, Any]) -> None:
    for key, value in {**params, **{k.removeprefix("+"): v for k, v in derive.items()}}.items():
        _set(cfg, key, value, "derive" if key not in params else "space")


def derived_values(
    config: Mapping[str, Any], cases: Iterable[Mapping[str, Any]], derive: Mapping[str, Any]
) -> Iterator[tuple[Mapping[str, Any], dict[str, Any]]]:
    """The hyperparameters of each case, with the values of the derived keys that the case does not set itself.

    Args:
        config, derive: see `resolve`.

    Raises:
        ConfigError: as `resolve`.
    """
    base = OmegaConf.create(dict(config))
    for params in cases:
        cfg = copy.deepcopy(base)
        _set_all(cfg, params, derive)
        with _resolving(), environment_stays():
            keys = [key.removeprefix("+") for key in derive]
            values = {key: _plain(OmegaConf.select(cfg, key, throw_on_missing=True)) for key in keys}
            check_plain(values)
        yield params, {key: value for key, value in values.items() if key not in params}


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value, resolve=True, throw_on_missing=True) if OmegaConf.is_config(value) else value


def resolve_here(config: Mapping[str, Any], directory: str = "") -> dict[str, Any]:
    """The base configuration as a process on this machine reads it, with the values of environment variables.

    It is for checks on this machine only: nothing of it is stored, tracked or shown.

    Raises:
        ConfigError: as `resolve`; or an environment variable is not set.
    """
    try:
        return reveal(resolve(config, {}, {}, directory))  # type: ignore[no-any-return]
    except MissingVariableError as error:
        raise ConfigError(f"torchtune configuration: {error}") from error


def trial_changes(config: Mapping[str, Any], params: Mapping[str, Any], derive: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the torchtune configuration that a trial changes, with their values: varied and derived ones."""
    resolved = resolve(config, params, derive)
    return {**params, **{key.removeprefix("+"): value_at(resolved, key.removeprefix("+")) for key in derive}}


def path_changes(
    config: Mapping[str, Any], params: Mapping[str, Any], derive: Mapping[str, Any], directory: str
) -> dict[str, Any]:
    """The keys of a trial's configuration that hold relative paths, with the absolute ones.

    A key that follows from another one by an interpolation is left out.
    """
    absolute = anchored_keys(resolve(config, params, derive), directory)
    written = {key: value for key, value in absolute.items() if not _is_interpolated(config, params, key)}
    left = anchored_keys(resolve(config, {**params, **written}, derive), directory)
    return {**written, **left}


def _is_interpolated(config: Mapping[str, Any], params: Mapping[str, Any], key: str) -> bool:
    own = next((params[name] for name in params if f"{key}.".startswith(f"{name}.")), None)
    text = own if own is not None else value_at(config, key) if has_key(config, key) else None
    return isinstance(text, str) and "${" in text


def seed_of_final(seed: int, index: int) -> int:
    """The seed of a final, which differs from the trial's own seed for every index.

    Args:
        seed: the trial's own seed.
        index: which of the finals' seeds, from 0.
    """
    return seed + 1 + index


def check_trusted(config: Mapping[str, Any], extra: Sequence[str], space: Space | None = None) -> None:
    """Refuse a configuration that names code outside the allow-list, as it is or after it is resolved.

    The process that builds a component checks it once more, by the module that defines it (`trainer.components`).

    Args:
        config: a torchtune configuration, unresolved.
        extra: further allowed prefixes.
        space: its choices may name code too.

    Raises:
        ConfigError: with the key and the allowed prefixes.
    """
    try:
        check_components(resolve(config, {}, {}), extra)
        for parameter in space or ():
            values = parameter.domain.values if isinstance(parameter.domain, Choice) else ()
            name = parameter.key.rpartition(".")[2]
            for value in values:
                check_components({name: value}, extra)
    except ComponentError as error:
        raise ConfigError(str(error)) from error


def with_overrides(config: Mapping[str, Any], overrides: Mapping[str, Any], section: str) -> dict[str, Any]:
    """A torchtune configuration with overrides as `tune run` takes them, unresolved.

    `model: PATH` replaces the `_component_` of `model`.

    Args:
        section: the section that names the overrides, for the error text.

    Raises:
        ConfigError: an override cannot be set.
    """
    cfg = OmegaConf.create(dict(config))
    for key, value in overrides.items():
        has_component = isinstance(value, str) and has_key(config, f"{key}._component_")
        _set(cfg, f"{key}._component_" if has_component else key, value, section)
    return OmegaConf.to_container(cfg)  # type: ignore[return-value]


def export_yaml(original: str, changes: Mapping[str, Any], header: str) -> str:
    """The user's YAML with these dotted keys changed and nothing else; comments and order are kept.

    Old names of components are replaced by today's.

    Args:
        original: the text of the user's YAML.
        header: lines to put above it as a comment; what YAML cannot hold is written as Python writes it.

    Raises:
        ConfigError: a key cannot be changed in this YAML.
    """
    named = [(re.sub(r"\[(\d+)\]", r".\1", key), path) for key, path in components(yaml.safe_load(original))]
    named += [(key, path) for key, path in changes.items() if key.endswith("_component_") and isinstance(path, str)]
    moved = {key: current_path(path) for key, path in named if current_path(path) != path or key in changes}
    original = original.removeprefix("\ufeff")  # a byte order mark is none below a comment
    comment = "".join(f"# {_printable(line)}\n" for line in header.splitlines())
    try:
        return comment + edit_yaml(original, {**changes, **moved})
    except KeyError as error:
        raise ConfigError(f"the torchtune configuration cannot be exported: {error.args[0]}") from error


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
