"""The workers of pytest-xdist as forks of one process that has imported what the tests import.

Each of them would spend a quarter of a minute of processor time on its imports. `fork_workers` has the fork server of
`tests.helpers.warm` make them; `python -m tests.helpers.xdist_worker` is such a worker: it does what xdist asks of a
new interpreter on its standard input.

Invariants: the server imports no module of the tests, whose assertions pytest rewrites. A worker starts the processes
of its tests as every other does: anew, unless a test uses the fixture `warm`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.helpers.warm import IMPORTS, SOCKET, ensure_server, run_warm, write_program

# What test modules import beside the programs. No plugin of pytest's is among it.
TEST_IMPORTS = (
    *IMPORTS,
    "botocore.session",
    "hypothesis",
    "kubeflow.training.models",
    "kubernetes_asyncio.client",
    "kubernetes_validate",
    "pandas",
    "plotly.graph_objects",
    "scipy.optimize",
    "scipy.stats",
    "sqlalchemy",
    "submitit",
    "wandb.sdk.launch._project_spec",
    "wandb.sdk.launch.agent.agent",
)
MODULE = "tests.helpers.xdist_worker"


def fork_workers(directory: Path, specs: Sequence[Any], imports: Sequence[str] = TEST_IMPORTS) -> None:
    """Have the workers of these specifications of execnet's made by a server that ends with this process.

    Args:
        directory: for the server's socket and a program; both paths are short.
    """
    path, program = directory / "workers", directory / "worker-python"
    ensure_server(path, os.getpid(), imports)
    write_program(program, f"from {MODULE} import be_worker\nbe_worker({str(path)!r})")
    for spec in specs:
        spec.python = str(program)


def be_worker(path: str) -> None:
    """Stand for the interpreter that execnet has started, with a process of the server's in its place."""
    os.environ[SOCKET] = path
    run_warm([sys.executable, "-m", MODULE])


def main() -> None:
    del os.environ[SOCKET]
    subprocess.Popen = subprocess.Popen.__mro__[1]  # type: ignore[misc, assignment] # not `WarmPopen`
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    exec(eval(sys.stdin.readline()), {"__name__": "__main__"})


if __name__ == "__main__":
    main()
