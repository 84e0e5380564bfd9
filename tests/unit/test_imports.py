"""Who imports whom: the layers of the program, and what a command line may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("sweep", "trainer")
# From the bottom up; a module imports what stands above it in this list, late imports included.
LAYERS = (
    "trainer",
    "trainer.contract trainer.room trainer.components trainer.ending trainer.embedded",
    "trainer.progress trainer.reporter trainer.tracking trainer.cluster trainer.store",
    "trainer.replica",
    "trainer.mirror",
    "sweep sweep.errors sweep.resources sweep.yamledit sweep.nursery",
    "sweep.model sweep.space sweep.queues sweep.evaluators sweep.slurm sweep.storage sweep.wandbclient",
    "sweep.ports sweep.grammar sweep.submit sweep.launchtemplate sweep.launchapi sweep.strategy sweep.tables",
    "sweep.tally sweep.spent sweep.budget sweep.occupancy sweep.ranking sweep.repeats sweep.gridwalk sweep.looks",
    "sweep.launchagent sweep.wandbqueue",
    "sweep.simulation sweep.ledger sweep.finals sweep.strategy.encoding sweep.strategy.surrogate",
    "sweep.strategy.evidence",
    "sweep.decide sweep.channel sweep.dispatch sweep.dispatch.* sweep.recipe sweep.settings sweep.view",
    "sweep.allowance",
    "sweep.mirror sweep.lease sweep.strategy.forecast sweep.strategy.places",
    "sweep.distributions sweep.curves sweep.proposals sweep.tracking sweep.wandbchannel sweep.mirrored",
    "sweep.strategy.freeze_thaw sweep.sampler sweep.warmstart",
    "sweep.wandbautomation sweep.wandbagents",
    "sweep.loop sweep.study sweep.words sweep.targets sweep.probe sweep.launchjobs sweep.wandbsync sweep.evaluation",
    "sweep.config",
    "sweep.rooms sweep.beside",
    "sweep.dispatchers",
    "sweep.session sweep.simulate",
    "sweep.results sweep.plan sweep.controllerjob",
    "sweep.export sweep.report sweep.replay",
    "sweep.run sweep.clusterdoctor sweep.queueverbs sweep.launchdoctor",
    "sweep.detached sweep.doctor",
    "sweep.readverbs",
    "sweep.verbs",
    "sweep.cli",
)
# Outside packages and the only modules that may load them, late imports included.
OWNERS = {
    "hydra": {"sweep.config", "sweep.words", "sweep.grammar", "sweep.targets"},
    "submitit": {"sweep.submit"},
    "fsspec": {"trainer.store"},
    "wandb": {
        "trainer.tracking",
        "trainer.scores",
        "trainer.launched",
        "sweep.wandbclient",
        "sweep.launchapi",
        "sweep.wandbqueue",
        "sweep.wandbautomation",
        "sweep.wandbsync",
    },
    "optuna": {
        "sweep.distributions",
        "sweep.proposals",
        "sweep.sampler",
        "sweep.storage",
        "sweep.tally",
        "sweep.repeats",
        "sweep.gridwalk",
        "sweep.warmstart",
        "sweep.study",
        "sweep.report",
        "sweep.plan",
    },
}


@cache
def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((REPOSITORY / package).rglob("*.py")):
            parts = path.relative_to(REPOSITORY).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports(module: str) -> tuple[tuple[str, bool], ...]:
    """What a module imports, and whether as it is loaded; imports for the type checker are left out."""
    tree = ast.parse(modules()[module].read_text())
    return tuple(dict.fromkeys((_known(name), early) for name, early in _walk(tree, module, True)))


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


def _known(name: str) -> str:
    """`sweep.model.View` is `sweep.model`; names of other packages stay."""
    while name.startswith(PACKAGES) and name not in modules() and "." in name:
        name = name.rpartition(".")[0]
    return name


def own(module: str, late: bool) -> set[str]:
    """Modules of ours that a module imports."""
    return {name for name, early in imports(module) if name.split(".")[0] in PACKAGES and (early or late)} - {module}


def outside(module: str) -> set[str]:
    """Other packages that a module imports, late imports included."""
    return {name.split(".")[0] for name, _ in imports(module)} - set(PACKAGES) - {"__future__"}


def layer(module: str) -> int | None:
    names = [row.split() for row in LAYERS]
    parent = f"{module.rpartition('.')[0]}.*"
    return next((index for index, row in enumerate(names) if module in row or parent in row), None)


MIRRORS = {"sweep.allowance", "sweep.mirror", "sweep.mirrored", "sweep.lease"}
SWEEP = sorted(name for name in modules() if name.split(".")[0] == "sweep")
TRAINER = sorted(name for name in modules() if name.split(".")[0] == "trainer")


def test_the_walk_sees_early_late_and_neither() -> None:
    assert ("sweep.decide", True) in imports("sweep.loop")
    assert ("sweep.verbs", False) in imports("sweep.cli")
    assert ("optuna.storages.BaseStorage", True) not in imports("sweep.session")  # for the type checker
    assert "sweep.targets" in own("sweep.session", late=True) - own("sweep.session", late=False)


def test_every_module_of_sweep_has_a_layer() -> None:
    assert [name for name in SWEEP if layer(name) is None] == []


@pytest.mark.parametrize("module", SWEEP)
def test_imports_point_downwards(module: str) -> None:
    """To a lower layer, late imports included; not to a neighbour."""
    place = layer(module)
    assert place is not None
    found = {name: layer(name) for name in own(module, late=True)}
    assert {name for name, at in found.items() if at is None or at >= place} == set()


@pytest.mark.parametrize("late", [False, True], ids=["as modules are loaded", "late imports included"])
def test_there_is_no_cycle(late: bool) -> None:
    list(TopologicalSorter({module: own(module, late) for module in modules()}).static_order())


@pytest.mark.parametrize("module", TRAINER)
def test_the_trainer_knows_nothing_of_sweep(module: str) -> None:
    assert {name for name in own(module, late=True) if name.split(".")[0] == "sweep"} == set()


@pytest.mark.parametrize("module", SWEEP)
def test_of_the_trainer_only_what_needs_no_torch_is_used(module: str) -> None:
    """`trainer.cluster` is what a job is pickled from: a name."""
    used = {name for name in own(module, late=True) if name.split(".")[0] == "trainer"}
    jobs = {"trainer.cluster"} if module == "sweep.submit" else set()
    stores = {"trainer.store", "trainer.replica"} if module in MIRRORS else set()
    runs = {"trainer.tracking"} if module == "sweep.wandbsync" else set()  # it says what a run could not say offline
    assert used <= {f"trainer.{name}" for name in ("contract", "room", "components", "ending")} | jobs | stores | runs


@pytest.mark.parametrize("module", SWEEP)
def test_no_module_of_sweep_imports_torch(module: str) -> None:
    assert outside(module).isdisjoint({"torch", "torchtune", "torchao", "torchdata", "transformers"})


@pytest.mark.parametrize("package", OWNERS)
def test_a_package_is_imported_by_its_owners_only(package: str) -> None:
    users = {module for module in modules() if package in outside(module)}
    assert users <= OWNERS[package]
    assert users  # a package that nobody imports any more needs no owner


def test_queues_do_not_know_each_other() -> None:
    queues = [name for name in SWEEP if name.startswith("sweep.dispatch.")]
    assert queues
    for queue in queues:
        assert own(queue, late=True).isdisjoint({"sweep.dispatch", *queues})


def test_decide_imports_nothing_that_acts() -> None:
    assert own("sweep.decide", late=True) == {"sweep.budget", "sweep.model", "sweep.occupancy", "trainer.contract"}
    assert own("sweep.budget", late=True) == {"sweep.model"}
    assert own("sweep.occupancy", late=True) == {"sweep.model", "trainer.contract"}
    assert outside("sweep.decide") == {"math", "collections", "dataclasses", "functools"}


def test_a_mirror_needs_the_standard_library_and_fsspec_only() -> None:
    for module in ("trainer.store", "trainer.replica", "trainer.mirror"):
        assert outside(module) <= sys.stdlib_module_names | {"fsspec"}


@pytest.mark.parametrize("module", ["trainer", "trainer.contract", "trainer.room"])
def test_what_the_controller_shares_needs_the_standard_library_only(module: str) -> None:
    assert outside(module) <= sys.stdlib_module_names
    assert own(module, late=True) <= {"trainer", "trainer.contract", "trainer.room"}


HEAVY = {"torch", "torchtune", "wandb", "optuna", "hydra", "omegaconf", "rich", "plotly", "numpy", "scipy", "yaml"}


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import sweep.cli; sweep.cli._parser().parse_args(['run', 'search.trials=3'])", HEAVY),
        ("import sweep.loop, sweep.decide, sweep.channel, trainer.contract, trainer.room", HEAVY),
        ("import sweep.verbs, sweep.dispatch.local", {"torch", "torchtune", "wandb", "optuna", "rich", "plotly"}),
        (
            "from sweep.config import compose_config, freeze\n"
            "from sweep.targets import build_sampler\n"
            "for name in ('tpe', 'gp', 'cma_es'):\n"
            "    build_sampler(freeze(compose_config([f'sampler={name}']), 'x').settings, 0)",
            {"torch", "torchtune", "wandb", "rich", "plotly"},
        ),
    ],
    ids=["sweep --help", "the controller", "a verb", "a composed sweep"],
)
def test_a_process_loads_nothing_heavy(code: str, absent: set[str]) -> None:
    script = f"{code}\nimport sys; print(' '.join(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert absent & loaded == set()
    assert "sweep" in loaded
