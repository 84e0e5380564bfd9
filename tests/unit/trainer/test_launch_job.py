"""What a Launch job makes of the environment that its agent gave it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer import logs
from trainer.contract import JOB_KEY, Tracking, TrialSpec, decode, encode
from trainer.entry import launch_job
from trainer.entry.launch_job import JobError, JobSpec, claim, read_job
from trainer.room import UNWANTED, Room, read_text, write_atomic

TRACKING = Tracking("run-1", "online", {"entity": "team", "project": "p"}, checkpoint="run-1-checkpoint")
SPEC = TrialSpec("s", 3, 1, "w0001", {"model": {"lora_rank": 8}}, milestone_tokens=10, tracking=TRACKING)
INIT = {"entity": "team", "project": "p"}


def config(**said: Any) -> str:
    return json.dumps({JOB_KEY: {"worker": "w0001", **said}, "another": 1})


def plain(spec: TrialSpec) -> Any:
    return json.loads(encode(spec))


# --- its job ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_the_job_is_read_also_where_the_agent_has_cut_it_into_parts(parts: int) -> None:
    text = config(channel="wandb", specs=[plain(SPEC)], options={"trials": 1})
    size = -(-len(text) // parts)
    env = {f"WANDB_CONFIG_{n}": text[n * size : (n + 1) * size] for n in range(parts)}
    job = read_job(env if parts > 1 else {"WANDB_CONFIG": text})
    assert (job.worker, job.channel, job.options) == ("w0001", "wandb", {"trials": 1})
    assert [decode(TrialSpec, json.dumps(raw)) for raw in job.specs] == [SPEC]


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"WANDB_CONFIG": "{"},
        {"WANDB_CONFIG": '{"lr": 1}'},
        {"WANDB_CONFIG": '{"sweep_job": {"worker": "w", "no_such": 1}}'},
        {"WANDB_CONFIG_1": config()},
    ],
)
def test_what_is_no_job_is_refused_with_the_way_to_get_one(env: Mapping[str, str]) -> None:
    with pytest.raises(JobError, match=r"holds no job of a sweep.*start jobs with `sweep run queue=launch_"):
        read_job(env)


# --- its name --------------------------------------------------------------------------------------------------------


def test_a_name_is_taken_once(tmp_path: Path) -> None:
    worker = Room(tmp_path).worker("w0001")
    assert claim(worker)
    assert not claim(worker)


@pytest.mark.parametrize("left", ["exit", "beat"])
def test_a_name_that_was_served_is_not_taken_again(tmp_path: Path, left: str) -> None:
    worker = Room(tmp_path).worker("w0001")
    write_atomic(worker.path / left, "1")
    assert not claim(worker)


def test_a_job_that_nobody_waits_for_does_not_begin_and_a_drained_one_does_what_it_has(tmp_path: Path) -> None:
    """A sweep that its person has left drains all its workers, also those whose jobs still wait in the queue."""
    room = Room(tmp_path)
    write_atomic(room.worker("w0001").drain, UNWANTED)
    write_atomic(room.worker("w0002").drain, "")
    assert not claim(room.worker("w0001"))
    assert claim(room.worker("w0002"))


# --- a job as a whole ------------------------------------------------------------------------------------------------


class Served:
    """In the place of `trainer.entry.slurm_job.serve`: notes what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.env: dict[str, str] = {}
        self.inbox: list[tuple[int, int]] = []
        self.spec: str | None = None

    def __call__(self, room: str, worker: str, options: Mapping[str, Any]) -> None:
        self.calls.append((room, worker))
        self.env = dict(os.environ)
        self.inbox = Room(Path(room)).worker(worker).assignments()
        self.spec = read_text(Room(Path(room)).attempt(3, 1).spec)


@pytest.fixture(autouse=True)
def log_lines() -> None:
    """Log lines go to standard output, as in a worker."""
    logs.configure()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    made = Served()
    monkeypatch.setattr(launch_job, "serve", made)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return made


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """The configurations of the runs that W&B knows, by path."""
    known: dict[str, dict[str, Any]] = {}
    monkeypatch.setattr("wandb.Api", lambda: SimpleNamespace(run=lambda path: SimpleNamespace(config=known[path])))
    return known


def test_nothing_that_the_agent_set_for_its_run_reaches_a_trial(served: Served, tmp_path: Path) -> None:
    agent = (
        "WANDB_SERVICE",
        "WANDB_RUN_ID",
        "WANDB_NAME",
        "WANDB_LAUNCH",
        "WANDB_LAUNCH_QUEUE_NAME",
        "WANDB_ARTIFACTS",
    )
    kept = ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR", "WANDB_ENTITY")
    os.environ |= dict.fromkeys([*agent, *kept], "x")
    os.environ |= {"WANDB_CONFIG_0": config(room=str(tmp_path))[:9], "WANDB_CONFIG_1": config(room=str(tmp_path))[9:]}
    assert launch_job.main(os.environ) == 0
    assert served.calls == [(str(tmp_path), "w0001")]
    assert not {*agent, "WANDB_CONFIG_0", "WANDB_CONFIG_1"} & served.env.keys()
    assert set(kept) <= served.env.keys()


def test_a_second_start_of_the_same_job_ends_at_once(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = {"WANDB_CONFIG": config(room=str(tmp_path))}
    assert [launch_job.main(env), launch_job.main(env)] == [0, 0]
    assert len(served.calls) == 1
    assert "INFO worker w0001 has been served already" in capsys.readouterr().out


def test_a_room_that_is_not_here_is_refused_with_the_ways_out(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch_job.main({"WANDB_CONFIG": config(room=str(tmp_path / "absent"))}) == 1
    said = capsys.readouterr().err
    assert served.calls == []
    assert all(word in said for word in ("absent does not exist on this machine", "queue.room", "queue.channel=wandb"))


def test_alone_with_wandb_it_gets_a_room_of_its_own_with_its_first_trials(
    served: Served, runs: dict[str, dict[str, Any]]
) -> None:
    assert launch_job.main({"WANDB_CONFIG": config(channel="wandb", specs=[plain(SPEC)], init=INIT)}) == 0
    ((room, _),) = served.calls
    assert served.inbox == [(3, 1)]
    assert decode(TrialSpec, served.spec or "") == SPEC
    assert not Path(room).exists(), "nothing is left on the node"


@pytest.mark.parametrize(
    ("said", "begins"),
    [
        ({}, True),
        ({"sweep": {"worker": "w0001", "attempt": 1}}, False),
        ({"sweep": {"worker": "w0000", "attempt": 2}}, False),
        ({"sweep": {"worker": "w0000", "attempt": 0}}, True),
    ],
    ids=["a run of somebody", "its own: started twice", "a later attempt's", "an earlier attempt's"],
)
def test_alone_with_wandb_the_run_says_whether_the_name_was_served(
    served: Served, runs: dict[str, dict[str, Any]], said: dict[str, Any], begins: bool
) -> None:
    runs["team/p/run-1"] = said
    assert launch_job.main({"WANDB_CONFIG": config(channel="wandb", specs=[plain(SPEC)], init=INIT)}) == 0
    assert bool(served.calls) is begins


def test_a_job_of_several_trials_has_a_run_of_its_own_that_ends_with_its_exit_code(
    served: Served, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun: list[dict[str, Any]] = []
    ended: list[int] = []

    def finish(exit_code: int) -> None:
        ended.append(exit_code)

    def init(**words: Any) -> Any:
        begun.append(words)
        return SimpleNamespace(finish=finish)

    monkeypatch.setattr("wandb.init", init)
    env = {"WANDB_CONFIG": config(room=str(tmp_path), run="s-w0001", init=INIT)}
    assert launch_job.main(env) == 0
    assert launch_job.main(env) == 0, "a second start opens no run"
    monkeypatch.setattr(launch_job, "serve", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        launch_job.main(
            {"WANDB_CONFIG": json.dumps({JOB_KEY: {**json.loads(env["WANDB_CONFIG"])[JOB_KEY], "worker": "w2"}})}
        )
    assert ended == [0, 1]
    assert [words["id"] for words in begun] == ["s-w0001", "s-w0001"]
    assert begun[0]["config"] == {"sweep": {"worker": "w0001"}}


# --- more trials, and the word to end --------------------------------------------------------------------------------


def test_what_its_run_is_told_later_reaches_its_inbox(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = {JOB_KEY: {"inbox": [plain(SPEC)], "drain": False}}
    run = SimpleNamespace(config=told, load=lambda force: None)
    monkeypatch.setattr("wandb.Api", lambda: SimpleNamespace(run=lambda path: run))
    monkeypatch.setattr(launch_job, "POLL_SECONDS", 0.001)
    room = Room(tmp_path)
    with launch_job._follow_inbox(JobSpec("w0001", "wandb", run="s-w0001", init=INIT, more=True), room):
        wait(lambda: room.worker("w0001").assignments() == [(3, 1)])
        assert not room.worker("w0001").drain.exists()
        told[JOB_KEY]["drain"] = True
        wait(room.worker("w0001").drain.exists)


def test_a_later_attempt_goes_on_from_the_checkpoint_in_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def artifact(name: str, type: str) -> Any:
        asked.append(name)
        return SimpleNamespace(download=lambda root: write_atomic(Path(root) / "checkpoint.pt", b"state"))

    monkeypatch.setattr("wandb.Api", lambda: SimpleNamespace(artifact=artifact))
    room = Room(tmp_path)
    launch_job.write_assignments(room, "w0001", (plain(replace(SPEC, attempt=3)),))
    assert asked == ["team/p/run-1-checkpoint:latest"]
    assert room.attempts(3) == [2, 3]
    assert room.attempt(3, 2).resume_point().read_bytes() == b"state"


def test_without_a_checkpoint_in_wandb_it_begins_anew(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wandb.Api", lambda: SimpleNamespace(artifact=lambda *_, **__: 1 / 0))
    room = Room(tmp_path)
    launch_job.write_assignments(room, "w0001", (plain(replace(SPEC, attempt=2)),))
    assert room.attempts(3) == [2]
    assert room.worker("w0001").assignments() == [(3, 2)]
    assert "trial 3 begins anew" in capsys.readouterr().out


def wait(condition: Any) -> None:
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)
