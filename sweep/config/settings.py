"""The sections of a sweep's configuration as typed values, frozen into `sweep.json`.

Invariants: a value that exists is valid in itself; what depends on other sections is checked in `config.freeze`.
The frozen form is plain JSON, so that a sweep can be resumed without the files that it was composed from.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from sweep.config.evaluate import EVALUATORS, Evaluator, NoEvaluation
from sweep.config.queues import Queue, section_class
from sweep.config.ranges import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, SHARE, Range
from sweep.config.space import Space
from sweep.config.space_grammar import parse_space
from sweep.errors import ConfigError, unknown_key
from sweep.model import Limits
from trainer.contract import Guard

SCHEMA_VERSION = 1
METRICS = ("val_loss", "loss")
T = TypeVar("T")


@dataclass
class Recipe:
    """Where the torchtune configuration comes from.

    Args:
        config: a path, a name of `conf/recipe`, or a name that `tune ls` prints.
        overrides: torchtune keys to change; `+key` adds one that the configuration lacks.
        components: further prefixes that `_component_` may name.
    """

    config: str
    overrides: dict[str, Any] = field(default_factory=dict)
    components: list[str] = field(default_factory=list)


@dataclass
class Search:
    """The budget, and what is allowed to go wrong. null: no limit.

    Args:
        gpu_hours: training time over all workers; a worker's slots share its hours.
        min_gain_per_gpu_hour: nothing more is begun where another hour is expected to gain less than this.
        finalists, seeds: in the end so many of the best trials are trained again with so many seeds each.
        history: ended trials that a TPE sampler looks at, the best and the newest.
    """

    trials: int | None = 24
    tokens: int | None = None
    seconds: float | None = None
    target: float | None = None
    gpu_hours: float | None = None
    min_gain_per_gpu_hour: float | None = None
    finalists: int = 0
    seeds: int = 3
    seed: int = 0
    max_attempts: int = 3
    max_failure_share: float = 0.5
    history: int | None = 1000


@dataclass
class Objective:
    """What is minimised, and how often it is looked at.

    Args:
        metric: val_loss, loss (training loss, mean over a milestone), or auto: val_loss where there is `dataset_val`.
        milestones: reports of a trial that runs to its end.
        milestone_tokens: label tokens between reports; null: measured from the data.
    """

    metric: str = "auto"
    milestones: int = 12
    milestone_tokens: int | None = None


@dataclass
class Trial:
    """How each trial is run.

    Args:
        checkpoint_every: milestones between checkpoints; 0: none, so that a lost trial starts anew.
        equal_data: where max_steps_per_epoch is set and accumulation or batch size vary, scale it so that every
            trial sees the same rows.
        loss_ratio, grad_norm_ratio: the divergence guard, see `trainer.contract.Guard`.
    """

    checkpoint_every: int = 1
    equal_data: bool = True
    loss_ratio: float = 2.0
    grad_norm_ratio: float = 1000.0


@dataclass
class Wandb:
    """What W&B is told.

    Args:
        mode: online, offline or disabled; null: as the recipe's own `metric_logger` says.
        project, entity, group: null: as the recipe's WandBLogger says; else `sweep`, the key's own, the sweep's name.
        init: further arguments of `wandb.init`.
        artifacts: end: the adapter of a complete trial; milestones: also at every milestone; none.
        registry: the collection to which the best adapter is linked.
        hook: a function of a step whose numbers are logged too; its prefix must be in `recipe.components`.
    """

    mode: str | None = None
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    job_type: str = "trial"
    tags: list[str] = field(default_factory=list)
    init: dict[str, Any] = field(default_factory=dict)
    artifacts: str = "end"
    registry: str | None = None
    hook: str | None = None


@dataclass
class WarmStart:
    """What the study knows before its first own trial.

    Args:
        enqueue: configurations to try first, by key of the space.
        import_from: names or rooms of earlier sweeps with the same space and objective.
    """

    enqueue: list[dict[str, Any]] = field(default_factory=list)
    import_from: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    """A whole sweep, validated.

    Args:
        torchtune: the torchtune configuration after `recipe.overrides`, interpolations unresolved.
        changes: dotted keys that `recipe.overrides` changed, with their values.
        space_raw: key to the texts of its domain, flat, `+` in front of a key that the configuration lacks.
        derive: torchtune keys tied to others, as interpolations, or set to a value.
        trial_tokens: label tokens of one trial that runs to its end, 0 where not measured.
        controller: here, or launch: a job on the sweep's own Launch queue.
        storage: an Optuna storage URL; null: a journal file in the room.
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
    storage: str | None = None
    controller: str = "here"
    trial_tokens: int = 0
    created: float = 0.0

    @property
    def space(self) -> Space:
        return parse_space(self.space_raw)

    @property
    def metric(self) -> str:
        """The reported number that is minimised."""
        if self.objective.metric != "auto":
            return self.objective.metric
        return "val_loss" if self.torchtune.get("dataset_val") else "loss"

    @property
    def milestone_tokens(self) -> int:
        """Label tokens between two reports."""
        return self.objective.milestone_tokens or max(1, self.trial_tokens // self.objective.milestones)

    @property
    def reports_per_trial(self) -> int:
        """Reports of a trial that runs to its end; the last lies there."""
        if not self.trial_tokens:
            return self.objective.milestones
        return max(1, round(self.trial_tokens / self.milestone_tokens))

    @property
    def store_url(self) -> str | None:
        """The object store that carries the room between controller and jobs; None where they share it."""
        return self.queue.store_url(self.name)

    @property
    def guard(self) -> Guard:
        return Guard(self.trial.loss_ratio, self.trial.grad_norm_ratio)

    def limits(self, workers: int) -> Limits:
        """What the controller may do; `workers` is what `queue.workers` came to on this machine."""
        search, queue = self.search, self.queue
        return Limits(
            trials=search.trials,
            tokens=search.tokens,
            seconds=search.seconds,
            target=search.target,
            gpu_hours=search.gpu_hours,
            min_gain=search.min_gain_per_gpu_hour,
            workers=workers,
            slots=1 if queue.slots == "auto" else int(queue.slots),  # auto: until a worker says what it holds
            trials_per_worker=queue.trials_per_worker,
            max_attempts=search.max_attempts,
            max_failure_share=search.max_failure_share,
            stop_grace=queue.stop_grace_seconds,
            silence=queue.silence_seconds,
            start_grace=queue.start_seconds,
        )

    def to_json(self) -> dict[str, Any]:
        return {"v": SCHEMA_VERSION, **dataclasses.asdict(self)}


SECTIONS: dict[str, type] = {
    "recipe": Recipe,
    "objective": Objective,
    "search": Search,
    "trial": Trial,
    "warm_start": WarmStart,
    "wandb": Wandb,
}


def settings_from_json(raw: Mapping[str, Any], where: str) -> Settings:
    """The settings that `to_json` wrote.

    Raises:
        ConfigError: another schema version, or a file that is no sweep's.
    """
    if raw.get("v") != SCHEMA_VERSION:
        raise ConfigError(f"{where} has schema version {raw.get('v')}; this program reads {SCHEMA_VERSION}")
    values = {k: v for k, v in raw.items() if k != "v"}
    for name, kind in SECTIONS.items():
        if name != "wandb" or name in values:  # sweeps that were frozen before there was one
            values[name] = read_section(kind, values.get(name), name)
    values["queue"] = read_queue(values.get("queue"))
    values["evaluate"] = read_evaluator(values.get("evaluate") or {})
    try:
        return Settings(**values)
    except TypeError as error:
        raise ConfigError(f"{where} is no frozen sweep of this program: {error}") from error


def read_queue(raw: Any) -> Queue:
    """The queue's section, by its kind.

    Raises:
        ConfigError: a kind that is not installed, what `read_section` refuses, or values that do not fit each other.
    """
    kind = raw.get("kind", "local") if isinstance(raw, Mapping) else "local"
    queue = read_section(section_class(kind), raw, "queue")
    queue.check_section()
    return queue


def read_evaluator(raw: Any) -> Evaluator:
    """The section `evaluate`, by its kind.

    Raises:
        ConfigError: another kind, or what `read_section` refuses.
    """
    kind = raw.get("kind", "none") if isinstance(raw, Mapping) else raw
    if kind not in EVALUATORS:
        raise ConfigError(f"evaluate.kind={kind} is not allowed; it must be {' or '.join(EVALUATORS)}")
    return read_section(EVALUATORS[kind], raw, "evaluate")


def read_section(kind: type[T], raw: Any, where: str) -> T:
    """A section from plain values, type-checked by OmegaConf, range-checked here.

    Raises:
        ConfigError: an unknown key, a value of another type, or one out of range.
    """
    if not isinstance(raw, Mapping):
        raise ConfigError(f"{where}={raw} is no section; it must map keys to values")
    plain = {key: math.inf if value == ".inf" else value for key, value in raw.items()}  # Hydra's grammar has `inf`
    try:
        typed = OmegaConf.merge(OmegaConf.structured(kind), plain)
        section = kind(**OmegaConf.to_container(typed))  # type: ignore[arg-type]
    except ConfigKeyError as error:
        names = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
        raise unknown_key(where, str(error.full_key or error.key), names) from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{where}.{error.full_key or error.key}: {reason}") from error
    own: Mapping[str, Range] = getattr(kind, "RANGES", {})
    for key, (allowed, text) in {**_RANGES.get(where, {}), **own}.items():
        value = getattr(section, key, None)
        if value is not None and not allowed(value):
            raise ConfigError(f"{where}.{key}={value} is not allowed; it must be {text}")
    return section


_RANGES: dict[str, dict[str, Range]] = {
    "search": {
        "trials": AT_LEAST_ONE,
        "tokens": AT_LEAST_ONE,
        "seconds": POSITIVE,
        "max_attempts": AT_LEAST_ONE,
        "gpu_hours": POSITIVE,
        "min_gain_per_gpu_hour": POSITIVE,
        "finalists": NOT_NEGATIVE,
        "seeds": AT_LEAST_ONE,
        "history": (lambda value: value >= 50, "50 or more"),
        "max_failure_share": SHARE,
    },
    "objective": {
        "milestones": AT_LEAST_ONE,
        "milestone_tokens": AT_LEAST_ONE,
        "metric": (lambda value: value in ("auto", *METRICS), "auto, val_loss or loss"),
    },
    "trial": {
        "checkpoint_every": NOT_NEGATIVE,
        "loss_ratio": (lambda value: value > 1, "above 1 (inf switches it off)"),
        "grad_norm_ratio": (lambda value: value > 1, "above 1 (inf switches it off)"),
    },
    "wandb": {
        "mode": (lambda value: value in ("online", "offline", "disabled"), "online, offline, disabled or null"),
        "artifacts": (lambda value: value in ("end", "milestones", "none"), "end, milestones or none"),
    },
    "evaluate": {
        "batch_size": AT_LEAST_ONE,
        "max_tokens": AT_LEAST_ONE,
        "max_seq_length": AT_LEAST_ONE,
        "limit": AT_LEAST_ONE,
        "seconds": POSITIVE,
    },
}
