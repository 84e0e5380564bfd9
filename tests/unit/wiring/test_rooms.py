"""A sweep's room on this machine beside the same room in an object store: what a look and a change may do to it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from sweep.cli.main import main
from sweep.cli.stop import stop_elsewhere
from sweep.errors import ConfigError, RetryLater
from sweep.model.states import Mode
from sweep.store import channel, remote
from sweep.store.lease import Lease, await_release
from sweep.wiring.rooms import (
    change_settings,
    controller_elsewhere,
    controller_lock,
    current_room,
    journal_path,
    load_settings,
)
from tests.helpers.kill_points import make_room
from trainer.room import Room, hold, read_text, write_atomic
from trainer.store.objects import open_store

LAUNCH = ("queue=launch_local_process", "wandb.entity=e", "wandb.project=p")


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A place for rooms, as `queue.room` names it."""
    return f"file://{tmp_path}/store"


def carried(rooms: Path, store: str, *words: str) -> Room:
    """A sweep that lies in the store too."""
    room = make_room(rooms, *LAUNCH, f"queue.room={store}", *words)
    held_once(room)
    return room


def held_once(room: Room, holder: str = "a test") -> None:
    """A controller holds the room and ends properly."""
    with channel.open_store_channel(room, load_settings(room).store_url or "", holder):
        pass


# --- a look by URL ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slash", ["", "/"])
def test_a_look_by_url_leaves_the_room_of_a_controller_that_runs_here_alone(
    rooms: Path, store: str, slash: str
) -> None:
    room = carried(rooms, store)
    written = (read_text(journal_path(room)) or "") + "not put yet\n"
    write_atomic(journal_path(room), written)
    with hold(controller_lock(room), "test"):
        found = current_room(f"{store}/s{slash}")
    assert found.root == room.root
    assert read_text(journal_path(room)) == written


@pytest.mark.parametrize("runs", [False, True])
def test_a_look_by_url_never_replaces_another_sweep_of_this_name(
    rooms: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    monkeypatch.setenv("SWEEP_ROOMS", str(tmp_path / "colleague"))
    carried(tmp_path / "colleague", store)
    monkeypatch.setenv("SWEEP_ROOMS", str(rooms))
    mine = make_room(rooms)
    files = [path for path in mine.root.rglob("*") if path.is_file() and path != controller_lock(mine)]
    before = {path: path.read_bytes() for path in files}
    lock = controller_lock(mine) if runs else tmp_path / "lock"
    other = r"holds another sweep s than the local room .*SWEEP_ROOMS"
    with hold(lock, "test"), pytest.raises(ConfigError, match=other):
        current_room(f"{store}/s")
    assert {path: path.read_bytes() for path in before} == before


def test_a_look_at_a_place_without_a_sweep_says_so(rooms: Path, store: str) -> None:
    with pytest.raises(ConfigError, match="the store holds no sweep at this URL"):
        current_room(f"{store}/nothing")


# --- a change of settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("queue.timeout_min=1", r"queue\.slurm_signal_delay_s=90 is as long as the job"),
        ("queue.workers=null", r"queue\.workers=null: say how many"),
        ("queue.controller={timeout_min: 1}", r"queue\.controller\.slurm_signal_delay_s=120 is as long as the job"),
        ("search.trials=null", "search has no limit"),
        ("queue.controller={a", r"queue\.controller=\{a: the value cannot be read"),
    ],
)
def test_a_change_is_refused_for_what_a_new_sweep_is_refused_for(rooms: Path, word: str, reason: str) -> None:
    room = make_room(rooms, "queue=slurm_cpu")
    before = read_text(room.sweep)
    with pytest.raises(ConfigError, match=reason):
        change_settings(room, [word])
    assert read_text(room.sweep) == before
    change_settings(room, ["search.trials=9", "queue.timeout_min=2"])
    assert load_settings(room).search.trials == 9


def test_resume_refuses_what_would_not_let_the_controller_be_a_job(
    rooms: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    room = make_room(rooms, *LAUNCH, "controller=launch", "queue.room=/mnt/sweeps")
    before = read_text(room.sweep)
    assert main(["resume", "s", "queue.channel=wandb", "queue.room=null"]) == 2
    assert "would end with the controller's job" in capsys.readouterr().err
    assert read_text(room.sweep) == before


def test_a_change_counts_though_another_machine_held_the_sweep_last(
    rooms: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = carried(rooms, store)
    monkeypatch.setenv("SWEEP_ROOMS", str(tmp_path / "pod"))
    held_once(current_room(f"{store}/s", light=False), "pod")
    monkeypatch.setenv("SWEEP_ROOMS", str(rooms))
    change_settings(current_room("s", light=False), ["search.trials=24"])
    held_once(mine)
    monkeypatch.setenv("SWEEP_ROOMS", str(tmp_path / "next pod"))
    for room in (mine, current_room(f"{store}/s")):
        assert load_settings(room).search.trials == 24


def test_nothing_is_changed_while_a_controller_runs_elsewhere(
    rooms: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = carried(rooms, store)
    monkeypatch.setenv("SWEEP_ROOMS", str(tmp_path / "pod"))
    theirs = current_room(f"{store}/s", light=False)
    at_work = Lease(open_store(f"{store}/s"), "process 7 on pod", theirs.root / remote.LEASE_RECORD, renew=1e6)
    at_work.acquire()
    monkeypatch.setattr(channel, "Lease", partial(Lease, sleep=lambda seconds: at_work.renew_once()))
    before = read_text(mine.sweep)
    with pytest.raises(RetryLater, match=r"process 7 on pod\); end it with `sweep stop`"):
        change_settings(mine, ["search.trials=24"])
    at_work.release()
    assert read_text(mine.sweep) == before


# --- a controller that was killed ---------------------------------------------------------------------------------


def killed(store: str, room: Room) -> None:
    """A controller has held this room, and has died without letting go."""
    lease = Lease(open_store(f"{store}/s"), "process 7 on pod", room.root / remote.LEASE_RECORD, renew=1e6)
    lease.acquire()


def test_of_a_controller_that_was_killed_here_status_and_stop_know_that_none_runs(
    rooms: Path, store: str, capsys: pytest.CaptureFixture[str]
) -> None:
    room = carried(rooms, store)
    killed(store, room)
    assert controller_elsewhere(room) == ""
    assert main(["status", "s"]) == 0
    assert "no controller is running" in capsys.readouterr().out
    assert not stop_elsewhere(room, Mode.STOP)


def test_stop_waits_for_a_controller_elsewhere_no_longer_than_it_may_live(
    rooms: Path, store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    room = carried(rooms, store)
    killed(store, Room(tmp_path / "pod"))
    assert main(["status", "s"]) == 0
    assert "controller: process 7 on pod, unless it was killed there" in capsys.readouterr().out
    seconds = [0.0]
    monkeypatch.setattr(
        remote,
        "await_release",
        partial(await_release, now=lambda: seconds[0], sleep=lambda more: seconds.append(seconds.pop() + more)),
    )
    assert not stop_elsewhere(room, Mode.STOP)
    assert 60.0 <= seconds[0] < 65.0
    assert "this machine takes over" in capsys.readouterr().out


@pytest.mark.parametrize("obeyed", [True, False])
def test_a_controller_elsewhere_that_ended_without_reading_the_requested_mode_has_not_obeyed(
    rooms: Path, store: str, tmp_path: Path, obeyed: bool
) -> None:
    room = carried(rooms, store)
    remote.send_mode(f"{store}/s", Mode.STOP)
    pod = Room(tmp_path / "pod")
    remote.download(f"{store}/s", pod.root)
    with channel.open_store_channel(pod, f"{store}/s", "pod") as held:
        if obeyed:
            held.sync.clear_control()
    assert remote.await_controller_end(load_settings(room).store_url or "") is obeyed
