"""Which process a lock names, and that no other one is ever signalled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweep.queues.local.dispatcher import LocalDispatcher
from trainer.identity import is_alive, kill_group, own_identity, process_id
from trainer.room import Room, held

HOLD = """
import sys, time
from pathlib import Path
from trainer.identity import own_identity
from trainer.room import hold
with hold(Path(sys.argv[1]), own_identity()):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def room(tmp_path: Path) -> Room:
    made = Room(tmp_path / "s")
    made.worker("w0001").path.mkdir(parents=True)
    return made


@pytest.fixture
def holder(room: Room) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the worker's lock."""
    command = [sys.executable, "-c", HOLD, str(room.worker("w0001").lock)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_worker_of_this_machine_is_killed(room: Room, holder: subprocess.Popen[bytes]) -> None:
    lock = room.worker("w0001").lock
    assert process_id(lock.read_text()) == holder.pid
    assert is_alive(lock.read_text(), lock)
    LocalDispatcher(room, (), 1).cancel(["w0001"])
    assert holder.wait(60) == -signal.SIGKILL
    assert not held(lock)


@pytest.mark.parametrize("fact", ["start", "boot", "pids", "host"])
def test_a_process_that_differs_in_one_fact_is_left_alone(
    room: Room, holder: subprocess.Popen[bytes], fact: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its id was given to another process: later, after a restart, in a container, on another machine."""
    lock = room.worker("w0001").lock
    words = lock.read_text().split()
    lock.write_text(" ".join(f"{fact}=7" if word.startswith(f"{fact}=") else word for word in words) + "\n")
    dispatcher = LocalDispatcher(room, (), 1)
    dispatcher.cancel(["w0001"])
    dispatcher.cancel(["w0001"])
    assert holder.poll() is None
    assert [record.message for record in caplog.records if "w0001" in record.message] == [
        f"the worker w0001 is no process of this machine and cannot be ended here: {lock.read_text().strip()}"
    ]


@pytest.mark.parametrize(
    "text", ["", "nobody", "-1", "0", "1", "99999999", "host=x", "\x00", "4 start= boot= pids= host="]
)
def test_a_text_that_names_no_such_process_kills_nobody(room: Room, text: str) -> None:
    assert not kill_group(text, room.worker("w0001").lock)


def test_an_old_lock_has_an_id_alone_and_its_process_has_it_open(room: Room, holder: subprocess.Popen[bytes]) -> None:
    lock, other = room.worker("w0001").lock, room.worker("w0001").log
    other.touch()
    lock.write_text(f"{holder.pid}\n")
    assert is_alive(lock.read_text(), lock)
    assert not is_alive(lock.read_text(), other)
    lock.write_text(f"{os.getpid()}\n")  # of this process, which has not got it open
    assert not kill_group(lock.read_text(), lock)
    lock.write_text(f"{holder.pid}\n")
    assert kill_group(lock.read_text(), lock)
    assert holder.wait(60) == -signal.SIGKILL


def test_a_process_says_itself() -> None:
    text = own_identity()
    assert process_id(text) == os.getpid()
    assert is_alive(text, Path("lock"))
    ended = subprocess.run(
        [sys.executable, "-c", "from trainer.identity import own_identity; print(own_identity())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not is_alive(ended.stdout, Path("lock"))
