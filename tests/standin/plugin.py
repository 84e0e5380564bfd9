"""Fixtures; a conftest takes them with `from tests.standin.plugin import standin  # noqa: F401` and its like."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.standin.server import StandIn


@pytest.fixture
def standin(tmp_path: Path) -> Iterator[StandIn]:
    """A server of the test's own; it fails the test that made a client ask what it does not serve."""
    with StandIn(tmp_path) as found:
        yield found
        assert found.refused == []


@pytest.fixture
def wandb_here(standin: StandIn, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """wandb in this process, pointed at the test's server; its service ends with the test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in standin.env.items():
        monkeypatch.setenv(name, value)
    import wandb

    wandb.teardown()
    yield wandb
    wandb.teardown()
