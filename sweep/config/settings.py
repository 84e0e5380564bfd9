"""The settings of a whole sweep, frozen into `sweep.json` and read back from it.

Invariants: a value that exists is valid in itself; what depends on several sections is checked in `wiring.compose`.
The frozen form is plain JSON, so that a sweep can be resumed without the files that it was composed from. Hydra is
imported when a space is parsed and not before, so that the command line can complete keys quickly.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from sweep.config.evaluate import EVALUATORS, Evaluator, NoEvaluation
from sweep.config.metrics import (
    Constraint,
    MetricSection,
    constraints_of,
    directions_of,
    metric_of,
    objective_of,
    read_metric,
)
from sweep.config.queues import Queue, section_class
from sweep.config.section_reader import read_section
from sweep.config.sections import (
    LATER_SECTIONS,
    SECTIONS,
    Objective,
    Recipe,
    RoomAccess,
    Search,
    Trial,
    Wandb,
    WarmStart,
)
from sweep.config.space import Space
from sweep.errors import ConfigError
from sweep.model import objectives
from sweep.model.limits import Limits
from trainer.contract import LOSSES, Guard, Metric
from trainer.names import is_name

SCHEMA_VERSION = 1
# What the frozen form lacks where it is empty.
LATER_FIELDS = ("metrics",)
LATER_OBJECTIVE_FIELDS = ("metrics", "constraints")
# What the fields are that are no section, in the frozen form; a damaged file may hold anything.
_MAPPING = (dict, "a mapping")
_TEXT = (str, "a text")
_KINDS: Mapping[str, tuple[Any, str]] = {
    **dict.fromkeys(("torchtune", "changes", "space_raw", "derive", "sampler", "pruner"), _MAPPING),
    **dict.fromkeys(("name", "controller", "token", "directory"), _TEXT),
    "storage": ((str, type(None)), "a text or null"),
    "trial_tokens": (int, "a whole number"),
    "created": ((int, float), "a number"),
    "base_elsewhere": (bool, "true or false"),
}


@dataclass(frozen=True)
class Settings:
    """The validated configuration of a sweep.

    Args:
        name: the sweep's name, which is also that of its room.
        torchtune: the torchtune configuration after `recipe.overrides`, interpolations unresolved.
        changes: dotted keys that `recipe.overrides` changed, with their values.
        space_raw: the text of each key's domain, flat. A key that the torchtune configuration lacks begins with `+`.
        derive: torchtune keys with the values that are computed from others, as unresolved interpolations.
        sampler: keyword arguments of the sampler, and its class under `_target_`.
        pruner: likewise of the pruner.
        metrics: by name, how each metric beside the losses is measured.
        storage: an Optuna storage URL; None: a journal file in the room.
        controller: "here", or "launch" for a job on the sweep's own Launch queue.
        trial_tokens: label tokens of a trial that runs to its end; 0 if they were not counted yet.
        base_elsewhere: the base was not on the machine that created the sweep, so that nothing was built on it there.
        created: when the sweep was created, in seconds since the epoch; 0 if it has not been.
        directory: in which the first command was typed, which relative paths mean; empty: a sweep of an old version,
            whose relative paths mean the directory of each command.
        token: drawn anew for each creation, so that what belongs to a deleted sweep is not taken for this one's; empty:
            it has not been created, or an old version did.
    """

    name: str
    recipe: Recipe
    torchtune: dict[str, Any]
    changes: dict[str, Any]
    space_raw: dict[str, Any]
    derive: dict[str, Any]
    sampler: dict[str, Any]
    pruner: dict[str, Any]
    queue: Queue
    objective: Objective
    search: Search
    trial: Trial
    warm_start: WarmStart
    wandb: Wandb = field(default_factory=Wandb)
    evaluate: Evaluator = field(default_factory=NoEvaluation)
    room: RoomAccess = field(default_factory=RoomAccess)
    metrics: dict[str, MetricSection] = field(default_factory=dict)
    storage: str | None = None
    controller: str = "here"
    trial_tokens: int = 0
    base_elsewhere: bool = False
    created: float = 0.0
    directory: str = ""
    token: str = ""

    @cached_property
    def space(self) -> Space:
        """The search space. It is parsed once for each object: `dataclasses.replace` makes one that parses anew."""
        from sweep.config.space_grammar import parse_space

        return parse_space(self.space_raw)

    @cached_property
    def objectives(self) -> tuple[objectives.Objective, ...]:
        """What the sweep searches for, at least one."""
        directions = directions_of(self.objective.metrics)
        if directions:
            return tuple(objective_of(name, way, self.metrics.get(name)) for name, way in directions.items())
        if self.objective.metric != "auto":
            return (objectives.Objective(self.objective.metric),)
        return (objectives.Objective("val_loss" if self.torchtune.get("dataset_val") else "loss"),)

    @property
    def metric(self) -> str:
        """The name of the first objective."""
        return self.objectives[0].name

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """The bounds on metrics."""
        return constraints_of(self.objective.constraints)

    @property
    def measured(self) -> tuple[Metric, ...]:
        """What each trial measures at milestones, beside the losses."""
        return tuple(
            metric_of(name, section, self.directory) for name, section in self.metrics.items() if name not in LOSSES
        )

    @property
    def milestone_tokens(self) -> int:
        """Label tokens between two reports."""
        return self.objective.milestone_tokens or max(1, self.trial_tokens // self.objective.milestones)

    @property
    def reports_per_trial(self) -> int:
        """Reports of a trial that runs to its end; the last one falls on the end."""
        if not self.trial_tokens:
            return self.objective.milestones
        return max(1, round(self.trial_tokens / self.milestone_tokens))

    @property
    def store_url(self) -> str | None:
        """The object store that carries the room between controller and jobs; None where they share it."""
        return self.queue.store_url(self.name)

    @property
    def guard(self) -> Guard:
        """When a trial counts as diverged."""
        return Guard(self.trial.loss_ratio, self.trial.grad_norm_ratio)

    def limits(self, workers: int) -> Limits:
        """What the controller may do.

        Args:
            workers: how many workers may run at once on this machine, after `queue.workers=null` was resolved.
        """
        search, queue, objective = self.search, self.queue, self.objectives[0]
        return Limits(
            trials=search.trials,
            tokens=search.tokens,
            seconds=search.seconds,
            target=None if search.target is None else objective.minimised(search.target),
            gpu_hours=search.gpu_hours,
            min_gain=search.min_gain_per_gpu_hour,
            workers=workers,
            slots=1 if queue.slots == "auto" else int(queue.slots),  # auto: 1 until a worker reports its number
            trials_per_worker=queue.trials_per_worker,
            max_attempts=search.max_attempts,
            max_failure_share=search.max_failure_share,
            stop_grace=queue.stop_grace_seconds,
            silence=queue.silence_seconds,
            start_grace=queue.start_seconds,
            first_alone=not self.trial_tokens or self.base_elsewhere,  # the machine that created it built no trial
        )

    def to_json(self) -> dict[str, Any]:
        """The frozen form, which `settings_from_json` reads."""
        raw = {"v": SCHEMA_VERSION, **dataclasses.asdict(self)}
        for section, names in ((raw, LATER_FIELDS), (raw["objective"], LATER_OBJECTIVE_FIELDS)):
            for name in names:  # a sweep without them can be read by an older program
                if not section[name]:
                    del section[name]
        return raw


def settings_from_json(raw: Mapping[str, Any], where: str) -> Settings:
    """The settings that `to_json` wrote.

    Args:
        where: the file, for error texts.

    Raises:
        ConfigError: the file has another schema version, or is not a frozen sweep.
    """
    if raw.get("v") != SCHEMA_VERSION:
        raise ConfigError(f"{where} has schema version {raw.get('v')}; this program reads {SCHEMA_VERSION}")
    values = {k: v for k, v in raw.items() if k != "v"}
    values["metrics"] = read_metrics(values.get("metrics") or {})
    for name, kind in SECTIONS.items():
        if name not in LATER_SECTIONS or name in values:
            values[name] = read_section(kind, values.get(name), name)
    values["queue"] = read_queue(values.get("queue"))
    values["evaluate"] = read_evaluator(values.get("evaluate") or {})
    if not is_name(str(values.get("name"))):
        raise ConfigError(f"{where} is no frozen sweep of this program: {values.get('name')!r} cannot be its name")
    for name, (kind, words) in _KINDS.items():
        if name in values and not isinstance(values[name], kind):
            raise ConfigError(f"{where}: {name}={str(values[name])[:80]} must be {words}; put a copy of the file there")
    try:
        return Settings(**values)
    except TypeError as error:
        raise ConfigError(f"{where} is no frozen sweep of this program: {error}") from error


def read_queue(raw: Any) -> Queue:
    """The section `queue`, as the dataclass of its kind.

    Raises:
        ConfigError: a kind that is not installed, what `read_section` refuses, or values that do not fit each other.
    """
    kind = raw.get("kind", "local") if isinstance(raw, Mapping) else "local"
    queue = read_section(section_class(kind), raw, "queue")
    queue.check_section()
    return queue


def read_metrics(raw: Any) -> dict[str, MetricSection]:
    """The definitions of metrics by name.

    Raises:
        ConfigError: they are no mapping, or what `read_metric` refuses.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"metric={str(raw)[:200]} must map names to definitions, as in metric.NAME.source=command")
    return {str(name): read_metric(str(name), definition) for name, definition in raw.items()}


def read_evaluator(raw: Any) -> Evaluator:
    """The section `evaluate`, as the dataclass of its kind.

    Raises:
        ConfigError: an unknown kind, or what `read_section` refuses.
    """
    kind = raw.get("kind", "none") if isinstance(raw, Mapping) else raw
    if not isinstance(kind, str) or kind not in EVALUATORS:
        raise ConfigError(f"evaluate.kind={kind} is not allowed; it must be {' or '.join(EVALUATORS)}")
    return read_section(EVALUATORS[kind], raw, "evaluate")
