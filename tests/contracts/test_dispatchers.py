"""The contract of every `Dispatcher`, over all that need no cluster; and the local queue's prefork server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from sweep.controller.ports import WorkerSpec
from sweep.model.states import JobState
from sweep.processes import PreforkServer
from sweep.queues.launch import dispatcher as launch_dispatch
from sweep.queues.local.dispatcher import LocalDispatcher
from sweep.queues.simulated.dispatcher import SimulatedDispatcher
from tests.helpers.dispatcher_contract import (  # noqa: F401 - these are the tests
    Make,
    begin,
    hands,
    launched,
    make_world,
    room,
    state,
    test_a_killed_worker_is_gone,
    test_a_start_that_never_happened_is_gone,
    test_a_started_worker_is_seen_at_its_place_until_it_ends,
    test_cancel_ends_it_and_is_safe_to_repeat,
    test_nothing_was_started,
    test_preview_starts_nothing,
    test_start_is_safe_to_repeat_also_after_a_restart,
)
from tests.helpers.fakes import FastDispatcher
from tests.helpers.launch_fakes import Agent, FakeLaunchApi
from tests.helpers.waiting import until
from tests.helpers.warm import warm_processes
from trainer.room import Room, read_text


@pytest.fixture
def warm_starts(warm: None) -> Iterator[None]:
    """What this process starts has torch already."""
    with warm_processes():
        yield


@pytest.fixture(scope="module")
def prefork() -> Iterator[PreforkServer]:
    """One that all tests share; a worker of it is the real one."""
    found = PreforkServer()
    yield found
    found.close()


KINDS = [
    "local",
    "simulated",
    "launch",
    pytest.param("forked", marks=pytest.mark.slow),
    pytest.param("spare", marks=pytest.mark.slow),
]


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    if request.param == "local":
        yield lambda room: FastDispatcher(room, (), 1)
        return
    if request.param == "launch":
        monkeypatch.setattr(launch_dispatch, "CANCEL_SECONDS", 0.5)
        with Agent(FakeLaunchApi(tmp_path / "wandb")):
            yield lambda room: launched(room, FakeLaunchApi(tmp_path / "wandb"))
        return
    if request.param == "simulated":
        world = make_world(request.getfixturevalue("tmp_path"))
        yield lambda room: SimulatedDispatcher(world)
        return
    request.getfixturevalue("warm_starts")
    source: PreforkServer = request.getfixturevalue("prefork") if request.param == "forked" else PreforkServer([{}])
    yield lambda room: LocalDispatcher(room, (), 1, prefork=source)  # noqa: F811
    if request.param == "spare":
        source.close()


@pytest.mark.slow
@pytest.mark.usefixtures("warm_starts")
@pytest.mark.parametrize("spares", [(), ({},)])
def test_a_prefork_that_died_is_done_without(spares: tuple[dict[str, str], ...], room: Room) -> None:  # noqa: F811
    dead = PreforkServer(spares)
    process = dead._at(0).popen
    process.kill()
    process.wait()
    dispatcher = FastDispatcher(room, (), 1, prefork=dead)
    dispatcher.start([WorkerSpec("w0001", 0)])
    until(room.worker("w0001").beat.exists)
    dead.close()


@pytest.mark.slow
@pytest.mark.usefixtures("warm_starts")
def test_a_spare_becomes_one_worker_and_the_next_is_started_by_itself(room: Room) -> None:  # noqa: F811
    spare = PreforkServer([{}])
    dispatcher = FastDispatcher(room, (), 1, prefork=spare)
    dispatcher.start([WorkerSpec("w0001", 0)])
    until(room.worker("w0001").beat.exists, seconds=60)
    assert (read_text(room.worker("w0001").lock) or "").split()[0] == str(spare._at(0).popen.pid)
    dispatcher.start([WorkerSpec("w0002", 0)])
    until(room.worker("w0002").beat.exists)
    spare.close()


@pytest.mark.slow
@pytest.mark.usefixtures("warm_starts")
def test_forked_workers_outlive_their_prefork(room: Room) -> None:  # noqa: F811
    forks = PreforkServer()
    LocalDispatcher(room, (), 1, prefork=forks).start([WorkerSpec("w0001", 0)])
    until(room.worker("w0001").beat.exists, seconds=60)
    process = forks._at(0).popen
    forks.close()
    assert process.wait(120) == 0
    assert state(LocalDispatcher(room, (), 1), "w0001") is JobState.RUNNING
