"""The metrics of a sweep as typed values: where each comes from, and when it is measured.

Invariants: a value that exists is valid in itself; what depends on other sections is checked by `check_metrics`. The
keys of a metric are those of its source and no other's. Every field has a line under `Args`, from which
docs/configuration.md is generated. A report has its loss and its validation loss without a metric.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from sweep.config.paths import anchored
from sweep.config.ranges import AT_LEAST_ONE, NOT_NEGATIVE, POSITIVE, Range
from sweep.config.section_reader import read_section
from sweep.errors import ConfigError
from sweep.model.objectives import Direction, Objective, Spread
from trainer.contract import LOSSES, Metric

VALIDATION_MEASURES = ("perplexity", "token_accuracy", "bits_per_byte")
RUN_MEASURES = ("trained_seconds", "tokens_per_second", "peak_memory_gib", "adapter_megabytes")
SCORES = ("exact_match", "number_match", "regex", "f1", "rouge_l", "json_valid")
COMPARISONS = ("<=", ">=", "<", ">")
# A name of a metric is a key of the configuration, a file's name and a column's heading.
_NAME = re.compile(r"[A-Za-z_]\w{0,63}", re.ASCII)
# A user's function: `module:function`, or `file.py:function`.
_FUNCTION = re.compile(r"(?P<place>[^:]+):(?P<name>[^\W\d]\w*)")
_CONSTRAINT = re.compile(r"\s*(<=|>=|<|>)\s*([-+]?[\d.]\S*|[-+]?inf)\s*")

_EVERY = (lambda value: 1 <= value <= 10_000, "between 1 and 10,000")
_AT = (
    lambda value: all(isinstance(at, int) and not isinstance(at, bool) and 1 <= at <= 2**31 for at in value),
    "a list of milestones, which are whole numbers from 1",
)
_WHEN: Mapping[str, Range] = {"every": _EVERY, "at": _AT}


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


def _one_of(*allowed: str) -> Range:
    return (lambda value: value in allowed, " or ".join(allowed))


@dataclass
class MetricSection:
    """What every metric has.

    Args:
        every: milestones between two measurements; the final report has it in any case.
        at: the milestones at which it is measured instead, for example `[4, 8, 12]`.
    """

    source: str = ""
    every: int = 1
    at: list[int] = field(default_factory=list)

    RANGES: ClassVar[Mapping[str, Range]] = _WHEN

    @property
    def spread(self) -> Spread:
        """Which values the metric can have."""
        return Spread.REAL

    @property
    def rows_scored(self) -> int:
        """Rows over which the metric is a mean of scores between 0 and 1; 0 if that is not known."""
        return 0


@dataclass
class Validation(MetricSection):
    """A number of the validation pass, at no further cost.

    Args:
        measure: `perplexity`, `token_accuracy` (the share of label tokens that the model would have chosen) or
            `bits_per_byte` (comparable between tokenizers).
    """

    source: str = "validation"
    measure: str = "perplexity"

    RANGES: ClassVar[Mapping[str, Range]] = {**_WHEN, "measure": _one_of(*VALIDATION_MEASURES)}

    @property
    def spread(self) -> Spread:
        return Spread.SHARE if self.measure == "token_accuracy" else Spread.POSITIVE


@dataclass
class Run(MetricSection):
    """A number of the run itself.

    Args:
        measure: `trained_seconds` (of the whole trial), `tokens_per_second`, `peak_memory_gib` or `adapter_megabytes`.
    """

    source: str = "run"
    measure: str = "trained_seconds"

    RANGES: ClassVar[Mapping[str, Range]] = {**_WHEN, "measure": _one_of(*RUN_MEASURES)}

    @property
    def spread(self) -> Spread:
        return Spread.POSITIVE


@dataclass
class Generate(MetricSection):
    """The model answers prompts, and each answer is scored against its reference; the metric is the mean.

    Args:
        data: a JSON-lines file with a prompt and a reference in each line, or a torchtune data set with `_component_`
            as in a recipe. null: the recipe's `dataset_val`.
        prompt: the key of the prompt in the JSON lines: a text, or a list of messages with role and content.
        reference: the key of the reference in the JSON lines: a text, or a list of texts of which the best counts.
        rows: how many rows are answered, from the first on. More rows cost more and make the mean less noisy.
        max_new_tokens: tokens of an answer at most.
        temperature: 0 takes the likeliest token each time; above 0 tokens are sampled.
        top_k: sample among this many of the likeliest tokens. null: among all.
        seed: of the sampling.
        score: `exact_match`, `number_match` (the last number of each), `regex`, `f1`, `rouge_l`, `json_valid`, or a
            function of yours, `module:function` or `file.py:function`, from answer and reference to a number; the
            name of its module, or of its file without `.py`, must be in `recipe.components`.
        pattern: of the score `regex`: the expression that extracts from an answer and from its reference what must be
            equal (its first group, or all of it); without a reference an answer must match it.
        seconds: time limit of a measurement, in seconds. null: no limit.
    """

    source: str = "generate"
    data: Any = None
    prompt: str = "prompt"
    reference: str = "reference"
    rows: int = 64
    max_new_tokens: int = 128
    temperature: float = 0.0
    top_k: int | None = None
    seed: int = 0
    score: str = "exact_match"
    pattern: str | None = None
    seconds: float | None = None

    RANGES: ClassVar[Mapping[str, Range]] = {
        **_WHEN,
        "rows": AT_LEAST_ONE,
        "max_new_tokens": (lambda value: 1 <= value <= 1_000_000, "between 1 and 1,000,000"),
        "temperature": (lambda value: 0 <= value < math.inf, "0 or more"),
        "top_k": AT_LEAST_ONE,
        "seed": NOT_NEGATIVE,
        "seconds": POSITIVE,
        "score": (
            lambda value: value in SCORES or _FUNCTION.fullmatch(value) is not None,
            f"{', '.join(SCORES)}, or a function of yours: module:function or file.py:function",
        ),
        "pattern": (_compiles, "a regular expression"),
    }

    @property
    def spread(self) -> Spread:
        return Spread.SHARE if self.score in SCORES else Spread.REAL

    @property
    def rows_scored(self) -> int:
        return self.rows if self.score in SCORES else 0


@dataclass
class Command(MetricSection):
    """A program of your own, run without a shell on the adapter, as by `evaluate=command`.

    Args:
        command: the program and its arguments, as a list or as one text that is split as a shell would. Texts may hold
            placeholders (docs/evaluation.md).
        score: the name of the number in the JSON that the program writes to `{output}`. null: the metric's name.
        seconds: time limit, in seconds. null: no limit.
    """

    source: str = "command"
    command: Any = None
    score: str | None = None
    seconds: float | None = None

    RANGES: ClassVar[Mapping[str, Range]] = {**_WHEN, "seconds": POSITIVE}


@dataclass
class LmEval(MetricSection):
    """A score of lm-eval's tasks on the trial's own model, as by `evaluate=lm_eval`.

    Args:
        tasks: names of the tasks.
        score: the name of the score among those that lm-eval prints. null: the metric's name.
        limit: rows of each task. null: all.
        batch_size: rows of a batch.
        max_seq_length: tokens of a row at most. null: the model's own maximum.
        enable_kv_cache: keep keys and values while text is generated.
        include_path: a directory with further tasks. null: lm-eval's own only.
        seconds: time limit, in seconds. null: no limit.
    """

    source: str = "lm_eval"
    tasks: list[str] = field(default_factory=list)
    score: str | None = None
    limit: int | None = None
    batch_size: int = 8
    max_seq_length: int | None = None
    enable_kv_cache: bool = True
    include_path: str | None = None
    seconds: float | None = None

    RANGES: ClassVar[Mapping[str, Range]] = {
        **_WHEN,
        "limit": AT_LEAST_ONE,
        "batch_size": AT_LEAST_ONE,
        "max_seq_length": AT_LEAST_ONE,
        "seconds": POSITIVE,
    }


@dataclass
class Logged(MetricSection):
    """A number that your own code logs: the last one that `wandb.hook` returned under a name.

    Args:
        key: the name. null: the metric's name.
    """

    source: str = "logged"
    key: str | None = None


SOURCES: dict[str, type[MetricSection]] = {
    "validation": Validation,
    "run": Run,
    "generate": Generate,
    "command": Command,
    "lm_eval": LmEval,
    "logged": Logged,
}


@dataclass(frozen=True, slots=True)
class Constraint:
    """A bound on a metric."""

    metric: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.metric} {self.comparison} {self.bound:g}"


def check_metric_name(name: Any, where: str) -> None:
    """Refuse what can be no metric's name.

    Raises:
        ConfigError: with the name and what is allowed.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(
            f"{where}: {str(name)[:80]} can be no metric's name; it must have letters, digits and `_` (64 at most), "
            "and begin with no digit"
        )


def read_metric(name: str, raw: Any) -> MetricSection:
    """The definition of a metric, as the dataclass of its source.

    Raises:
        ConfigError: an unknown source, or what `read_section` refuses.
    """
    where = f"metric.{name}"
    source = raw.get("source") if isinstance(raw, Mapping) else None
    if not isinstance(source, str) or source not in SOURCES:
        given = " is not set" if source is None else f"={str(source)[:80]} is not allowed"
        raise ConfigError(f"{where}.source{given}; it must be {' or '.join(SOURCES)}")
    return read_section(SOURCES[source], raw, where)


def frozen_metric(name: str, section: MetricSection) -> MetricSection:
    """A definition that needs no shell: a command line becomes its words, and what is null its default.

    Raises:
        ConfigError: a command line that cannot be split.
    """
    match section:
        case Command(command=str() as text):
            try:
                return dataclasses.replace(section, command=shlex.split(text), score=section.score or name)
            except ValueError as error:
                raise ConfigError(f"metric.{name}.command={text} cannot be split into words: {error}") from error
        case Command() | LmEval():
            return dataclasses.replace(section, score=section.score or name)
        case Logged():
            return dataclasses.replace(section, key=section.key or name)
    return section


def directions_of(metrics: Mapping[str, Any]) -> dict[str, Direction]:
    """The direction of each objective.

    Args:
        metrics: `objective.metrics` as it was written.

    Raises:
        ConfigError: a name that cannot be one, a direction that is absent or none, or another key.
    """
    directions = {}
    allowed = " or ".join(Direction)
    for name, raw in metrics.items():
        where = f"objective.metrics.{str(name)[:80]}"
        check_metric_name(name, "objective.metrics")
        if not isinstance(raw, Mapping) or raw.get("direction") is None:
            raise ConfigError(f"{where} has no direction; set {where}.direction to {allowed}")
        if others := [str(key) for key in raw if key != "direction"]:
            raise ConfigError(
                f"{where}.{others[0][:80]} is no key of an objective, which has a direction only; how it is measured "
                f"stands in metric.{name}"
            )
        if raw["direction"] not in tuple(Direction):
            raise ConfigError(f"{where}.direction={str(raw['direction'])[:80]} is not allowed; it must be {allowed}")
        if name in LOSSES and raw["direction"] == Direction.MAXIMIZE:
            raise ConfigError(f"{where}.direction=maximize is not allowed: the metric is a loss; it must be minimize")
        directions[name] = Direction(raw["direction"])
    return directions


def constraints_of(raw: Mapping[str, Any]) -> tuple[Constraint, ...]:
    """The bounds of `objective.constraints`.

    Raises:
        ConfigError: a name that cannot be one, or a text that is no comparison with a number.
    """
    constraints = []
    for name, text in raw.items():
        check_metric_name(name, "objective.constraints")
        parts = _CONSTRAINT.fullmatch(text) if isinstance(text, str) else None
        bound = _number(parts[2]) if parts else None
        if parts is None or bound is None or not math.isfinite(bound):
            raise ConfigError(
                f"objective.constraints.{name}={str(text)[:80]} is no bound; it must be a comparison "
                f"({', '.join(COMPARISONS)}) with a number, such as '<= 20'"
            )
        constraints.append(Constraint(name, parts[1], bound))
    return tuple(constraints)


def objective_of(name: str, direction: Direction, section: MetricSection | None) -> Objective:
    """A metric as an objective.

    Args:
        section: its definition; None: a loss, which every report has.
    """
    if section is None:
        return Objective(name, direction)
    return Objective(name, direction, section.spread, section.rows_scored, section.every, tuple(section.at))


def metric_of(name: str, section: MetricSection, directory: str) -> Metric:
    """A metric as a trial is given it.

    Args:
        directory: which relative paths mean; empty: they are left as they are.
    """
    options = {key: value for key, value in dataclasses.asdict(section).items() if key not in ("source", "every", "at")}
    if isinstance(section, Generate) and isinstance(section.data, str) and directory:
        options["data"] = _joined(directory, section.data)
    elif isinstance(section, Generate | LmEval):
        options = anchored(options, directory)
    function = user_function(section)
    if function is not None and function[0].endswith(".py") and directory:
        options["score"] = f"{_joined(directory, function[0])}:{function[1]}"
    return Metric(name, section.source, options, section.every, tuple(section.at))


def user_function(section: MetricSection) -> tuple[str, str] | None:
    """The module or the file of a user's own scoring function, and its name; None if there is none."""
    match = _FUNCTION.fullmatch(section.score) if isinstance(section, Generate) else None
    return (match["place"], match["name"]) if match and section.score not in SCORES else None  # type: ignore[attr-defined]


def dotted_path(function: tuple[str, str]) -> str:
    """The path of a user's function by which `recipe.components` trust it: that of a file is its name without `.py`."""
    place, name = function
    return f"{Path(place).stem if place.endswith('.py') else place}.{name}"


def is_trusted(function: tuple[str, str], components: Sequence[str]) -> bool:
    """Whether `recipe.components` allow a user's function; see `trainer.components`."""
    return any(f"{dotted_path(function)}.".startswith(f"{prefix.rstrip('.')}.") for prefix in components)


def _joined(directory: str, path: str) -> str:
    return str(Path(directory) / Path(path).expanduser())


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
