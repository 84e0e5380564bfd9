"""Who imports whom: the folders of the program, and what a command line may load."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Collection
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.helpers.import_graph import ImportGraph, folder

REPOSITORY = Path(__file__).resolve().parents[2]
GRAPH = ImportGraph(REPOSITORY)
# From the bottom up: a folder imports only from those above it in this list, late imports included.
FOLDERS = (
    "errors model resources processes",
    "config",
    "search tracking",
    "controller",
    "store queues evaluation",
    "wiring",
    "report",
    "cli",
    "detached",  # a name that version 0.1 pickled
)
# Outside packages, and the only folders and modules that may load them, late imports included.
OWNERS = {
    "hydra": {"sweep.config", "sweep.wiring.compose"},
    "submitit": {"sweep.queues.slurm.submit"},
    "fsspec": {"trainer.store.objects"},
    "wandb": {"sweep.tracking", "sweep.queues.launch", "trainer.tracking", "trainer.entry.launch_job"},
    "optuna": {"sweep.search", "sweep.report"},
    "triton": {"trainer.packed.kernels"},
    "jinja2": {"sweep.report.html"},
    "click": {"sweep.cli"},
}
SWEEP = sorted(name for name in GRAPH.modules if name.split(".")[0] == "sweep")
TRAINER = sorted(name for name in GRAPH.modules if name.split(".")[0] == "trainer")
# What of the trainer needs no torch, and which folder may use it.
SHARED = {
    "trainer.contract",
    "trainer.logs",
    "trainer.room",
    "trainer.components",
    "trainer.environment",
    "trainer.exit_guard",
    "trainer.clock",
    "trainer.space",
    "trainer.names",
    "trainer.presence",
    "trainer.identity",
    "trainer.startup",
    "trainer.process_end",
    "trainer.shortening",
    "trainer.socket_messages",
}
# What needs no other package than Python's own.
STANDARD = {
    "trainer",
    "trainer.contract",
    "trainer.files",
    "trainer.json_values",
    "trainer.locks",
    "trainer.reading",
    "trainer.room",
    "trainer.environment",
}
STANDARD |= {"trainer.names", "trainer.presence", "trainer.identity", "trainer.startup"}
STANDARD |= {"trainer.process_end", "trainer.shortening", "trainer.socket_messages", "trainer.working_directory"}
FURTHER = {
    "sweep.report.export": {"trainer.entry.tune_run"},  # it starts this program, and reads what it leaves
    "sweep.queues.slurm.submit": {"trainer.entry.slurm_job"},  # a job is pickled by its name
    "sweep.store": {"trainer.store.objects", "trainer.store.layout"},
    "sweep.tracking.sync": {"trainer.tracking.runs", "trainer.tracking.summary"},  # what a run could not say offline
}


def within(module: str, places: set[str]) -> bool:
    """Whether a module is one of these, or stands in one of these folders."""
    return any(module == place or module.startswith(f"{place}.") for place in places)


def floor(module: str) -> int:
    """The row of `FOLDERS` in which a module's folder stands; -1 for the package itself."""
    if module == "sweep":
        return -1
    return next(index for index, row in enumerate(FOLDERS) if folder(module).removeprefix("sweep.") in row.split())


def test_the_walk_sees_early_late_and_neither() -> None:
    assert ("sweep.controller.decide", True) in GRAPH.imports("sweep.controller.loop")
    assert ("sweep.cli.start", False) in GRAPH.imports("sweep.cli.run_verbs")
    assert ("optuna.storages.BaseStorage", True) not in GRAPH.imports("sweep.wiring.session")  # for the type checker
    late = GRAPH.own("sweep.wiring.session") - GRAPH.own("sweep.wiring.session", late=False)
    assert "sweep.search.build" in late


def test_every_folder_of_sweep_stands_in_the_list_once() -> None:
    listed = " ".join(FOLDERS).split()
    assert sorted(listed) == sorted({folder(name).removeprefix("sweep.") for name in SWEEP} - {"sweep"})


@pytest.mark.parametrize("module", SWEEP)
def test_imports_point_downwards(module: str) -> None:
    """Within the folder, or to one of a lower row; modules at the bottom import those at the bottom."""
    own = {name for name in GRAPH.own(module) if name.split(".")[0] == "sweep"}
    upwards = {name for name in own if folder(name) != folder(module) and floor(name) >= floor(module) > 0}
    assert upwards == set()
    assert floor(module) > 0 or {name for name in own if floor(name) > 0} == set()


@pytest.mark.parametrize("late", [False, True], ids=["as modules are loaded", "late imports included"])
def test_there_is_no_cycle(late: bool) -> None:
    list(TopologicalSorter({module: GRAPH.own(module, late) for module in GRAPH.modules}).static_order())


@pytest.mark.parametrize("module", TRAINER)
def test_the_trainer_knows_nothing_of_sweep(module: str) -> None:
    assert {name for name in GRAPH.own(module) if name.split(".")[0] == "sweep"} == set()


@pytest.mark.parametrize("module", SWEEP)
def test_of_the_trainer_only_what_needs_no_torch_is_used(module: str) -> None:
    used = {name for name in GRAPH.own(module) if name.split(".")[0] == "trainer"} - {"trainer"}
    further = [names for place, names in FURTHER.items() if within(module, {place})]
    assert used <= SHARED.union(*further)


@pytest.mark.parametrize("module", SWEEP)
def test_no_module_of_sweep_imports_torch(module: str) -> None:
    assert GRAPH.outside(module).isdisjoint({"torch", "torchtune", "torchao", "torchdata", "transformers"})


@pytest.mark.parametrize("package", OWNERS)
def test_a_package_is_imported_by_its_owners_only(package: str) -> None:
    users = {module for module in GRAPH.modules if package in GRAPH.outside(module)}
    assert {module for module in users if not within(module, OWNERS[package])} == set()
    for owner in OWNERS[package]:  # an owner that loads it no more needs no entry
        assert any(within(module, {owner}) for module in users), owner


def test_queues_do_not_know_each_other() -> None:
    """Each is a folder; the modules beside the folders are for all of them, and import none."""
    packages = {name for name in SWEEP if name.startswith("sweep.queues.") and GRAPH.modules[name].stem == "__init__"}
    queues = {name for name in SWEEP if within(name, packages)}
    assert len(packages) >= 4
    for module in (name for name in SWEEP if within(name, {"sweep.queues"})):
        mine = {name for name in packages if within(module, {name})}
        assert {name for name in GRAPH.own(module) & queues if not within(name, mine)} == set()


@cache
def queue_classes() -> dict[str, str]:
    """The sections of the queues, by class name, and the folder that each belongs to."""
    return {
        node.name: module.rpartition(".")[0]
        for module, path in GRAPH.modules.items()
        if module.startswith("sweep.queues.")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and "Queue" in {ast.unparse(base) for base in node.bases}
    }


def kind_questions(tree: ast.AST, classes: Collection[str]) -> list[str]:
    """Where code asks which kind a queue is: by its class, or by its `kind`."""
    asks = []
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name("isinstance" | "issubclass"), args=[_, kinds]):
                names = {name.id for name in ast.walk(kinds) if isinstance(name, ast.Name)}
                names |= {name.attr for name in ast.walk(kinds) if isinstance(name, ast.Attribute)}
                asks += [ast.unparse(node)] if names & set(classes) else []
            case ast.MatchClass(cls=kind):
                asks += [ast.unparse(kind)] if ast.unparse(kind).rpartition(".")[2] in classes else []
            case ast.Compare(left=left, comparators=others):
                sides = [ast.unparse(side) for side in (left, *others)]
                asks += [ast.unparse(node)] if any(re.search(r"\bqueue\.kind$", side) for side in sides) else []
            case ast.Match(subject=subject):
                asks += [ast.unparse(subject)] if ast.unparse(subject).endswith("queue.kind") else []
    return asks


def test_the_walk_sees_who_asks_for_the_kind_of_a_queue() -> None:
    code = """
isinstance(settings.queue, SlurmQueue | LaunchQueue)
isinstance(queue, (section.SlurmQueue, int))
match queue:
    case SlurmQueue() as found: pass
    case LaunchQueue(room=room): pass
if settings.queue.kind == "slurm": pass
if queue.kind in ("slurm", "launch"): pass
match settings.queue.kind:
    case "slurm": pass
"""
    assert len(kind_questions(ast.parse(code), {"SlurmQueue", "LaunchQueue"})) == 7
    harmless = "isinstance(evaluator, Command); backend(settings.queue.kind); evaluator.kind == 'none'"
    assert kind_questions(ast.parse(harmless), {"SlurmQueue"}) == []


@pytest.mark.parametrize("module", SWEEP)
def test_only_a_queue_s_own_folder_asks_for_its_kind(module: str) -> None:
    """So that a new queue is a new folder, and no other module needs a line."""
    foreign = {name for name, package in queue_classes().items() if not within(module, {package})}
    assert {"SlurmQueue", "LaunchQueue", "SimulatedQueue", "LocalQueue"} == set(queue_classes())
    assert kind_questions(ast.parse(GRAPH.modules[module].read_text()), foreign) == []


def test_decide_imports_nothing_that_acts() -> None:
    pure = {"trainer.contract", *(f"sweep.model.{name}" for name in ("effects", "facts", "limits", "states"))}
    parts = {f"sweep.controller.{name}" for name in ("budget", "endings", "occupancy", "situation")}
    assert GRAPH.own("sweep.controller.decide") <= pure | parts
    for module in parts:
        assert GRAPH.own(module) <= pure | parts
    for module in {"sweep.controller.decide", *parts}:
        assert GRAPH.outside(module) <= {"math", "collections", "functools"}


def test_the_stores_need_the_standard_library_and_fsspec_only() -> None:
    for module in sorted(name for name in TRAINER if name.startswith("trainer.store.")):
        assert GRAPH.outside(module) <= sys.stdlib_module_names | {"fsspec"}


@pytest.mark.parametrize("module", sorted(STANDARD))
def test_what_the_controller_shares_needs_the_standard_library_only(module: str) -> None:
    assert GRAPH.outside(module) <= sys.stdlib_module_names
    assert GRAPH.own(module) <= STANDARD


HEAVY = {"torch", "torchtune", "wandb", "optuna", "hydra", "omegaconf", "rich", "plotly", "numpy", "scipy", "yaml"}


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        (
            "import contextlib, io\n"
            "from sweep.cli.main import main\n"
            "with contextlib.redirect_stdout(io.StringIO()):\n"
            "    assert main(['--help']) == main(['run', '--help']) == main(['queue', 'create', '--help']) == 0",
            HEAVY,
        ),
        (
            "import contextlib, io, os\n"
            "from sweep.cli.main import main\n"
            "for line in ('sweep ', 'sweep run que', 'sweep run search.tr', 'sweep run queue=slurm queue.'):\n"
            "    os.environ.update(_SWEEP_COMPLETE='zsh_complete', COMP_LINE=line)\n"
            "    with contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())):\n"
            "        assert main() == 0",
            HEAVY,
        ),
        ("import sweep.controller.loop, sweep.controller.room_channel, trainer.contract, trainer.room", HEAVY),
        (
            "from sweep.queues import backend\nfrom sweep.config.queues import queue_kinds\n"
            "assert [backend(kind) for kind in queue_kinds()]",
            HEAVY,
        ),
        (
            "import sweep.cli.start, sweep.queues.local.dispatcher",
            {"torch", "torchtune", "wandb", "optuna", "rich", "plotly"},
        ),
        (
            "from sweep.wiring.compose import compose_config, freeze\n"
            "from sweep.search.build import build_sampler\n"
            "for name in ('tpe', 'gp', 'cma_es'):\n"
            "    build_sampler(freeze(compose_config([f'sampler={name}']), 'x').settings, 0)",
            {"torch", "torchtune", "wandb", "rich", "plotly"},
        ),
    ],
    ids=["sweep --help", "completion", "the controller", "the queues", "a verb", "a composed sweep"],
)
def test_a_process_loads_nothing_heavy(code: str, absent: set[str]) -> None:
    script = f"{code}\nimport sys; print(' '.join(name for name in sys.modules if '.' not in name))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert absent & loaded == set()
    assert "sweep" in loaded
