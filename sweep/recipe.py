"""The torchtune configuration of a sweep: found, changed, checked, resolved for a trial, and exported.

Invariants: torchtune is not imported. The user's file is read once, when the sweep is created; what is exported
differs from it in the changed keys alone, comments and order included.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.errors import ConfigError, unknown_key
from sweep.grammar import flatten
from sweep.resources import embedded_dir, torchtune_recipes
from sweep.space import Space
from sweep.yamledit import edit_yaml
from trainer.components import ComponentError, check_components, components, current_path

# Keys that the trainer reads and that a configuration may lack.
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
    "tokenizer._component_",
    "checkpointer._component_",
    "checkpointer.checkpoint_dir",
    "dataset",
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
_RESOLVERS: dict[str, Callable[..., Any]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "floordiv": lambda a, b: a // b,
    "pow": lambda a, b: a**b,
    "min": min,
    "max": max,
    "round": round,
    "int": int,
    "embedded": lambda *path: str(embedded_dir().joinpath(*path)),
}
for _name, _function in _RESOLVERS.items():
    OmegaConf.register_new_resolver(_name, _function, replace=True)


def find_torchtune_config(name: str) -> Path:
    """The file of a torchtune configuration: a path, or a name that `tune ls` prints.

    Raises:
        ConfigError: there is none.
    """
    own = torchtune_recipes() / f"{name.removesuffix('.yaml')}.yaml"
    path = Path(name).expanduser()
    if path.is_file():
        return path.resolve()
    if own.is_file():
        return own
    known = [
        str(p.relative_to(torchtune_recipes()))[:-5] for p in torchtune_recipes().rglob("*lora_single_device.yaml")
    ]
    near = get_close_matches(name, known, n=3, cutoff=0.3) or ["llama3_2/1B_lora_single_device"]
    raise ConfigError(
        f"recipe.config={name} is no file, no name of conf/recipe and no name that `tune ls` prints; "
        f"near: {', '.join(near)}; `tune ls` shows all {len(known)} of its LoRA single-device configurations"
    )


def load_torchtune_config(path: Path, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A torchtune configuration with overrides, interpolations unresolved, and the changes as dotted keys.

    Raises:
        ConfigError: the file is no YAML mapping, is no LoRA configuration, or an override names no key of it.
    """
    try:
        cfg = OmegaConf.load(path)
    except Exception as error:
        raise ConfigError(f"{path} cannot be read as YAML: {str(error).splitlines()[0]}") from error
    if not isinstance(cfg, DictConfig):
        raise ConfigError(f"{path} holds no YAML mapping; recipe.config must name a torchtune configuration")
    changes: dict[str, Any] = {}
    for name, given in flatten(overrides):
        adds, key = "+" in name, name.replace("+", "")
        if not adds and key.split(".")[0] not in OPTIONAL_KEYS:
            check_key(OmegaConf.to_container(cfg), key, f"recipe.overrides ({path.name})")
        value = given.replace("${embedded:}", str(embedded_dir())) if isinstance(given, str) else given
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
        changes[key] = value
    plain: dict[str, Any] = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    missing = [key for key in REQUIRED_KEYS if not has_key(plain, key)]
    if missing:
        raise ConfigError(
            f"{path} is no configuration of torchtune's lora_finetune_single_device: it lacks {', '.join(missing)}"
        )
    return plain, changes


def has_key(config: Any, key: str) -> bool:
    """Whether a dotted key exists in nested mappings and lists."""
    for part in key.split("."):
        if isinstance(config, list) and part.isdigit() and int(part) < len(config):
            config = config[int(part)]
        elif isinstance(config, Mapping) and part in config:
            config = config[part]
        else:
            return False
    return True


def check_key(config: Any, key: str, where: str) -> None:
    """Refuse a key that a torchtune configuration lacks.

    Raises:
        ConfigError: naming the keys beside it and how to add one.
    """
    if has_key(config, key):
        return
    known = [name for name, _ in flatten(config)] + [str(name) for name in config]
    parent = key.rpartition(".")[0]
    near = [name for name in known if name.rpartition(".")[0] == parent] or known
    raise ConfigError(f"{unknown_key(where, key, near)}; write +{key} to add it")


def check_space(config: Mapping[str, Any], space: Space, derive: Mapping[str, str]) -> None:
    """Refuse a space or derivation that the torchtune configuration cannot take.

    Raises:
        ConfigError: an unknown key, a key both varied and derived, or a derivation that cannot be computed.
    """
    for parameter in space:
        if not parameter.adds and parameter.key not in OPTIONAL_KEYS:
            check_key(config, parameter.key, "space")
        if parameter.key in derive:
            raise ConfigError(f"derive.{parameter.key}: the key is in the space too; it can be one of the two")
    for key in derive:
        if not key.startswith("+") and key not in OPTIONAL_KEYS:
            check_key(config, key, "derive")


def equal_data(config: Mapping[str, Any], space: Mapping[str, Any]) -> dict[str, str]:
    """The derivation that gives every trial the same rows, where a limit in optimizer steps would not.

    A limit of steps with varying rows per step means varying data; torchtune has no other limit.
    """
    keys = ("batch_size", "gradient_accumulation_steps")
    limit = config.get("max_steps_per_epoch")
    varies = any(key in space for key in keys)
    if limit is None or not varies or "max_steps_per_epoch" in space:
        return {}
    per_step = "${mul:${batch_size},${gradient_accumulation_steps}}"
    rows = int(limit) * int(config["batch_size"]) * int(config["gradient_accumulation_steps"])
    return {"max_steps_per_epoch": "${max:1,${floordiv:" + str(rows) + f",{per_step}}}}}"}


def resolve(config: Mapping[str, Any], params: Mapping[str, Any], derive: Mapping[str, str]) -> dict[str, Any]:
    """The torchtune configuration of one trial, all interpolations resolved.

    Raises:
        ConfigError: an interpolation names nothing, or a derivation fails.
    """
    cfg = OmegaConf.create(dict(config))
    for key, value in {**params, **{k.removeprefix("+"): v for k, v in derive.items()}}.items():
        OmegaConf.update(cfg, key, value, merge=False, force_add=True)
    try:
        plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"torchtune configuration, {error.full_key or 'derive'}: {reason}") from error
    return plain  # type: ignore[return-value]


def trial_changes(config: Mapping[str, Any], params: Mapping[str, Any], derive: Mapping[str, str]) -> dict[str, Any]:
    """What a trial changes in the torchtune configuration: its hyperparameters and what is derived from them."""
    resolved = OmegaConf.create(resolve(config, params, derive))
    derived = {key.removeprefix("+"): OmegaConf.select(resolved, key.removeprefix("+")) for key in derive}
    return {**params, **derived}


def check_trusted(config: Mapping[str, Any], extra: list[str]) -> None:
    """Refuse a configuration that names code outside the allow-list.

    Raises:
        ConfigError: with the key and the allowed prefixes.
    """
    try:
        check_components(config, extra)
    except ComponentError as error:
        raise ConfigError(str(error)) from error


def export_yaml(original: str, changes: Mapping[str, Any], header: str) -> str:
    """The user's own YAML with these dotted keys changed and nothing else, comments and order kept.

    Args:
        header: lines of a comment to put above.
    """
    document = yaml.safe_load(original)
    for key, path in components(document):
        if current_path(path) != path:
            changes = {**changes, key: current_path(path)}
    comment = "".join(f"# {line}\n" for line in header.splitlines())
    return comment + edit_yaml(original, changes)
