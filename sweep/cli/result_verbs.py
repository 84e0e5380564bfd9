"""The verbs that use what a sweep found: `best`, `export`, `report`, `replay` and `sync`.

Invariant: as in `run_verbs`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from sweep.cli import completion
from sweep.cli.groups import Verb
from sweep.cli.options import (
    json_option,
    logging_options,
    name_and_overrides,
    name_argument,
    output_option,
    overrides_argument,
    trial_option,
)

if TYPE_CHECKING:
    from sweep.config.settings import Settings
    from sweep.model.summary import SweepState, TrialRow
    from trainer.room import Room


@click.command(cls=Verb, examples=("sweep best first", "sweep best first --json"))
@name_argument()
@json_option
def best(name: str | None, as_json: bool) -> int:
    """Show the best trial and write its best.yaml."""
    from sweep.report.export import write_export
    from sweep.report.formatting import json_text
    from sweep.report.reader import open_reader
    from sweep.wiring.rooms import current_room
    from trainer.names import harmless

    room = current_room(name, light=False)
    reader = open_reader(room)
    state = reader.state()
    row = _row_of(state, None)
    path = None
    try:
        path = write_export(room, reader.settings, row, None)
    except OSError as error:  # another user's room, or a file system that is read-only or full
        print(harmless(f"best.yaml could not be written: {error.strerror or error} ({room.root})"), file=sys.stderr)
    for note in state.notes:
        print(harmless(f"damaged: {note}"), file=sys.stderr)
    if as_json:
        print(json_text(_best_json(state, row, path)))
    else:
        _show_best(state, row, path)
    return 0


@click.command(cls=Verb, examples=("sweep export first --verify", "sweep export first --trial 3 -o trial3.yaml"))
@name_argument()
@trial_option
@output_option("best.yaml or trial-N.yaml in the room; -: standard output")
@click.option("--verify", is_flag=True, help="train it with `tune run` and compare every step")
def export(name: str | None, trial: int | None, output: Path | None, verify: bool) -> int:
    """Write the YAML of the best trial, or of another, for `tune run`.

    With `-o -`, --verify trains a copy of what was printed, and writes its result to standard error.
    """
    from sweep.report.export import export_text, tune_run_line, write_export
    from sweep.report.reader import open_reader
    from sweep.wiring.rooms import current_room

    room = current_room(name, light=False)
    reader = open_reader(room)
    state = reader.state()
    row = _row_of(state, trial)
    if str(output) != "-":
        with _writing(output):
            path = write_export(room, reader.settings, row, output, best=row is state.best)
        print(f"{path}\ntrain it with\n  {tune_run_line(path)}")
        return _verified(room, reader.settings, row, path, sys.stdout) if verify else 0
    print(export_text(room, reader.settings, row), end="", flush=True)
    if not verify:
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        copy = write_export(room, reader.settings, row, Path(scratch) / "trial.yaml")
        return _verified(room, reader.settings, row, copy, sys.stderr)


def _verified(room: Room, settings: Settings, row: TrialRow, path: Path, out: TextIO) -> int:
    """Train an exported YAML with `tune run`, print the result, and return the exit code."""
    from sweep.report.export import verify, verify_text
    from sweep.wiring.trust import check_owner

    check_owner(room, settings, used=("recipe.components",))
    comparison = verify(room, settings, row, path)
    print(verify_text(comparison), file=out)
    return 0 if comparison.ok else 1


@click.command(cls=Verb, examples=("sweep report first", "sweep report first -o first.html"))
@name_argument()
@output_option("report.html in the room")
def report(name: str | None, output: Path | None) -> int:
    """Write the report, one self-contained HTML file."""
    from sweep.report.html import write_report
    from sweep.wiring.rooms import current_room

    room = current_room(name)
    with _writing(output):
        path = write_report(room, output or room.root / "report.html")
    print(path)
    return 0


@click.command(cls=Verb, examples=("sweep replay first pruner=median", "sweep replay first pruner=asha --json"))
@name_argument(completion.complete_sweep_or_pruner)
@overrides_argument("the other pruner: pruner=NAME, pruner.KEY=VALUE", completion.complete_pruner)
@json_option
def replay(name: str | None, overrides: tuple[str, ...], as_json: bool) -> int:
    """Estimate what another pruner would have cost.

    Also says whether it would have kept the winner. Nothing is trained: the reports of the sweep are judged again.
    """
    from sweep.report.formatting import json_text
    from sweep.report.reader import open_reader
    from sweep.report.replay import pruner_section
    from sweep.report.replay import replay as replay_sweep
    from sweep.wiring.rooms import current_room

    name, words = name_and_overrides(name, overrides)
    reader = open_reader(current_room(name))
    estimate = replay_sweep(reader.state(), reader.settings, pruner_section(reader.settings, words))
    print(json_text(estimate.to_json()) if as_json else estimate.text())
    return 0


@click.command(cls=Verb, examples=("sweep sync", "sweep sync first"))
@name_argument()
@logging_options
def sync(name: str | None) -> int:
    """Upload to W&B what has not arrived there, once and in order."""
    import logging

    from sweep.report.reader import open_reader
    from sweep.tracking.sync import sync as sync_with_wandb
    from sweep.wiring.rooms import current_room, load_settings

    logger = logging.getLogger(__name__)
    room = current_room(name)
    uploads = 0
    for line in sync_with_wandb(room, load_settings(room), open_reader(room).state()):
        uploads += 1
        logger.info("%s", line)
    print("W&B has everything" if uploads else "W&B had everything already")
    return 0


def _row_of(state: SweepState, trial: int | None) -> TrialRow:
    """The trial of this number; the best one for None.

    Raises:
        ConfigError: there is no such trial.
    """
    from sweep.errors import ConfigError

    row = state.best if trial is None else next((row for row in state.rows if row.number == trial), None)
    if row is None and trial is None and state.unsure:
        raise ConfigError(
            f"{state.unsure}; `sweep doctor --room {state.name}` lists what is damaged; name a trial that you trust: "
            f"`sweep export {state.name} --trial N`"
        )
    if row is None:
        missing = "no complete trial yet" if trial is None else f"no trial {trial}"
        raise ConfigError(f"{state.name} has {missing}; see `sweep status {state.name}`")
    return row


def _best_json(state: SweepState, row: TrialRow, path: Path | None) -> dict[str, Any]:
    from sweep.report.export import tune_run_line
    from sweep.search.significance import rank_finalists

    finalists = rank_finalists(state.finals, state.objective)
    return {
        "trial": row.number,
        "metric": state.metric,
        "direction": state.objective.direction.value,
        "value": row.value,
        "metrics": {name: row.measured(name) for name in state.metrics},
        "base_scores": dict(state.base_scores),
        "params": dict(row.params),
        "scores": dict(row.scores),
        "tied": [other.number for other in finalists if other.tied and other.number != row.number],
        "yaml": str(path) if path else None,
        "adapter": row.adapter,
        "tune_run": tune_run_line(path) if path else None,
    }


def _show_best(state: SweepState, row: TrialRow, path: Path | None) -> None:
    from sweep.report.export import tune_run_line
    from sweep.report.terminal import base_text, console, trials_table
    from sweep.search.significance import finalists_text

    out = console()
    out.print(f"{state.objective.verb} {state.metric}{base_text(state)}", soft_wrap=True)
    out.print(trials_table(state, [row]))
    if state.finals:
        out.print(finalists_text(state.finals, state.objective), markup=False, highlight=False, soft_wrap=True)
    how = f"sweep export {state.name} -o best.yaml" if path is None else tune_run_line(path)
    out.print(
        f"adapter  {row.adapter}\nyaml     {path or 'not written'}\ntrain it again with\n  {how}",
        soft_wrap=True,
    )


@contextmanager
def _writing(output: Path | None) -> Iterator[None]:
    """Turn an error while the block writes this file into a sentence.

    Raises:
        ConfigError: it is a directory. GiveUp: it cannot be written.
    """
    from sweep.errors import ConfigError, GiveUp

    if output is not None and output.is_dir():
        raise ConfigError(f"-o {output} is a directory; name a file in it")
    try:
        yield
    except OSError as error:
        raise GiveUp(f"{output or error.filename} cannot be written: {error.strerror}") from error
