"""The contract of every `Dispatcher`, over a real SLURM cluster."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sweep.queues.slurm.section import SlurmQueue
from tests.contracts.test_dispatcher import (  # noqa: F401 - these are the tests
    Make,
    hands,
    room,
    test_a_killed_worker_is_gone,
    test_a_start_that_never_happened_is_gone,
    test_a_started_worker_is_seen_at_its_place_until_it_ends,
    test_cancel_ends_it_and_is_safe_to_repeat,
    test_nothing_was_started,
    test_preview_starts_nothing,
    test_start_is_safe_to_repeat_also_after_a_restart,
)
from tests.helpers.kill_points import fast_slurm
from tests.slurm.cluster import Cluster


@pytest.fixture(params=["cluster", "bare_cluster"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Make]:
    cluster: Cluster = request.getfixturevalue(request.param)
    for key, value in cluster.env().items():
        monkeypatch.setenv(key, value)
    queue = SlurmQueue(query_seconds=0.3, timeout_min=10)
    yield lambda found: fast_slurm(found, queue)
