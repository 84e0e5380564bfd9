"""What each verb of the command line does, in terms of the other modules.

Invariant: one function a verb, named like it; it takes the parsed arguments and returns the exit code.
"""

from __future__ import annotations

import dataclasses
import json
import re
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sweep.cli.read import best, export, logs, replay, report, status, watch
from sweep.model import Finish, Finished, Job, JobState, Mode
from sweep.wiring import backends, creation, rooms
from trainer.room import Room, write_atomic

__all__ = [
    "best",
    "doctor",
    "export",
    "logs",
    "plan",
    "queue",
    "replay",
    "report",
    "resume",
    "run",
    "status",
    "stop",
    "sync",
    "watch",
]

if TYPE_CHECKING:
    from sweep.config.settings import Settings
    from sweep.processes import PreforkServer
    from sweep.wiring.compose import Composed


def run(args: Namespace) -> int:
    composed = _compose(args.overrides, args.config_dir)
    _check_controller(composed.settings)
    prefork = backends.make_prefork(composed.settings)
    return _go(_room_of(composed, prefork), args.detach, prefork)


def resume(args: Namespace) -> int:
    if args.name and "=" in args.name:  # `sweep resume search.trials=48` means the newest sweep
        args.overrides, args.name = [args.name, *args.overrides], None
    room = rooms.current_room(args.name, light=False)
    if args.overrides:
        rooms.change_settings(room, args.overrides, _check_controller)
    prefork = backends.make_prefork(rooms.load_settings(room))
    return _serve_as_job(room, prefork) if args.in_job else _go(room, args.detach, prefork)


def plan(args: Namespace) -> int:
    from sweep.report.plan import make_plan, plan_view
    from sweep.report.terminal import console

    composed = _compose(args.overrides, args.config_dir)
    made = make_plan(composed.settings, args.n, args.measure)
    if args.json:
        print(json.dumps(made.to_json()))
    else:
        console().print(plan_view(made))
    return 0


def doctor(args: Namespace) -> int:
    from sweep.cli.doctor import checks, checks_table
    from sweep.report.terminal import console

    found = checks(args.overrides, args.config_dir)
    if args.json:
        print(json.dumps([dataclasses.asdict(check) for check in found]))
    else:
        console().print(checks_table(found))
    return 0 if all(check.ok for check in found) else 1


def stop(args: Namespace) -> int:
    from sweep.cli.background import take_over
    from sweep.cli.foreground import Wish, control_path, drive
    from sweep.processes import PreforkServer

    room = rooms.find_room(args.name)
    mode = Mode.CANCEL if args.cancel else Mode.DETACH if args.detach else Mode.STOP
    if withdrawn := _withdraw_controller(room):
        print(withdrawn, flush=True)
    if _stop_elsewhere(room, mode):
        print(f"stopped: {room.root.name}")
        return 0
    look = backends.job_viewer(room, rooms.load_settings(room))
    living = [name for name, job in look().items() if job.state is not JobState.GONE]
    if rooms.controller_runs(room):
        write_atomic(control_path(room), mode.value)
        while rooms.controller_runs(room):
            time.sleep(0.1)
        if not control_path(room).exists():  # else it handed over before it saw the wish
            print(f"stopped: {room.root.name}{_ended_jobs(living, look())}")
            return 0
    if job := take_over(room):
        print(f"cancelled the controller's job {job}")
    finish = drive(room, Wish(room, mode), PreforkServer())  # nobody is there to obey: do it ourselves
    print(f"{finish.how}: {finish.reason}{_ended_jobs(living, look())}")
    return 0


def sync(args: Namespace) -> int:
    from sweep.report.reader import open_reader
    from sweep.tracking.sync import sync as sync_with_wandb

    room = rooms.current_room(args.name)
    done = 0
    for line in sync_with_wandb(room, rooms.load_settings(room), open_reader(room).state()):
        done += 1
        print(line, flush=True)
    print("W&B has everything" if done else "W&B had everything already")
    return 0


def _ended_jobs(names: Sequence[str], jobs: Mapping[str, Job]) -> str:
    """A line for each of these workers whose queue has a handle for its job: what became of it."""
    found = [(name, jobs[name]) for name in names if jobs[name].handle]
    return "".join(f"\n  {name}, job {job.handle}: {job.reason or job.state}" for name, job in found)


def queue(args: Namespace) -> int:
    from sweep.cli.launch_queue import queue as act

    return act(args)


def _compose(overrides: Sequence[str], config_dir: Path | None) -> Composed:
    from sweep.wiring.compose import compose_config, freeze, recipe_name

    cfg = compose_config(overrides, config_dir)
    name = cfg.get("name") or rooms.free_name(_stem(overrides, recipe_name(cfg)))
    return freeze(cfg, str(name), config_dir)


def _stem(overrides: Sequence[str], recipe: str) -> str:
    for word in overrides:
        key, _, value = word.partition("=")
        if key.lstrip("+") in ("experiment", "recipe") and value not in ("null", "torchtune"):
            recipe = value.replace("/", "-")
    return re.sub(r"[^\w.-]+", "-", "embedded" if "embedded" in recipe else Path(recipe).stem).lstrip(".") or "sweep"


def _room_of(composed: Composed, prefork: PreforkServer) -> Room:
    """The room of a composition: the one that exists where it is the very same sweep, else a new one."""
    from sweep.wiring.probe import check_base, probe_data

    settings = composed.settings
    existing = Room((rooms.rooms_dir() / settings.name).resolve())
    if existing.sweep.exists():
        rooms.check_same_sweep(existing, settings)
        return existing
    tokens = settings.trial_tokens  # of a recorded table
    if settings.queue.simulated:
        return creation.create_room(composed, tokens)
    if settings.queue.offline:
        check_base(settings)
    if settings.objective.milestone_tokens is None or settings.queue.offline:
        print("counting the data …", file=sys.stderr, flush=True)
        tokens = probe_data(settings, prefork).trial_tokens
    return creation.create_room(composed, tokens)


def _go(room: Room, detach: bool, prefork: PreforkServer) -> int:
    from sweep.cli.background import start_detached, take_over
    from sweep.cli.foreground import EXIT_CODES, Wish, drive

    if rooms.load_settings(room).controller == "launch":
        from sweep.cli.launch_controller import push_controller

        prefork.close()
        print(push_controller(room))
        return 0
    if detach:
        prefork.close()
        print(start_detached(room))
        return 0
    if not rooms.controller_runs(room) and (job := take_over(room)):
        print(f"cancelled the controller's job {job}, which had not come to run", file=sys.stderr)
    finish = drive(room, Wish(room), prefork)
    _conclude(room, finish)
    return EXIT_CODES[finish.how]


def _check_controller(settings: Settings) -> None:
    if settings.controller == "launch":
        from sweep.cli.launch_controller import check_controller

        check_controller(settings)


def _withdraw_controller(room: Room) -> str:
    if rooms.load_settings(room).controller != "launch":
        return ""
    from sweep.cli.launch_controller import withdraw_controller

    return withdraw_controller(room)


def _serve_as_job(room: Room, prefork: PreforkServer) -> int:
    """Control as a job: a signal means the job's end and not the sweep's."""
    from sweep.cli.foreground import Wish, drive
    from sweep.cli.launch_controller import is_wanted

    wish = Wish(room, in_job=True, wanted=lambda: is_wanted(room))
    finish = drive(room, wish, prefork)
    if finish.how is Finished.HANDED_OVER and wish.resigned is None:
        print("the sweep was stopped while this job waited; `sweep resume` pushes another", flush=True)
    else:
        print(f"{finish.how}: {finish.reason}", flush=True)
    return 0 if finish.how is not Finished.FAILED else 1


def _stop_elsewhere(room: Room, mode: Mode) -> bool:
    """Tell a controller that runs on another machine, and wait until it has ended; False where none has obeyed."""
    from sweep.store.remote import await_controller_end, send_mode

    url, where = rooms.load_settings(room).store_url, rooms.controller_elsewhere(room)
    if url is None or not where:
        return False
    send_mode(url, mode)
    print(f"told the controller ({where}) to {mode}; waiting until it has ended", flush=True)
    if await_controller_end(url):
        return True
    print("it does not answer any more, or ended before it was told; this machine takes over", flush=True)
    return False


def _conclude(room: Room, finish: Finish) -> None:
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
        from sweep.search.significance import standings_text

        out.print(standings_text(state.finals, state.metric), markup=False, highlight=False, soft_wrap=True)
    if state.best is not None:
        path = write_export(room, reader.settings, state.best, None)
        out.print(
            f"best trial  {state.best.number}\nadapter     {state.best.adapter}\nyaml        {path}",
            soft_wrap=True,
        )
        out.print(f"train it again with\n  {tune_run_line(path)}", markup=False, soft_wrap=True)
    if finish.how is not Finished.DONE:
        out.print(f"go on with\n  sweep resume {state.name}", markup=False)
