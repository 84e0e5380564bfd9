"""The verbs that look at a sweep, and change nothing of it: what each shows, and where its files are put.

Invariant: as in `verbs`.
"""

from __future__ import annotations

import dataclasses
import json
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sweep.errors import ConfigError, GiveUp
from sweep.model import EvaluationStatus, TrialStatus
from sweep.wiring import rooms
from trainer.room import Room


def status(args: Namespace) -> int:
    from sweep.cli.background import coming_controller
    from sweep.report.reader import open_reader
    from sweep.report.terminal import console, counts_text, trials_table, workers_table

    room = rooms.current_room(args.name)
    state = open_reader(room).state()
    if args.json:
        print(json.dumps(_state_json(state)))
        return 0
    out = console()
    where = rooms.controller_whereabouts(room) if state.controller else _elsewhere(room)
    at = f"controller: {where}" if where else coming_controller(room) or "no controller is running"
    out.print(f"[bold]{state.name}[/] in {room.root} – {at}", highlight=False, soft_wrap=True)
    out.print(counts_text(state))
    out.print(trials_table(state, state.rows))
    if state.workers:
        logs = {worker.name: str(rooms.worker_log(room, worker.name)) for worker in state.workers}
        out.print(workers_table(state, logs))
    for row in state.rows:
        if row.state is TrialStatus.FAILED:
            out.print(f"trial {row.number} failed: {row.reason}", markup=False, soft_wrap=True)
        if row.evaluation is EvaluationStatus.FAILED:
            out.print(f"evaluation of trial {row.number} failed: {row.evaluation_reason}", markup=False, soft_wrap=True)
    return 0


def _elsewhere(room: Room) -> str:
    """Where another machine's controller runs; its lease does not tell one that was killed."""
    where = rooms.controller_elsewhere(room)
    return f"{where}, unless it was killed there" if where else ""


def watch(args: Namespace) -> int:
    from rich.live import Live

    from sweep.cli.background import COMING_SECONDS, coming_controller
    from sweep.report.reader import open_reader
    from sweep.report.terminal import console, live_view

    room = rooms.current_room(args.name)
    reader = open_reader(room)
    out = console()
    with Live(console=out, auto_refresh=False, transient=out.is_terminal) as live:
        coming, asked = "", float("-inf")
        while True:
            state = reader.state()
            if not state.controller and time.monotonic() - asked > COMING_SECONDS:
                coming, asked = coming_controller(room), time.monotonic()
            live.update(live_view(state, [coming] if coming else [], out.height), refresh=True)
            if not state.controller and not state.workers and not coming:
                break
            time.sleep(1.0)
    return status(Namespace(name=args.name, json=False))


def logs(args: Namespace) -> int:
    from sweep.evaluation.jobs import evaluations_room

    room = rooms.current_room(args.name, light=False)
    names, judged = room.workers(), args.trial is not None
    if args.controller:
        from sweep.cli.background import controller_log

        _print_log(controller_log(room), args.n)
        return 0
    if args.trial is not None:
        attempts = room.attempts(args.trial)
        if not attempts:
            raise ConfigError(f"--trial={args.trial}: this sweep has no such trial; it has {room.trials()}")
        names = [rooms.worker_of(room, args.trial, number) for number in attempts]
    beside = evaluations_room(room)
    judges = [rooms.worker_of(beside, args.trial, number) for number in beside.attempts(args.trial)] if judged else []
    paths = [rooms.worker_log(room, name) for name in names]
    paths += [rooms.worker_log(beside, name) for name in (judges if judged else beside.workers())]
    for path in dict.fromkeys(paths):  # a requeued job goes on in its log
        _print_log(path, args.n)
    return 0


def _print_log(path: Path, lines: int) -> None:
    print(f"==> {path} <==")
    text = path.read_text(errors="replace") if path.exists() else "(nothing is written yet)"
    print("\n".join(text.splitlines()[-lines:]))


def best(args: Namespace) -> int:
    from sweep.report.export import tune_run_line, write_export
    from sweep.report.reader import open_reader
    from sweep.report.terminal import console, trials_table
    from sweep.search.significance import standings, standings_text

    room = rooms.current_room(args.name, light=False)
    reader = open_reader(room)
    state = reader.state()
    row = state.best
    if row is None:
        raise ConfigError(f"{state.name} has no complete trial yet; see `sweep status {state.name}`")
    path = write_export(room, reader.settings, row, None)
    if args.json:
        found: dict[str, Any] = {
            "trial": row.number,
            "value": row.value,
            "params": dict(row.params),
            "scores": dict(row.scores),
        }
        found["tied"] = [one.number for one in standings(state.finals) if one.tied and one.number != row.number]
        print(json.dumps({**found, "yaml": str(path), "adapter": row.adapter, "tune_run": tune_run_line(path)}))
        return 0
    out = console()
    out.print(trials_table(state, [row]))
    if state.finals:
        out.print(standings_text(state.finals, state.metric), markup=False, highlight=False, soft_wrap=True)
    out.print(
        f"adapter  {row.adapter}\nyaml     {path}\ntrain it again with\n  {tune_run_line(path)}",
        soft_wrap=True,
    )
    return 0


def export(args: Namespace) -> int:
    from sweep.report.export import export_text, tune_run_line, verify, verify_text, write_export
    from sweep.report.reader import open_reader

    room = rooms.current_room(args.name, light=False)
    reader = open_reader(room)
    state = reader.state()
    row = state.best
    if args.trial is not None:
        row = next((r for r in state.rows if r.number == args.trial), None)
    if row is None:
        wanted = "no complete trial" if args.trial is None else f"no trial {args.trial}"
        raise ConfigError(f"{state.name} has {wanted}; see `sweep status {state.name}`")
    if str(args.output) == "-":
        print(export_text(room, reader.settings, row), end="")
    else:
        with _writing(args.output):
            path = write_export(room, reader.settings, row, args.output, best=row is state.best)
        print(f"{path}\ntrain it with\n  {tune_run_line(path)}")
    if not args.verify:
        return 0
    compared = verify(room, reader.settings, row)
    print(verify_text(compared))
    return 0 if compared.ok else 1


def report(args: Namespace) -> int:
    from sweep.report.html import write_report

    room = rooms.current_room(args.name)
    with _writing(args.output):
        path = write_report(room, args.output or room.root / "report.html")
    print(path)
    return 0


@contextmanager
def _writing(output: Path | None) -> Iterator[None]:
    """While the block writes the file that a person named."""
    if output is not None and output.is_dir():
        raise ConfigError(f"-o {output} is a directory; name a file in it")
    try:
        yield
    except OSError as error:
        raise GiveUp(f"{output or error.filename} cannot be written: {error.strerror}") from error


def replay(args: Namespace) -> int:
    from sweep.report.reader import open_reader
    from sweep.report.replay import pruner_section
    from sweep.report.replay import replay as replayed

    if args.name and "=" in args.name:  # `sweep replay pruner=median` means the newest sweep
        args.overrides, args.name = [args.name, *args.overrides], None
    room = rooms.current_room(args.name)
    reader = open_reader(room)
    found = replayed(reader.state(), reader.settings, pruner_section(reader.settings, args.overrides))
    print(json.dumps(found.to_json()) if args.json else found.text())
    return 0


def _state_json(state: Any) -> dict[str, Any]:
    raw = dataclasses.asdict(state)
    raw["best"] = state.best.number if state.best else None
    return json.loads(json.dumps(raw, default=str))  # type: ignore[no-any-return]
