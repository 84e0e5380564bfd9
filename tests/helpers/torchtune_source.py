"""What torchtune's recipe and our trainer read of a configuration, by their source. Torchtune is not imported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from sweep.resources import torchtune_recipes

PACKAGES = torchtune_recipes().parents[1]
RECIPE = PACKAGES / "recipes" / "lora_finetune_single_device.py"
TRAINER = Path(__file__).resolve().parents[2] / "trainer"
# Which part of a configuration a variable of the recipe holds.
NESTED = ("model", "checkpointer", "dataset", "optimizer", "lr_scheduler")
PARTS = {"cfg": "", "self.cfg": "", **{f"cfg_{name}": f"{name}." for name in NESTED}}


def read_keys(source: Path) -> set[str]:
    """The dotted keys that a module reads as attributes, so that they must exist."""
    keys = {_key(node) for node in ast.walk(_tree(source))}
    return {key for key in keys if key and key.rpartition(".")[2] not in ("get", "items")}


def defaults(*sources: Path) -> dict[str, object]:
    """The keys that modules read by `get`, with the default of each; None where every reading has none."""
    found: dict[str, object] = {}
    for key, value in (pair for source in sources for pair in _defaults(_tree(source))):
        assert key not in found or found[key] in (None, False, value) or value in (None, False), key
        found[key] = value if found.get(key) is None else found[key]
    return found


def required_arguments(source: Path) -> dict[str, set[str]]:
    """By class, the arguments without a default."""
    required = {}
    for node in (node for node in ast.walk(_tree(source)) if isinstance(node, ast.ClassDef)):
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                names = [argument.arg for argument in part.args.args][1:]
                required[node.name] = set(names[: len(names) - len(part.args.defaults)])
    return required


def _defaults(tree: ast.AST) -> Iterator[tuple[str, object]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (key := _key(node.func)) and (key == "get" or key.endswith(".get")):
            name, *default = node.args
            if isinstance(name, ast.Constant):
                value = ast.literal_eval(default[0]) if default else None
                yield key.removesuffix("get") + str(name.value), value


def _key(node: ast.AST) -> str:
    """The dotted key of an expression such as `cfg.checkpointer.model_type`; empty if it is none."""
    text = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
    for name, part in PARTS.items():
        rest = text.removeprefix(f"{name}.")
        if rest != text and rest.replace(".", "").isidentifier():
            return part + rest
    return ""


def _tree(source: Path) -> ast.Module:
    return ast.parse(source.read_text(encoding="utf-8"))
