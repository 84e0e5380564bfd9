"""Decides which worker of pytest-xdist runs a test: the tests of a file share one, and with it their fixtures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from xdist.scheduler import LoadScopeScheduling

# These files take minutes or mostly wait: for an agent of W&B, for SLURM, for a sweep. They begin first, so that none
# of them runs alone at the end; those that wait most come before those that compute.
LONGEST = (
    "tests/slurm/test_docs.py",
    "tests/integration/test_wandb.py",
    "tests/integration/test_readme.py",
    "tests/slurm/test_sweep.py",
    "tests/integration/test_launch_docs.py",
    "tests/slurm/test_faults.py",
    "tests/standin/test_agents.py",
    "tests/slurm/test_detached.py",
    "tests/faults/test_creation_killed.py",
    "tests/slurm/test_contract.py",
    "tests/slurm/test_cluster.py",
    "tests/slurm/test_handover_killed.py",
    "tests/faults/test_full_disk.py",
    "tests/integration/test_finished_sweep.py",
    "tests/integration/test_sweep.py",
    "tests/faults/test_launch.py",
    "tests/integration/test_pausing.py",
    "tests/integration/test_store_room.py",
    "tests/faults/test_random_kills.py",
    "tests/standin/test_faults.py",
    "tests/standin/test_states.py",
    "tests/faults/test_controller_killed.py",
    "tests/faults/test_store_room.py",
    "tests/integration/test_wandb_queue.py",
    "tests/integration/test_wandb_sync.py",
    "tests/integration/test_evaluated_sweep.py",
    "tests/integration/test_evaluate.py",
    "tests/integration/test_parity.py",
    "tests/integration/test_deleted_rooms.py",
    "tests/integration/test_rooms_of_0_1.py",
    "tests/integration/test_queue_of_ones_own.py",
    "tests/integration/test_wheel.py",
    "tests/faults/test_evaluations.py",
    "tests/faults/test_worker_lost.py",
    "tests/faults/test_suspended.py",
    "tests/unit/report/test_browser.py",
    "tests/contracts/test_dispatchers.py",
    "tests/contracts/test_study.py",
    "tests/unit/wiring/test_creation.py",
)
# Tests of these files take seconds each and share little: each runs on the worker that is free next.
DIVIDED = (
    "tests/integration/test_sweep.py",
    "tests/slurm/test_sweep.py",
    "tests/slurm/test_faults.py",
    "tests/slurm/test_detached.py",
    "tests/faults/test_controller_killed.py",
    "tests/faults/test_creation_killed.py",
    "tests/faults/test_evaluations.py",
    "tests/faults/test_full_disk.py",
    "tests/faults/test_launch.py",
    "tests/faults/test_random_kills.py",
    "tests/faults/test_store_room.py",
    "tests/faults/test_worker_lost.py",
)


def file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


def in_order(nodeids: Iterable[str]) -> list[str]:
    """The longest files first, then those with the most tests; within a file the order stays."""
    nodeids = list(nodeids)
    rank = {name: at for at, name in enumerate(LONGEST)}
    counts = Counter(map(file_of, nodeids))
    return sorted(nodeids, key=lambda it: (rank.get(file_of(it), len(rank)), -counts[file_of(it)], file_of(it)))


class FileScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """xdist's `--dist loadfile`, but for the files that are divided."""

    def _split_scope(self, nodeid: str) -> str:
        name = file_of(nodeid)
        return nodeid if name in DIVIDED else name
