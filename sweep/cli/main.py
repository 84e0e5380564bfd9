"""The command line: verbs only.

Invariants: nothing heavy is imported before a verb is known, so that `sweep --help` answers at once. A person's
mistake is answered by one message and exit code 2, never by a traceback.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sweep.errors import ConfigError, SweepError
from trainer.exit_guard import limit_exit

EPILOG = """\
Trailing key=value words of run, plan, doctor and queue are Hydra overrides: experiment=… queue=… search.trials=…
NAME is a sweep's name or room; the newest one where it is left out.
Exit codes: 0 done, 1 failed, 2 wrong input, 130 interrupted."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code."""
    args = _parser().parse_args(_positionals_first(sys.argv[1:] if argv is None else argv))
    from sweep.cli import verbs

    limit_exit()
    try:
        code: int = getattr(verbs, args.verb)(args)
        return code
    except ConfigError as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 2
    except SweepError as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 0


# Options that take a value.
VALUED = {"-n", "-o", "--output", "--trial", "--config-dir", "--region", "--namespace", "--on", "--alias"}
VALUED |= {"--collection", "--type", "--webhook", "--channel", "--name"}


def _positionals_first(argv: Sequence[str]) -> list[str]:
    """The same words with options last: argparse takes overrides in one piece only, people write them anywhere."""
    positionals: list[str] = []
    options: list[str] = []
    for before, word in zip(["", *argv], argv, strict=False):
        is_option = word.startswith("-") and word != "-"
        (options if is_option or before in VALUED else positionals).append(word)
    return positionals + options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sweep",
        description="Hyperparameter search for LoRA fine-tuning with torchtune.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    run = _composing(verbs, "run", "compose a sweep and run it; with name= and the settings of one that exists, go on")
    run.add_argument("--detach", action="store_true", help="run the controller in the background, on SLURM as a job")
    plan = _composing(verbs, "plan", "show the space, sampled trials, the budget and the queue; start nothing")
    plan.add_argument("-n", type=int, default=5, help="sampled trials to show (default 5)")
    plan.add_argument(
        "--measure",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="train a few micro-batches in a process of their own to estimate the time (default: yes)",
    )
    plan.add_argument("--json", action="store_true")
    _composing(verbs, "doctor", "check that this machine can run a sweep").add_argument("--json", action="store_true")

    status = _named(verbs, "status", "show trials and workers")
    status.add_argument("--json", action="store_true")
    _named(verbs, "watch", "follow a sweep live")
    logs = _named(verbs, "logs", "print the logs of workers or of a trial")
    logs.add_argument("--trial", type=int, help="of the worker of this trial")
    logs.add_argument("--controller", action="store_true", help="of the controller that runs detached")
    logs.add_argument("-n", type=int, default=40, help="lines of each (default 40)")
    stop = _named(verbs, "stop", "stop the running trials with a checkpoint")
    stop.add_argument("--cancel", action="store_true", help="for good: they are told as failed")
    stop.add_argument("--detach", action="store_true", help="ask no more, but let running trials go on")
    resume = _named(verbs, "resume", "go on with a sweep")
    resume.add_argument(
        "overrides", nargs="*", metavar="search.KEY=VALUE", help="a larger budget, another queue setting"
    )
    resume.add_argument("--detach", action="store_true", help="run the controller in the background and return")
    resume.add_argument("--in-job", action="store_true", help=argparse.SUPPRESS)
    best = _named(verbs, "best", "show the best trial and write best.yaml")
    best.add_argument("--json", action="store_true")
    export = _named(verbs, "export", "write a trial's YAML for `tune run`")
    export.add_argument("--trial", type=int, help="default: the best")
    export.add_argument("-o", "--output", type=Path, help="default: best.yaml or trial-N.yaml in the room; -: print")
    export.add_argument("--verify", action="store_true", help="train it with `tune run` and compare every step")
    _named(verbs, "sync", "upload to W&B what did not arrive there, once and in order")
    replay = _named(
        verbs, "replay", "say what another pruner would have spent on a finished sweep, and what of its winner"
    )
    replay.add_argument("overrides", nargs="*", metavar="pruner=NAME", help="pruner=NAME and pruner.KEY=VALUE")
    replay.add_argument("--json", action="store_true")
    report = _named(verbs, "report", "write one self-contained HTML file")
    report.add_argument("-o", "--output", type=Path, help="default: report.html in the room")
    _queue(verbs)
    return parser


def _queue(verbs: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    text = "a queue of W&B Launch: show it (as does no action), create it, its job, its agent, an automation"
    queue = _composing(verbs, "queue", text)
    queue.usage = "sweep queue [create | show | job | agent | automate] [KEY=VALUE ...] [options]"
    queue.add_argument("--json", action="store_true", help="show: as JSON")
    queue.add_argument("--region", help="agent: of the cloud, for SageMaker and Vertex AI")
    queue.add_argument("--kubernetes", action="store_true", help="agent: as objects for kubectl")
    queue.add_argument("--namespace", default="default", help="agent: of the cluster (default: default)")
    queue.add_argument("--on", choices=("alias", "version"), default="alias", help="automate: when (default: alias)")
    queue.add_argument("--alias", default="best", help="automate: which alias (default: best)")
    queue.add_argument("--collection", help="automate: of this collection only, NAME or wandb-registry-NAME/NAME")
    queue.add_argument("--type", default="model", help="automate: the artifacts' type (default: model)")
    queue.add_argument("--webhook", metavar="NAME", help="automate: call this webhook of the team")
    queue.add_argument("--slack", action="store_true", help="automate: tell the team's Slack channel")
    queue.add_argument("--channel", metavar="NAME", help="automate: which one, where the team has several")
    queue.add_argument("--name", dest="called", help="automate: the automation's name")


def _composing(verbs: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:  # type: ignore[type-arg]
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text, epilog=EPILOG)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="Hydra overrides")
    parser.add_argument("--config-dir", type=Path, help="a directory with configuration groups of your own")
    return parser


def _named(verbs: argparse._SubParsersAction, name: str, text: str) -> argparse.ArgumentParser:  # type: ignore[type-arg]
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text, epilog=EPILOG)
    parser.add_argument("name", nargs="?", metavar="NAME")
    return parser


if __name__ == "__main__":
    sys.exit(main())
