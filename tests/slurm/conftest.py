"""Two real SLURM clusters, each started when the first test wants it and shared by all processes of pytest-xdist.

Skips, with the reason, where they cannot run; with CI=true a missing package is a failure.
`pytest -m "not slurm"` leaves these tests out.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

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


@pytest.fixture
def cluster(_cluster: Cluster) -> Iterator[Cluster]:
    """Four nodes of eight processors and two GPUs, with accounting; all of it for this test."""
    with _alone(_cluster):
        yield _cluster


@pytest.fixture
def bare_cluster(_bare_cluster: Cluster) -> Iterator[Cluster]:
    """Two such nodes, without accounting: `sacct` knows nothing."""
    with _alone(_bare_cluster):
        yield _bare_cluster


@pytest.fixture(scope="session")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    _require(missing())
    with shared(Cluster(PLACE / f"{_session(tmp_path_factory)}-a")) as ours:
        yield ours


@pytest.fixture(scope="session")
def _bare_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    _require(missing(accounting=False))
    with shared(Cluster(PLACE / f"{_session(tmp_path_factory)}-b", nodes=2, accounting=False)) as ours:
        yield ours


@contextmanager
def _alone(ours: Cluster) -> Iterator[None]:
    """One test at a time has a cluster, and finds it without jobs and with all its nodes."""
    with _file(ours, "test").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ours.calm()
        yield


@contextmanager
def shared(ours: Cluster) -> Iterator[Cluster]:
    """Whoever may need the cluster holds a shared lock, which the kernel takes back from the dead. The first to come
    starts it, and the last to leave, who can get the lock for himself, stops it."""
    with ExitStack() as last:
        with _turn():
            for path in PLACE.glob("*.users"):
                _stop_unless_used(Cluster(path.with_suffix("")))  # also those of sessions that were killed
            users = _file(ours, "users").open("w")
            fcntl.flock(users, fcntl.LOCK_SH)
            last.callback(_leave, ours, users)
            ours.up()
        yield ours


def _leave(ours: Cluster, users: IO[str]) -> None:
    with _turn():
        users.close()
        _stop_unless_used(ours)


def _stop_unless_used(some: Cluster) -> None:
    with _file(some, "users").open("w") as users, suppress(BlockingIOError):
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        some.down()
        _file(some, "test").unlink(missing_ok=True)
        _file(some, "users").unlink()


@contextmanager
def _turn() -> Iterator[None]:
    """One process at a time comes or leaves."""
    PLACE.mkdir(mode=0o700, exist_ok=True)
    if PLACE.is_symlink() or PLACE.stat().st_uid != os.getuid():
        pytest.fail(f"{PLACE} is someone else's")
    with (PLACE / "turn").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        yield


def _file(some: Cluster, suffix: str) -> Path:
    return some.directory.with_suffix(f".{suffix}")


def _session(factory: pytest.TempPathFactory) -> str:
    """A name that all processes of this run agree on, and no other run has."""
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    return hashlib.sha256(str(base).encode()).hexdigest()[:8]


def _require(packages: list[str]) -> None:
    if os.geteuid() != 0:
        pytest.skip("a SLURM cluster starts as root only")
    if packages:
        refuse = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        refuse(f"not installed: {' '.join(packages)}")
