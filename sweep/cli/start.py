"""Starts and resumes sweeps: from overrides to a room, and from a room to a controller.

Invariants: a room is created only after everything that can be checked without training has been checked. The lock
under which it is created is held until the controller runs: here, or in a process that has inherited it.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.errors import ConfigError
from sweep.model.effects import Finish
from sweep.model.states import Finished
from sweep.wiring import backends, creation, rooms, trust
from sweep.wiring.access import check_can_be_made
from sweep.wiring.creation import OpenRoom
from trainer.room import Room

if TYPE_CHECKING:
    from sweep.config.settings import Settings
    from sweep.processes import PreforkServer
    from sweep.wiring.compose import Composed

EXIT_CODES = {
    Finished.DONE: 0,
    Finished.DETACHED: 130,
    Finished.HANDED_OVER: 0,
    Finished.STOPPED: 130,
    Finished.CANCELLED: 130,
    Finished.FAILED: 1,
}
# Of the name that a sweep gets from its recipe; its number stands behind.
STEM_BYTES = 100
logger = logging.getLogger(__name__)


def run_sweep(overrides: Sequence[str], config_dir: Path | None, detach: bool) -> int:
    """Compose a sweep and run it, or resume it if it exists; returns the exit code.

    Raises:
        ConfigError: the composition is refused, or another sweep has this name.
    """
    composed, stem = _compose(overrides, config_dir)
    _check_controller(composed.settings)
    prefork = backends.make_prefork(composed.settings)
    opened = _room_of(composed, prefork, stem)
    try:
        return _control(opened, detach, prefork)
    finally:
        opened.release()


def resume_sweep(
    name: str | None,
    changes: Sequence[str],
    detach: bool,
    *,
    in_job: bool = False,
    lock: int | None = None,
    token: str | None = None,
) -> int:
    """Resume a sweep; returns the exit code.

    Args:
        changes: overrides of `search` and `queue`, frozen into the room first.
        in_job: this process is the controller's own job on a queue.
        lock: the open file of the room's lock, which the parent process has handed down; None: it is not held yet.
        token: of the sweep that this process was started for; None: whichever it is.

    Raises:
        ConfigError: there is no such sweep, or a change is refused.
    """
    room = rooms.current_room(name, light=False)
    settings = rooms.load_settings(room)
    if token is not None and token != settings.token:
        raise ConfigError(f"the sweep that this job was to control was deleted; {room.root} is another one's now")
    if not in_job and lock is None:  # else the process that started this one has checked it
        trust.check_owner(room, settings)
    opened = OpenRoom(room, None if lock is None else rooms.adopt_lock(room, lock))
    if changes:
        rooms.change_settings(room, changes, _check_controller)
    prefork = backends.make_prefork(rooms.load_settings(room))
    return _control_in_job(room, prefork) if in_job else _control(opened, detach, prefork)


def compose(overrides: Sequence[str], config_dir: Path | None) -> Composed:
    """The composition of these overrides, under its name or the next free one.

    Raises:
        ConfigError: the composition is refused.
    """
    return _compose(overrides, config_dir)[0]


def _compose(overrides: Sequence[str], config_dir: Path | None) -> tuple[Composed, str | None]:
    """The composition, and the stem of its name if none was given: then its number is decided when it is created."""
    from sweep.config.overrides import value_of
    from sweep.wiring.compose import compose_config, freeze, recipe_name

    cfg = compose_config(overrides, config_dir)
    if name := value_of(cfg, "name"):
        return freeze(cfg, str(name), config_dir), None
    stem = _stem(overrides, recipe_name(cfg))
    return freeze(cfg, rooms.free_name(stem), config_dir), stem


def _stem(overrides: Sequence[str], recipe: str) -> str:
    """The name without its number: that of the experiment or the recipe."""
    for word in overrides:
        key, _, value = word.partition("=")
        if key.lstrip("+") in ("experiment", "recipe") and value not in ("null", "torchtune"):
            recipe = value.replace("/", "-")
    stem = re.sub(r"[^\w.-]+", "-", "embedded" if "embedded" in recipe else Path(recipe).stem).lstrip(".")
    return stem.encode()[:STEM_BYTES].decode(errors="ignore") or "sweep"


def _room_of(composed: Composed, prefork: PreforkServer, stem: str | None) -> OpenRoom:
    """The room of a composition: the existing one if it was frozen from the same settings, else a new one.

    Args:
        stem: see `_compose`.
    """
    from sweep.wiring.probe import check_base, probe_data

    settings = composed.settings
    existing = Room((rooms.rooms_dir() / settings.name).resolve())
    if stem is None and existing.sweep.exists():
        rooms.check_same_sweep(existing, settings)
        trust.check_owner(existing, settings)
        return OpenRoom(existing, None)
    check_can_be_made(existing.root)
    tokens = settings.trial_tokens  # of a recorded table
    if settings.queue.simulated:
        return creation.create_held_room(composed, tokens, stem)
    if settings.queue.offline:
        check_base(settings)
    if settings.objective.milestone_tokens is None or settings.queue.offline:
        print("counting the data …", file=sys.stderr, flush=True)
        data = probe_data(settings, prefork)
        for note in data.notes:
            print(f"note: {note}", file=sys.stderr)
        tokens = data.trial_tokens
        composed = replace(composed, settings=replace(settings, base_elsewhere=data.base_elsewhere))
    return creation.create_held_room(composed, tokens, stem)


def _control(opened: OpenRoom, detach: bool, prefork: PreforkServer) -> int:
    """Run the controller: as a job of its queue, in the background, or here."""
    from sweep.cli.background import start_detached, take_over
    from sweep.cli.foreground import drive
    from sweep.cli.run_control import RunControl

    room = opened.room
    if rooms.load_settings(room).controller == "launch":
        from sweep.cli.launch_controller import push_controller

        prefork.close()
        opened.release()  # the room is complete, and the job that is pushed takes the lock
        print(push_controller(room))
        return 0
    if detach:
        prefork.close()
        print(start_detached(room, opened.lock))
        return 0
    if not rooms.controller_runs(room) and (job := take_over(room)):
        print(f"cancelled the controller's job {job}, which had not started", file=sys.stderr)
    finish = drive(room, RunControl(room), prefork, lock=opened.lock)
    _conclude(room, finish)
    return EXIT_CODES[finish.how]


def _control_in_job(room: Room, prefork: PreforkServer) -> int:
    """Run the controller as a job: a signal means the end of the job and not of the sweep."""
    from sweep.cli.foreground import drive
    from sweep.cli.launch_controller import is_wanted
    from sweep.cli.run_control import RunControl

    control = RunControl(room, in_job=True, may_act=lambda: is_wanted(room))
    finish = drive(room, control, prefork)
    if finish.how is Finished.HANDED_OVER and control.handover_signal is None:
        logger.info("the sweep was stopped while this job was queued; `sweep resume` submits another")
    else:
        logger.info("%s: %s", finish.how, finish.reason)
    return 0 if finish.how is not Finished.FAILED else 1


def _check_controller(settings: Settings) -> None:
    if settings.controller == "launch":
        from sweep.cli.launch_controller import check_controller

        check_controller(settings)


def _conclude(room: Room, finish: Finish) -> None:
    """Print the trials, why the sweep ended, the best trial and how to continue."""
    from sweep.report.export import tune_run_line, write_export
    from sweep.report.reader import open_reader
    from sweep.report.terminal import console, counts_text, trials_table

    reader = open_reader(rooms.current_room(str(room.root), light=False))
    state = reader.state()
    out = console()
    out.print(trials_table(state, state.rows, limit=24))
    out.print(counts_text(state))
    out.print(f"{finish.how}: {finish.reason}", markup=False, soft_wrap=True)
    if state.finals:
        from sweep.search.significance import finalists_text

        out.print(finalists_text(state.finals, state.objective), markup=False, highlight=False, soft_wrap=True)
    if state.best is not None:
        try:
            path = write_export(room, reader.settings, state.best, None)
        except OSError as error:
            out.print(f"the YAML of the best trial cannot be written: {error}", markup=False, soft_wrap=True)
            return
        out.print(
            f"best trial  {state.best.number}\nadapter     {state.best.adapter}\nyaml        {path}",
            soft_wrap=True,
        )
        out.print(f"train it again with\n  {tune_run_line(path)}", markup=False, soft_wrap=True)
    if finish.how is not Finished.DONE:
        out.print(f"continue with\n  sweep resume {state.name}", markup=False)
