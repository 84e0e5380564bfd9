"""Parses the overrides of a command line: which ones Hydra composes, and which ones are laid over its composition.

Invariant: overrides of `space`, `derive` and `recipe.overrides` never reach Hydra. Their keys are torchtune's, dotted
or nested, with a `+` in front of any part that is new. Their values may be sweeps, which Hydra would run by itself.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sweep.config.grammar import GrammarError, can_read, holds_sweep, parse_value, quoted
from sweep.config.resolvers import resolution_reason
from sweep.config.sections import SECTIONS
from sweep.config.space_grammar import merged
from sweep.errors import ConfigError, unknown_key
from trainer.names import has_control

MAX_KEY = 250
# Characters of one word. The parser is slow, and what is longer belongs into a file.
MAX_WORD = 100_000
# Sections whose keys are torchtune's.
KEYED = ("recipe.overrides", "space", "derive")
# The key of a composition below which it keeps the overrides of those sections.
GIVEN = "given"
# Sections in which an override may name new keys without Hydra's `+`.
OPEN = (
    "sampler.",
    "pruner.",
    "queue.",
    "evaluate.",
    "wandb.init",
    "metric.",
    "objective.metrics",
    "objective.constraints",
)
SECTION_NAMES = ("experiment", "prior", "space", "derive", "sampler", "pruner", "evaluate", "queue", "metric")
TOP_KEYS = ("name", "controller", "storage", *SECTION_NAMES, *SECTIONS)
# Keys that choose a file of a group; `space` takes a mapping too.
GROUPS = ("experiment", "prior", "sampler", "pruner", "evaluate", "queue", "recipe", "objective", "wandb", "space")
# Keys whose values are texts, which a person need not quote for Hydra's grammar: paths, URLs, names.
TEXTS = {"name", "controller", "storage"} | {
    f"{section}.{field.name}"
    for section, kind in SECTIONS.items()
    for field in dataclasses.fields(kind)
    if field.type in ("str", "str | None")
}
# What OmegaConf raises when it resolves what a person wrote. Errors of resolvers come as OmegaConf's own.
RESOLUTION_ERRORS = (OmegaConfBaseException, RecursionError)
_LEXER = "LexerNoViableAltException: "


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The overrides that Hydra composes, and by section of `KEYED` the keys and values of all others.

    Raises:
        ConfigError: an override without `=`, or a value of `recipe.overrides` that varies.
    """
    for_hydra: list[str] = []
    given: dict[str, dict[str, Any]] = {section: {} for section in KEYED}
    for override in (_assignment(override) for override in overrides if override != "experiment=null"):  # the default
        check_text(override)
        name, equals, text = override.partition("=")
        if not equals and not override.startswith("~"):
            raise ConfigError(f"{override} is no KEY=VALUE; to resume a sweep of that name: `sweep resume {override}`")
        key = name.lstrip("+")
        section = next((section for section in KEYED if f"{key}.".startswith(f"{section}.")), "")
        rest = key.removeprefix(section).removeprefix(".")
        if not (equals and section and (rest or text.startswith("{"))):
            is_option = equals and key in GROUPS
            for_hydra.append(f"{name}={_option(key, text)}" if is_option else _forced(override))
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
    except RESOLUTION_ERRORS as error:
        raise resolution_error(error, key) from error


def value_of(cfg: DictConfig, key: str) -> Any:
    """A single value of a composition; None if it is absent.

    Raises:
        ConfigError: an interpolation in it fails.
    """
    try:
        return OmegaConf.select(cfg, key)
    except RESOLUTION_ERRORS as error:
        raise resolution_error(error, key) from error


def resolution_error(error: Exception, key: str) -> ConfigError:
    """An error of OmegaConf while it resolves a section, in one sentence.

    Args:
        key: what was resolved, if the error does not say it.
    """
    if isinstance(error, RecursionError):
        return ConfigError(f"{key}: its interpolations refer to each other in a circle, or are nested too deeply")
    return ConfigError(f"{getattr(error, 'full_key', None) or key}: {resolution_reason(error)}")


def keyed_section(cfg: DictConfig, section: str, keep_null: bool = False) -> dict[str, Any]:
    """A section of `KEYED`, flat and unresolved, with the overrides of the command line applied.

    Args:
        keep_null: keep the keys whose value is null; without it null removes a key.
    """
    given = section_of(cfg, GIVEN, resolve=False).get(section, {})
    values = merged(section_of(cfg, section, resolve=False), given)
    return {key: value for key, value in values.items() if keep_null or value is not None}


def hydra_error(error: Exception, words: Sequence[str] = ()) -> ConfigError:
    """An error of Hydra in one sentence, with the allowed keys or options.

    Args:
        words: what Hydra has composed.
    """
    text = str(error)
    if not text.strip() and isinstance(error.__cause__, Exception):  # Hydra's own exception says nothing
        return hydra_error(error.__cause__, words)
    if place := re.fullmatch(r"hydra\.overrides\.task\[(\d+)\]", str(getattr(error, "full_key", ""))):
        word = words[int(place[1])] if int(place[1]) < len(words) else "an override"
        reason = next(iter(text.splitlines()), "")[:200].replace("<EOF>", "the end of the text")
        return ConfigError(f"{word[:200]} has an interpolation that cannot be read: {reason}")
    if key := re.search(r"Could not override '([^'\n]+)'", text):
        section, _, name = key[1].rpartition(".")
        if file := re.match(r"In '([^']+)'", text):
            return ConfigError(
                f"{file[1]}.yaml overrides {key[1]}, which is in no list of defaults before it; the entry is "
                "`override /GROUP: OPTION`, in a file that begins with `# @package _global_`"
            )
        if not section and name in TOP_KEYS:
            return ConfigError(f"{name} is a section and takes no value itself; name its keys, as in {name}.KEY=VALUE")
        kind = SECTIONS.get(section)
        allowed = [field.name for field in dataclasses.fields(kind)] if kind else list(TOP_KEYS)
        return unknown_key(section or "configuration", name, allowed)
    if missing := re.search(r"Could not (?:find|load) '([^/'\n]+)/([^'\n]*)'", text):
        options = re.search(r"Available options in '[^'\n]+':\s*(.*?)\s*Config search path", text, re.DOTALL)
        allowed = sorted(set(options[1].split())) if options else []
        known = f"; allowed: {', '.join(allowed)}" if allowed else ", or a file that it names does not"
        return ConfigError(f"{missing[1]}={missing[2]} does not exist{known}")
    if isinstance(error, OverrideParseException):
        return ConfigError(f"{error.override} cannot be read: {_parse_reason(error.override, text)}")
    lines = [line.strip() for line in re.split(r"\n\s*(?:Config s|S)earch path:", text)[0].splitlines()]
    reasons = [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "See https:"))]
    full_key = getattr(error, "full_key", None)
    said = " ".join(reasons)[:400] or f"the configuration cannot be composed ({type(error).__name__})"
    where = full_key.removeprefix(f"{GIVEN}.") if full_key else " ".join(words)[:200]
    return ConfigError(f"{where}: {said}" if where and where not in said else said)


def _parse_reason(override: str, text: str) -> str:
    """Why Hydra's parser refuses an override, from the lines of its message."""
    lines = [line for line in text.splitlines() if not line.startswith(("See https:", "Error parsing override"))]
    if text.startswith(_LEXER):
        caret = next((line for line in lines if line.strip() == "^"), "")
        at = max(0, len(caret) - 1 - len(_LEXER))
        return f"the character {override[at : at + 1]!r} must stand within quotes"
    said = " ".join(" ".join(lines).split())[:300].replace("<EOF>", "the end of the text")
    return f"{said or 'it is no KEY=VALUE'}; put quotes around a text"


def _assignment(override: str) -> str:
    """The same as an assignment: `~space.KEY` means `space.KEY=null`."""
    removes = override.startswith(("~space.", "~derive.")) and "=" not in override
    return f"{override[1:]}=null" if removes else override


def _value(section: str, override: str, text: str) -> Any:
    """The value that Hydra reads from a text, or the text itself if it is a sweep or Hydra cannot read it."""
    try:
        parsed = parse_value(text)
    except GrammarError:  # `train[:64]`, or a nested interpolation
        return text
    if parsed.is_sweep_override():
        if section == "recipe.overrides":
            raise ConfigError(f"{override} varies; write it as space.KEY=…, or put quotes around a text with commas")
        return text
    value = parsed.value()
    if holds_sweep(value):
        raise ConfigError(f"{override}: put quotes around each value that varies, as in {{epochs: 'choice(1, 2)'}}")
    return text if isinstance(value, str) and section != "recipe.overrides" and text[:1] not in ("'", '"') else value


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
    name = key.lstrip("+")
    if equals and name in TEXTS:
        return f"{key}={_text(value)}"
    if not equals or not name.startswith(OPEN):
        return override
    return f"++{name}={value if can_read(value) else quoted(value)}"


def _text(value: str) -> str:
    """A value that is a text, as Hydra reads it. What a person wrote in the grammar stays: quotes, escapes, null."""
    in_grammar = value.strip() in ("", "null") or value[:1] in ("'", '"') or "\\" in value
    return value if in_grammar and can_read(value) else quoted(value)


def _option(group: str, text: str) -> str:
    """The option of a group, as Hydra reads it: null, a list of names, or one name.

    Raises:
        ConfigError: it is none of these.
    """
    try:
        value = parse_value(text).value()
    except GrammarError:
        value = text
    names = value if isinstance(value, list) else [value]
    if not all(isinstance(name, str | int | float) for name in names) and value is not None:
        raise ConfigError(
            f"{group}={text} names no option: a group takes the name of one of its files, as in {group}=NAME; "
            f"{group}.KEY=VALUE changes a key of it"
        )
    return text if value is None or isinstance(value, list) or text[:1] in ("'", '"') else quoted(text)


def check_text(word: str) -> None:
    """Refuse a word of a command line that no file can hold: bytes that are no UTF-8, control characters, a novel.

    Raises:
        ConfigError: it says which.
    """
    shown = f"{word[:60].encode('utf-8', 'replace').decode()}{'…' if len(word) > 60 else ''}"
    if len(word) > MAX_WORD:
        raise ConfigError(f"{shown} has {len(word):,} characters; write what is longer than {MAX_WORD:,} into a file")
    if len(word.partition("=")[0]) > MAX_KEY:
        raise ConfigError(f"{shown} has a key of more than {MAX_KEY} characters, which no key has")
    if any("\ud800" <= letter <= "\udfff" for letter in word):
        raise ConfigError(f"{shown} has bytes that are no UTF-8; a configuration can hold UTF-8 only")
    if has_control(word.replace("\t", " ").replace("\n", " ")):
        raise ConfigError(f"{shown!r} has a control character; leave it out")
