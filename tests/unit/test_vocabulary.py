"""The words of the program: the field's own, and none of the private ones that earlier versions had."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# What to say instead, by word.
RETIRED = {
    "bell": "signal, or the file that says what has changed",
    "believing": "assuming",
    "crew": "scheduler",
    "crowd": "rank penalty",
    "crown": "promote, the best trial",
    "crowned": "the best trial",
    "fates": "how trials ended",
    "freight": "payload",
    "mirror": "sync",
    "mirrored": "synced",
    "nursery": "prefork server",
    "owed": "due, or not done yet",
    "shade": "proximity penalty",
    "standings": "finalists, ranking",
    "stuck": "has nothing to promote",
    "tally": "statistics",
    "trouble": "error",
    "whoever": "name the actor",
}
# The sentences on which the embedded base was trained are data.
DATA = {Path("trainer/embedded/world.py")}
SOURCES = sorted(
    path.relative_to(ROOT)
    for folder in ("sweep", "trainer")
    for path in (ROOT / folder).rglob("*.py")
    if path.relative_to(ROOT) not in DATA
)


def words(text: str) -> Iterator[str]:
    """The words of a source, lower case; those of `snake_case` and `CamelCase` identifiers one by one."""
    for word in re.findall(r"[A-Za-z]+", text.replace("_", " ")):
        yield from (part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", word))


def assigned(tree: ast.AST) -> set[str]:
    """Names of the variables and parameters of all functions; a field may be a key that users read."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    nodes = [node for function in functions for node in ast.walk(function)]
    names = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return names | {node.arg for node in nodes if isinstance(node, ast.arg)}


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_no_retired_word_is_used(source: Path) -> None:
    used = RETIRED.keys() & set(words((ROOT / source).read_text()))
    assert {word: RETIRED[word] for word in used} == {}


@pytest.mark.parametrize("source", SOURCES, ids=str)
def test_no_variable_is_called_found(source: Path) -> None:
    """A variable says what it holds."""
    assert assigned(ast.parse((ROOT / source).read_text())).isdisjoint({"found", "made"})


def test_words_of_identifiers_and_prose_are_seen() -> None:
    text = "class MirrorCrew:  # for whoever is owed\n    def bell_of(self, HTTPFreight): ...\n"
    assert {"mirror", "crew", "whoever", "owed", "bell", "freight", "http"} <= set(words(text))
    assert "bell" not in set(words("labelled"))
    assert assigned(
        ast.parse("def f(found):\n    for made, (stuff, x) in found: thing = x\nclass A:\n    y: int = 1")
    ) == {
        "found",
        "made",
        "stuff",
        "thing",
        "x",
    }
