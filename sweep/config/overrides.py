"""Parses the overrides of a command line: which ones Hydra composes, and which ones are laid over its composition.

Invariant: overrides of `space`, `derive` and `recipe.overrides` never reach Hydra. Their keys are torchtune's, dotted
or nested, with a `+` in front of any part that is new. Their values may be sweeps, which Hydra would run by itself.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString, Sweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.config.sections import SECTIONS
from sweep.config.space_grammar import merged
from sweep.errors import ConfigError, unknown_key

# Sections whose keys are torchtune's.
KEYED = ("recipe.overrides", "space", "derive")
# The key of a composition below which it keeps the overrides of those sections.
GIVEN = "given"
# Sections in which an override may name new keys without Hydra's `+`.
OPEN = ("sampler.", "pruner.", "queue.", "evaluate.", "wandb.init")
GROUPS = ("experiment", "prior", "space", "derive", "sampler", "pruner", "evaluate", "queue")
TOP_KEYS = ("name", "controller", "storage", *GROUPS, *SECTIONS)


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The overrides that Hydra composes, and by section of `KEYED` the keys and values of all others.

    Raises:
        ConfigError: an override without `=`, or a value of `recipe.overrides` that varies.
    """
    for_hydra: list[str] = []
    given: dict[str, dict[str, Any]] = {section: {} for section in KEYED}
    for override in (_assignment(override) for override in overrides if override != "experiment=null"):  # the default
        name, equals, text = override.partition("=")
        if not equals and not override.startswith("~"):
            raise ConfigError(f"{override} is no KEY=VALUE; to resume a sweep of that name: `sweep resume {override}`")
        key = name.lstrip("+")
        section = next((section for section in KEYED if f"{key}.".startswith(f"{section}.")), "")
        rest = key.removeprefix(section).removeprefix(".")
        if not (equals and section and (rest or text.startswith("{"))):
            for_hydra.append(_forced(override))
            continue
        layer = _layer(section, rest, _value(section, override, text))
        given[section] = merged(given[section], {f"+{k}": v for k, v in layer.items()} if key != name else layer)
    return for_hydra, given


def section_of(cfg: DictConfig, key: str, resolve: bool = True) -> dict[str, Any]:
    """A section of a composition as plain values; empty if it is null or absent.

    Args:
        resolve: replace interpolations by their values.

    Raises:
        ConfigError: it is no mapping, or an interpolation names a key that does not exist.
    """
    try:
        node = OmegaConf.select(cfg, key)
        if node is None:
            return {}
        if not isinstance(node, DictConfig):
            raise ConfigError(f"{key}={node} is no section; name its keys, as in {key}.KEY=VALUE")
        return OmegaConf.to_container(node, resolve=resolve)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or key}: {str(error).splitlines()[0]}") from error


def keyed_section(cfg: DictConfig, section: str, keep_null: bool = False) -> dict[str, Any]:
    """A section of `KEYED`, flat and unresolved, with the overrides of the command line applied.

    Args:
        keep_null: keep the keys whose value is null; without it null removes a key.
    """
    given = section_of(cfg, GIVEN, resolve=False).get(section, {})
    values = merged(section_of(cfg, section, resolve=False), given)
    return {key: value for key, value in values.items() if keep_null or value is not None}


def hydra_error(error: Exception) -> ConfigError:
    """An error of Hydra in one sentence, with the allowed keys or options."""
    text = str(error)
    if key := re.search(r"Could not override '([\w.]+)'", text):
        section, _, name = key[1].rpartition(".")
        kind = SECTIONS.get(section)
        allowed = [field.name for field in dataclasses.fields(kind)] if kind else list(TOP_KEYS)
        return unknown_key(section or "configuration", name, allowed)
    if missing := re.search(r"Could not find '(\w+)/([\w./-]+)'", text):
        options = re.search(r"Available options in '\w+':\s*(.*?)\s*Config search path", text, re.DOTALL)
        allowed = sorted(set(options[1].split())) if options else []
        return ConfigError(f"{missing[1]}={missing[2]} does not exist; allowed: {', '.join(allowed)}")
    lines = [line.strip() for line in text.splitlines()]
    reasons = [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "See https:"))]
    full_key = getattr(error, "full_key", None)
    return ConfigError((f"{full_key.removeprefix(f'{GIVEN}.')}: " if full_key else "") + " ".join(reasons)[:400])


def _assignment(override: str) -> str:
    """The same as an assignment: `~space.KEY` means `space.KEY=null`."""
    removes = override.startswith(("~space.", "~derive.")) and "=" not in override
    return f"{override[1:]}=null" if removes else override


def _value(section: str, override: str, text: str) -> Any:
    """The value that Hydra reads from a text, or the text itself if it is a sweep or Hydra cannot read it."""
    try:
        parsed = OverridesParser.create().parse_override(f"key={text}")
    except HydraException:  # `train[:64]`, or a nested interpolation
        return text
    if parsed.is_sweep_override():
        if section == "recipe.overrides":
            raise ConfigError(f"{override} varies; write it as space.KEY=…, or put quotes around a text with commas")
        return text
    value = parsed.value()
    if _holds_sweep(value):
        raise ConfigError(f"{override}: put quotes around each value that varies, as in {{epochs: 'choice(1, 2)'}}")
    return text if isinstance(value, str) and section != "recipe.overrides" and text[:1] not in ("'", '"') else value


def _holds_sweep(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, Sweep) or any(map(_holds_sweep, inner))


def _layer(section: str, key: str, value: Any) -> dict[str, Any]:
    """Key to value, as a mapping that can be laid over the section."""
    if not key:
        if not isinstance(value, dict):
            raise ConfigError(f"{section}={value} cannot be read; write {section}.KEY=VALUE")
        return value
    part = re.fullmatch(r"(.+?)\.(value|when)(?:\.(.+))?", key) if section == "space" else None
    if part is None:
        return {key: value}
    return {part[1]: {part[2]: {part[3]: value} if part[3] else value}}  # one part of a conditional parameter


def _forced(override: str) -> str:
    """The override as Hydra accepts it: open sections need no `+`, and a value that Hydra cannot read is a text."""
    key, equals, value = override.partition("=")
    if not equals or not key.lstrip("+").startswith(OPEN):
        return override
    try:
        OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        value = QuotedString(value, Quote.single).with_quotes()
    return f"++{key.lstrip('+')}={value}"
