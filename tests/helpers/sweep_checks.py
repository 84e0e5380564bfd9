"""What must hold of a sweep that has ended, however often its processes were killed.

Each check reads facts that others left: the study's storage, the files of the attempts, and the marks of the processes
that trained them. It raises AssertionError with what differs.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Collection, Iterable
from contextlib import closing
from pathlib import Path

import optuna
from optuna.storages.journal import JournalFileBackend

from sweep.cli.fault import FAULT
from sweep.controller.ledger import read_ledger
from sweep.model.states import TrialStatus
from sweep.model.summary import SweepState, TrialRow
from sweep.report.reader import open_reader
from sweep.wiring import session
from sweep.wiring.rooms import journal_path, load_settings
from tests.helpers.executions import check_executions, executions_dir
from tests.helpers.fakes import MILESTONES
from trainer.room import Room, held, read_text

SET_STATE = 6  # the operation in Optuna's journal that sets the state of a trial
FINISHED = ("COMPLETE", "PRUNED", "FAIL")
# Have a database count by itself how often a trial is told.
TRIGGER = f"""
CREATE TABLE told (trial_id INTEGER);
CREATE TRIGGER count_tells AFTER UPDATE OF state ON trials WHEN NEW.state IN {FINISHED}
BEGIN INSERT INTO told VALUES (NEW.trial_id); END;
"""


def check_sweep(room: Room, trials: int, overlapping: Collection[int] = ()) -> None:
    """Everything that must hold of a finished sweep without finals whose trials were trained by `tests.helpers.fakes`.

    Args:
        trials: how many it has.
        overlapping: see `check_executions`.
    """
    state = open_reader(room).state()
    check_trials(state, trials)
    check_told_once(room, range(trials))
    check_values(room, state)
    check_winner(state)
    check_verdicts(room, state)
    check_executions(executions_dir(room.root), overlapping)


def check_trials(state: SweepState, trials: int, cancelled: bool = False) -> None:
    """Numbers are contiguous, and every trial is complete or pruned.

    Args:
        cancelled: trials may be cancelled too, since a target ends the others.
    """
    assert [row.number for row in state.rows] == list(range(trials))
    allowed = {TrialStatus.COMPLETE, TrialStatus.PRUNED} | ({TrialStatus.CANCELLED} if cancelled else set())
    others = [(row.number, row.state, row.reason) for row in state.rows if row.state not in allowed]
    assert not others, f"open or failed: {others}"


def check_told_once(room: Room, numbers: Iterable[int]) -> None:
    """The storage was told once how each of these trials ended, and of no other trial."""
    assert dict(tell_counts(room)) == dict.fromkeys(numbers, 1)


def tell_counts(room: Room) -> Counter[int]:
    """How often the storage was told that each trial ended, by number; a trial that was never told is missing."""
    settings = load_settings(room)
    if settings.storage is None:
        logs = JournalFileBackend(str(journal_path(room))).read_logs(0)
        told = [log["trial_id"] for log in logs if log.get("op_code") == SET_STATE and _is_end(log["state"])]
    else:
        with closing(sqlite3.connect(settings.storage.removeprefix("sqlite:///"))) as database:
            told = [row[0] for row in database.execute("SELECT trial_id FROM told")]
    study = optuna.load_study(study_name=settings.name, storage=session.reading_storage(room, settings))
    numbers = {trial._trial_id: trial.number for trial in study.get_trials(deepcopy=False)}
    return Counter(numbers[trial] for trial in told)


def count_tells(database: Path) -> None:
    """Have an SQLite storage count from now on how often each trial is told, for `tell_counts`."""
    with closing(sqlite3.connect(database)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'told'").fetchone():
            connection.executescript(TRIGGER)


def check_values(room: Room, state: SweepState, written: bool = True) -> None:
    """The study has the reports of the attempts' files, and a complete trial was told the value of its last one.

    Args:
        written: every report is in a file. A simulated attempt whose controller was killed has left none.
    """
    settings = load_settings(room)
    study = optuna.load_study(study_name=settings.name, storage=session.reading_storage(room, settings))
    trials = {trial.number: trial for trial in study.get_trials(deepcopy=False)}
    for row in state.rows:
        trial, where = trials[row.number], f"trial {row.number}"
        reported = {report.milestone: float(getattr(report, state.metric)) for report in row.reports}
        unknown = dict(trial.intermediate_values.items() - reported.items())
        checked = written or row.state is TrialStatus.COMPLETE
        assert not (checked and unknown), f"{where}: the study has {unknown}, which no attempt reported"
        if row.state is TrialStatus.COMPLETE:
            lost = dict(reported.items() - trial.intermediate_values.items())
            assert not lost, f"{where}: the study lacks the reports {lost}"
            assert row.reports, f"{where} is complete without a report"
            assert row.reports[-1].final, f"{where} is complete, and its last report is no final one"
            assert sorted(reported) == list(range(1, len(reported) + 1)), f"{where} lacks a milestone"
            last = reported[max(reported)]
            assert trial.value == last, f"{where} was told {trial.value}, and its last report says {last}"


def check_all_milestones(state: SweepState, milestones: int = MILESTONES) -> None:
    """Every complete trial has reported at all milestones."""
    assert all(len(row.reports) == milestones for row in state.rows if row.state is TrialStatus.COMPLETE)


def check_winner(state: SweepState) -> None:
    """The sweep names the trial that is best by the reports; after finals, the one whose finals have the best mean."""
    complete = [row for row in state.rows if row.state is TrialStatus.COMPLETE]
    searched = [row for row in complete if row.final is None]
    assert searched, "no trial is complete, so that nothing can have won"
    finals: dict[int, list[float]] = {}
    for row in complete:
        if row.final is not None:
            finals.setdefault(row.final[0], []).append(_last(row, state.metric))
    most = max(map(len, finals.values()), default=0)
    means = {number: sum(values) / len(values) for number, values in finals.items() if len(values) == most}
    if not means:
        means = {row.number: _last(row, state.metric) for row in searched}
    assert state.best is not None
    assert means[state.best.number] == min(means.values()), f"trial {state.best.number} won, of {means}"


def check_verdicts(room: Room, state: SweepState) -> None:
    """A stop stands, and the ledger has each verdict once."""
    entries = read_ledger(room)
    stopped = {entry.trial for entry in entries if entry.ruling == "stop"}
    completed = {row.number for row in state.rows if row.state is TrialStatus.COMPLETE}
    assert not stopped & completed, f"stopped, and complete all the same: {stopped & completed}"
    counts = Counter((entry.trial, entry.ruling, entry.milestone) for entry in entries if entry.milestone)
    assert all(count == 1 for count in counts.values()), counts


def check_logs(room: Room, *more: Path) -> None:
    """No worker and no controller wrote a traceback."""
    logs = [*room.root.rglob("log"), *room.root.rglob("*_log.out"), *room.root.rglob("*.log"), *more]
    for path in sorted({path for path in logs if path.is_file()}):
        text = path.read_text(errors="replace")
        assert "Traceback" not in text, f"{path}\n{text[-4000:]}"
        assert FAULT not in text, f"{path}\n{text[-4000:]}"


def check_no_process(root: Path, seconds: float = 300.0) -> None:
    """No process but this one has a file below this directory open, at the latest after these seconds.

    A process that ends needs a moment, and on a busy machine a long one.
    """
    deadline = time.monotonic() + seconds
    while left := _users(root):
        assert time.monotonic() < deadline, f"processes live on: {left}"
        time.sleep(0.02)


def wait_for_workers(room: Room, seconds: float = 300.0) -> None:
    """Wait until no worker of a room is alive."""
    deadline = time.monotonic() + seconds
    while any(held(room.worker(name).lock) for name in room.workers()):
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.01)


def _is_end(state: int) -> bool:
    return optuna.trial.TrialState(state).is_finished()


def _last(row: TrialRow, metric: str) -> float:
    return float(getattr(row.reports[-1], metric))


def _users(root: Path) -> dict[int, str]:
    """Processes with an open file below a directory, apart from this one, each with its command."""
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit() or int(process.name) == os.getpid():
            continue
        try:
            files = [str(file.readlink()) for file in (process / "fd").iterdir()]
        except OSError:  # it has ended, or is another user's
            continue
        if any(file.startswith(f"{root}/") for file in files):
            found[int(process.name)] = (read_text(process / "cmdline") or "").replace("\0", " ")
    return found
