"""Processes that die while they create a room, change its budget, or push the controller's job: the same command then
succeeds, and between the two there is no sweep or a complete one."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from sweep.cli import launch_controller
from sweep.cli.launch_controller import is_wanted, push_controller, withdraw_controller
from sweep.errors import ConfigError
from sweep.queues.controller_job import controller_record
from sweep.report.reader import open_reader
from sweep.search.storage import load_study
from sweep.store import channel
from sweep.store.lease import Lease
from sweep.wiring import creation, session
from sweep.wiring.compose import Composed
from sweep.wiring.rooms import change_settings, check_same_sweep, load_settings, rooms_dir
from tests.helpers.kill_points import composed, killed_before_act, make_room
from tests.helpers.launch_fakes import FakeLaunchApi
from trainer.room import Room, read_json

ENQUEUED = "warm_start.enqueue=[{optimizer.lr: 1e-3}, {optimizer.lr: 1e-4}]"
MOST_ACTS = 80


def check_whole(room: Room) -> None:
    """A complete sweep: settings, recipe, and a study with its warm start."""
    settings = load_settings(room)
    assert (room.root / "recipe.yaml").read_text()
    study = load_study(session.reading_storage(room, settings), settings.name)
    assert len(study.trials) == len(settings.warm_start.enqueue)
    assert open_reader(room).state().rows == ()


def create(sweep: Composed) -> Room:
    """As `sweep run`."""
    room = Room((rooms_dir() / "s").resolve())
    if room.sweep.exists():
        check_same_sweep(room, sweep.settings)
        return room
    return creation.create_room(sweep, 40)


def test_creation_killed_before_every_act(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = composed(ENQUEUED)
    for count in range(1, MOST_ACTS):
        folder = tmp_path / str(count)
        monkeypatch.setenv("SWEEP_ROOMS", str(folder))
        ended = killed_before_act(lambda: create(sweep), count, folder)
        if (folder / "s" / "sweep.json").exists():
            check_whole(Room(folder / "s"))
        check_whole(create(sweep))
        if ended:
            break
    assert 8 < count < MOST_ACTS - 1, "settings, recipe, study and both trials are written one after the other"


def test_creation_in_a_database_killed_again_and_again(tmp_path: Path, rooms: Path) -> None:
    """Each process comes a little further than the one before; the next finds what that one has left."""
    sweep = composed(ENQUEUED, f"storage=sqlite:///{tmp_path}/study.db")
    count = 1
    while not killed_before_act(lambda: create(sweep), count, tmp_path):
        if (rooms / "s" / "sweep.json").exists():
            check_whole(Room(rooms / "s"))
        count += 1
        assert count < MOST_ACTS
    assert count > 8
    check_whole(create(sweep))


def test_a_study_of_another_sweep_in_the_database_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = f"storage=sqlite:///{tmp_path}/study.db"
    monkeypatch.setenv("SWEEP_ROOMS", str(tmp_path / "a"))
    first = make_room(tmp_path / "a", storage, ENQUEUED)
    monkeypatch.setenv("SWEEP_ROOMS", str(tmp_path / "b"))
    for _ in range(2):
        with pytest.raises(ConfigError, match="holds a study named s already, perhaps of another sweep"):
            create(composed(storage, ENQUEUED))
    assert not (tmp_path / "b" / "s" / "sweep.json").exists()
    check_whole(first)


def test_a_change_killed_before_every_act(rooms: Path) -> None:
    room = make_room(rooms)
    before = load_settings(room)
    for count in range(1, MOST_ACTS):
        words = [f"search.trials={20 + count}"]
        changed = replace(before, search=replace(before.search, trials=20 + count))
        ended = killed_before_act(lambda words=words: change_settings(room, words), count, rooms)  # type: ignore[misc]
        assert load_settings(room) in (before, changed)
        change_settings(room, words)
        before = load_settings(room)
        assert before == changed
        if ended:
            break
    assert 2 < count < MOST_ACTS - 1
    check_whole(room)


# --- controller=launch ------------------------------------------------------------------------------------------------

LAUNCH = ("queue=launch_local_process", "controller=launch", "wandb.entity=e", "wandb.project=p")


@pytest.fixture(autouse=True)
def short_leases(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies while it holds a store keeps the next one waiting for seconds, and not for a minute."""
    monkeypatch.setattr(channel, "Lease", partial(Lease, renew=0.4, grace=3.0))


@pytest.mark.parametrize("carried", [False, True], ids=["a shared room", "a room in a store"])
def test_pushes_of_the_controllers_job_killed_before_every_act(
    rooms: Path, monkeypatch: pytest.MonkeyPatch, carried: bool
) -> None:
    """After each the next push succeeds. A job that was pushed and not written down is harmless: the room's lock keeps
    it out, and a stop withdraws it too."""
    api = FakeLaunchApi(rooms.parent / "wandb")
    monkeypatch.setattr(launch_controller, "make_api", lambda queue, place, job: api)
    room = make_room(rooms, *LAUNCH, *([f"queue.room=file://{rooms.parent}/store"] if carried else []))
    for count in range(1, MOST_ACTS):
        numbers = controller_record(room).get("number", 0)
        ended = killed_before_act(lambda: push_controller(room), count, rooms.parent)
        push_controller(room)
        record = controller_record(room)
        assert record["number"] > numbers
        pending = [item for item in api.items() if api.item_state(item) == "pending"]
        assert record["item"] in pending
        assert read_json(api.root / "items" / record["item"] / "spec")["run"] == record["run"]
        assert is_wanted(room)
        if ended:
            break
    assert 4 < count < MOST_ACTS - 1


@pytest.mark.parametrize("carried", [False, True], ids=["a shared room", "a room in a store"])
def test_withdrawals_of_the_controllers_job_killed_before_every_act(
    rooms: Path, monkeypatch: pytest.MonkeyPatch, carried: bool
) -> None:
    api = FakeLaunchApi(rooms.parent / "wandb")
    monkeypatch.setattr(launch_controller, "make_api", lambda queue, place, job: api)
    room = make_room(rooms, *LAUNCH, *([f"queue.room=file://{rooms.parent}/store"] if carried else []))
    for count in range(1, MOST_ACTS):
        push_controller(room)
        assert is_wanted(room)
        ended = killed_before_act(lambda: withdraw_controller(room), count, rooms.parent)
        withdraw_controller(room)
        assert not is_wanted(room)
        assert api.item_state(controller_record(room)["item"]) is None
        if ended:
            break
    assert 2 < count < MOST_ACTS - 1
