"""The messages between a controller and its workers, as versioned JSON.

Invariants: standard library only. Every message is frozen. A number that JSON lacks (NaN, infinities) is a string in a
numeric field, and is marked inside a configuration (`trainer.json_values`). A reader refuses an unknown schema version
and ignores unknown keys.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from trainer.json_values import pack, plain, unpack
from trainer.reading import NOT_THE_VALUE, Damage, json_object, kind_of, read, reason_of

# Environment variables that no process hands down to a worker. With this one, the worker would attach to the W&B
# service of the process that started it, and its run would never end.
DROPPED_ENV = ("WANDB_SERVICE",)
SCHEMA_VERSION = 1
MAX_NUMBER = 2**63
# If controller and jobs share W&B only: the key of a job in its run's configuration, the keys of reports and outcome in
# a trial's summary (both name their attempt), and the beginning of the tag that names the cause of a stop.
JOB_KEY = "sweep_job"
REPORTS_KEY = "sweep/reports"
OUTCOME_KEY = "sweep/outcome"
STOP_TAG = "stop:"

# What each report has without a `Metric`: nats per label token.
LOSSES = ("loss", "val_loss")

T = TypeVar("T")


class ContractError(ValueError):
    """A message is torn, of another schema version, or lacks a field."""


class OutcomeKind(StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"
    STOPPED = "stopped"
    DIVERGED = "diverged"
    FAILED = "failed"


class StopCause(StrEnum):
    """Why a running attempt was asked to stop. After the last three, the trial resumes from its checkpoint."""

    PRUNED = "pruned"
    CANCELLED = "cancelled"
    INTERRUPTED = "interrupted"
    PREEMPTED = "preempted"
    PAUSED = "paused"

    @property
    def resumable(self) -> bool:
        """Whether a later attempt resumes the trial."""
        return self in (StopCause.INTERRUPTED, StopCause.PREEMPTED, StopCause.PAUSED)


# Asked by a running attempt: the cause of a stop and its reason, or None to continue.
StopSignal = Callable[[], tuple[StopCause, str] | None]


class FailureKind(StrEnum):
    """What failed: the configuration, the files, the disk, the memory, or something else."""

    BAD_CONFIG = "bad_config"
    MISSING_FILE = "missing_file"
    NO_SPACE = "no_space"
    OUT_OF_MEMORY = "out_of_memory"
    ERROR = "error"
    PASSING = "passing"  # another attempt may succeed: it is retried


@dataclass(frozen=True, slots=True)
class Guard:
    """When a trial counts as diverged, whatever the pruner says. A ratio of `inf` disables its rule.

    Args:
        loss_ratio: largest ratio of the mean loss since the last milestone to the loss of the first step.
        grad_norm_ratio: largest ratio of a step's grad_norm to the median of the first steps.
    """

    loss_ratio: float = 2.0
    grad_norm_ratio: float = 1000.0


@dataclass(frozen=True, slots=True)
class Tracking:
    """A trial's run in W&B, which all its attempts share.

    Args:
        run: its id.
        mode: online or offline.
        init: arguments of `wandb.init`; `settings` maps fields of `wandb.Settings`.
        adapter: the name of the artifact of which the adapter becomes a version; empty: it is not uploaded.
        inputs: artifacts by reference from which the adapter was trained: name to `type` and `uri`.
        hook: the path of a function `(Step) -> Mapping[str, float]` whose numbers are logged too; empty: none.
        checkpoint: the artifact that brings an interrupted attempt's checkpoint to the next one, if controller and job
            share W&B only; empty: they share a room.
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
    """What an attempt does instead of training: it scores the finished adapter of its trial.

    Args:
        kind: heldout, torchtune, command or lm_eval.
        options: those of the kind, see `sweep.config.evaluate`.
        adapter: the adapter's directory: a path, or the URL of a directory in an object store.
        artifact: the artifact `entity/project/NAME:ALIAS`, if the job can reach neither; else empty.
        tracking: the trial's run in W&B, which gets the scores; None: it is not tracked.
    """

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    adapter: str = ""
    artifact: str = ""
    tracking: Tracking | None = None


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that a trial measures at milestones, beside the loss and the validation loss.

    Args:
        name: under which reports have it.
        source: validation, run, generate, command, lm_eval or logged.
        options: those of the source, see `sweep.config.metrics`.
        every: milestones between two measurements.
        at: milestones at which it is measured instead; empty: `every` says when. The final report has it in any case.
    """

    name: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    every: int = 1
    at: tuple[int, ...] = ()

    def due(self, milestone: int, final: bool) -> bool:
        """Whether the report at a milestone has it."""
        return final or (milestone in self.at if self.at else milestone % max(1, self.every) == 0)


@dataclass(frozen=True, slots=True)
class TrialSpec:
    """One attempt of a trial, as the controller specifies it.

    Args:
        config: the resolved torchtune configuration, with JSON values only.
        milestone_tokens: label tokens between two reports.
        checkpoint_every: milestones between two checkpoints; 0: no checkpoints.
        adapter_every: milestones between two adapters that are written before the end; 0: only the last one.
        components: prefixes that `_component_` may name, besides the built-in ones.
        evaluate: score an adapter of this trial instead of training; None: train.
        token: of the sweep's creation, which `sweep.json` has too; empty: a sweep of an old version.
        directory: of the sweep's first command; relative paths of the user's own code and modules in `components` mean
            it (`trainer.working_directory`). Empty: a sweep of an old version.
        metrics: what the trial measures at milestones, beside the loss and the validation loss.
        measure_base: measure `metrics` before the first step too, when the adapter changes nothing yet.
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
    token: str = ""
    directory: str = ""
    metrics: tuple[Metric, ...] = ()
    measure_base: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step.

    Args:
        step: its number, from 1.
        tokens: label tokens of the trial so far.
        loss: nats per label token over the whole step.
        grad_norm: before clipping.
        lr: the learning rate that it used.
    """

    step: int
    tokens: int
    loss: float
    grad_norm: float
    lr: float


@dataclass(frozen=True, slots=True)
class Report:
    """A trial at a token milestone.

    Args:
        milestone: from 1; equal milestones of a sweep's trials are at equal numbers of label tokens.
        step, tokens: optimizer steps and label tokens of the trial so far.
        loss, val_loss: nats per label token; `loss` is the mean since the last milestone.
        grad_norm: mean since the last milestone; NaN if there was no optimizer step since.
        tokens_per_second: label tokens a second since the last milestone.
        seconds: training time of this attempt, validation included.
        memory_gib: peak of the CUDA allocator, GiB; 0 on the CPU.
        final: whether the trial has trained on all its data.
        scores: the metrics that were measured, by name.
        problems: by name of a metric that was due and could not be measured, the reason, one sentence.
        base_scores: the metrics of the base without an adapter, in the first report of a trial that measured them.
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
    scores: Mapping[str, float] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    base_scores: Mapping[str, float] = field(default_factory=dict)

    def value(self, metric: str) -> float:
        """The loss, the validation loss or a score, by name; NaN if the report lacks it."""
        value = getattr(self, metric) if metric in LOSSES else self.scores.get(metric)
        return math.nan if value is None else value


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an attempt ended, written once by its worker.

    Args:
        reason: one sentence for a person.
        cause: the cause of the stop that it obeyed, if `stopped`.
        failure: what failed, if `failed`.
        step, tokens: optimizer steps and label tokens of the trial.
        seconds: of this attempt.
        resumed_from: the attempt from whose checkpoint it resumed.
        adapter, checkpoint: paths relative to the attempt's directory.
        steps_per_epoch: optimizer steps of an epoch.
        leftover_batches: micro-batches of an epoch that fill no optimizer step, which are skipped (torchtune's recipe
            lets them leak into the next epoch).
        scores: those of an evaluation, by name.
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
        """Whether a later attempt resumes the trial.

        A full disk is no fault of the trial, which is retried as often as it takes.
        """
        again = self.failure in (FailureKind.NO_SPACE, FailureKind.PASSING)
        return again or (self.cause is not None and self.cause.resumable)


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """What a worker in a job writes when it ends, in the file `exit`.

    Args:
        reason: why it ended, one sentence.
        node: the host that it ran on.
        signalled: its job was told to end, and may be requeued.
        failed: it ended by an error.
    """

    reason: str
    node: str = ""
    signalled: bool = False
    failed: bool = False


def encode(message: Any) -> str:
    """One line of JSON for a message of this module."""
    raw = {"v": SCHEMA_VERSION, **plain(dataclasses.asdict(message))}
    if isinstance(message, Report):  # most have none of these
        raw = {key: value for key, value in raw.items() if value != {}}
    if isinstance(message, TrialSpec):
        raw["config"] = pack(message.config)
        for metric, given in zip(raw["metrics"], message.metrics, strict=True):
            metric["options"] = pack(given.options)
        if message.evaluate is not None:
            raw["evaluate"]["options"] = pack(message.evaluate.options)
    return json.dumps(raw, allow_nan=False)


def decode(kind: type[T], text: str) -> T:
    """The message of this kind in a line that `encode` returned.

    Raises:
        ContractError: the text is no JSON object, has another schema version, or lacks a field.
    """
    try:
        raw = json_object(text)
    except (ValueError, RecursionError) as error:
        raise ContractError(f"no {kind.__name__}: {reason_of(error)}") from error
    version = raw.pop("v", None)
    if version != SCHEMA_VERSION:
        raise ContractError(f"no {kind.__name__}: it has schema version {version}; this program reads {SCHEMA_VERSION}")
    return from_plain(kind, raw)


def from_plain(kind: type[T], raw: Any) -> T:
    """A message from plain JSON values; unknown keys are ignored.

    Raises:
        ContractError: it is no mapping, a field is absent, or a value has the wrong type.
    """
    if not isinstance(raw, Mapping):
        raise ContractError(f"no {kind.__name__}: {raw!r:.80}")
    fields = {f.name: str(f.type) for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    try:
        return kind(**{name: _read(fields[name], value) for name, value in raw.items() if name in fields})
    except NOT_THE_VALUE as error:
        raise ContractError(f"no {kind.__name__}: {reason_of(error)}") from error


def read_message(kind: type[T], path: Path) -> T | Damage | None:
    """The message of this kind in a file, the file's damage, or None if there is no file.

    Raises:
        OSError: the file system fails, perhaps for a moment.
    """
    return read(path, lambda text: decode(kind, text))


def read_stop(path: Path) -> tuple[StopCause, str] | Damage | None:
    """The cause and the reason in a file `stop`, its damage, or None if there is no file.

    Raises:
        OSError: the file system fails, perhaps for a moment.
    """
    return read(path, _stop)


def read_exit(path: Path) -> WorkerExit | Damage | None:
    """What a file `exit` says, its damage, or None if there is no file.

    Raises:
        OSError: the file system fails, perhaps for a moment.
    """
    return read(path, lambda text: from_plain(WorkerExit, json_object(text)))


def _stop(text: str) -> tuple[StopCause, str]:
    cause, _, reason = text.partition("\n")
    return StopCause(cause), reason


def _read(kind: str, value: Any) -> Any:
    """A field's value from JSON, by the field's annotation."""
    name = kind.removesuffix(" | None")
    if value is None:
        if name == kind:
            raise TypeError(f"null is no {kind}")
        return None
    return _READERS[name](value) if name in _READERS else value


def _exactly(kind: type[T]) -> Callable[[Any], T]:
    """A reader of values that have this type in JSON already."""

    def read(value: Any) -> T:
        if type(value) is not kind:
            raise TypeError(f"{value!r:.40} is no {kind.__name__}")
        return value

    return read


def _whole(value: Any) -> int:
    """A whole number, none of which a sweep has below zero or beyond 64 bits."""
    number = _exactly(int)(value)
    if not 0 <= number < MAX_NUMBER:
        raise ValueError(f"{number!s:.40} is out of range")
    return number


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{kind_of(value)} is no mapping")
    return value


def _tuple_of(read: Callable[[Any], T]) -> Callable[[Any], tuple[T, ...]]:
    def read_all(value: Any) -> tuple[T, ...]:
        if not isinstance(value, list):
            raise TypeError(f"{kind_of(value)} is no list")
        return tuple(map(read, value))

    return read_all


_READERS: dict[str, Callable[[Any], Any]] = {
    "int": _whole,
    "str": _exactly(str),
    "bool": _exactly(bool),
    "float": float,
    "Guard": lambda raw: from_plain(Guard, raw),
    "Tracking": lambda raw: from_plain(Tracking, raw),
    "Evaluation": lambda raw: from_plain(Evaluation, raw),
    "Mapping[str, float]": lambda raw: {str(key): float(value) for key, value in _mapping(raw).items()},
    "Mapping[str, Any]": lambda raw: _mapping(unpack(_mapping(raw))),
    "Mapping[str, str]": lambda raw: {str(key): _exactly(str)(value) for key, value in _mapping(raw).items()},
    "tuple[str, ...]": _tuple_of(_exactly(str)),
    "tuple[int, ...]": _tuple_of(_whole),
    "tuple[Metric, ...]": _tuple_of(lambda raw: from_plain(Metric, raw)),
    "OutcomeKind": OutcomeKind,
    "StopCause": StopCause,
    "FailureKind": FailureKind,
}
