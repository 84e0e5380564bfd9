"""The entry point `sweep`: finds the verb, runs it, and turns errors into sentences and exit codes.

Invariants: nothing heavy is imported before a verb runs, so that `sweep --help` answers at once. A person's mistake is
answered by one message and exit code 2, never by a traceback. An exception that nothing expects is a fault of this
program: it is answered by a sentence that says so, and its traceback is kept in a file.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import click
from click.shell_completion import shell_complete

from sweep.cli import queue_verbs, read_verbs, result_verbs, run_verbs, shells
from sweep.cli.fault import fault_text
from sweep.cli.groups import EXIT_CODES, VerbGroup, usage_text
from sweep.errors import ConfigError, SweepError
from trainer import logs
from trainer.exit_guard import limit_exit
from trainer.names import harmless
from trainer.startup import prepare

SECTIONS = {
    "Run a sweep": ("plan", "run", "resume", "stop"),
    "Look at a sweep": ("status", "watch", "logs"),
    "Use what it found": ("best", "export", "report", "replay", "sync"),
    "Set up": ("doctor", "queue", "completion"),
}
INTERRUPTED = 130
NO_DOCSTRINGS = (
    "Python's option -OO removes the docstrings that Hydra and Optuna read; start sweep without it, or with -O"
)


def print_version(ctx: click.Context, param: click.Parameter, given: bool) -> None:
    """Print the version and end."""
    if given and not ctx.resilient_parsing:
        print(f"sweep {version()}")
        ctx.exit()


@click.group(
    cls=VerbGroup,
    sections=SECTIONS,
    examples=("sweep run experiment=demo name=first", "sweep status first"),
    epilog=f"\b\n`sweep VERB --help` explains a verb.\n{EXIT_CODES}",
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=print_version, help="print the version"
)
def cli() -> None:
    """Hyperparameter search for LoRA fine-tuning with torchtune."""


for command in (
    *(run_verbs.plan, run_verbs.run, run_verbs.resume, run_verbs.stop, run_verbs.doctor),
    *(read_verbs.status, read_verbs.watch, read_verbs.logs),
    *(result_verbs.best, result_verbs.export, result_verbs.report, result_verbs.replay, result_verbs.sync),
    *(queue_verbs.queue, shells.completion),
):
    cli.add_command(command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code.

    Args:
        argv: the words of the command line; None: those of this process, which is the program's own.
    """
    if instruction := os.environ.get(shells.VARIABLE):
        return shell_complete(cli, {}, "sweep", shells.VARIABLE, instruction)
    if argv is not None:
        return _answer(list(argv))
    prepare()
    if sys.flags.optimize > 1:
        return _failed(NO_DOCSTRINGS, 2)
    code = _answer(sys.argv[1:])
    if code == INTERRUPTED:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one more while the interpreter ends changes nothing
    return code


def _answer(args: list[str]) -> int:
    """Run a verb, and turn its error into a sentence; returns the exit code."""
    try:
        return _run(args)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        return _failed(usage_text(error), 2)
    except ConfigError as error:
        return _failed(str(error), 2)
    except SweepError as error:
        return _failed(str(error), 1)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return 0
    except OSError as error:
        return _failed(_file_error(error), 1)
    except Exception as error:
        if logs.level_from_env() <= logging.DEBUG:
            raise
        return _failed(fault_text(error), 1)


def _run(args: list[str]) -> int:
    limit_exit()
    with cli.make_context("sweep", args) as ctx:
        code: int = cli.invoke(ctx)
    return code


def _failed(text: str, code: int) -> int:
    print(harmless(f"sweep: {text}"), file=sys.stderr)
    return code


def _file_error(error: OSError) -> str:
    """An error of the file system in one sentence: the file, the reason, and what to do."""
    reason = (error.strerror or str(error) or type(error).__name__).lower()
    if error.filename is None:
        if isinstance(error, FileNotFoundError) and not _current_directory_exists():
            return "the current directory was deleted; change to another one"
        return f"the operating system refuses: {reason}"
    hint = "; ask its owner, or set SWEEP_ROOMS to a directory of yours" if isinstance(error, PermissionError) else ""
    return f"{error.filename} cannot be used: {reason}{hint}"


def _current_directory_exists() -> bool:
    try:
        Path.cwd()
    except OSError:
        return False
    return True


def _discard_output() -> None:
    """Drop what is left to print, since nobody reads it: the interpreter would complain when it flushes."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def version() -> str:
    """The version in this checkout's `pyproject.toml`, or that of the installed package."""
    import tomllib
    from importlib import metadata

    with suppress(OSError, KeyError, tomllib.TOMLDecodeError):
        project = Path(__file__).resolve().parents[2] / "pyproject.toml"
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    return metadata.version("sweeps-on-launch")
