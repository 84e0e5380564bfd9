"""What another user of the machine can do to a room, by processes that really have another user id."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from sweep.cli.main import main
from sweep.wiring import creation
from sweep.wiring.rooms import load_settings
from tests.helpers.kill_points import composed
from trainer.room import Room

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

NOBODY = 65534
# What verbs import late: another user may not be able to read this interpreter's files.
LATE = ("rich.live", "sweep.cli.live_view", "sweep.cli.stop", "sweep.report.reader", "sweep.report.html", "colorsys")
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
