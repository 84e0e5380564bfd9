"""The controller as a Launch job: what is refused, what is pushed, and what the job runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweep import controllerjob
from sweep.controllerjob import check_controller, push_controller
from sweep.errors import ConfigError, RetryLater
from sweep.rooms import controller_lock, load_settings
from tests.faults.harness import make_room
from tests.launchfakes import FakeLaunchApi
from trainer import launched
from trainer.contract import JOB_KEY
from trainer.launched import JobSpec, read_job
from trainer.room import Room, hold
from trainer.store import open_store

WORDS = ("queue=launch_local_process", "controller=launch", "wandb.entity=e", "wandb.project=p")


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLaunchApi:
    found = FakeLaunchApi(tmp_path / "wandb")
    monkeypatch.setattr(controllerjob, "make_api", lambda queue, place, job: found)
    return found


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


def test_while_a_controller_runs_here_no_other_is_pushed(rooms: Path, api: FakeLaunchApi) -> None:
    room = make_room(rooms, *WORDS)
    with hold(controller_lock(room), "test"), pytest.raises(RetryLater, match="sweep stop s"):
        push_controller(room)
    assert pushed(api) == []


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
    room = Room(tmp_path)
    config = {JOB_KEY: {"controller": str(room.root)}}
    assert launched.main({"WANDB_CONFIG": json.dumps(config)}) == (0 if code == 0 else 1)
    assert said == [[sys.executable, "-m", "sweep.cli", "resume", str(room.root), "--in-job"]]
    assert ("ended with exit code 3" in capsys.readouterr().err) == (code == 3)
