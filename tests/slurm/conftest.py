"""Two real SLURM clusters for each process of pytest-xdist, each started when a test first wants it: these tests mostly
wait, so that they run well side by side.

Skips, with the reason, where they cannot run; with CI=true a missing package is a failure.
`pytest -m "not slurm"` leaves these tests out.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing

# root's own, and short: a socket's path has at most 107 characters
PLACE = Path("/tmp/sweep-slurm")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "slurm: needs root and SLURM's packages (python -m tests.slurm.cluster packages)"
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slurm)
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def cluster(_cluster: Cluster) -> Cluster:
    """Four nodes of eight processors and two GPUs, with accounting; without jobs, and with all its nodes."""
    _cluster.calm()
    return _cluster


@pytest.fixture
def bare_cluster(_bare_cluster: Cluster) -> Cluster:
    """Two such nodes, without accounting: `sacct` knows nothing."""
    _bare_cluster.calm()
    return _bare_cluster


@pytest.fixture(scope="session")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    _require(missing())
    with ours(Cluster(PLACE / f"{_process(tmp_path_factory)}-a")) as found:
        yield found


@pytest.fixture(scope="session")
def _bare_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    _require(missing(accounting=False))
    with ours(Cluster(PLACE / f"{_process(tmp_path_factory)}-b", nodes=2, accounting=False)) as found:
        yield found


@contextmanager
def ours(some: Cluster) -> Iterator[Cluster]:
    """A cluster while the block runs. Its user holds a lock, which the kernel takes back from the dead: so whoever
    comes next stops what a killed process has left behind."""
    PLACE.mkdir(mode=0o700, exist_ok=True)
    if PLACE.is_symlink() or PLACE.stat().st_uid != os.getuid():
        pytest.fail(f"{PLACE} is someone else's")
    with (PLACE / "turn").open("w") as turn:  # one process at a time comes or leaves
        fcntl.flock(turn, fcntl.LOCK_EX)
        for path in PLACE.glob("*.user"):
            _stop_unless_used(Cluster(path.with_suffix("")))
        user = _lock(some).open("w")
        fcntl.flock(user, fcntl.LOCK_EX)
    try:
        some.up()
        yield some
    finally:
        with (PLACE / "turn").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            user.close()
            _stop_unless_used(some)


def _stop_unless_used(some: Cluster) -> None:
    with _lock(some).open("w") as user, suppress(BlockingIOError):
        fcntl.flock(user, fcntl.LOCK_EX | fcntl.LOCK_NB)
        some.down()
        _lock(some).unlink()


def _lock(some: Cluster) -> Path:
    return some.directory.with_suffix(".user")


def _process(factory: pytest.TempPathFactory) -> str:
    """A name that no other process has, of this run or of another."""
    return hashlib.sha256(str(factory.getbasetemp()).encode()).hexdigest()[:8]


def _require(packages: list[str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("a SLURM cluster starts as root only")
    if packages:
        refuse = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        refuse(f"not installed: {' '.join(packages)}")
