"""`sweep plan`: the space, sampled trials, the budget and the queue's jobs, without starting anything.

Invariants: no room is created and no job is started. A number that cannot be determined here is shown as unknown, with
the reason. A configuration that `sweep run` would refuse is shown too, and is refused afterwards.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sweep.config.settings import Settings
from sweep.config.torchtune import trial_changes
from sweep.controller.ports import WorkerSpec
from sweep.errors import ConfigError, UntrustedCodeError
from sweep.report.formatting import duration, param, short_keys
from sweep.report.terminal import add_plain_row, table_of
from sweep.wiring import backends, rooms, session
from sweep.wiring.probe import DataProbe, probe_data
from trainer.contract import Metric
from trainer.room import Room
from trainer.shortening import short_text

# Of the values of a key that are shown.
SPACE_CHARACTERS = 400


@dataclass(frozen=True, slots=True)
class Plan:
    """What a sweep would do.

    Args:
        samples: torchtune overrides of the first trials, derived keys included.
        workers: how many workers the queue would start.
        data: what one trial would train on; None if it cannot be counted here.
        unknown: why the data or the speed is unknown, or why `sweep run` would refuse this; empty if both are known or
            the speed was not to be measured.
        tokens: label tokens of the whole budget without pruning; None if unknown.
        seconds: the time for these tokens at the measured speed; None if it was not measured.
        preview: what would be submitted to the queue for the first workers.
    """

    settings: Settings
    samples: tuple[dict[str, Any], ...]
    workers: int
    data: DataProbe | None
    unknown: str
    tokens: int | None
    seconds: float | None
    preview: str

    @property
    def refused(self) -> bool:
        """Whether `sweep run` would refuse this configuration for the reason in `unknown`."""
        queue, objective = self.settings.queue, self.settings.objective
        return self.data is None and not queue.simulated and (objective.milestone_tokens is None or queue.offline)

    def to_json(self) -> dict[str, Any]:
        """What `sweep plan --json` prints."""
        return {
            "metric": self.settings.metric,
            "direction": self.settings.objectives[0].direction.value,
            "metrics": {metric.name: _measured_text(self.settings, metric) for metric in self.settings.measured},
            "constraints": [str(constraint) for constraint in self.settings.constraints],
            "space": self.settings.space.describe(),
            "derive": self.settings.derive,
            "samples": list(self.samples),
            "data": asdict(self.data) if self.data else None,
            "unknown": self.unknown,
            "refused": self.refused,
            "trials": self.settings.search.trials,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "workers": self.workers,
            "queue": {self.settings.queue.kind: self.preview},
        }


def make_plan(settings: Settings, samples: int, measure: bool) -> Plan:
    """The plan of a sweep with these settings.

    Args:
        samples: how many trials to sample.
        measure: train a few micro-batches here to measure the speed; if that fails, only the data are counted.

    Raises:
        ConfigError: the configuration is wrong, or cannot train.
    """
    data, unknown = _probe(settings, measure)
    workers = backends.worker_count(settings)
    tokens = _tokens(settings, data)
    rate = data.tokens_per_second if data else 0.0
    dispatcher = backends.make_dispatcher(Room(Path(rooms.rooms_dir() / settings.name)), settings)
    return Plan(
        settings=settings,
        samples=tuple(sample_trials(settings, samples)),
        workers=workers,
        data=data,
        unknown=unknown,
        tokens=tokens,
        seconds=tokens / rate / workers if tokens and rate else None,
        preview=dispatcher.preview([WorkerSpec(f"w{place + 1:04d}", place) for place in range(workers)]),
    )


def _probe(settings: Settings, measure: bool) -> tuple[DataProbe | None, str]:
    """Data and speed, or the data alone, or None; and the reason if something is unknown."""
    unknown = ""
    for speed in (True, False) if measure else (False,):
        try:
            return probe_data(settings, speed=speed), unknown
        except UntrustedCodeError:
            raise
        except ConfigError as error:
            unknown = str(error)
    return None, unknown


def sample_trials(settings: Settings, count: int) -> list[dict[str, Any]]:
    """The torchtune overrides of the first trials that the sampler would propose, as if none of them had a result."""
    proposed = session.first_params(settings, count)
    return [trial_changes(settings.torchtune, params, settings.derive) for params in proposed]


def plan_view(plan: Plan) -> RenderableType:
    """A plan for a terminal."""
    objective = plan.settings.objectives[0]
    title = Text(f"sweep {plan.settings.name} {objective.verb} {objective.name}\n")
    return Group(title, *_metrics(plan.settings), _space(plan.settings), _samples(plan), _budget(plan), _queue(plan))


def _metrics(settings: Settings) -> list[Table]:
    """The metrics beside the losses, and the bounds; nothing without them."""
    if not settings.measured and not settings.constraints:
        return []
    table = table_of(("metric", "how it is measured"), title="metrics")
    for metric in settings.measured:
        add_plain_row(table, metric.name, short_text(_measured_text(settings, metric), SPACE_CHARACTERS))
    for constraint in settings.constraints:
        add_plain_row(table, constraint.metric, Text(f"bound {constraint}: shown, not acted on", style="yellow"))
    return [table]


def _measured_text(settings: Settings, metric: Metric) -> str:
    """How and when a metric is measured, in a few words."""
    options, source = metric.options, metric.source
    match source:
        case "generate":
            data = options["data"] if isinstance(options["data"], str) else "the data set"
            how = f"{options['rows']} answers of up to {options['max_new_tokens']} tokens, scored by {options['score']}"
            how += f", on {data if options['data'] is not None else 'dataset_val'}"
        case "command":
            how = f"{options['score']} of the program {short_text(' '.join(map(str, options['command'])))}"
        case "lm_eval":
            how = f"{options['score']} of {', '.join(map(str, options['tasks']))}"
        case "logged":
            how = f"{options['key']} of {settings.wandb.hook}"
        case _:
            how = str(options["measure"])
    when = f"at milestones {', '.join(map(str, metric.at))}" if metric.at else _every_text(metric.every)
    return f"{source}: {how}; {when}, and at the end"


def _every_text(every: int) -> str:
    return "at each milestone" if every == 1 else f"every {every} milestones"


def _space(settings: Settings) -> Table:
    table = table_of(("torchtune key", "values"), title="space")
    for key, text in settings.space.describe().items():
        add_plain_row(table, key, short_text(text, SPACE_CHARACTERS))
    for key, text in settings.derive.items():
        add_plain_row(table, key, Text(f"= {text}", style="dim"))
    return table


def _samples(plan: Plan) -> Table:
    keys = list(dict.fromkeys(key for sample in plan.samples for key in sample))
    names = short_keys(keys)
    headings = [names[key] for key in keys]
    table = table_of(headings, right=headings, title="sampled trials")
    for sample in plan.samples:
        add_plain_row(table, *(param(sample[key], key) if key in sample else "–" for key in keys))
    return table


def _queue(plan: Plan) -> Text:
    lines = plan.preview.rstrip().splitlines()
    text = Text.assemble(("queue ", "bold"), f"{plan.settings.queue.kind}: {plan.workers} workers, ")
    text.append("each" if len(lines) == 1 else "submitted as")
    return text.append("".join(f"\n  {line}" for line in lines))


def _budget(plan: Plan) -> Table:
    search = plan.settings.search
    table = Table(title="budget", title_justify="left", box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    add_plain_row(table, "trials", str(search.trials) if search.trials else "no limit")
    if plan.data:
        trial = f"each trial trains on {plan.data.trial_rows:,}, about {plan.data.trial_tokens:,} label tokens"
        rows = plan.data.validation_rows
        add_plain_row(table, "data", f"{plan.data.rows:,} rows; {trial}")
        add_plain_row(table, "validation", f"{rows:,} rows" if rows else "none")
        for note in plan.data.notes:
            add_plain_row(table, "note", Text(note, style="yellow"))
    else:
        what, style = ("refused", "red") if plan.refused else ("unknown here", "yellow")
        add_plain_row(table, "data", Text(f"{what}: {plan.unknown}", style=style))
    unlimited = "no limit" if plan.data else "unknown"
    add_plain_row(table, "tokens", f"at most {plan.tokens:,}; pruning saves some of them" if plan.tokens else unlimited)
    add_plain_row(table, "time", _time(plan))
    if search.finalists:
        count = search.finalists * search.seeds
        add_plain_row(table, "finals", f"{count} further trainings, not counted in tokens and time")
    keys = ("tokens", "seconds", "target", "gpu_hours", "min_gain_per_gpu_hour")
    limits = {key: getattr(search, key) for key in keys}
    stops = ", ".join(f"{key} {value:,}" for key, value in limits.items() if value is not None)
    add_plain_row(table, "stops early at", stops or "nothing")
    return table


def _time(plan: Plan) -> Text:
    speed = plan.data.tokens_per_second if plan.data else 0.0
    if plan.seconds:
        return Text(
            f"at most about {duration(plan.seconds)} at {speed:,.0f} tokens/s per worker, without {_untimed(plan)}"
        )
    if speed:
        return Text(f"no limit, at {speed:,.0f} tokens/s per worker")
    if plan.unknown:
        return Text(f"not measured: {plan.unknown}", style="yellow")
    return Text("not measured, because of --no-measure", style="dim")


def _untimed(plan: Plan) -> str:
    """What a trial does whose time is not measured."""
    return "validation and metrics" if plan.settings.measured else "validation"


def _tokens(settings: Settings, data: DataProbe | None) -> int | None:
    """Label tokens of the whole budget without pruning; None if there is no limit, or the data are unknown."""
    budgets = [settings.search.tokens] if settings.search.tokens else []
    if data and settings.search.trials:
        budgets.append(settings.search.trials * data.trial_tokens)
    return min(budgets, default=None)
