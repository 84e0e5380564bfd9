"""Arguments and options that several verbs share.

Invariant: nothing heavy is imported before a verb runs. `--verbose` and `--quiet` set the log level of this process
and, through the environment, that of every process that it starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from sweep.cli import completion
from sweep.cli.groups import Argument
from trainer import logs

C = TypeVar("C", bound=Callable[..., Any])

OVERRIDES = "Hydra overrides: a group (queue=slurm), a setting (search.trials=48), a torchtune key below space."
NAME = "a sweep's name, room or URL; the newest sweep if left out"

json_option = click.option("--json", "as_json", is_flag=True, help="print JSON")
config_dir_option = click.option(
    "--config-dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    shell_complete=completion.complete_directory,
    help="a directory with configuration groups of your own",
)
detach_option = click.option(
    "--detach", is_flag=True, help="run the controller in the background, on SLURM as a job, and return"
)
trial_option = click.option(
    "--trial", type=int, metavar="N", shell_complete=completion.complete_trial, help="the trial's number"
)


def overrides_argument(
    text: str = OVERRIDES, complete: completion.Completer = completion.complete_override
) -> Callable[[C], C]:
    """Any number of `key=value` words."""
    return click.argument(
        "overrides",
        nargs=-1,
        cls=Argument,
        metavar="[KEY=VALUE ...]",
        label="KEY=VALUE",
        text=text,
        shell_complete=complete,
    )


def name_argument(complete: completion.Completer = completion.complete_sweep) -> Callable[[C], C]:
    """Which sweep."""
    return click.argument(
        "name", required=False, cls=Argument, metavar="[NAME]", label="NAME", text=NAME, shell_complete=complete
    )


def output_option(default: str) -> Callable[[C], C]:
    """Which file to write."""
    return click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        metavar="FILE",
        shell_complete=completion.complete_path,
        help=f"the file to write; default: {default}",
    )


def logging_options(command: C) -> C:
    """`--verbose` and `--quiet`, for verbs that write log lines."""
    more = click.option(
        "-v", "--verbose", is_flag=True, expose_value=False, callback=_level("DEBUG"), help="log more (level DEBUG)"
    )
    less = click.option(
        "-q",
        "--quiet",
        is_flag=True,
        expose_value=False,
        callback=_level("WARNING"),
        help="log warnings and errors only",
    )
    return more(less(command))


def _level(name: str) -> Callable[[click.Context, click.Parameter, bool], None]:
    def configure(ctx: click.Context, param: click.Parameter, given: bool) -> None:
        if ctx.resilient_parsing:  # the shell asks what may follow
            return
        if given:
            os.environ[logs.LEVEL_ENV] = name
        logs.configure()

    return configure


def name_and_overrides(name: str | None, overrides: Sequence[str]) -> tuple[str | None, list[str]]:
    """The two parts of `[NAME] [KEY=VALUE ...]`: `sweep resume search.trials=48` means the newest sweep."""
    if name is not None and "=" in name:
        return None, [name, *overrides]
    return name, list(overrides)
