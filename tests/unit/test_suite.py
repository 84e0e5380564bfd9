"""What holds of the tests themselves."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.helpers.schedule import DIVIDED, LONGEST, in_order

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "tests").rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names of what a file imports, and of what it imports from there."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_imports_a_module_of_tests(path: Path) -> None:
    """What tests share stands in tests/helpers: a test module may be renamed or divided without a look elsewhere."""
    tests = {".".join(module.relative_to(ROOT).with_suffix("").parts) for module in MODULES if is_test(module)}
    assert sorted(imports(path) & tests) == []


def is_test(path: Path) -> bool:
    return path.name.startswith("test_")


def test_the_files_that_begin_first_and_those_that_are_divided_exist() -> None:
    assert [name for name in (*LONGEST, *DIVIDED) if not (ROOT / name).is_file()] == []


def test_the_longest_files_begin_first_and_the_order_within_a_file_stays() -> None:
    few, many, longest = "tests/a.py::x", ["tests/b.py::z", "tests/b.py::y"], f"{LONGEST[1]}::t"
    assert in_order([few, *many, longest]) == [longest, *many, few]
