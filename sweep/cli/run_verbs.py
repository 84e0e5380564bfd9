"""The verbs that start, resume and stop a sweep, and those that look whether it could run.

Invariant: each verb is one function whose parameters are its arguments and options; it returns the exit code.
"""

from __future__ import annotations

from pathlib import Path

import click

from sweep.cli import completion
from sweep.cli.groups import Verb
from sweep.cli.options import (
    config_dir_option,
    detach_option,
    json_option,
    logging_options,
    name_and_overrides,
    name_argument,
    overrides_argument,
)

# Of a plan: with some samplers each proposal takes as long as all before it.
MAX_SAMPLES = 100


@click.command(
    cls=Verb,
    examples=(
        "sweep run experiment=demo name=first",
        "sweep run --config-dir my experiment=mine queue=slurm queue.workers=8 --detach",
    ),
)
@overrides_argument()
@config_dir_option
@detach_option
@logging_options
def run(overrides: tuple[str, ...], config_dir: Path | None, detach: bool) -> int:
    """Start a sweep.

    If a sweep of the same name= and the same settings exists, it is resumed.

    Ctrl-C stops asking for trials and lets running ones finish by themselves; a second Ctrl-C stops them with a
    checkpoint. `sweep resume` continues in both cases.
    """
    from sweep.cli.start import run_sweep

    return run_sweep(overrides, config_dir, detach)


@click.command(cls=Verb, examples=("sweep resume first", "sweep resume first search.trials=48 --detach"))
@name_argument(completion.complete_sweep_or_change)
@overrides_argument("changes of the budget or the queue: search.KEY=VALUE, queue.KEY=VALUE", completion.complete_change)
@detach_option
@click.option("--in-job", is_flag=True, hidden=True)
@click.option("--lock", type=int, hidden=True)
@click.option("--token", hidden=True)
@logging_options
def resume(
    name: str | None, overrides: tuple[str, ...], detach: bool, in_job: bool, lock: int | None, token: str | None
) -> int:
    """Resume a sweep, with a larger budget if you like."""
    from sweep.cli.start import resume_sweep

    name, changes = name_and_overrides(name, overrides)
    return resume_sweep(name, changes, detach, in_job=in_job, lock=lock, token=token)


@click.command(cls=Verb, examples=("sweep stop first", "sweep stop first --cancel"))
@name_argument()
@click.option("--cancel", is_flag=True, help="cancel for good; running trials are marked FAIL")
@click.option("--detach", is_flag=True, help="ask for no more trials, and let running ones finish by themselves")
@logging_options
def stop(name: str | None, cancel: bool, detach: bool) -> int:
    """Stop a sweep; its running trials write a checkpoint."""
    from sweep.cli.stop import stop_sweep
    from sweep.model.states import Mode

    return stop_sweep(name, Mode.CANCEL if cancel else Mode.DETACH if detach else Mode.STOP)


@click.command(cls=Verb, examples=("sweep plan experiment=demo", "sweep plan experiment=demo queue=slurm --no-measure"))
@overrides_argument()
@config_dir_option
@click.option(
    "-n",
    "samples",
    type=click.IntRange(0, MAX_SAMPLES),
    default=5,
    metavar="N",
    help=f"how many trials to sample, {MAX_SAMPLES} at most; default: 5",
)
@click.option(
    "--measure/--no-measure",
    default=True,
    help="whether to train a few micro-batches, to estimate the time; default: yes",
)
@json_option
def plan(overrides: tuple[str, ...], config_dir: Path | None, samples: int, measure: bool, as_json: bool) -> int:
    """Show what a sweep would do, and start nothing.

    That is: the space, sampled trials, the budget and what the queue would be given.
    """
    from sweep.cli.start import compose
    from sweep.errors import ConfigError
    from sweep.report.formatting import json_text
    from sweep.report.plan import make_plan, plan_view
    from sweep.report.terminal import console

    trial_plan = make_plan(compose(overrides, config_dir).settings, samples, measure)
    if as_json:
        print(json_text(trial_plan.to_json()))
    else:
        console().print(plan_view(trial_plan))
    if trial_plan.refused:
        raise ConfigError(f"sweep run refuses this configuration: {trial_plan.unknown}")
    return 0


@click.command(
    cls=Verb,
    examples=("sweep doctor", "sweep doctor experiment=demo queue=slurm", "sweep doctor --room first --repair"),
)
@overrides_argument()
@config_dir_option
@click.option("--room", metavar="NAME", help="check every file of a sweep's room instead")
@click.option("--repair", is_flag=True, help="with --room: mend what can be mended, and keep the originals beside it")
@json_option
def doctor(overrides: tuple[str, ...], config_dir: Path | None, room: str | None, repair: bool, as_json: bool) -> int:
    """Check that this machine and its queue can run a sweep, or a room."""
    import dataclasses

    if room is not None:
        from sweep.cli.room_doctor import room_doctor

        return room_doctor(room, repair, as_json)
    if repair:
        raise click.UsageError("--repair mends a room; name it with --room NAME")

    from sweep.cli.doctor import checks, checks_table
    from sweep.report.formatting import json_text
    from sweep.report.terminal import console

    results = checks(overrides, config_dir)
    if as_json:
        print(json_text([dataclasses.asdict(check) for check in results]))
    else:
        console().print(checks_table(results))
    return 0 if all(check.ok for check in results) else 1
