"""What another user of the machine can do to a room, by processes that really have another user id."""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from sweep.cli import read_verbs
from sweep.cli.main import main
from sweep.wiring import creation
from sweep.wiring.rooms import controller_lock, load_settings
from tests.helpers.kill_points import composed
from tests.helpers.played_rooms import copy_room, make
from trainer.room import Room, hold

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

NOBODY = 65534
# What verbs import late: another user may not be able to read this interpreter's files.
LATE = (
    "rich.live",
    "sweep.cli.live_view",
    "sweep.cli.stop",
    "sweep.report.reader",
    "sweep.report.html",
    "colorsys",
    "sweep.report.replay",
    "sweep.cli.start",
    "sweep.cli.background",
    "sweep.report.terminal",
)
for module in LATE:
    import_module(module)


def as_another_user(act: Callable[[], object], group: int, log: Path) -> int:
    """The exit code of a process with another user id that runs `act`; what it prints is in `log`."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with log.open("w") as output:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                sys.stdout, sys.stderr = output, output
                os.setgroups([])
                os.setgid(group)
                os.setuid(NOBODY)
                result = act()
                code = result if isinstance(result, int) else 0
        except PermissionError:
            code = 13
        except BaseException:
            with log.open("a") as output:
                traceback.print_exc(file=output)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    """A sweep of this user below directories that everyone may enter."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.owner() == Path.home().owner() and directory != Path("/") and directory != Path("/tmp"):
            directory.chmod(directory.stat().st_mode | 0o011)
    rooms = tmp_path / "rooms"
    monkeypatch.setenv("SWEEP_ROOMS", str(rooms))
    before = os.umask(0o002)
    try:
        made = creation.create_room(composed(), 40)
    finally:
        os.umask(before)
    (made.root / "submitit").mkdir(mode=0o775)
    (made.root / "submitit" / "1_submitted.pkl").write_bytes(b"the owner's")
    return made


@pytest.mark.parametrize("group", [NOBODY, os.getegid()], ids=["of another group", "of the owner's group"])
def test_another_user_can_neither_read_nor_exchange_anything(room: Room, tmp_path: Path, group: int) -> None:
    acts: list[Callable[[], object]] = [
        room.sweep.read_text,
        lambda: room.sweep.write_text("{}"),
        lambda: list(room.root.iterdir()),
        lambda: (room.root / "submitit" / "1_submitted.pkl").write_bytes(b"another's"),
        (room.root / "submitit" / "1_submitted.pkl").unlink,
        lambda: room.root.rename(room.root.with_name("moved")),
    ]
    assert [as_another_user(act, group, tmp_path / "log") for act in acts] == [13] * len(acts)
    assert load_settings(room).name == room.root.name
    assert (room.root / "submitit" / "1_submitted.pkl").read_bytes() == b"the owner's"


@pytest.mark.parametrize("verb", ["status", "watch", "stop", "report", "best"])
def test_a_verb_on_another_user_s_room_is_one_sentence(room: Room, tmp_path: Path, verb: str) -> None:
    code = as_another_user(lambda: main([verb, room.root.name]), NOBODY, tmp_path / "log")
    said = (tmp_path / "log").read_text()
    assert code in (1, 2), said
    assert "Traceback" not in said
    assert said.startswith("sweep: ")
    assert len(said.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Room:
    return make("finished", tmp_path_factory.mktemp("played"))


@pytest.fixture
def readable(played: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    """A finished sweep of this user that everyone may read and nobody else may write."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.owner() == Path.home().owner() and directory != Path("/") and directory != Path("/tmp"):
            directory.chmod(directory.stat().st_mode | 0o011)
    monkeypatch.setenv("SWEEP_ROOMS", str(tmp_path / "rooms"))
    room = copy_room(played, tmp_path / "rooms")
    for path in room.root.parent.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    room.root.parent.chmod(0o755)
    return room


def said_to_another(room: Room, log: Path, *words: str) -> tuple[int, str]:
    code = as_another_user(lambda: main([words[0], room.root.name, *words[1:]]), NOBODY, log)
    text = log.read_text()
    assert "Traceback" not in text
    return code, text


READING = [("status",), ("watch",), ("logs",), ("best",), ("export", "-o", "-"), ("replay", "pruner=median")]


@pytest.mark.parametrize("words", READING, ids=lambda words: words[0])
def test_what_only_reads_works_in_another_user_s_room(readable: Room, tmp_path: Path, words: tuple[str, ...]) -> None:
    before = sorted(readable.root.rglob("*"))
    code, said = said_to_another(readable, tmp_path / "log", *words)
    assert code == 0, said
    assert sorted(readable.root.rglob("*")) == before
    if words == ("best",):
        assert "best.yaml could not be written" in said
        assert "trial" in said


@pytest.mark.parametrize("words", [("resume",), ("report",), ("export",), ("stop",)], ids=lambda words: words[0])
def test_what_writes_is_one_sentence_in_another_user_s_room(
    readable: Room, tmp_path: Path, words: tuple[str, ...]
) -> None:
    code, said = said_to_another(readable, tmp_path / "log", *words)
    assert code in (1, 2), said
    last = said.strip().splitlines()[-1]
    assert last.startswith("sweep: ")
    assert str(readable.root) in last


def test_a_running_controller_is_seen_through_a_lock_that_may_only_be_read(readable: Room, tmp_path: Path) -> None:
    with hold(controller_lock(readable), "process 7 on there"):
        _, said = said_to_another(readable, tmp_path / "log", "status")
        assert "controller: process 7 on there" in said
        code, said = said_to_another(readable, tmp_path / "log", "resume")
        assert code == 1


def test_a_lock_that_may_not_be_read_is_neither_held_nor_free(
    readable: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_verbs, "UNSEEN_SECONDS", 0.0)
    worker = readable.worker(readable.workers()[0])
    for lock in (controller_lock(readable), worker.lock):
        lock.touch()
        lock.chmod(0o600)
    for verb in ("status", "watch"):
        code, said = said_to_another(readable, tmp_path / "log", verb)
        assert code == 0, said
        assert "whether a controller runs cannot be seen" in said
        assert "draining" not in said
        assert "cannot be seen: this user" in said  # of the worker
    code, said = said_to_another(readable, tmp_path / "log", "stop")
    assert code == 1
    assert "cannot be seen" in said


MOUNTED = subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode == 0
READ_ONLY = """
import subprocess, sys
from pathlib import Path
rooms, words = sys.argv[1], sys.argv[2:]
subprocess.run(["mount", "--bind", rooms, rooms], check=True)
subprocess.run(["mount", "-o", "remount,ro,bind", rooms], check=True)
from sweep.cli.main import main
sys.exit(main(words))
"""


@pytest.mark.skipif(not MOUNTED, reason="this machine allows no user namespace, in which to mount")
@pytest.mark.parametrize(("verb", "code"), [("status", 0), ("watch", 0), ("best", 0), ("resume", 1), ("stop", 1)])
def test_a_file_system_that_is_read_only(readable: Room, verb: str, code: int) -> None:
    rooms = str(readable.root.parent)
    command = ["unshare", "-rm", sys.executable, "-c", READ_ONLY, rooms, verb, readable.root.name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert "another controller" not in done.stderr
    if code:
        assert "read-only file system" in done.stderr
    if verb == "status":
        assert "no controller is running" in done.stdout
        assert "draining" not in done.stdout
