"""Reads the YAML files that a person writes: groups, experiments, torchtune configurations.

Invariants: whatever a file holds, the answer is a configuration or one sentence with the file, the line, the column and
what the parser expected. Size, nesting and what aliases stand for are bounded before anything is built from a file.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf._utils import get_yaml_loader
from omegaconf.errors import OmegaConfBaseException
from yaml.constructor import ConstructorError
from yaml.error import MarkedYAMLError
from yaml.reader import ReaderError

from sweep.errors import ConfigError

MAX_BYTES = 4 << 20
MAX_DEPTH = 64
# Values of a file after each alias is replaced by what it stands for.
MAX_VALUES = 200_000
# Errors of PyYAML's constructors for a value that does not fit its tag, such as `!!float x` and `0b_`.
_VALUE_ERRORS = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)


def read_text_file(path: Path) -> str:
    """The text of a file that a person wrote, without a byte order mark.

    Raises:
        ConfigError: it cannot be read, is too large, or is no UTF-8.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ConfigError(f"{path} has {size:,} bytes; a configuration has {MAX_BYTES:,} at most")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {(error.strerror or str(error)).lower()}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start]
        line, column = before.count(b"\n") + 1, error.start - (before.rfind(b"\n") + 1) + 1
        byte = f"{data[error.start]:#04x}"
        raise ConfigError(
            f"{path}, line {line}, column {column}: the byte {byte} is no UTF-8; save the file as UTF-8"
        ) from error


def load_yaml(path: Path) -> DictConfig | ListConfig:
    """The configuration in a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigError: the file cannot be read, or is no configuration.
    """
    return parse_yaml(read_text_file(path), str(path))


def parse_yaml(text: str, where: str) -> DictConfig | ListConfig:
    """The configuration that a YAML text describes.

    Args:
        where: the file, for error texts.

    Raises:
        ConfigError: it is no YAML, holds what no configuration can, or is out of bounds.
    """
    try:
        value = _value_of(text, where)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}{yaml_reason(error, text)}") from error
    if value is not None and not isinstance(value, dict | list):
        raise ConfigError(f"{where} holds no YAML mapping, but {str(value)[:40]!r}")
    try:
        config: DictConfig | ListConfig = OmegaConf.create({} if value is None else value)
    except OmegaConfBaseException as error:
        key = f", {error.full_key}" if error.full_key else ""
        reason = next(iter(str(error).splitlines()), "no reason given")
        raise ConfigError(f"{where}{key}: {reason}") from error
    return config


def _value_of(text: str, where: str) -> Any:
    """What a text describes, after its bounds were checked.

    If libyaml cannot read it, the other parser says why, in better words.
    """
    with suppress(yaml.YAMLError, UnicodeError):
        return _read_by(_FastLoader, text, where)
    return _read_by(_Loader, text, where)


def _read_by(loader: Any, text: str, where: str) -> Any:
    """What a text describes. It is refused first if it is nested too deeply, or if its aliases stand for too much."""
    _count(yaml.parse(text, Loader=loader), where)
    return yaml.load(text, Loader=loader)


def yaml_reason(error: yaml.YAMLError, text: str = "") -> str:
    """Line, column and what the parser expected, to stand behind the name of a file.

    Args:
        text: what was parsed, to count lines in.
    """
    if isinstance(error, ReaderError):
        before = text[: error.position] if isinstance(error.position, int) else ""
        character = f"U+{error.character:04X}" if isinstance(error.character, int) else repr(error.character)
        return f"{_place(before)}: the character {character} is not allowed in YAML"
    if not isinstance(error, MarkedYAMLError):
        return f": {' '.join(str(error).split())[:200]}"
    mark = error.problem_mark or error.context_mark
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    problem = " ".join((error.problem or "it cannot be read").split())[:200].replace(
        "'<stream end>'", "the end of the file"
    )
    if "cannot start any token" in problem and "'\\t'" in problem:
        problem = "a tab cannot indent; use spaces"
    began = error.context_mark
    context = " ".join((error.context or "").split())
    if context and began and mark and (began.line, began.column) != (mark.line, mark.column):
        context += f" that begins in line {began.line + 1}, column {began.column + 1}"
    return f"{place}: {problem}{f' ({context})' if context else ''}"


def _place(before: str) -> str:
    line = before.count("\n") + 1
    return f", line {line}, column {len(before) - (before.rfind(chr(10)) + 1) + 1}"


def _count(events: Iterable[Any], where: str) -> None:
    """Count levels and values of a text, from the events of a parser, which come without recursion."""
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = []  # the anchor of each, and the values before it
    total = 0
    for event in events:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            if any(anchor == event.anchor for anchor, _ in open_nodes):
                raise ConfigError(f"{where}, line {line}: the alias *{event.anchor} stands for what it is a part of")
            total += sizes.get(str(event.anchor), 1)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, total))
            total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = total - before
        elif isinstance(event, yaml.ScalarEvent):
            total += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
        if len(open_nodes) > MAX_DEPTH:
            raise ConfigError(f"{where}, line {line}: it is nested more than {MAX_DEPTH} levels deep")
        if total > MAX_VALUES:
            raise ConfigError(
                f"{where}, line {line}: it has more than {MAX_VALUES:,} values, its aliases replaced by what they "
                "stand for"
            )


_OmegaConfLoader: Any = get_yaml_loader()  # the values, and that no key stands twice, are OmegaConf's


class _Loader(_OmegaConfLoader):  # type: ignore[misc]
    """OmegaConf's loader, which says the line of every value that it refuses."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep=deep)
        except _VALUE_ERRORS as error:
            kind = node.tag.rpartition(":")[2]
            said = str(node.value)[:40] if isinstance(node, yaml.ScalarNode) else "what stands here"
            raise ConstructorError(None, None, f"{said!r} cannot be read as {kind}", node.start_mark) from error
        if isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ConstructorError(None, None, f"{value!r} has half of a character", node.start_mark)
        return value


def _fast_loader() -> Any:
    """The same loader on libyaml's parser, which is ten times as fast; the loader itself without libyaml."""
    parser: Any = getattr(yaml, "CSafeLoader", None)
    return _Loader if parser is None else type("FastLoader", (parser, _Loader), {})


_FastLoader: Any = _fast_loader()
