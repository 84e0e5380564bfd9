"""The creation of a room by several processes at once: one of them wins, and the others change nothing."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pytest

from sweep.errors import ConfigError, SweepError
from sweep.wiring import creation
from sweep.wiring.compose import Composed, compose_config, freeze
from sweep.wiring.rooms import controller_lock, controller_runs, free_name, load_settings, whereabouts
from sweep.wiring.session import open_study
from tests.helpers.kill_points import make_room
from tests.helpers.tables import write_table
from trainer.room import Room, held

FORK = multiprocessing.get_context("fork")
WORDS = ["objective=loss", "objective.milestone_tokens=10", "sampler=random", "pruner=none", "queue.workers=1"]
ROUNDS = 5


def composed(trials: int, *words: str, name: str = "s") -> Composed:
    return freeze(compose_config([*WORDS, f"search.trials={trials}", *words]), name)


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


class Contest:
    """Processes that create a sweep at the same moment; the winner holds its lock until all have tried."""

    def __init__(self, *compositions: Composed, stem: str | None = None) -> None:
        self.barrier = FORK.Barrier(len(compositions))
        self.results: Any = FORK.Queue()
        self.tried: Any = FORK.Barrier(len(compositions))
        processes = [FORK.Process(target=self.create, args=(each, stem, self.barrier)) for each in compositions]
        for process in processes:
            process.start()
        results = [self.results.get(timeout=300) for _ in processes]
        for process in processes:
            process.join(300)
        self.won = [(name, files) for what, name, files in results if what == "created"]
        self.adopted = [name for what, name, _ in results if what == "adopted"]
        self.refused = [text for what, text, _ in results if what == "refused"]

    def create(self, mine: Composed, stem: str | None, barrier: Barrier) -> None:
        barrier.wait(300)
        try:
            opened = creation.create_held_room(mine, 40, stem)
        except SweepError as error:
            result: tuple[str, str, dict[str, bytes]] = "refused", str(error), {}
        else:
            what = "created" if opened.lock is not None else "adopted"
            result = what, opened.room.root.name, files_of(opened.room.root)
        self.tried.wait(300)  # until then the lock is held
        self.results.put(result)


@pytest.mark.parametrize("storage", ["null", "sqlite"])
def test_of_two_sweeps_of_one_name_the_second_is_refused_and_changes_no_byte(
    rooms: Path, tmp_path: Path, storage: str
) -> None:
    for number in range(ROUNDS):
        name, url = f"s{number}", f"sqlite:///{tmp_path}/{number}.db" if storage == "sqlite" else "null"
        one, other = (composed(trials, f"storage={url}", name=name) for trials in (3, 4))
        contest = Contest(one, other)
        assert len(contest.won) == 1
        assert contest.refused[0].startswith(f"there is a sweep {name} already, with another search")
        room = Room(rooms / name)
        assert files_of(room.root) == contest.won[0][1]
        open_study(room, load_settings(room))  # the study is there, and is the winner's


def test_of_two_equal_sweeps_the_second_takes_the_first_one_s_room(rooms: Path) -> None:
    contest = Contest(composed(3), composed(3))
    assert [name for name, _ in contest.won] == ["s"]
    assert contest.adopted == ["s"]
    assert files_of(rooms / "s") == contest.won[0][1]


def test_sweeps_without_a_name_get_one_each(rooms: Path) -> None:
    assert free_name("x") == "x-1"
    contest = Contest(*(composed(trials, name="x-1") for trials in (3, 4, 5, 6)), stem="x")
    assert sorted(name for name, _ in contest.won) == ["x-1", "x-2", "x-3", "x-4"]
    for name, files in contest.won:
        assert load_settings(Room(rooms / name)).name == name
        assert files_of(rooms / name) == files


def test_the_lock_is_held_from_the_creation_on(rooms: Path) -> None:
    opened = creation.create_held_room(composed(3), 40)
    assert controller_runs(opened.room)
    assert controller_lock(opened.room).read_text() == f"{whereabouts()}\n"
    opened.release()
    assert not controller_runs(opened.room)


def test_each_creation_draws_a_token(rooms: Path) -> None:
    tokens = {load_settings(make_room(rooms / str(number))).token for number in range(1)}
    tokens |= {load_settings(creation.create_room(composed(3, name=name), 40)).token for name in ("a", "b")}
    assert len(tokens) == 3
    assert all(len(token) == 16 for token in tokens)


def test_a_creation_that_fails_leaves_no_room(rooms: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"there is no sweep nobody in"):
        creation.create_room(composed(3, "warm_start.import_from=[nobody]"), 40)
    assert not (rooms / "s").exists()

    def fail(*words: Any) -> None:
        raise ConfigError("no")

    with monkeypatch.context() as patched:
        patched.setattr(creation, "save_settings", fail)
        with pytest.raises(ConfigError, match="no"):
            creation.create_room(composed(3), 40)
    assert not (rooms / "s").exists()
    assert creation.create_room(composed(3), 40).sweep.exists()


def test_what_a_creator_that_died_left_is_created_anew(rooms: Path) -> None:
    """Its journal holds the trials that it enqueued, which must not be tried twice."""
    enqueue = "warm_start.enqueue=[{model.lora_rank: 8, gradient_accumulation_steps: 1, optimizer.lr: 3e-4}]"
    pid = os.fork()
    if pid == 0:
        vars(creation)["save_settings"] = lambda *words: os._exit(9)
        creation.create_room(composed(3, enqueue), 40)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    assert (rooms / "s" / "study.journal").exists()
    assert not held(controller_lock(Room(rooms / "s")))
    room = creation.create_room(composed(3, enqueue), 40)
    study = open_study(room, load_settings(room))
    assert len(study.frozen()) == 0
    assert [study.ask(), study.ask()] == [0, 1]
    assert study.params(0)["optimizer.lr"] == 3e-4
    assert study.params(1)["optimizer.lr"] != 3e-4


# --- the command line -----------------------------------------------------------------------------------------------

# Runs the command line, and waits for the others once the sweep is composed and seen not to exist.
RUN = """
import os, sys, time
from pathlib import Path
from sweep.cli.main import main
from sweep.wiring import creation

meeting, number, create = Path(sys.argv[1]), int(sys.argv[2]), creation.create_held_room

def wait(*words):
    (meeting / str(os.getpid())).touch()
    while len(list(meeting.iterdir())) < number:
        time.sleep(0.001)
    return create(*words)

creation.create_held_room = wait
sys.exit(main(sys.argv[3:]))
"""


@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("named", [True, False])
def test_two_runs_at_once(rooms: Path, tmp_path: Path, detach: bool, named: bool) -> None:
    table = write_table(tmp_path / "table.npz")
    (tmp_path / "meeting").mkdir()
    words = ["queue=simulated", f"queue.table={table}", "pruner=none", "sampler=random", "objective=val_loss"]
    words += ["space.optimizer.lr=tag(log,interval(1e-5,1e-1))", *(["name=s"] if named else [])]
    command = [sys.executable, "-c", RUN, str(tmp_path / "meeting"), "2", "run", *words]
    command += ["--detach"] if detach else []
    runs = [
        subprocess.Popen(
            [*command, f"search.trials={trials}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for trials in (3, 5)
    ]
    ends = [(run.communicate(timeout=300), run.returncode) for run in runs]
    codes = sorted(code for _, code in ends)
    assert codes == ([0, 2] if named else [0, 0]), ends
    names = ["s"] if named else ["embedded-1", "embedded-2"]
    assert sorted(path.name for path in rooms.iterdir()) == names
    for name in names:
        room = Room(rooms / name)
        done = subprocess.run(
            [sys.executable, "-m", "sweep.cli", "watch", name], capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == 0, done.stderr
        settings = load_settings(room)
        assert len(room.trials()) == settings.search.trials
    if named:
        [(said, _)] = [end for end in ends if end[1] == 2]
        assert said[1].splitlines()[-1].startswith("sweep: there is a sweep s already, with another search")
