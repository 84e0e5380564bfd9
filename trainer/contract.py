"""What a controller and its workers say to each other, as versioned JSON.

Invariants: standard library only; every value is frozen; a number that JSON lacks (NaN, infinities) travels as a
string where the field is a number, and marked as one inside a configuration; a reader refuses a schema version that
it does not know and ignores keys that it does not know.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeVar

# What no process of ours hands down to one that trains: it would attach to the W&B service of whoever started it, and
# its run would never end.
DROPPED_ENV = ("WANDB_SERVICE",)
SCHEMA_VERSION = 1
# Where W&B is all that controller and jobs share: a job in its run's configuration, reports and outcome in a trial's
# summary (both say of which attempt), and why a run was asked to stop as the rest of a tag.
JOB_KEY = "sweep_job"
REPORTS_KEY = "sweep/reports"
OUTCOME_KEY = "sweep/outcome"
STOP_TAG = "stop:"

T = TypeVar("T")


class ContractError(Exception):
    """A message is torn, of another schema version, or lacks a field."""


class OutcomeKind(StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"
    STOPPED = "stopped"
    DIVERGED = "diverged"
    FAILED = "failed"


class StopCause(StrEnum):
    """Why a running attempt was asked to stop. The last three keep the trial open: it goes on from its checkpoint."""

    PRUNED = "pruned"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    PREEMPTED = "preempted"
    PAUSED = "paused"

    @property
    def resumable(self) -> bool:
        return self in (StopCause.INTERRUPTED, StopCause.PREEMPTED, StopCause.PAUSED)


class FailureKind(StrEnum):
    """What a person has to look at after a failed attempt."""

    BAD_CONFIG = "bad_config"
    MISSING_FILE = "missing_file"
    NO_SPACE = "no_space"
    OUT_OF_MEMORY = "out_of_memory"
    ERROR = "error"
    PASSING = "passing"  # it may go well the next time: tried again


@dataclass(frozen=True, slots=True)
class Guard:
    """When a trial counts as diverged, apart from any pruner. A ratio of `inf` switches its rule off.

    Args:
        loss_ratio: mean loss since the last milestone over the loss of the first step.
        grad_norm_ratio: grad_norm of a step over the median of the first steps.
    """

    loss_ratio: float = 2.0
    grad_norm_ratio: float = 1000.0


@dataclass(frozen=True, slots=True)
class Tracking:
    """A trial's run in W&B; attempts of one trial go on in the same run.

    Args:
        run: its id.
        mode: online or offline.
        init: arguments of `wandb.init`; `settings` maps fields of `wandb.Settings`.
        adapter: the name of the artifact that the adapter becomes a version of; empty: it is not uploaded.
        inputs: artifacts by reference that the adapter is made of: name to `type` and `uri`.
        hook: a function `(Step) -> Mapping[str, float]` whose numbers are logged too; empty: none.
        checkpoint: the artifact that carries an interrupted attempt's checkpoint to the next one, where W&B is all that
            a job shares with the controller; empty: they share a room.
    """

    run: str
    mode: str
    init: Mapping[str, Any] = field(default_factory=dict)
    adapter: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    hook: str = ""
    checkpoint: str = ""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an attempt does in the place of training: it judges the finished adapter of its trial.

    Args:
        kind: heldout, torchtune, command or lm_eval.
        options: what the kind asks for, see `sweep.config.evaluate`.
        adapter: the adapter's directory: a path, or the URL of a directory in an object store.
        artifact: where the job can reach neither: the artifact, `entity/project/NAME:ALIAS`.
        tracking: the trial's own run in W&B, on which the scores land; None: it is not tracked.
    """

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    adapter: str = ""
    artifact: str = ""
    tracking: Tracking | None = None


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """One attempt of a trial, as the controller asks for it.

    Args:
        config: the resolved torchtune configuration, plain JSON values only.
        milestone_tokens: label tokens between two reports.
        checkpoint_every: milestones between two checkpoints; 0 writes none.
        adapter_every: milestones at which the adapter is written before the end; 0: none.
        components: prefixes beyond the built-in ones that `_component_` may name.
        evaluate: judge what an attempt of this trial has trained, and train nothing.
    """

    sweep: str
    trial: int
    attempt: int
    worker: str
    config: Mapping[str, Any]
    milestone_tokens: int
    checkpoint_every: int = 1
    guard: Guard = field(default_factory=Guard)
    components: tuple[str, ...] = ()
    adapter_every: int = 0
    tracking: Tracking | None = None
    evaluate: Evaluation | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step. `loss` is nats per label token over the whole step; `lr` is the rate that it used."""

    step: int
    tokens: int
    loss: float
    grad_norm: float
    lr: float


@dataclass(frozen=True, slots=True)
class Report:
    """A trial at a token milestone.

    Args:
        milestone: 1-based; equal milestones of a sweep's trials lie at equal label tokens seen.
        loss, grad_norm: means since the last milestone; grad_norm is NaN where no optimizer step fell in it.
        seconds: training time of this attempt, validation included.
        memory_gib: peak of the CUDA allocator, 0 on CPU.
        final: the trial has seen all its data.
    """

    milestone: int
    step: int
    tokens: int
    epoch: int
    loss: float
    grad_norm: float
    lr: float
    tokens_per_second: float
    seconds: float
    memory_gib: float = 0.0
    val_loss: float | None = None
    final: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended, written once by its worker.

    Args:
        reason: one sentence for a person.
        cause: which stop it obeyed, for `stopped`.
        failure: what to look at, for `failed`.
        adapter, checkpoint: paths relative to the attempt's directory.
        steps_per_epoch: what the data and the configuration gave.
        leftover_batches: micro-batches of an epoch that fill no optimizer step; ours are skipped, torchtune's leak.
        scores: what an evaluation found, by name.
    """

    kind: OutcomeKind
    reason: str = ""
    cause: StopCause | None = None
    failure: FailureKind | None = None
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    resumed_from: int | None = None
    adapter: str | None = None
    checkpoint: str | None = None
    steps_per_epoch: int = 0
    leftover_batches: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def resumable(self) -> bool:
        """Whether the trial stays open and goes on from its checkpoint.

        A full disk is no fault of the trial's: it is tried again, as often as a lost one.
        """
        again = self.failure in (FailureKind.NO_SPACE, FailureKind.PASSING)
        return again or (self.cause is not None and self.cause.resumable)


def encode(message: Any) -> str:
    """One line of JSON for a message of this module."""
    raw = {"v": SCHEMA_VERSION, **_plain(dataclasses.asdict(message))}
    if isinstance(message, TrialSpec):
        raw["config"] = _packed(message.config)
        if message.evaluate is not None:
            raw["evaluate"]["options"] = _packed(message.evaluate.options)
    return json.dumps(raw, allow_nan=False)


def decode(kind: type[T], text: str) -> T:
    """The message that `encode` wrote.

    Raises:
        ContractError: the text is no JSON object, has another schema version, or lacks a field.
    """
    try:
        raw = json.loads(text)
        version = raw.pop("v")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ContractError(f"no {kind.__name__}: {text[:80]!r}") from error
    if version != SCHEMA_VERSION:
        raise ContractError(f"{kind.__name__} has schema version {version}; this program reads {SCHEMA_VERSION}")
    return from_plain(kind, raw)


def from_plain(kind: type[T], raw: Any) -> T:
    """A message from plain JSON values; unknown keys are ignored.

    Raises:
        ContractError: this is no mapping, a field is absent, or has a value that it cannot take.
    """
    if not isinstance(raw, Mapping):
        raise ContractError(f"no {kind.__name__}: {raw!r:.80}")
    fields = {f.name: str(f.type) for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    try:
        return kind(**{name: _read(fields[name], value) for name, value in raw.items() if name in fields})
    except (TypeError, ValueError) as error:
        raise ContractError(f"no {kind.__name__}: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _packed(value: Any) -> Any:
    """JSON for values of any type: `{"$float": "inf"}` for a number that JSON lacks; a key's own `$` is doubled."""
    if isinstance(value, float) and not math.isfinite(value):
        return {"$float": repr(value)}
    if isinstance(value, Mapping):
        return {f"${key}" if str(key).startswith("$") else key: _packed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_packed(item) for item in value]
    return value


def _unpacked(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {"$float"}:
            return float(value["$float"])
        return {key[1:] if key.startswith("$$") else key: _unpacked(item) for key, item in value.items()}
    return [_unpacked(item) for item in value] if isinstance(value, list) else value


def _read(kind: str, value: Any) -> Any:
    """A field's value from JSON, by the field's annotation."""
    name = kind.removesuffix(" | None")
    if value is None:
        if name == kind:
            raise TypeError(f"null is no {kind}")
        return None
    return _READERS[name](value) if name in _READERS else value


_READERS: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "Guard": lambda raw: from_plain(Guard, raw),
    "Tracking": lambda raw: from_plain(Tracking, raw),
    "Evaluation": lambda raw: from_plain(Evaluation, raw),
    "Mapping[str, float]": lambda raw: {str(key): float(value) for key, value in raw.items()},
    "Mapping[str, Any]": _unpacked,
    "tuple[str, ...]": tuple,
    "OutcomeKind": OutcomeKind,
    "StopCause": StopCause,
    "FailureKind": FailureKind,
}
