"""What a sweep would do, without starting anything: the space, sampled trials, the budget, the queue.

Invariants: no room is made, no job started. A figure that cannot be had is named as unknown, with the way to get it.
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
from sweep.errors import ConfigError
from sweep.report.formatting import duration, param, short_keys
from sweep.search.storage import memory_storage
from sweep.search.study import OptunaStudy
from sweep.wiring import backends, rooms, session
from sweep.wiring.probe import DataProbe, probe_data
from trainer.room import Room


@dataclass(frozen=True, slots=True)
class Plan:
    """What would happen.

    Args:
        samples: resolved torchtune overrides of the trials that would come first, derived keys included.
        data: what one trial would train on; None where it cannot be counted here.
        unknown: why data or speed are unknown; empty where both are known or were not asked for.
        tokens: label tokens of the whole budget without pruning; seconds by the measured speed, None unmeasured.
        preview: what the queue would be given for its first workers.
    """

    settings: Settings
    samples: tuple[dict[str, Any], ...]
    workers: int
    data: DataProbe | None
    unknown: str
    tokens: int | None
    seconds: float | None
    preview: str

    def to_json(self) -> dict[str, Any]:
        return {
            "metric": self.settings.metric,
            "space": self.settings.space.describe(),
            "derive": self.settings.derive,
            "samples": list(self.samples),
            "data": asdict(self.data) if self.data else None,
            "unknown": self.unknown,
            "trials": self.settings.search.trials,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "workers": self.workers,
            "queue": {self.settings.queue.kind: self.preview},
        }


def make_plan(settings: Settings, samples: int, measure: bool) -> Plan:
    """Look ahead.

    Args:
        samples: how many trials to sample.
        measure: train a few micro-batches here for the speed; where that fails, the data alone are counted.

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
    """What can be had: data and speed, the data alone, or nothing; and why not more."""
    unknown = ""
    for speed in (True, False) if measure else (False,):
        try:
            return probe_data(settings, speed=speed), unknown
        except ConfigError as error:
            unknown = str(error)
    return None, unknown


def sample_trials(settings: Settings, count: int) -> list[dict[str, Any]]:
    """The torchtune overrides of the first trials that the sampler would propose without results."""
    study = OptunaStudy(session.study_config(settings), memory_storage())
    for params in settings.warm_start.enqueue:
        study.enqueue(params)
    changes = []
    for _ in range(count):
        if study.facts().exhausted:
            break
        changes.append(trial_changes(settings.torchtune, study.params(study.ask()), settings.derive))
    return changes


def plan_view(plan: Plan) -> RenderableType:
    """A plan for a terminal."""
    settings = plan.settings
    space = Table(title="space", title_justify="left", box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    space.add_column("torchtune key")
    space.add_column("values")
    for key, text in settings.space.describe().items():
        space.add_row(key, text)
    for key, text in settings.derive.items():
        space.add_row(key, Text(f"= {text}", style="dim"))
    keys = list(dict.fromkeys(key for sample in plan.samples for key in sample))
    names = short_keys(keys)
    trials = Table(
        title="sampled trials", title_justify="left", box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False
    )
    for key in keys:
        trials.add_column(names[key], justify="right")
    for sample in plan.samples:
        trials.add_row(*(param(sample[key], key) if key in sample else "–" for key in keys))
    queue = Text.assemble(("queue ", "bold"), f"{settings.queue.kind}: {plan.workers} workers, ")
    lines = plan.preview.rstrip().splitlines()
    queue.append("each" if len(lines) == 1 else "submitted as")
    queue.append("".join(f"\n  {line}" for line in lines))
    return Group(Text(f"sweep {settings.name} minimises {settings.metric}\n"), space, trials, _budget(plan), queue)


def _budget(plan: Plan) -> Table:
    search = plan.settings.search
    table = Table(title="budget", title_justify="left", box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_row("trials", str(search.trials) if search.trials else "no limit")
    if plan.data:
        data = plan.data
        table.add_row(
            "data",
            f"{data.rows:,} rows; a trial sees {data.trial_rows:,}, about {data.trial_tokens:,} label tokens",
        )
        table.add_row("validation", f"{data.validation_rows:,} rows" if data.validation_rows else "none")
    else:
        table.add_row("data", Text(f"unknown here: {plan.unknown}", style="yellow"))
    table.add_row("tokens", f"at most {plan.tokens:,}, less by what is pruned" if plan.tokens else "unknown")
    if plan.seconds:
        rate = plan.data.tokens_per_second if plan.data else 0
        table.add_row(
            "time",
            f"at most about {duration(plan.seconds)} at {rate:,.0f} tokens/s a worker, validation left out",
        )
    else:
        reason = plan.unknown or "--no-measure leaves it out"
        table.add_row("time", Text(f"not measured: {reason}", style="yellow" if plan.unknown else "dim"))
    if search.finalists:
        table.add_row("finals", f"{search.finalists * search.seeds} more trainings, which tokens and time leave out")
    keys = ("tokens", "seconds", "target", "gpu_hours", "min_gain_per_gpu_hour")
    limits = {key: getattr(search, key) for key in keys}
    stops = ", ".join(f"{key} {value:,}" for key, value in limits.items() if value is not None)
    table.add_row("stops early at", stops or "nothing")
    return table


def _tokens(settings: Settings, data: DataProbe | None) -> int | None:
    budgets = [settings.search.tokens] if settings.search.tokens else []
    if data and settings.search.trials:
        budgets.append(settings.search.trials * data.trial_tokens)
    return min(budgets, default=None)
