"""Who may use a room, and that no name leads out of the directory of the rooms."""

from __future__ import annotations

import grp
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from sweep.cli.doctor import _permissions
from sweep.cli.main import main
from sweep.errors import ConfigError
from sweep.wiring.access import make_room_directory
from sweep.wiring.compose import compose_config, freeze
from sweep.wiring.rooms import current_room, load_settings, worker_log, worker_of
from tests.helpers.kill_points import make_room
from trainer.names import harmless, has_control, is_key, is_name, name_or_empty
from trainer.room import Room, write_atomic
from trainer.store.objects import open_store


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o000, 0o002, 0o022, 0o077, 0o277])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_room_is_its_owner_s_whatever_the_umask_is(tmp_path: Path, umask: int) -> None:
    assert make_room_directory(tmp_path / "rooms" / "s", None)
    assert mode(tmp_path / "rooms" / "s") == 0o700
    assert mode(tmp_path / "rooms") & 0o022 == 0
    assert mode(tmp_path / "rooms") & umask == 0
    assert not make_room_directory(tmp_path / "rooms" / "s", None)


def test_a_group_may_use_a_room_that_names_it(rooms: Path) -> None:
    group = os.getgroups()[-1] if os.getgroups() else os.getegid()
    name = grp.getgrgid(group).gr_name
    room = make_room(rooms, f"room.group={name}")
    assert mode(room.root) == 0o2770
    assert room.root.stat().st_gid == group
    assert load_settings(room).room.group == name


def test_a_group_that_does_not_exist_is_refused_before_anything_is_made(rooms: Path) -> None:
    with pytest.raises(ConfigError, match=r"room\.group=nobody-here is no group of this machine; name one of .*null"):
        make_room(rooms, "room.group=nobody-here")
    assert not (rooms / "s").exists()


def test_a_group_of_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setattr(os, "getegid", lambda: Path("/").stat().st_gid)
    monkeypatch.setattr(os, "getgroups", lambda: [])
    other = next(entry for entry in grp.getgrall() if entry.gr_gid != Path("/").stat().st_gid)
    with pytest.raises(ConfigError, match=rf"room\.group={other.gr_name} is none of your groups; allowed: "):
        freeze(compose_config([f"room.group={other.gr_name}"]), "s")


def test_doctor_warns_of_rooms_that_others_may_change(rooms: Path) -> None:
    room = make_room(rooms)
    rooms.chmod(0o755)
    assert _permissions() == "nobody else may write to the rooms"
    room.root.chmod(0o777)
    assert "others may write to the room s: `chmod go-w" in _permissions()
    room.root.chmod(0o770)
    assert "its group may write to the room s" in _permissions()
    raw = json.loads(room.sweep.read_text())
    write_atomic(room.sweep, json.dumps({**raw, "room": {"group": "us"}}))
    assert _permissions() == "nobody else may write to the rooms"
    rooms.chmod(0o775)
    assert "its group may exchange the rooms" in _permissions()


# --- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", ["..", ".", "", "a%2f..", "a\nb", ".hidden", "a\\b", "a b", "\x1b[2J"])
def test_a_url_whose_last_part_is_no_name_writes_nothing(
    rooms: Path, tmp_path: Path, last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rooms.mkdir()
    store = tmp_path / "store"
    for folder in (store, store / "deep"):
        write_atomic(folder / "sweep.json", json.dumps({"name": "s", "created": 1.0}))
    before = sorted(tmp_path.rglob("*"))
    assert main(["status", f"file://{store}/deep/{last}" if last else "file://"]) == 2
    assert "names no sweep" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_of_a_store_only_the_files_of_a_room_are_downloaded(rooms: Path, tmp_path: Path) -> None:
    room = make_room(tmp_path / "elsewhere", "queue=launch_local_process", "wandb.entity=e", "wandb.project=p")
    url = f"file://{tmp_path}/store/s"
    store = open_store(url)
    for name in ("sweep.json", "recipe.yaml", "study.journal"):
        store.put(name, (room.root / name).read_bytes())
    wanted = ["trials/00000/1/spec.json", "trials/00000/1/adapter/a b.safetensors", "workers/w0001/job.json"]
    wanted += ["evaluations/trials/00000/1/outcome.json", "trials/00000/1/fenced.pt"]
    refused = ["submitit/1_submitted.pkl", "trials/x/1/spec.json", "trials/00000/y/spec.json", "workers/a b/exit"]
    refused += ["evaluations/evaluations/trials/00000/1/spec.json", "trials/00000/1/a\x1bb", "code/x.py", "trials/7"]
    for key in (*wanted, *refused):
        store.put(key, b"{}")
    (rooms / "s").rename(rooms / "mine")
    copy = current_room(url, light=False)
    files = {path.relative_to(copy.root).as_posix() for path in copy.root.rglob("*") if path.is_file()}
    assert files == {"sweep.json", "recipe.yaml", "study.journal", ".tags", *wanted}
    assert mode(copy.root) == 0o700


@pytest.mark.parametrize(
    ("text", "name", "key"),
    [
        ("w0001r2", True, True),
        ("größe-1", True, True),
        ("a/b", False, True),
        ("a b", False, True),
        ("", False, False),
        ("..", False, False),
        ("a/../b", False, False),
        ("/etc/passwd", False, False),
        ("a//b", False, False),
        (".tags", False, False),
        ("a\\b", False, False),
        ("a\n", False, False),
        ("a\x9b", False, False),
    ],
)
def test_names_and_keys(text: str, name: bool, key: bool) -> None:
    assert is_name(text) is name
    assert is_key(text) is key
    assert name_or_empty(text) == (text if name else "")
    assert name_or_empty(7) == ""


def test_a_name_in_a_file_of_a_room_leads_nowhere(rooms: Path) -> None:
    room = make_room(rooms)
    write_atomic(room.attempt(0, 1).spec, json.dumps({"worker": "../../../x"}))
    assert worker_of(room, 0, 1) == ""
    for log in ("/etc/passwd", f"{room.root}/../../x", 7):
        write_atomic(room.worker("w0001").job, json.dumps({"log": log}))
        assert worker_log(room, "w0001") == room.worker("w0001").log
    write_atomic(room.worker("w0001").job, json.dumps({"log": f"{room.root}/submitit/7_0_log.out"}))
    assert worker_log(room, "w0001").name == "7_0_log.out"
    with pytest.raises(ValueError, match="cannot be the name of a worker"):
        room.worker("../w")
    (room.root / "workers" / "w0001" / "inbox").mkdir()
    for entry in ("x-1", "00001-1", "²-1", ".00002-1"):
        (room.root / "workers" / "w0001" / "inbox" / entry).touch()
    (room.root / "trials" / "²").mkdir()
    assert room.worker("w0001").assignments() == [(1, 1)]
    assert room.trials() == [0]


# --- terminals ------------------------------------------------------------------------------------------------------


def test_what_a_terminal_obeys_is_replaced() -> None:
    assert harmless("a\tb\nc") == "a\tb\nc"
    assert harmless("\x1b]0;x\x07\x1b[2J\r\x9b1m\u202eabc") == "�]0;x��[2J��1m�abc"
    assert has_control("a\tb")


def test_a_log_with_escapes_is_shown_without_them(rooms: Path, capsys: pytest.CaptureFixture[str]) -> None:
    room = make_room(rooms)
    write_atomic(room.worker("w0001").job, "{}")
    room.worker("w0001").log.write_text("before\x1b[2J\x1b]52;c;x\x07after\n")
    assert main(["logs", "s"]) == 0
    assert "before�[2J�]52;c;x�after" in capsys.readouterr().out
    assert Room(rooms / "s").workers() == ["w0001"]
