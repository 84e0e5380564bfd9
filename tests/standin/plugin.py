"""Fixtures; a conftest takes them with `from tests.standin.plugin import standin  # noqa: F401` and its like."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.processes import everything
from tests.standin.server import StandIn

TEARDOWN_SECONDS = 120.0


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[StandIn]:
    """A server of the test's own; it fails the test that made a client ask what it does not serve."""
    with StandIn(tmp_path) as found:
        yield found
        assert found.refused == []


@pytest.fixture
def wandb_here(standin: StandIn) -> Iterator[Any]:
    """wandb in this process, pointed at the test's server; its service ends with the test."""
    with here(standin) as wandb:
        yield wandb


@contextmanager
def here(standin: StandIn, key: str | None = None, **more: str) -> Iterator[Any]:
    """The same for a fixture of a wider scope, with another key, or with more in the environment."""
    import wandb

    before = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("WANDB_") or name == "NETRC"}
    ours = {**standin.env_of(key or standin.key), **more}
    os.environ.update(ours)
    tear_down(wandb)
    try:
        yield wandb
    finally:
        tear_down(wandb)
        for name in {*ours, *(name for name in os.environ if name.startswith("WANDB_"))}:
            os.environ.pop(name, None)
        os.environ.update(before)


def tear_down(wandb: Any) -> None:
    """End wandb's service; one that does not end by itself is killed.

    wandb-core 0.31 was seen to wait for ever where it was told to end while a request was given up.
    """

    def end() -> None:
        with suppress(SystemExit):  # with the code of the service, where that was killed
            wandb.teardown()

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    thread.join(TEARDOWN_SECONDS)
    if thread.is_alive():
        for process in everything():
            if process.parent == os.getpid() and process.command == "wandb-core":
                process.kill()
        thread.join()


def environment(standin: StandIn, **more: str) -> dict[str, str]:
    """Of a process of its own: nothing of wandb's is inherited, least of all `WANDB_SERVICE`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    return {**inherited, **standin.env, **more}
