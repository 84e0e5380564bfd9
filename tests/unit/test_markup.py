"""Nothing of a person's is parsed as Rich markup: by what may be written in the program's own source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SOURCES = sorted((REPOSITORY / "sweep").rglob("*.py"))
# The module with the one class that makes a console, which parses no text.
CONSOLE = REPOSITORY / "sweep/report/terminal.py"
PARSERS = {"from_markup", "render_str", "get_console", "Console", "RichHandler", "Progress", "Prompt", "Confirm"}
# Renderables that parse their texts themselves, whatever the console says, and their arguments that are texts.
OWN_TEXTS = {"Panel": ("title", "subtitle"), "Rule": ("title",), "Status": ("status",), "Columns": ("title",)}


def parsing(tree: ast.AST) -> Iterator[str]:
    """The places at which Rich would parse a text, or could be told to."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = {alias.name for alias in node.names}
            if node.module == "rich.markup" or (node.module == "rich" and names & {"print", "inspect"}):
                yield f"{node.lineno}: {ast.unparse(node)}"
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            given = {keyword.arg: keyword.value for keyword in node.keywords}
            told = "markup" in given and ast.unparse(given["markup"]) != "False"
            texts = [given[argument] for argument in OWN_TEXTS.get(name, ()) if argument in given]
            if name in PARSERS or told or not all(ast.unparse(text).startswith("Text") for text in texts):
                yield f"{node.lineno}: {ast.unparse(node)}"


def test_the_console_parses_nothing() -> None:
    made = [node for node in ast.walk(ast.parse(CONSOLE.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    inits = [ast.unparse(node) for node in made if ast.unparse(node.func) == "super().__init__"]
    assert len(inits) == 1
    assert "markup=False" in inits[0]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_source_lets_rich_parse_a_text(path: Path) -> None:
    assert list(parsing(ast.parse(path.read_text(encoding="utf-8")))) == []


@pytest.mark.parametrize(
    "line",
    [
        "from rich import print",
        "from rich.markup import render",
        "Text.from_markup(name)",
        "Console()",
        "out.print(name, markup=True)",
        "out.print(name, markup=wanted)",
        "Panel(table, title=name)",
        "Panel(table, title=f'sweep {name}')",
        "RichHandler()",
    ],
)
def test_each_way_is_seen(line: str) -> None:
    assert len(list(parsing(ast.parse(line)))) == 1
