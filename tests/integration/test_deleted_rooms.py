"""A room is deleted, and another sweep of its name begins, while a worker and a controller of the old one live."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sweep.cli.foreground import drive
from sweep.cli.run_control import RunControl
from sweep.controller.ports import WorkerSpec
from sweep.errors import GiveUp
from sweep.processes import PreforkServer, clean_env
from sweep.queues.local.dispatcher import LocalDispatcher
from sweep.wiring import backends, creation
from sweep.wiring.compose import compose_config, freeze
from sweep.wiring.rooms import load_settings
from tests.conftest import embedded_config
from tests.helpers.kill_points import make_room
from tests.helpers.tables import write_table
from tests.helpers.waiting import until
from trainer.contract import TrialSpec, encode
from trainer.entry.slurm_job import run_job
from trainer.presence import RoomLostError
from trainer.room import Room, held, read_text, write_atomic

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("warm")]
END_SECONDS = 300


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def assign(room: Room, token: str, **config: Any) -> TrialSpec:
    spec = TrialSpec("s", 0, 1, "w0001", config, milestone_tokens=40, token=token)
    write_atomic(room.attempt(0, 1).spec, encode(spec))
    room.worker("w0001").assign(0, 1)
    return spec


def serving(room: Room) -> subprocess.Popen[bytes]:
    """A worker as a process, in the room as it is now."""
    command = [sys.executable, "-m", "trainer", "serve", "--room", str(room.root), "--worker", "w0001"]
    log = (room.root.parent / "worker.log").open("wb")
    token = load_settings(room).token
    return subprocess.Popen(
        [*command, "--idle-seconds", "600", "--token", token], stdout=log, stderr=subprocess.STDOUT, env=clean_env()
    )


def said(room: Room) -> str:
    return (room.root.parent / "worker.log").read_text()


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("anew", [False, True])
def test_a_worker_leaves_the_next_sweep_of_its_room_alone(rooms: Path, trains: bool, anew: bool) -> None:
    room = make_room(rooms)
    if trains:
        endless = embedded_config(epochs=500, dataset__split="train[:48]")
        assign(room, load_settings(room).token, **endless)
    worker = serving(room)
    wanted = room.attempt(0, 1).checkpoint if trains else room.worker("w0001").beat
    until(wanted.exists, worker)
    shutil.rmtree(room.root)
    before: dict[str, bytes] = {}
    if anew:
        room = make_room(rooms)
        room.worker("w0001").path.mkdir(parents=True)
        room.worker("w0001").lock.write_text("somebody else\n")
        assign(room, load_settings(room).token, **embedded_config())
        write_atomic(room.attempt(0, 1).checkpoint, b"the other sweep's")
        before = files_of(room.root)
    assert worker.wait(END_SECONDS) == 1
    last = said(room).strip().splitlines()[-1]
    assert "Traceback" not in said(room)
    if anew:
        assert "is another sweep's" in last
        assert files_of(room.root) == before
    else:
        assert "was deleted; this process ends and writes nothing more" in last
        assert not room.root.exists()


def test_a_worker_whose_own_directory_was_deleted_ends(rooms: Path) -> None:
    room = make_room(rooms)
    worker = serving(room)
    until(room.worker("w0001").beat.exists, worker)
    shutil.rmtree(room.worker("w0001").path)
    assert worker.wait(END_SECONDS) == 1
    assert f"{room.worker('w0001').lock} was deleted" in said(room)
    assert not room.worker("w0001").path.exists()


def test_a_forked_worker_gets_the_token_and_starts_in_no_other_sweep_s_room(rooms: Path) -> None:
    room = make_room(rooms)
    prefork = PreforkServer()
    dispatcher = LocalDispatcher(room, (), 1, prefork=prefork, token=load_settings(room).token)
    dispatcher.start([WorkerSpec("w0001", 0)])
    until(room.worker("w0001").beat.exists)
    late = LocalDispatcher(room, (), 1, prefork=prefork, token="0123456789abcdef")
    late.start([WorkerSpec("w0002", 0)])
    log = room.worker("w0002").log
    until(lambda: "is another sweep's" in (read_text(log) or ""))
    until(lambda: not held(room.worker("w0002").lock))
    assert not room.worker("w0002").beat.exists()
    assert "Traceback" not in log.read_text()
    write_atomic(room.worker("w0001").drain, "")
    until(lambda: not held(room.worker("w0001").lock))
    prefork.close()


@pytest.mark.parametrize("anew", [False, True])
def test_a_controller_leaves_the_next_sweep_of_its_room_alone(
    rooms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anew: bool
) -> None:
    table = write_table(tmp_path / "table.npz")
    words = ["queue=simulated", f"queue.table={table}", "pruner=asha", "search.trials=50", "objective=val_loss"]
    words += ["space.optimizer.lr=tag(log,interval(1e-5,1e-1))", "queue.workers=3"]
    composed = freeze(compose_config(words), "s")
    room = creation.create_room(composed, 8000)
    before: list[dict[str, bytes]] = []

    def replaced(control: RunControl) -> Any:
        if not before and len(room.trials()) > 3:
            shutil.rmtree(room.root)
            if anew:
                creation.create_room(composed, 8000)
            before.append(files_of(room.root))
        return control.mode

    monkeypatch.setattr(RunControl, "__call__", replaced)
    sentence = "is another sweep's now" if anew else "was deleted"
    with pytest.raises(GiveUp, match=f"{room.root} .*{sentence}; this process ends and writes nothing more"):
        drive(room, RunControl(room), backends.make_prefork(composed.settings))
    assert files_of(room.root) == before[0]
    assert room.root.exists() is anew


# --- jobs of a cluster ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "during"])
@pytest.mark.parametrize("anew", [False, True])
def test_a_job_writes_nothing_into_the_room_of_another_sweep(rooms: Path, when: str, anew: bool) -> None:
    room = make_room(rooms)
    options = {"env": {}, "seconds": 600.0, "token": load_settings(room).token}

    def replace() -> None:
        shutil.rmtree(room.root)
        if anew:
            make_room(rooms)

    def work(*words: Any) -> tuple[str, bool]:
        assert when == "during", "it must not begin"
        replace()
        return "it is done", False

    pid = os.fork()
    if pid == 0:  # the job changes this process's signals
        try:
            if when == "before":
                replace()
            run_job(str(room.root), "w0001", options, work)
            code = 0
        except RoomLostError:
            code = 7
        except BaseException:
            code = 1
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == (7 if when == "before" else 0)
    assert room.root.exists() is anew
    assert not (room.root / "workers").exists()
