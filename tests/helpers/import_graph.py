"""Who imports whom, read from the source: modules, and the folders that they stand in.

    python -m tests.helpers.import_graph [CHECKOUT]

counts the folders of a checkout, the floors that they stand on, the arrows between them, and the arrows that point
upwards: those within a cycle. A module that stands at a package's top is a folder of its own.
"""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

PACKAGES = ("sweep", "trainer")


@dataclass(frozen=True)
class ImportGraph:
    """The imports of a checkout's packages.

    Args:
        checkout: the directory that holds the packages.
    """

    checkout: Path

    @cached_property
    def modules(self) -> Mapping[str, Path]:
        """Every module by its dotted name."""
        modules = {}
        for package in PACKAGES:
            for path in sorted((self.checkout / package).rglob("*.py")):
                parts = path.relative_to(self.checkout).with_suffix("").parts
                modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        return modules

    @cached_property
    def _imports(self) -> Mapping[str, tuple[tuple[str, bool], ...]]:
        imports = {}
        for module, path in self.modules.items():
            names = _walk(ast.parse(path.read_text(encoding="utf-8")), module, early=True)
            imports[module] = tuple(dict.fromkeys((self._known(name), early) for name, early in names))
        return imports

    def imports(self, module: str) -> tuple[tuple[str, bool], ...]:
        """What a module imports, and whether as it is loaded; imports for the type checker are left out."""
        return self._imports[module]

    def own(self, module: str, late: bool = True) -> set[str]:
        """Modules of ours that a module imports; without `late` only those that are loaded with it."""
        names = {name for name, early in self.imports(module) if early or late}
        return {name for name in names if name.split(".")[0] in PACKAGES} - {module}

    def outside(self, module: str) -> set[str]:
        """Other packages that a module imports, late imports included."""
        return {name.split(".")[0] for name, _ in self.imports(module)} - set(PACKAGES) - {"__future__"}

    def arrows(self) -> dict[str, set[str]]:
        """By folder, the folders that it imports from."""
        arrows: dict[str, set[str]] = {folder(module): set() for module in self.modules}
        for module in self.modules:
            arrows[folder(module)] |= {folder(name) for name in self.own(module)} - {folder(module)}
        return arrows

    def _known(self, name: str) -> str:
        """`sweep.model.facts.View` is `sweep.model.facts`; names of other packages stay."""
        while name.partition(".")[0] in PACKAGES and name not in self.modules and "." in name:
            name = name.rpartition(".")[0]
        return name


def folder(module: str) -> str:
    """The folder below its package in which a module stands; its own name if it stands at the top."""
    return ".".join(module.split(".")[:2])


def floors(arrows: Mapping[str, set[str]]) -> int:
    """The length of the longest chain of imports, counted in folders.

    Raises:
        CycleError: some arrows form a cycle.
    """
    height: dict[str, int] = {}
    for name in TopologicalSorter(arrows).static_order():
        height[name] = 1 + max((height[below] for below in arrows.get(name, ())), default=0)
    return max(height.values(), default=0)


def upwards(arrows: Mapping[str, set[str]]) -> set[tuple[str, str]]:
    """Arrows that are part of a cycle: no order of the folders makes all of them point downwards."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for name in arrows[waiting.pop()] - seen:
                seen.add(name)
                waiting.append(name)
        return seen

    return {(name, below) for name, targets in arrows.items() for below in targets if name in reached(below)}


def _walk(node: ast.AST, module: str, early: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                continue
            case ast.Import(names=names):
                yield from ((alias.name, early) for alias in names)
            case ast.ImportFrom(module=source, names=names, level=level):
                assert level == 0, f"{module}: a relative import"
                assert source is not None
                yield from ((f"{source}.{alias.name}", early) for alias in names)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Lambda():
                yield from _walk(child, module, False)
            case _:
                yield from _walk(child, module, early)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.helpers.import_graph", description=__doc__.split("\n")[0])
    parser.add_argument("checkout", nargs="?", type=Path, default=Path(__file__).resolve().parents[2])
    arrows = ImportGraph(parser.parse_args().checkout).arrows()
    for package in PACKAGES:
        own = {name: below for name, below in arrows.items() if name.split(".")[0] == package}
        own = {name: {n for n in below if n.split(".")[0] == package} for name, below in own.items()}
        circular = upwards(own)
        try:
            count = str(floors(own))
        except CycleError:
            count = "no number of"
        total = sum(map(len, own.values()))
        print(f"{package}: {len(own)} folders on {count} floors, {total} arrows, {len(circular)} of them upwards")
        for name, below in sorted(circular):
            print(f"  {name} -> {below}")


if __name__ == "__main__":
    main()
