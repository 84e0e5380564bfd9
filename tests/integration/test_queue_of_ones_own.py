"""The queue of docs/queues.md, taken out of the document and used as a person uses it."""

from __future__ import annotations

import fcntl
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sweep.errors import ConfigError
from sweep.model.states import JobState
from sweep.report.plan import make_plan
from sweep.wiring.backends import make_dispatcher
from sweep.wiring.compose import Composed, compose_config, freeze
from tests.helpers.cli import SMALL, status, sweep
from tests.helpers.own_queue import install_own_queue, write_own_queue
from tests.helpers.waiting import until
from trainer.room import Room, held, read_json


@pytest.mark.slow
def test_a_sweep_runs_on_it_to_the_end(tmp_path: Path, rooms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = write_own_queue(tmp_path / "own")
    monkeypatch.setenv("SWEEP_QUEUES", str(conf))
    done = sweep("run", *SMALL, "queue=nice", "--config-dir", str(conf), "name=own", "search.trials=3")
    assert "done: all 3 trials have ended" in done.stdout
    assert {row["state"] for row in status("own")["rows"]} <= {"complete", "pruned"}
    room = Room(rooms / "own")
    section = read_json(room.sweep)["queue"]
    assert (section["kind"], section["command"], section["workers"]) == ("wrapped", ["nice", "-n", "10"], 2)
    assert 1 <= len(room.workers()) <= 2
    assert {read_json(room.worker(name).job)["queue"] for name in room.workers()} == {"wrapped"}
    assert not any(held(room.worker(name).lock) for name in room.workers())
    monkeypatch.delenv("SWEEP_QUEUES")
    gone = sweep("status", "own", code=2).stderr
    assert "queue.kind=wrapped is not allowed; it must be launch or local or simulated or slurm" in gone


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory with the document's YAML file; this process finds the queue."""
    return install_own_queue(tmp_path / "own", monkeypatch)


def composed(conf: Path, *words: str) -> Composed:
    return freeze(compose_config([*SMALL, "queue=nice", *words], conf), "own", conf)


def test_plan_shows_what_it_would_start(conf: Path, rooms: Path) -> None:
    plan = make_plan(composed(conf).settings, 1, measure=False)
    assert plan.workers == 2
    assert re.match(r"nice -n 10 \S+ -P -m trainer serve --lock-held --room \S+ --worker w0001", plan.preview)


def test_it_ends_a_worker_by_what_its_lock_says(conf: Path, rooms: Path, tmp_path: Path) -> None:
    settings, room = composed(conf).settings, Room(tmp_path / "room")
    files = room.worker("w0001")
    files.path.mkdir(parents=True)
    code = "import time; from trainer.identity import own_identity; print(own_identity(), flush=True); time.sleep(600)"
    with files.lock.open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        worker = subprocess.Popen([sys.executable, "-c", code], stdout=lock, start_new_session=True)
    until(lambda: files.lock.read_text().endswith("\n"), worker)
    dispatcher = make_dispatcher(room, settings)
    assert dispatcher.poll()["w0001"].state is JobState.RUNNING
    dispatcher.cancel(["w0001"])
    assert worker.wait() == -signal.SIGKILL
    assert dispatcher.poll()["w0001"].state is JobState.GONE
    dispatcher.cancel(["w0001"])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("queue.command=[]", "queue.command=[] does not begin with a program; try [nice, -n, '10']"),
        ("queue.command=[no-such-program]", "does not begin with a program"),
        ("+queue.comand=[nice]", "queue: there is no key comand (did you mean command?)"),
        ("queue.workers=0", "queue.workers=0 is not allowed; it must be between 1 and 100,000"),
        (
            "queue.kind=lsf",
            "it must be launch or local or simulated or slurm or wrapped",
        ),
    ],
)
def test_its_section_is_checked_as_that_of_any_queue(conf: Path, word: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        composed(conf, word)
    assert message in str(refused.value)
