"""Makes W&B say what the sweep knows: what did not arrive, then verdicts, scores, the best adapter, its registry.

Invariants: nothing here decides anything about the sweep, and all of it can be done again: what is uploaded is marked
in the attempt's directory, what W&B already says is left alone. Runs are uploaded in the order of trials and attempts,
so that a later attempt goes on where the one before it ended.
"""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweep.config.settings import Settings
from sweep.errors import ConfigError, GiveUp, RetryLater, SweepError
from sweep.model import SweepState, TrialRow
from sweep.processes import clean_env
from sweep.tracking.client import client, summary, translated
from sweep.tracking.runs import adapter_name, mode, wandb_location
from trainer.contract import Outcome, Tracking, TrialSpec, decode
from trainer.room import AttemptDir, Room, read_text, write_atomic
from trainer.tracking.tracker import REASON, STATE, declare_inputs, exit_code, score_summary

SYNCED = "synced"
# How long the end of a sweep waits for what W&B has not been told yet.
LAST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Upload:
    """An attempt's part of a run that W&B has not got whole."""

    attempt: AttemptDir
    directory: Path
    spec: TrialSpec
    tracking: Tracking


def pending_uploads(room: Room) -> list[Upload]:
    """The parts of runs that lie on this disk and did not arrive, in the order in which to upload them."""
    found = []
    for trial in room.trials():
        for number in room.attempts(trial):
            files = room.attempt(trial, number)
            spec = decode(TrialSpec, read_text(files.spec) or "")
            over = files.outcome.exists() or number < room.attempts(trial)[-1]
            if spec.tracking is not None and over and not (files.path / "tracked").exists():
                left = _left(files, spec.tracking.run)
                found += [Upload(files, directory, spec, spec.tracking) for directory in left]
    return found


def _left(files: AttemptDir, run: str) -> list[Path]:
    """The directories of an attempt's run that were not uploaded, the oldest first.

    There are two where W&B could not be reached: the one of the attempt to reach it, if that wrote any record, and
    the offline one.
    """
    done = (read_text(files.path / SYNCED) or "").split()
    parts = (files.path / "wandb").glob(f"*run-*-{run}")
    made = [path for path in parts if path.name not in done and any(path.glob("*.wandb"))]
    return sorted(made, key=lambda path: path.name.partition("run-")[2])


def upload(part: Upload) -> None:
    """Hand a run's part to `wandb sync`, and note that it arrived.

    Raises:
        RetryLater: it did not arrive, and is tried again the next time.
    """
    command = [sys.executable, "-m", "wandb", "sync", "--no-skip-online", str(part.directory)]
    done = subprocess.run(command, env=clean_env(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no word"]
        raise RetryLater(f"{part.directory.name} did not arrive at W&B: {last[0]}")
    if part.directory.name.startswith("offline-"):
        _declare(part)
    marker = part.attempt.path / SYNCED
    write_atomic(marker, f"{read_text(marker) or ''}\n{part.directory.name}".lstrip())


def publish(settings: Settings, state: SweepState, found: Callable[[int], Tracking | None]) -> Iterator[str]:
    """Tell W&B how the trials ended, their scores and which adapter is best; one line for each thing that was changed.

    Args:
        found: the tracking of a trial's last attempt.

    Raises:
        RetryLater: W&B does not answer. GiveUp: it refuses.
    """
    where = wandb_location(settings)
    runs = translated(lambda: list(_runs(where.path, where.group)), f"the project {where.path}")
    by_id = {run.id: run for run in runs}
    for row in state.rows:
        tracking = found(row.number) if row.state.is_final else None
        run = by_id.get(tracking.run) if tracking else None
        if run is not None and _tell(run, row):
            yield f"trial {row.number}: {row.state}"
    best = state.best
    tracking = found(best.number) if best is not None else None
    if best is not None and tracking is not None and tracking.adapter:
        yield from _crown(settings, best, f"{where.path}/{adapter_name(settings)}")


def sync(room: Room, settings: Settings, state: SweepState) -> Iterator[str]:
    """Upload, then publish; a line for each thing that was done.

    Raises:
        ConfigError: the sweep is not tracked. RetryLater, GiveUp: see `publish`.
    """
    if mode(settings) == "disabled":
        raise ConfigError(f"{settings.name} is not tracked in W&B (wandb.mode=disabled): there is nothing to upload")
    for part in [*pending_uploads(room), *pending_uploads(Room(room.root / "evaluations"))]:
        upload(part)
        yield f"uploaded trial {part.spec.trial} attempt {part.spec.attempt}"
    yield from publish(settings, state, tracking_finder(room))


def tracking_finder(room: Room) -> Callable[[int], Tracking | None]:
    """ReportBuffer the tracking of a trial's last attempt up in the room."""

    def find(trial: int) -> Tracking | None:
        attempts = room.attempts(trial)
        text = read_text(room.attempt(trial, attempts[-1]).spec) if attempts else None
        return decode(TrialSpec, text).tracking if text else None

    return find


@dataclass
class Publisher:
    """Publishes beside a running controller, in a thread of its own, whenever it is told that something has changed.

    What fails is tried again at the next change and at the end; a sweep never waits for it longer than that.

    Args:
        look: the sweep as it is now.
        say: told what went wrong, once in a row.
    """

    settings: Settings
    room: Room
    look: Callable[[], SweepState]
    say: Callable[[str], None]
    _changed: threading.Event = field(default_factory=threading.Event)
    _done: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _failed: bool = False

    def start(self) -> None:
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def changed(self) -> None:
        """A trial was told."""
        self._changed.set()

    def close(self) -> None:
        """Publish what is left, for a while."""
        self._done.set()
        self._changed.set()
        if self._thread is not None:
            self._thread.join(LAST_SECONDS)
            if self._failed or self._thread.is_alive():
                self.say(f"W&B has not been told everything; `sweep sync {self.settings.name}` does that later")

    def _serve(self) -> None:
        while True:
            self._changed.wait()
            self._changed.clear()
            last = self._done.is_set()
            try:
                list(publish(self.settings, self.look(), tracking_finder(self.room)))
                self._failed = False
            except (SweepError, OSError) as error:
                if not self._failed:
                    self.say(f"W&B: {error}")
                self._failed = True
            if last:
                return


def _runs(path: str, group: str) -> list[Any]:
    api = client()
    api.flush()
    try:
        return list(api.runs(path, {"group": group}, per_page=100, lazy=False))
    except ValueError as error:
        if "Could not find project" in str(error):
            return []
        raise


def _tell(run: Any, row: TrialRow) -> bool:
    """Say in a run's summary how its trial ended for the sweep, and its scores; False where it says so already."""
    wanted: dict[str, str | float] = {STATE: row.state.value, REASON: row.reason, **score_summary(row.scores)}
    said = summary(run)
    if all(_same(said.get(key), value) for key, value in wanted.items()):
        return False

    def change() -> None:
        run.summary.update(wanted)

    translated(change, f"the run {run.id}")
    return True


def _same(said: Any, value: str | float) -> bool:
    """Whether a summary says this; what JSON has no number for comes back as its name."""
    if isinstance(value, str):
        return (said or "") == value
    with contextlib.suppress(TypeError, ValueError):
        return float(said) == value or (math.isnan(value) and math.isnan(float(said)))
    return False


def _crown(settings: Settings, best: TrialRow, path: str) -> Iterator[str]:
    try:
        artifact = translated(
            lambda: client().artifact(f"{path}:trial-{best.number}", type="model"), f"the adapter {path}"
        )
    except GiveUp:  # it has not arrived yet
        return
    if "best" not in artifact.aliases:

        def crown() -> None:
            artifact.aliases.append("best")
            artifact.save()

        translated(crown, f"the adapter {path}")
        yield f"trial {best.number}'s adapter is {path}:best"
    if settings.wandb.registry and (target := _unlinked(settings.wandb.registry, artifact)):
        translated(lambda: artifact.link(target, aliases=["best"]), f"the registry {target}")
        yield f"trial {best.number}'s adapter is linked to {target}"


def _unlinked(registry: str, artifact: Any) -> str:
    """The path of the registry's collection where the adapter is not in it yet, else nothing."""
    owner, _, name = registry.rpartition("/")
    target = f"wandb-registry-{(owner or 'model').removeprefix('wandb-registry-')}/{name}"
    names = translated(lambda: [link.qualified_name for link in artifact.linked_artifacts], "the adapter's links")
    return "" if any(f"/{target}:" in f"/{name}" for name in names) else target


def _declare(part: Upload) -> None:
    """Record what an offline run could not: which base and which data made its adapter."""
    if not part.tracking.inputs or not part.tracking.adapter:
        return
    import wandb

    outcome = read_text(part.attempt.outcome)
    settings = wandb.Settings(silent=True, console="off")
    where = {key: part.tracking.init[key] for key in ("project", "entity") if part.tracking.init.get(key)}
    os.environ.setdefault("WANDB_SILENT", "true")  # else each artifact prints a line
    run = wandb.init(
        **where, id=part.tracking.run, resume="must", reinit="create_new", settings=settings, mode="online"
    )
    declare_inputs(run, part.tracking.inputs)
    run.finish(exit_code=exit_code(decode(Outcome, outcome) if outcome else None))
