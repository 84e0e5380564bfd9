"""The YAML of a trial for `tune run`: the user's file with the trial's values, completed by what torchtune needs.

Invariants: read as torchtune reads it, the text has every value that the trial was trained with. Torchtune's recipe
finds each key that it reads without a default (`tests/unit/config/test_exported_yaml.py` reads its source). Beyond the
changed and added keys the text is the user's own. Every added key is named in the comment above the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from sweep.config.resolvers import OWN_RESOLVERS
from sweep.config.torchtune import export_yaml, has_key, resolve, value_at
from sweep.errors import ConfigError
from trainer.components import components, current_path

# Keys that torchtune's recipe reads without a default, and that a configuration may lack here. The values are those by
# which the trainer works without them.
RECIPE_NEEDS: dict[str, Any] = {
    "compile": False,
    "max_steps_per_epoch": None,
    "resume_from_checkpoint": False,
}
# The same of components that the trainer builds otherwise or not at all; a null does not do for them either.
OUTPUT = "${output_dir}"
CHECKPOINTER_NEEDS: dict[str, Any] = {"output_dir": OUTPUT}
LOGS = "${output_dir}/logs"
LOGGERS = "torchtune.training.metric_logging."
DEFAULT_LOGGER = {"_component_": f"{LOGGERS}DiskLogger", "log_dir": LOGS}
LOGGER_NEEDS: dict[str, dict[str, Any]] = {"DiskLogger": {"log_dir": LOGS}, "TensorBoardLogger": {"log_dir": LOGS}}
# Keys that have a default in the recipe, but may not be null there.
NOT_NULL: dict[str, Any] = {"log_every_n_steps": 1}

_OWN = re.compile(r"\$\{\s*(?:" + "|".join(OWN_RESOLVERS) + r")\s*:")


def exported_yaml(
    original: str,
    changes: Mapping[str, Any],
    added: Mapping[str, Any],
    trained: Mapping[str, Any],
    header: str,
) -> str:
    """The user's YAML as a trial's configuration for `tune run`.

    Args:
        original: the text of the user's YAML.
        changes: the dotted keys that the sweep and the trial changed, with their values; interpolations may be left.
        added: further keys that the trial was trained with, which the comment names.
        trained: the trial's configuration as plain values.
        header: lines to put above the text as a comment.

    Raises:
        ConfigError: a key cannot be set in this YAML.
    """
    trained = _current(trained)
    text = export_yaml(original, {**changes, **added}, "")
    text, written = _settled(text, trained)
    needs = dict(_needs(_raw(text)))
    text = export_yaml(text, needs, "")
    lines = [header] if header else []
    lines += _comment("Written out, with the values that the trial was trained with:", {**added, **written})
    lines += _comment("Added, since `tune run` needs these keys:", needs)
    return export_yaml(text, {}, "\n".join(lines))


def _settled(text: str, trained: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The text with the values of the trial where torchtune would read others, and these keys.

    Values are written before interpolations, which may refer to them and then stay as they are.

    Raises:
        ConfigError: a key cannot be set in this YAML.
    """
    written: dict[str, Any] = {}
    while unlike := dict(_unlike(text, trained)):
        raw = _raw(text)
        plain = {key: value for key, value in unlike.items() if "${" not in str(_value(raw, key))}
        wanted = plain or unlike
        if again := next((key for key in wanted if key in written), None):
            raise ConfigError(
                f"the torchtune configuration cannot be exported: {again}={wanted[again]} cannot be set without "
                "changing more of the YAML; set it there by hand"
            )
        written |= wanted
        text = export_yaml(text, wanted, "")
    return text, written


def _value(config: Any, key: str) -> Any:
    return value_at(config, key) if has_key(config, key) else None


def _comment(title: str, keys: Mapping[str, Any]) -> list[str]:
    return [title, *(f"  {key} = {_shown(value)}" for key, value in keys.items())] if keys else []


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _raw(text: str) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.create(text)) or {}  # type: ignore[return-value]


def _current(trained: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration with today's names of components, which are those of the exported text."""
    cfg = OmegaConf.create(dict(trained))
    for key, path in components(trained):
        if current_path(path) != path:
            OmegaConf.update(cfg, key, current_path(path))
    return OmegaConf.to_container(cfg)  # type: ignore[return-value]


def _unlike(text: str, trained: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keys that torchtune would read from this text otherwise than the trial was trained, with the trial's values.

    Torchtune has no resolver of ours, so that it cannot read a value that names one.
    """
    raw = _raw(text)
    foreign = {key: value_at(trained, key) for key, value in _leaves(raw) if _OWN.search(str(value))}
    yield from foreign.items()
    yield from _differences(resolve(raw, foreign, {}), trained)


def _leaves(value: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    items = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        yield at, value
        return
    for key, item in items:
        yield from _leaves(item, f"{at}.{key}" if at else str(key))


def _differences(read: Any, trained: Any, at: str = "") -> Iterator[tuple[str, Any]]:
    """The keys of `trained` at which `read` has another value or none; a key that is a number equals its text."""
    if isinstance(read, Mapping) and isinstance(trained, Mapping):
        there = {str(key): value for key, value in read.items()}
        for key, value in trained.items():
            name = f"{at}.{key}" if at else str(key)
            if str(key) in there:
                yield from _differences(there[str(key)], value, name)
            else:
                yield name, value
    elif isinstance(read, list) and isinstance(trained, list) and len(read) == len(trained):
        for index, (left, right) in enumerate(zip(read, trained, strict=True)):
            yield from _differences(left, right, f"{at}.{index}")
    elif repr(read) != repr(trained):
        yield at, trained


def _needs(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The keys that torchtune needs and this configuration lacks, with values."""
    for key, value in RECIPE_NEEDS.items():
        if not has_key(config, key):
            yield key, value
    for key, value in NOT_NULL.items():
        if has_key(config, key) and value_at(config, key) is None:
            yield key, value
    checkpointer = config.get("checkpointer")
    for name, value in CHECKPOINTER_NEEDS.items():
        if isinstance(checkpointer, Mapping) and checkpointer.get(name) is None:
            yield f"checkpointer.{name}", value
    logger = config.get("metric_logger") or {}
    if not isinstance(logger, Mapping):
        return
    kind = str(logger.get("_component_") or DEFAULT_LOGGER["_component_"])
    needs = {"_component_": kind, **LOGGER_NEEDS.get(kind.removeprefix(LOGGERS), {})}
    lacks = {name: value for name, value in needs.items() if logger.get(name) is None}
    if lacks and not logger:
        yield "metric_logger", lacks
    elif lacks:
        yield from ((f"metric_logger.{name}", value) for name, value in lacks.items())
