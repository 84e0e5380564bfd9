"""Measures the metrics of one attempt at its milestones.

Invariants: training continues after a measurement bit for bit where it stood: the process's generators are restored,
and no parameter changes. Nothing is raised but a stop, and errors that concern the whole attempt: no memory, no space.
Every other error becomes a problem of its metric, after `TRIES` tries if another try may help. What was measured is not
measured again, also after a stop.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from trainer.base import Cache
from trainer.contract import FailureKind, Metric, Report, StopSignal, TrialSpec
from trainer.evaluation.external import StoppedError
from trainer.failures import classify, describe
from trainer.metrics.errors import MeasurementError, MetricError
from trainer.metrics.numbers import RUN, VALIDATION, run_value, validation_value
from trainer.randomness import Randomness
from trainer.recipe import LoraRecipe, Validation
from trainer.room import AttemptDir

_log = logging.getLogger(__name__)

TRIES = 3
# A base has these; the others are of a trial's training.
BASE_SOURCES = ("validation",)
# Errors that concern the whole attempt.
_RAISED = (FailureKind.OUT_OF_MEMORY, FailureKind.NO_SPACE)


@dataclass(slots=True)
class Measurer:
    """Measures the metrics of an attempt.

    Args:
        files: the attempt's.
        cache: what the worker keeps between trials.
        should_stop: asked while something is measured.
        logged: the numbers that the user's own code logged last, by name.
    """

    spec: TrialSpec
    files: AttemptDir
    cache: Cache
    should_stop: StopSignal
    logged: Callable[[], Mapping[str, float]] = dict

    def prepare(self, recipe: LoraRecipe) -> None:
        """Check what the specification asks for, so that a trial does not train for what cannot be measured.

        Raises:
            MetricError: a source or a measure is unknown here, or cannot be used with this trial.
        """
        with Randomness().own():
            for metric in self.spec.metrics:
                check_metric(metric, validates=recipe.cfg.get("dataset_val") is not None)

    def due(self, milestone: int, final: bool) -> tuple[Metric, ...]:
        """The metrics that the report of a milestone has."""
        return tuple(metric for metric in self.spec.metrics if metric.due(milestone, final))

    def counts_correct(self, metrics: Iterable[Metric]) -> bool:
        """Whether a validation pass must count the labels that are the likeliest token."""
        return any(_measures(metric, "token_accuracy") for metric in metrics)

    def of_report(
        self, recipe: LoraRecipe, report: Report, validation: Validation | None, trained: float
    ) -> Measurement:
        """Begin to measure what a report lacks, with the numbers that are known at once.

        Args:
            report: with the scores that it has already.
            validation: the pass that the report made; None if an earlier attempt made it, which took its numbers.
            trained: seconds in which the trial has trained.
        """
        metrics = self.due(report.milestone, report.final)
        measurement = Measurement(self, recipe, report.milestone, metrics, dict(report.scores))
        measurement.take_numbers(report, validation, trained)
        return measurement

    def of_base(self, recipe: LoraRecipe, scores: Mapping[str, float]) -> Measurement:
        """Begin to measure the base, as milestone 0.

        Args:
            scores: what an earlier attempt has measured of it.
        """
        metrics = [metric for metric in self.spec.metrics if metric.source in BASE_SOURCES]
        measurement = Measurement(self, recipe, 0, metrics, dict(scores))
        if any(metric.source == "validation" for metric in measurement.open):
            measurement.validate(self.counts_correct(metrics))
        return measurement


@dataclass(slots=True)
class Measurement:
    """What one report measures.

    Args:
        milestone: of the report; 0 for the base.
        metrics: those that are due.
        scores: those that were measured, by name.
        problems: why the others could not be, by name.
    """

    measurer: Measurer
    recipe: LoraRecipe
    milestone: int
    metrics: Sequence[Metric]
    scores: dict[str, float]
    problems: dict[str, str] = field(default_factory=dict)

    @property
    def open(self) -> list[Metric]:
        """The metrics that are neither measured nor given up."""
        return [m for m in self.metrics if m.name not in self.scores and m.name not in self.problems]

    def validate(self, correct: bool) -> None:
        """Make the validation pass of a base, which no report has made."""
        validation = self.recipe.validate(correct)
        if validation is not None:
            self.scores.setdefault("val_loss", validation.loss)
        self._take_validation(validation)

    def take_numbers(self, report: Report, validation: Validation | None, trained: float) -> None:
        """Take the scores that need no more than what the trial knows."""
        with Randomness().own():
            self._take_validation(validation)
            for metric in self.open:
                if metric.source == "run":
                    measure = str(metric.options["measure"])
                    self._try(metric, partial(run_value, measure, report, self.recipe, trained))

    def finish(self) -> None:
        """Measure what is open.

        Raises:
            StoppedError: the attempt was asked to stop. What was measured until then stays.
            OutOfMemoryError, OSError: there is no memory, or no space on the disk.
        """
        with Randomness().own():
            for metric in self.open:
                for number in range(1, TRIES + 1):
                    self.check_stop()
                    self._try(metric, partial(self._measured, metric), last=number == TRIES)
                    if metric not in self.open:
                        break

    def check_stop(self) -> None:
        """Raise `StoppedError` if the attempt was asked to stop."""
        if stop := self.measurer.should_stop():
            raise StoppedError(*stop)

    def _measured(self, metric: Metric) -> float:
        raise MetricError(f"its source {metric.source} is unknown to this worker")

    def _take_validation(self, validation: Validation | None) -> None:
        for metric in self.open:
            if metric.source != "validation":
                continue
            if validation is None:
                self.problems[metric.name] = "there was no validation pass"
                continue
            measure = str(metric.options["measure"])
            self._try(metric, partial(validation_value, measure, validation, self.recipe, self.measurer.cache))

    def _try(self, metric: Metric, measure: Callable[[], float], last: bool = True) -> None:
        """Measure a metric once. An error is its problem if no other try follows, or none could help."""
        try:
            value = measure()
            if not math.isfinite(value):
                raise MeasurementError(f"its value is {value}")
            self.scores[metric.name] = value
        except StoppedError:
            raise
        except Exception as error:
            kind = classify(error)
            if kind in _RAISED:
                raise
            said = str(error) if isinstance(error, MetricError | MeasurementError) else describe(error)
            _log.warning("trial %d: %s was not measured: %s", self.measurer.spec.trial, metric.name, said)
            if last or kind is FailureKind.BAD_CONFIG:
                self.problems[metric.name] = said


def check_metric(metric: Metric, validates: bool) -> None:
    """Refuse a metric whose source or measure does not exist, or that the trial's configuration cannot give.

    Args:
        validates: the configuration has validation data.

    Raises:
        MetricError: with the key, the value and what is allowed.
    """
    key = f"metric.{metric.name}"
    allowed = {"validation": VALIDATION, "run": RUN}
    if metric.source not in allowed:
        raise MetricError(f"{key}.source={metric.source} is unknown; it must be {', '.join(allowed)}")
    if metric.source in ("validation", "run"):
        measure = metric.options.get("measure")
        if measure not in allowed[metric.source]:
            known = ", ".join(allowed[metric.source])
            raise MetricError(f"{key}.measure={measure} is no number of the {metric.source}; it must be one of {known}")
    if metric.source == "validation" and not validates:
        raise MetricError(f"{key} needs the validation pass; set dataset_val in the recipe's configuration")


def _measures(metric: Metric, measure: str) -> bool:
    return metric.source == "validation" and metric.options.get("measure") == measure
