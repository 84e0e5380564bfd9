"""One module alone touches the private attributes of Optuna's objects."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import optuna
import pytest

import sweep

OWNER = "sweep/search/optuna_private.py"
ROOT = Path(sweep.__file__).parent
MODULES = sorted(path for path in ROOT.rglob("*.py") if not path.as_posix().endswith(OWNER))


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@cache
def private_names() -> frozenset[str]:
    """Every private attribute and method that a class of Optuna defines, and every private module and function."""
    found = set()
    for path in Path(optuna.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
            elif isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
    return frozenset(name for name in found if is_private(name))


def touches(source: str) -> Iterator[str]:
    """What a module touches of Optuna: private attributes of other objects than `self`, and private modules.

    In a class that derives from one of Optuna's, `self` has Optuna's private attributes too.
    """
    tree = ast.parse(source)
    derived = {id(node) for cls in ast.walk(tree) if _is_optuna_class(cls) for node in ast.walk(cls)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in private_names():
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not own or (id(node) in derived and node.attr not in _defined(tree)):
                yield f"{ast.unparse(node)} (line {node.lineno})"
        elif isinstance(node, ast.FunctionDef) and id(node) in derived and node.name in SAMPLER_HOOKS:
            yield f"def {node.name} (line {node.lineno})"
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "optuna":
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            yield from (f"import of {name} (line {node.lineno})" for name in names if is_private(name))
        elif isinstance(node, ast.Constant) and node.value in ("_storage", "_study_id", "_trial_id"):
            yield f"{node.value!r} (line {node.lineno})"


# Methods of Optuna's studies that samplers call: to define one is to override it.
SAMPLER_HOOKS = {"_get_trials", "_get_best_trial", "_is_multi_objective"}


def _is_optuna_class(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any(
        ast.unparse(base).startswith("optuna.") or ast.unparse(base) == "IntersectionSearchSpace" for base in node.bases
    )


def _defined(tree: ast.Module) -> set[str]:
    """Methods that the module defines, and attributes that it sets on `self`."""
    methods = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return methods | {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    }


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_other_module_touches_a_private_attribute_of_optuna(path: Path) -> None:
    assert list(touches(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "study._storage.get_trial(0)",
        "self._study._storage",
        "self._study._study_id",
        "trial._trial_id",
        "sampler._search_space = space",
        "study._get_trials(deepcopy=False)",
        "dist._asdict()",
        "from optuna.study._tell import _tell_with_warning",
        'getattr(study, "_storage")',
        "class S(optuna.Study):\n    def f(self):\n        return self._storage",
        "class S(optuna.Study):\n    def _get_trials(self):\n        return []",
    ],
)
def test_the_walk_sees_what_it_shall_see(source: str) -> None:
    assert list(touches(source))


@pytest.mark.parametrize("source", ["self._storage = 1", "self._study.tell(trial)", "study.get_trials()", "x._mine"])
def test_the_walk_lets_the_rest_be(source: str) -> None:
    assert not list(touches(source))


def test_every_function_of_the_one_module_names_what_it_touches() -> None:
    tree = ast.parse((ROOT.parent / OWNER).read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    assert len(functions) > 5
    for node in functions:
        private = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and is_private(n.attr)}
        text = ast.get_docstring(node) or ""
        assert all(name in text for name in private), f"{node.name} touches {private}"
