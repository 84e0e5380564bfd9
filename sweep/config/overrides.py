"""The words of a command line: which of them Hydra composes with, which stand above its composition, and what Hydra
has to say about them.

Invariant: words for `space`, `derive` and `recipe.overrides` never reach Hydra. Their keys are torchtune's, dotted or
nested, new ones with a `+` in front of any part; their values may be sweeps, which Hydra would run by itself.
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
# Where a composition keeps what the command line says about them.
GIVEN = "given"
# Sections in which a word may name new keys without Hydra's `+`.
OPEN = ("sampler.", "pruner.", "queue.", "evaluate.", "wandb.init")
GROUPS = ("experiment", "prior", "space", "derive", "sampler", "pruner", "evaluate", "queue")
TOP_KEYS = ("name", "controller", "storage", *GROUPS, *SECTIONS)


def split_words(words: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The words for Hydra, and by section of `KEYED` the keys and values that stand above its composition.

    Raises:
        ConfigError: a value that varies where only a space may.
    """
    others: list[str] = []
    given: dict[str, dict[str, Any]] = {section: {} for section in KEYED}
    for word in (_assigned(word) for word in words if word != "experiment=null"):  # which is the default
        name, equals, text = word.partition("=")
        if not equals and not word.startswith("~"):
            raise ConfigError(f"{word} is no KEY=VALUE; to go on with a sweep of that name: `sweep resume {word}`")
        key = name.lstrip("+")
        section = next((section for section in KEYED if f"{key}.".startswith(f"{section}.")), "")
        rest = key.removeprefix(section).removeprefix(".")
        if not (equals and section and (rest or text.startswith("{"))):
            others.append(_opened(word))
            continue
        layer = _layer(section, rest, _value(section, word, text))
        given[section] = merged(given[section], {f"+{k}": v for k, v in layer.items()} if key != name else layer)
    return others, given


def section_of(cfg: DictConfig, key: str, resolve: bool = True) -> dict[str, Any]:
    """A section of a composition as plain values; empty where it is null or absent.

    Raises:
        ConfigError: it is no mapping, or an interpolation names nothing.
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
    """A section of `KEYED`, flat and unresolved, with the command line above the rest; null takes a key away."""
    given = section_of(cfg, GIVEN, resolve=False).get(section, {})
    found = merged(section_of(cfg, section, resolve=False), given)
    return {key: value for key, value in found.items() if keep_null or value is not None}


def hydra_error(error: Exception) -> ConfigError:
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
    lines = [line.strip() for line in text.splitlines()]
    told = [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "See https:"))]
    where = getattr(error, "full_key", None)
    return ConfigError((f"{where.removeprefix(f'{GIVEN}.')}: " if where else "") + " ".join(told)[:400])


def _assigned(word: str) -> str:
    return f"{word[1:]}=null" if word.startswith(("~space.", "~derive.")) and "=" not in word else word


def _value(section: str, word: str, text: str) -> Any:
    """What a text means: as Hydra reads it, or itself where it is a sweep or Hydra cannot read it."""
    try:
        override = OverridesParser.create().parse_override(f"key={text}")
    except HydraException:  # `train[:64]`, or a nested interpolation
        return text
    if override.is_sweep_override():
        if section == "recipe.overrides":
            raise ConfigError(f"{word} varies; write it as space.KEY=…, or put quotes around a text with commas")
        return text
    value = override.value()
    if _holds_sweep(value):
        raise ConfigError(f"{word}: put quotes around each value that varies, as in {{epochs: 'choice(1, 2)'}}")
    return text if isinstance(value, str) and section != "recipe.overrides" and text[:1] not in ("'", '"') else value


def _holds_sweep(value: Any) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, Sweep) or any(map(_holds_sweep, inner))


def _layer(section: str, key: str, value: Any) -> dict[str, Any]:
    if not key:
        if not isinstance(value, dict):
            raise ConfigError(f"{section}={value} cannot be read; write {section}.KEY=VALUE")
        return value
    part = re.fullmatch(r"(.+?)\.(value|when)(?:\.(.+))?", key) if section == "space" else None
    if part is None:
        return {key: value}
    return {part[1]: {part[2]: {part[3]: value} if part[3] else value}}  # a piece of a conditional parameter


def _opened(word: str) -> str:
    """A word as Hydra takes it: open sections need no `+`, and what it cannot read is a text."""
    key, equals, value = word.partition("=")
    if not equals or not key.lstrip("+").startswith(OPEN):
        return word
    try:
        OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        value = QuotedString(value, Quote.single).with_quotes()
    return f"++{key.lstrip('+')}={value}"
