"""Changes single values in a YAML text and leaves every other character as it is.

Invariants: only the spans of changed values and the lines of new keys differ. PyYAML's parser finds these spans; its
dumper, and ruamel's round trip, would rewrite `True`, `null` and quotes throughout. Every result is read back, with
numbers as OmegaConf reads them, and equals the original data with these keys changed. If an edit would change more than
its key through an alias, aliases are written out first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import yaml

Path = tuple[str, ...]

# OmegaConf reads `1e-3` and `1.5e3` as numbers, PyYAML as texts; with dates it is the other way round.
_TEXT, _FLOAT, _TIME = (f"tag:yaml.org,2002:{name}" for name in ("str", "float", "timestamp"))
_FLOATS = (_FLOAT, re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)[eE][-+]?[0-9]+$"), list("-+.0123456789"))


class _Loader(yaml.SafeLoader):
    """Reads plain values as OmegaConf does, and records the position of each alias."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.aliases: list[tuple[int, int, yaml.Node]] = []

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        start, end = event.start_mark.index, event.end_mark.index
        node = super().compose_node(parent, index)
        if isinstance(event, yaml.AliasEvent) and node is not None:
            self.aliases.append((start, end, node))
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes a text that OmegaConf would read as another type; writes no anchors, and each text on one line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def text(self, data: str) -> yaml.Node:
        style = '"' if data and data.splitlines() != [data] else None
        return self.represent_scalar(_TEXT, data, style=style)


_Dumper.add_representer(str, _Dumper.text)
_Dumper.add_implicit_resolver(*_FLOATS)
_Loader.add_implicit_resolver(*_FLOATS)
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIME]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, slots=True)
class _Spot:
    """A value in the text.

    Args:
        node: the value.
        key: the key before it; None for an item of a list and for the root.
        flow: the value is inside `{}` or `[]`.
    """

    node: yaml.Node
    key: yaml.Node | None = None
    flow: bool = False


def edit_yaml(text: str, changes: Mapping[str, Any]) -> str:
    """The text with these dotted keys set; a key that it lacks is added at the end of its mapping.

    Raises:
        KeyError: a key leads through a value that is no mapping, list or null, or the key cannot be changed without
            changing more of the text.
    """
    data = _read(text)
    for key, value in changes.items():
        path = tuple(key.split("."))
        data = _updated(data, path, value)
        text = _edit(text, path, value, data)
    return text


def _edit(text: str, path: Path, value: Any, wanted: Any) -> str:
    for prepare in (str, _without_aliases):
        with suppress(yaml.YAMLError):
            edited = _set(prepare(text), path, value)
            if _same(_read(edited), wanted):
                return edited
    raise KeyError(f"{'.'.join(path)} cannot be set without changing more of the YAML; set it there by hand")


def _updated(data: Any, path: Path, value: Any, depth: int = 0) -> Any:
    """The data with the value below `path[depth:]` set; null counts as an empty mapping."""
    if depth == len(path):
        return value
    part = path[depth]
    if data is None or isinstance(data, Mapping):
        data = data or {}
        return {**data, part: _updated(data.get(part), path, value, depth + 1)}
    if isinstance(data, list) and part.isdigit() and int(part) < len(data):
        index = int(part)
        return [*data[:index], _updated(data[index], path, value, depth + 1), *data[index + 1 :]]
    raise KeyError(f"{'.'.join(path)} leads through {data!r:.40}, which has no such key")


def _set(text: str, path: Path, value: Any) -> str:
    root = _Loader(text).get_single_node()
    if root is None:
        return _append(text, len(text), _block(_nested(path, value), 0))
    spot, rest = _Spot(root), path
    while rest and (child := _child(spot, rest[0])):
        spot, rest = child, rest[1:]
    if rest and isinstance(spot.node, yaml.MappingNode):
        return _insert(text, spot.node, _nested(rest, value))
    return _replace(text, spot, _nested(rest, value))  # a null above a new key becomes a mapping


def _child(spot: _Spot, part: str) -> _Spot | None:
    node = spot.node
    flow = spot.flow or bool(isinstance(node, yaml.CollectionNode) and node.flow_style)
    if isinstance(node, yaml.MappingNode):
        return next((_Spot(value, key, flow) for key, value in node.value if key.value == part), None)
    if isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
        return _Spot(node.value[int(part)], None, flow)
    return None


def _replace(text: str, spot: _Spot, value: Any) -> str:
    start, end = spot.node.start_mark.index, _end(text, spot.node)
    new = _flow(value, spot.flow)
    if start == end:  # `key:` or `-` with nothing behind it
        new = f": {new}" if spot.flow and text[start - 1] != ":" else f" {new}"
    elif spot.key is not None and _is_block(spot.node):
        line, colon = text.rfind("\n", 0, start) + 1, text.find(":", spot.key.end_mark.index) + 1
        if colon < line:  # a block below its key: the value goes behind the colon, the block's lines go
            return f"{text[:colon]} {new}{text[colon:line]}{text[_line_end(text, end) + 1 :]}"
    return text[:start] + new + text[end:]


def _insert(text: str, node: yaml.MappingNode, tree: Mapping[str, Any]) -> str:
    if node.flow_style:
        at = _end(text, node.value[-1][1]) if node.value else text.index("{", node.start_mark.index) + 1
        comma = ", " if node.value else ""
        return text[:at] + comma + _flow(tree, True)[1:-1] + text[at:]
    lines = _block(tree, node.value[0][0].start_mark.column)
    return _append(text, _line_end(text, _end(text, node)) + 1, lines)


def _append(text: str, at: int, lines: str) -> str:
    gap = "" if not text or text[:at].endswith("\n") else "\n"
    return text[:at] + gap + lines + text[at:]


def _end(text: str, node: yaml.Node) -> int:
    """The index at which a value's text ends. A block's end mark is later: at the next token, after blank lines."""
    if isinstance(node, yaml.MappingNode) and _is_block(node):
        key, value = node.value[-1]
        return max(int(key.end_mark.index), _end(text, value))  # the value may be an alias, whose text is elsewhere
    if isinstance(node, yaml.SequenceNode) and _is_block(node):
        return _end(text, node.value[-1])
    start, end = node.start_mark.index, node.end_mark.index
    if isinstance(node, yaml.ScalarNode) and node.style in ("|", ">"):
        return int(start + len(text[start:end].rstrip()))
    return int(end)


def _is_block(node: yaml.Node) -> bool:
    return isinstance(node, yaml.CollectionNode) and not node.flow_style and bool(node.value)


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _flow(value: Any, inside: bool) -> str:
    """A value on one line. Inside `{}` or `[]` more texts need quotes."""
    text = _dump([value] if inside else value, flow=True)
    return text[1:-1] if inside else text.removesuffix("\n...")


def _block(tree: Mapping[str, Any], indent: int) -> str:
    return "".join(f"{' ' * indent}{line}\n" for line in _dump(tree, flow=False).split("\n"))


def _dump(value: Any, flow: bool) -> str:
    options: dict[str, Any] = {"sort_keys": False, "width": math.inf, "allow_unicode": True}
    return str(yaml.dump(value, Dumper=_Dumper, default_flow_style=flow, **options)).strip()


def _nested(path: Path, value: Any) -> Any:
    for part in reversed(path):
        value = {part: value}
    return value


def _read(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)


def _without_aliases(text: str) -> str:
    """The text with each alias replaced by the value that it refers to."""
    loader = _Loader(text)
    loader.get_single_node()
    for start, end, node in reversed(loader.aliases):
        text = text[:start] + _flow(loader.construct_document(node), True) + text[end:]
    return text


def _same(left: Any, right: Any) -> bool:
    """Whether two values are equal in value and type, NaN included; tuples equal lists, and keys have no order."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(_same, left, right))
    return repr(left) == repr(right)
