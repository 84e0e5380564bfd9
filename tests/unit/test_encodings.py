"""Every file and every pipe of text names its encoding, so that the locale of a process has no say in it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = sorted(path for package in ("sweep", "trainer") for path in (REPOSITORY / package).rglob("*.py"))
# Methods and functions that open text, and the position of their mode, if they have one.
OPENERS = {"open": 0, "fdopen": 1, "NamedTemporaryFile": 0, "TemporaryFile": 0, "SpooledTemporaryFile": 1}
BINARY = {"NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile"}  # unless a mode says otherwise


def unnamed(tree: ast.AST) -> Iterator[str]:
    """The calls that read or write text in the locale's encoding."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
        name = method or (call.func.id if isinstance(call.func, ast.Name) else "")
        flags = [given.get(key) for key in ("text", "universal_newlines")]
        pipe = name in ("run", "Popen", "check_output") and any(
            isinstance(flag, ast.Constant) and flag.value is True for flag in flags
        )
        text = method in ("read_text", "write_text") or (name in OPENERS and _is_text(call, given, name, bool(method)))
        if (pipe or text) and "encoding" not in given:
            yield f"{call.lineno}: {ast.unparse(call)}"


def _is_text(call: ast.Call, given: dict[str | None, ast.expr], name: str, is_method: bool) -> bool:
    if is_method and name == "open" and len(call.args) > 1 and not isinstance(call.args[0], ast.Constant):
        return False  # `os.open`, which gives a descriptor, and `QueueBackend.open(room, settings, …)`
    position = OPENERS[name] + (name == "open" and not is_method)
    mode = given.get("mode") or (call.args[position] if len(call.args) > position else None)
    if mode is None:
        return name not in BINARY
    return not (isinstance(mode, ast.Constant) and "b" in str(mode.value))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_text_is_in_the_locale_s_encoding(path: Path) -> None:
    assert list(unnamed(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_each_way_to_open_text_is_seen() -> None:
    ways = """
path.read_text()
path.write_text(text)
path.open()
path.open("a+")
open(path)
open(path, "w")
os.fdopen(descriptor, "w")
tempfile.NamedTemporaryFile("w")
subprocess.run(command, text=True)
subprocess.Popen(command, universal_newlines=True)
"""
    assert len(list(unnamed(ast.parse(ways)))) == len(ways.split("\n")) - 2
    others = """
path.open("rb")
path.read_text(encoding="utf-8")
open(path, mode="wb")
os.open(path, flags)
tempfile.TemporaryFile()
subprocess.run(command)
read_text(path)
"""
    assert list(unnamed(ast.parse(others))) == []
