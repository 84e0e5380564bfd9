"""Uploads to W&B what did not arrive there, then how trials ended, their scores, the best adapter and its registry.

Invariants: nothing here changes the sweep, and everything may be repeated. What was uploaded is marked in the attempt's
directory, and what W&B has already is not sent again. Runs are uploaded in the order of trials and attempts, so that a
later attempt continues where the one before it ended.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweep.config.settings import Settings
from sweep.errors import ConfigError, GiveUp, RetryLater, SweepError
from sweep.model.summary import SweepState, TrialRow
from sweep.processes import clean_env, python_command
from sweep.tracking.client import client, summary, translated
from sweep.tracking.runs import adapter_name, mode, wandb_location
from trainer.contract import Outcome, Tracking, TrialSpec, read_message
from trainer.names import is_name
from trainer.process_end import how_it_ended, last_line
from trainer.room import AttemptDir, Room, read_text, usable, write_atomic
from trainer.tracking.runs import declare_inputs
from trainer.tracking.summary import REASON, STATE, exit_code, metric_summary, score_summary

SYNCED = "synced"
_log = logging.getLogger(__name__)
# Seconds that the end of a sweep waits for the last upload.
LAST_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Upload:
    """A part of a run, written by one attempt, that W&B does not have completely."""

    attempt: AttemptDir
    directory: Path
    spec: TrialSpec
    tracking: Tracking


def pending_uploads(room: Room) -> list[Upload]:
    """The parts of runs on this disk that did not arrive at W&B, in the order in which they must be uploaded."""
    uploads: list[Upload] = []
    for trial in room.trials():
        for number in room.attempts(trial):
            files = room.attempt(trial, number)
            spec = read_message(TrialSpec, files.spec)
            if not isinstance(spec, TrialSpec):
                _log.warning("trial %d attempt %d cannot be uploaded: %s", trial, number, spec)
                continue
            over = files.outcome.exists() or number < room.attempts(trial)[-1]
            if spec.tracking is not None and over and not (files.path / "tracked").exists():
                directories = _not_uploaded(files, spec.tracking.run)
                uploads += [Upload(files, directory, spec, spec.tracking) for directory in directories]
    return uploads


def _not_uploaded(files: AttemptDir, run: str) -> list[Path]:
    """The directories of an attempt's run that were not uploaded, the oldest first.

    If W&B was unreachable there are two: that of the failed connection, if it wrote any record, and the offline one.
    """
    uploaded = (read_text(files.path / SYNCED) or "").split()
    parts = (files.path / "wandb").glob(f"*run-*-{run}") if is_name(run) else ()
    directories = [path for path in parts if path.name not in uploaded and any(path.glob("*.wandb"))]
    return sorted(directories, key=lambda path: path.name.partition("run-")[2])


def upload(part: Upload) -> None:
    """Upload a part of a run with `wandb sync`, and mark it as uploaded.

    Raises:
        RetryLater: it did not arrive; the next `sweep sync` tries again.
    """
    command = python_command("-m", "wandb", "sync", "--no-skip-online", str(part.directory))
    done = subprocess.run(
        command, env=clean_env(), capture_output=True, text=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode != 0:
        last = last_line(done.stderr or done.stdout) or how_it_ended(done.returncode)
        raise RetryLater(f"{part.directory.name} did not arrive at W&B: {last}")
    if part.directory.name.startswith("offline-"):
        _declare(part)
    marker = part.attempt.path / SYNCED
    text = f"{read_text(marker) or ''}\n{part.directory.name}".lstrip()
    write_atomic(marker, text, root=part.attempt.path)


def publish(settings: Settings, state: SweepState, tracking_of: Callable[[int], Tracking | None]) -> Iterator[str]:
    """Write into W&B how the trials ended, their scores and which adapter is best; yields a line for each change.

    Args:
        tracking_of: the tracking of the last attempt of a trial.

    Raises:
        RetryLater: W&B does not answer. GiveUp: it refuses.
    """
    location = wandb_location(settings)
    runs = translated(lambda: list(_runs(location.path, location.group)), f"the project {location.path}")
    by_id = {run.id: run for run in runs}
    for row in state.rows:
        tracking = tracking_of(row.number) if row.state.is_final else None
        run = by_id.get(tracking.run) if tracking else None
        if run is not None and _publish_end(run, row):
            yield f"trial {row.number}: {row.state}"
    best = state.best
    tracking = tracking_of(best.number) if best is not None else None
    if best is not None and tracking is not None and tracking.adapter:
        yield from _publish_best(settings, best, f"{location.path}/{adapter_name(settings)}")


def sync(room: Room, settings: Settings, state: SweepState) -> Iterator[str]:
    """Upload, then publish; yields a line for each thing that was done.

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
    """A function that reads the tracking of the last attempt of a trial from the room."""

    def find(trial: int) -> Tracking | None:
        attempts = room.attempts(trial)
        spec = usable(read_message(TrialSpec, room.attempt(trial, attempts[-1]).spec)) if attempts else None
        return spec.tracking if spec is not None else None

    return find


@dataclass
class Publisher:
    """Publishes in a thread of its own while a controller runs, after each change.

    What fails is repeated after the next change and at the end of the sweep, which waits `LAST_SECONDS` at most.

    Args:
        look: returns the sweep as it is now.
        say: receives the first of consecutive errors.
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
        """Say that a trial has ended."""
        self._changed.set()

    def close(self) -> None:
        """Publish what is left, and wait for that `LAST_SECONDS` at most."""
        self._done.set()
        self._changed.set()
        if self._thread is not None:
            self._thread.join(LAST_SECONDS)
            if self._failed or self._thread.is_alive():
                self.say(f"W&B does not have everything yet; upload the rest with `sweep sync {self.settings.name}`")

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


def _publish_end(run: Any, row: TrialRow) -> bool:
    """Write into a run's summary how its trial ended, and its scores; returns whether that changed the summary."""
    values: dict[str, str | float] = {STATE: row.state.value, REASON: row.reason, **score_summary(row.scores)}
    values |= metric_summary(_last_scores(row))
    current = summary(run)
    if all(_same(current.get(key), value) for key, value in values.items()):
        return False

    def change() -> None:
        run.summary.update(values)

    translated(change, f"the run {run.id}")
    return True


def _last_scores(row: TrialRow) -> dict[str, float]:
    """The last value of each metric that a trial measured while it trained."""
    scores: dict[str, float] = {}
    for report in row.reports:
        scores |= report.scores
    return scores


def _same(current: Any, value: str | float) -> bool:
    """Whether a summary has this value. W&B returns nan and the infinities as text."""
    if isinstance(value, str):
        return (current or "") == value
    with contextlib.suppress(TypeError, ValueError):
        return float(current) == value or (math.isnan(value) and math.isnan(float(current)))
    return False


def _publish_best(settings: Settings, best: TrialRow, path: str) -> Iterator[str]:
    """Give the best adapter the alias `best`, and link it to the registry; yields a line for each change."""
    try:
        artifact = translated(
            lambda: client().artifact(f"{path}:trial-{best.number}", type="model"), f"the adapter {path}"
        )
    except GiveUp:  # it has not arrived yet
        return
    if "best" not in artifact.aliases:

        def add_alias() -> None:
            artifact.aliases.append("best")
            artifact.save()

        translated(add_alias, f"the adapter {path}")
        yield f"trial {best.number}'s adapter is {path}:best"
    if settings.wandb.registry and (target := _unlinked(settings.wandb.registry, artifact)):
        translated(lambda: artifact.link(target, aliases=["best"]), f"the registry {target}")
        yield f"trial {best.number}'s adapter is linked to {target}"


def _unlinked(registry: str, artifact: Any) -> str:
    """The path of the registry's collection if the adapter is not in it yet; otherwise empty."""
    owner, _, name = registry.rpartition("/")
    target = f"wandb-registry-{(owner or 'model').removeprefix('wandb-registry-')}/{name}"
    names = translated(lambda: [link.qualified_name for link in artifact.linked_artifacts], "the adapter's links")
    return "" if any(f"/{target}:" in f"/{name}" for name in names) else target


def _declare(part: Upload) -> None:
    """Record the base and the data of an adapter, which an offline run cannot do."""
    if not part.tracking.inputs or not part.tracking.adapter:
        return
    import wandb

    settings = wandb.Settings(silent=True, console="off")
    location = {key: part.tracking.init[key] for key in ("project", "entity") if part.tracking.init.get(key)}
    os.environ.setdefault("WANDB_SILENT", "true")  # else each artifact prints a line
    run = wandb.init(
        **location, id=part.tracking.run, resume="must", reinit="create_new", settings=settings, mode="online"
    )
    declare_inputs(run, part.tracking.inputs)
    run.finish(exit_code=exit_code(_outcome(part.attempt)))


def _outcome(attempt: AttemptDir) -> Outcome | None:
    """The outcome of an attempt; None if it has none, or its file cannot be decoded."""
    return usable(read_message(Outcome, attempt.outcome))
