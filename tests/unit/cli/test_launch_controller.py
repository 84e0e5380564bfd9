"""The controller as a Launch job: what is refused, what is pushed, and what the job runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from sweep.cli import foreground, launch_controller
from sweep.cli.launch_controller import check_controller, is_wanted, push_controller, withdraw_controller
from sweep.cli.main import main
from sweep.errors import ConfigError, RetryLater
from sweep.queues.launch import dispatcher as launch_dispatch
from sweep.store.channel import open_store_channel
from sweep.wiring.rooms import controller_lock, current_room, load_settings
from tests.helpers.kill_points import make_room
from tests.helpers.launch_fakes import FakeLaunchApi
from trainer import logs
from trainer.contract import JOB_KEY
from trainer.entry import launch_job
from trainer.entry.launch_job import JobSpec, read_job
from trainer.room import Room, hold, write_atomic
from trainer.store.objects import open_store

WORDS = ("queue=launch_local_process", "controller=launch", "wandb.entity=e", "wandb.project=p")


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLaunchApi:
    found = FakeLaunchApi(tmp_path / "wandb")
    for module in (launch_controller, launch_dispatch):
        monkeypatch.setattr(module, "make_api", lambda queue, place, job: found)
    monkeypatch.setattr(foreground, "_publishing", lambda room, settings, log: nullcontext())
    return found


def taken(api: FakeLaunchApi) -> None:
    """An agent has taken all that waits."""
    for item in api.items():
        write_atomic(api.root / "items" / item / "state", "claimed")


def pushed(api: FakeLaunchApi) -> list[tuple[str, JobSpec]]:
    """Runs and jobs on the queue, in order."""
    specs = [json.loads((api.root / "items" / item / "spec").read_text()) for item in api.items()]
    return [(spec["run"], read_job({"WANDB_CONFIG": json.dumps(spec["config"])})) for spec in specs]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("queue=local", "controller=launch"), "needs a queue of W&B Launch"),
        ((*WORDS, "queue.channel=wandb"), "would end with the controller's job"),
    ],
)
def test_a_controller_that_no_job_could_be_is_refused(rooms: Path, words: tuple[str, ...], reason: str) -> None:
    settings = load_settings(make_room(rooms, *words))
    with pytest.raises(ConfigError, match=reason):
        check_controller(settings)


def test_another_place_for_the_controller_is_refused(rooms: Path) -> None:
    with pytest.raises(ConfigError, match="controller=there is not allowed; it must be here or launch"):
        make_room(rooms, "controller=there")


def test_it_is_pushed_to_the_sweep_s_own_queue_each_time_under_another_run(rooms: Path, api: FakeLaunchApi) -> None:
    room = make_room(rooms, *WORDS, "queue.room=/mnt/sweeps")
    assert "is controlled by a job of the queue sweep" in push_controller(room)
    taken(api)
    push_controller(room)
    (first, job), (second, _) = pushed(api)
    assert (job.controller, job.worker, job.run) == ("/mnt/sweeps/s", "", first)
    assert (job.init["entity"], job.init["project"], job.init["job_type"]) == ("e", "p", "controller")
    assert first.endswith("-controller-1")
    assert second.endswith("-controller-2")


def test_where_a_store_carries_the_room_the_job_finds_it_there(rooms: Path, api: FakeLaunchApi) -> None:
    room = make_room(rooms, *WORDS, "queue.room=memory://sweeps")
    push_controller(room)
    ((_, job),) = pushed(api)
    assert job.controller == "memory://sweeps/s"
    store = open_store(job.controller)
    assert json.loads(store.get(["sweep.json"])["sweep.json"])["name"] == "s"
    assert "study.journal" in store.list()


@pytest.mark.parametrize("level", [None, "DEBUG"])
def test_the_job_logs_at_the_level_of_the_command(
    rooms: Path, api: FakeLaunchApi, monkeypatch: pytest.MonkeyPatch, level: str | None
) -> None:
    if level is not None:
        monkeypatch.setenv(logs.LEVEL_ENV, level)
    push_controller(make_room(rooms, *WORDS))
    ((_, job),) = pushed(api)
    assert job.options["env"] == ({} if level is None else {logs.LEVEL_ENV: level})


def test_while_a_controller_runs_here_no_other_is_pushed(rooms: Path, api: FakeLaunchApi) -> None:
    room = make_room(rooms, *WORDS)
    with hold(controller_lock(room), "test"), pytest.raises(RetryLater, match="sweep stop s"):
        push_controller(room)
    assert pushed(api) == []


def test_its_number_goes_on_though_the_job_held_the_sweep_last(
    rooms: Path, tmp_path: Path, api: FakeLaunchApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = make_room(rooms, *WORDS, f"queue.room=file://{tmp_path}/store")
    for _ in range(3):
        push_controller(room)
        taken(api)
        monkeypatch.setenv("SWEEP_ROOMS", str(tmp_path / "pod"))
        url = f"file://{tmp_path}/store/s"
        with open_store_channel(current_room(url, light=False), url, "pod"):
            pass
        monkeypatch.setenv("SWEEP_ROOMS", str(rooms))
    assert [found.rpartition("-")[2] for found, _ in pushed(api)] == ["1", "2", "3"]


def test_the_next_one_takes_the_place_of_one_that_waits(rooms: Path, api: FakeLaunchApi) -> None:
    room = make_room(rooms, *WORDS)
    push_controller(room)
    push_controller(room)
    assert [api.item_state(item) for item in api.items()] == [None, "pending"]


@pytest.mark.parametrize("carried", [False, True], ids=["the room is shared", "a store carries the room"])
@pytest.mark.parametrize("taking", [False, True], ids=["it waits", "an agent takes it at this moment"])
def test_a_job_that_waited_does_not_go_on_with_a_sweep_that_was_stopped(
    rooms: Path,
    api: FakeLaunchApi,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    taking: bool,
    carried: bool,
) -> None:
    url = f"file://{rooms.parent}/store"
    room = make_room(rooms, *WORDS, *([f"queue.room={url}"] if carried else []))
    push_controller(room)
    if taking:
        taken(api)
    assert main(["stop", "s"]) == 0
    assert ("took the controller's job" in capsys.readouterr().out) is not taking
    assert [api.item_state(item) for item in api.items()] == ["claimed" if taking else None]
    api.fail("push", error="giveup")  # whoever goes on with the sweep, and would give it workers, fails
    if carried:
        monkeypatch.setenv("SWEEP_ROOMS", str(rooms.parent / "pod"))
    assert main(["resume", f"{url}/s" if carried else "s", "--in-job"]) == 0
    assert "was stopped while this job was queued" in capsys.readouterr().out
    assert api.asked("push") == ["s-controller"]


def test_after_a_stop_resume_pushes_one_that_goes_on(rooms: Path, tmp_path: Path, api: FakeLaunchApi) -> None:
    room = make_room(rooms, *WORDS, f"queue.room=file://{tmp_path}/store")
    push_controller(room)
    assert withdraw_controller(room)
    assert not is_wanted(room)
    push_controller(room)
    assert is_wanted(room)
    assert [api.item_state(item) for item in api.items()] == [None, "pending"]


def test_another_machine_withdraws_it_too_though_wandb_does_not_answer(
    rooms: Path, tmp_path: Path, api: FakeLaunchApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = make_room(rooms, *WORDS, f"queue.room=file://{tmp_path}/store")
    push_controller(room)
    monkeypatch.setenv("SWEEP_ROOMS", str(tmp_path / "desktop"))
    elsewhere = current_room(f"file://{tmp_path}/store/s")
    api.fail("item_state")
    assert withdraw_controller(elsewhere) == ""
    api.mend("item_state")
    assert "-controller-1 off the queue sweep" in withdraw_controller(room), (
        "the machine that pushed it may do so later"
    )
    monkeypatch.setenv("SWEEP_ROOMS", str(tmp_path / "pod"))
    assert not is_wanted(current_room(f"file://{tmp_path}/store/s"))


@pytest.fixture
def signals() -> Iterator[None]:
    """A job sets handlers of its own."""
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.usefixtures("signals")
def test_the_job_resumes_the_sweep_and_ends_as_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    said: list[list[str]] = []
    popen = subprocess.Popen

    def fake(command: list[str]) -> subprocess.Popen[bytes]:
        said.append(command)
        return popen([sys.executable, "-c", f"raise SystemExit({code})"])

    monkeypatch.setattr(subprocess, "Popen", fake)
    monkeypatch.setenv(logs.LEVEL_ENV, "INFO")
    room = Room(tmp_path)
    config = {JOB_KEY: {"controller": str(room.root), "options": {"env": {logs.LEVEL_ENV: "DEBUG"}}}}
    assert launch_job.main({"WANDB_CONFIG": json.dumps(config)}) == (0 if code == 0 else 1)
    assert os.environ[logs.LEVEL_ENV] == "DEBUG", "its child has it too"
    assert said == [[sys.executable, "-P", "-m", "sweep.cli", "resume", str(room.root), "--in-job"]]
    assert ("ended with exit code 3" in capsys.readouterr().err) == (code == 3)
