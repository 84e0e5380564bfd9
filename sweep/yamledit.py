"""Changes single values in a YAML text and leaves every other character as it is.

Invariant: only the spans of changed values and lines of new keys differ; PyYAML's own parser finds them. (Its
dumper, and ruamel's round trip, would rewrite `True`, `null` and quotes throughout.)
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import yaml

Path = tuple[str, ...]


def edit_yaml(text: str, changes: Mapping[str, Any]) -> str:
    """The text with these dotted keys set; keys that it lacks are added to the end of their mapping.

    Raises:
        KeyError: a key leads through a value that is no mapping or list.
    """
    added: dict[Path, dict[str, Any]] = {}
    for key, value in changes.items():
        path = tuple(key.split("."))
        depth = _known_depth(text, path)
        if depth == len(path):
            text = _replace(text, _find(text, path), value)
        else:
            node = added.setdefault(path[: depth + 1], {})
            _nest(node, path[depth:], value)
    for path, tree in added.items():
        text = _insert(text, path[:-1], tree)
    return text


def _replace(text: str, node: yaml.Node, value: Any) -> str:
    start, end = node.start_mark.index, _end(node)
    gap = " " if start == end and text[start - 1 : start] == ":" else ""  # `key:` with nothing behind it
    return text[:start] + gap + _flow(value) + text[end:]


def _insert(text: str, parent: Path, tree: dict[str, Any]) -> str:
    node = _find(text, parent)
    if not isinstance(node, yaml.MappingNode):
        raise KeyError(".".join(parent))
    if node.flow_style:
        at = _end(node) - 1
        comma = ", " if node.value else ""
        return text[:at] + comma + _flow(tree)[1:-1] + text[at:]
    indent = node.start_mark.column
    block = yaml.safe_dump(tree, sort_keys=False, default_flow_style=False, width=10_000)
    lines = "".join(" " * indent + line + "\n" for line in block.splitlines())
    at = text.find("\n", _end(node))
    if at < 0:
        return text + "\n" + lines
    return text[: at + 1] + lines + text[at + 1 :]


def _find(text: str, path: Path) -> yaml.Node:
    node: yaml.Node = yaml.compose(io.StringIO(text), Loader=yaml.SafeLoader) or yaml.MappingNode("", [])
    for part in path:
        child = _child(node, part)
        if child is None:
            raise KeyError(".".join(path))
        node = child
    return node


def _known_depth(text: str, path: Path) -> int:
    for depth in range(len(path), 0, -1):
        try:
            _find(text, path[:depth])
        except KeyError:
            continue
        return depth
    return 0


def _child(node: yaml.Node, part: str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == part), None)
    if isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
        found: yaml.Node = node.value[int(part)]
        return found
    return None


def _end(node: yaml.Node) -> int:
    """Where a value's own text ends; a block's mark lies at the next token, beyond comments and blank lines."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10_000)
    return text.removesuffix("...\n").strip()


def _nest(tree: dict[str, Any], path: Path, value: Any) -> None:
    for part in path[:-1]:
        tree = tree.setdefault(part, {})
    tree[path[-1]] = value
