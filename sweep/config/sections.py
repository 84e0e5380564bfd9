"""The sections of a sweep's configuration, apart from `queue` and `evaluate`, as typed values.

Invariants: the defaults are those of `conf/`, and every field has a line under `Args`, from which
docs/configuration.md is generated. `RANGES` says which values a field may have, null apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from sweep.config.ranges import AT_LEAST_ONE, FINITE, NOT_NEGATIVE, POSITIVE, SHARE, Range, between

METRICS = ("val_loss", "loss")


@dataclass
class Recipe:
    """The torchtune configuration that every trial starts from.

    Args:
        config: path of a torchtune YAML, a name that `tune ls` prints, or a file of the group `recipe`.
        overrides: torchtune keys to change, with their values. `+key` adds a key that the YAML lacks.
        components: further modules whose classes and functions `_component_` may name, such as `my_package.data`; a
            whole path trusts that object alone. By default only torchtune's and torch's own components are allowed, by
            the module that defines them (docs/security.md); add a module to train your own data set or loss.
    """

    config: str
    overrides: dict[str, Any] = field(default_factory=dict)
    components: list[str] = field(default_factory=list)


@dataclass
class Search:
    """The budget of the search. At least one limit must be set; the first one that is reached ends the search.

    Args:
        trials: trials to propose. null: no limit.
        tokens: label tokens to train, summed over all trials. Running trials finish. null: no limit.
        seconds: seconds since the sweep was created. Running trials finish. null: no limit.
        target: the search ends when a complete trial's objective reaches this value: at most this, or at least this if
            the objective is maximised. null: no target.
        gpu_hours: hours of training, summed over all workers; trials side by side in one worker share its hours.
            null: no limit.
        min_gain_per_gpu_hour: the search ends when another GPU-hour is expected to improve the objective by less than
            this. Set it when compute has a price. null: no such rule.
        finalists: how many of the best trials are trained again at the end, with new seeds. 0: none. Set it to 3 or
            so to learn whether the winner is better or only luckier.
        seeds: how many new seeds each finalist is trained with.
        seed: seed of the sampler. The same seed on one worker proposes the same trials.
        max_attempts: attempts of a trial that may lose their worker or their last report, or fail for a passing reason,
            before the trial is marked FAIL. Pauses, preemptions and attempts that found no space left are not counted.
        max_failure_share: the sweep stops early when more than this share of its ended trials failed. It
            applies once four trials have ended.
        history: how many ended trials a TPE sampler sees: the best 50 and the newest. Lower it if proposals become
            slow after thousands of trials. null: all.
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

    RANGES: ClassVar[Mapping[str, Range]] = {
        "trials": AT_LEAST_ONE,
        "tokens": AT_LEAST_ONE,
        "seconds": POSITIVE,
        "target": FINITE,
        "gpu_hours": POSITIVE,
        "min_gain_per_gpu_hour": POSITIVE,
        "finalists": between(0, 1000),
        "seeds": between(1, 1000),
        "max_attempts": AT_LEAST_ONE,
        "max_failure_share": SHARE,
        "history": (lambda value: value >= 50, "50 or more"),
    }


@dataclass
class Objective:
    """What the sweep searches for, and how often a trial reports it.

    Args:
        metric: the number that is minimised: val_loss (mean nats per label token over `dataset_val`), loss (training
            loss, mean over a milestone), or auto: val_loss if the recipe has `dataset_val`, otherwise loss. It must be
            auto where `metrics` is given.
        metrics: the metric that is searched for instead, with its direction, for example
            `{exact_match: {direction: maximize}}`: a name of the group `metric`, or one that `metric.NAME` defines.
        constraints: bounds on metrics, for example `{peak_memory_gib: "<= 20"}`. The metrics are measured and shown;
            this version does not act on the bounds.
        milestones: reports of a trial that runs to its end. More reports let a pruner act earlier, and each one costs
            a validation pass.
        milestone_tokens: label tokens between two reports. null: the data's tokens divided by `milestones`.
    """

    metric: str = "auto"
    metrics: dict[str, Any] = field(default_factory=dict)
    constraints: dict[str, Any] = field(default_factory=dict)
    milestones: int = 12
    milestone_tokens: int | None = None

    RANGES: ClassVar[Mapping[str, Range]] = {
        "metric": (lambda value: value in ("auto", *METRICS), "auto, val_loss or loss"),
        "milestones": AT_LEAST_ONE,
        "milestone_tokens": AT_LEAST_ONE,
    }


@dataclass
class Trial:
    """How a trial is run, and when it counts as diverged.

    Args:
        checkpoint_every: milestones between two checkpoints. 0: no checkpoints, so that a trial whose worker is lost
            starts again from the beginning.
        equal_data: if `max_steps_per_epoch` is set and the batch size or the accumulation varies, scale the limit so
            that every trial trains on the same rows.
        loss_ratio: a trial has diverged if its mean loss since the last milestone exceeds the loss of its first step
            this many times. inf switches the rule off.
        grad_norm_ratio: a trial has diverged if the grad_norm of a step exceeds the median of its first steps this
            many times. inf switches the rule off.
    """

    checkpoint_every: int = 1
    equal_data: bool = True
    loss_ratio: float = 2.0
    grad_norm_ratio: float = 1000.0

    RANGES: ClassVar[Mapping[str, Range]] = {
        "checkpoint_every": NOT_NEGATIVE,
        "loss_ratio": (lambda value: value > 1, "above 1 (inf switches it off)"),
        "grad_norm_ratio": (lambda value: value > 1, "above 1 (inf switches it off)"),
    }


@dataclass
class Wandb:
    """What is logged to Weights & Biases. Each trial is a run.

    Args:
        mode: online, offline or disabled. null: online if the recipe's `metric_logger` is torchtune's WandBLogger
            (unless it or WANDB_MODE says otherwise), disabled if it is another; always online on a Launch queue.
        project: project of the runs. null: the WandBLogger's, otherwise `sweep`.
        entity: user or team that owns the runs. null: the WandBLogger's, otherwise the API key's own.
        group: group of the runs. null: the WandBLogger's, otherwise the sweep's name.
        job_type: job type of a trial's run.
        tags: tags of every run, beside the WandBLogger's.
        init: further arguments of `wandb.init`, for example `{notes: first try}`; `init.settings.KEY` sets a field of
            `wandb.Settings`.
        artifacts: which adapters are uploaded. end: that of each complete trial; milestones: also one at every
            milestone; none.
        registry: collection of a W&B registry to which the best adapter is linked, `NAME` or `REGISTRY/NAME`. null:
            not linked.
        hook: dotted path of a function `(Step) -> {name: number}` whose numbers are logged with every step. Its
            prefix must be in `recipe.components`. null: none.
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

    RANGES: ClassVar[Mapping[str, Range]] = {
        "mode": (lambda value: value in ("online", "offline", "disabled"), "online, offline, disabled or null"),
        "artifacts": (lambda value: value in ("end", "milestones", "none"), "end, milestones or none"),
    }


@dataclass
class RoomAccess:
    """Who may use the directory of a sweep, its room.

    Args:
        group: a group of this machine that may use the room too. null: only the user who creates it.
    """

    group: str | None = None


@dataclass
class WarmStart:
    """What the study knows before it proposes its first trial.

    Args:
        enqueue: configurations to try first, as mappings from keys of the space to values, for example
            `[{model.lora_rank: 8, optimizer.lr: 3e-4}]`. They count towards `search.trials`.
        import_from: names or rooms of earlier sweeps with the same space and objective, whose ended trials the sampler
            learns from.
    """

    enqueue: list[dict[str, Any]] = field(default_factory=list)
    import_from: list[str] = field(default_factory=list)


SECTIONS: dict[str, type] = {
    "recipe": Recipe,
    "objective": Objective,
    "search": Search,
    "trial": Trial,
    "warm_start": WarmStart,
    "wandb": Wandb,
    "room": RoomAccess,
}
# Sections that sweeps of old versions were frozen without.
LATER_SECTIONS = ("wandb", "room")
