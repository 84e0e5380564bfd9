"""Measures the metrics of one attempt at its milestones.

Invariants: training continues after a measurement bit for bit where it stood: the process's generators are restored,
and no parameter changes. Nothing is raised but a stop, and errors that concern the whole attempt: no memory, no space.
Every other error becomes a problem of its metric, after `TRIES` tries if another try may help. What was measured is not
measured again, also after a stop.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from trainer.base import Cache
from trainer.contract import FailureKind, Metric, Report, StopCause, StopSignal, TrialSpec
from trainer.data import build_tokenizer
from trainer.evaluation.external import StoppedError
from trainer.failures import classify, describe
from trainer.generation import answer_alone
from trainer.metrics.answers import Question, answer_all
from trainer.metrics.errors import TRIES, MeasurementError, MetricError
from trainer.metrics.generation import Generation, prepare_generation
from trainer.metrics.numbers import RUN, VALIDATION, run_value, validation_value
from trainer.metrics.programs import program_value
from trainer.randomness import Randomness
from trainer.recipe import LoraRecipe, Validation
from trainer.room import AttemptDir
from trainer.sampling import Answer, Prompt, Sampling
from trainer.shortening import short_list

_log = logging.getLogger(__name__)

SOURCES = ("validation", "run", "generate", "command", "lm_eval", "logged")
# A base has these; the others are of a trial's training.
BASE_SOURCES = ("validation", "generate", "command", "lm_eval")
PROGRAMS = ("command", "lm_eval")
# Answers by `Generation.asks`, as plain values.
SavedAnswers = Mapping[str, list[list[int]]]
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
        logged_before: those that it logged in an earlier attempt.
    """

    spec: TrialSpec
    files: AttemptDir
    cache: Cache
    should_stop: StopSignal
    logged: Callable[[], Mapping[str, float]] = dict
    logged_before: Mapping[str, float] = field(default_factory=dict)
    _generations: dict[str, Generation] = field(default_factory=dict)

    def prepare(self, recipe: LoraRecipe) -> None:
        """Build what the metrics need, so that a trial does not train for what cannot be measured.

        Raises:
            MetricError: a source or a measure is unknown here, or cannot be used with this trial.
            ComponentError: a metric names code that is not trusted, or does not exist.
        """
        longest = int(getattr(recipe.model, "max_seq_len", 0))
        with Randomness().own():
            for metric in self.spec.metrics:
                check_metric(metric, validates=recipe.cfg.get("dataset_val") is not None)
                if metric.source == "generate":
                    self._generations[metric.name] = prepare_generation(
                        metric, recipe.cfg, longest, self.spec.components, self.cache
                    )

    def all_logged(self) -> dict[str, float]:
        """The numbers that metrics need of those that the user's own code logged last, in earlier attempts too."""
        needed = {logged_key(metric) for metric in self.spec.metrics if metric.source == "logged"}
        logged = self.logged() if needed else {}
        return {key: value for key, value in {**self.logged_before, **logged}.items() if key in needed}

    def generation(self, metric: Metric) -> Generation:
        """What a metric of answers needs; `prepare` has built it."""
        return self._generations[metric.name]

    def due(self, milestone: int, final: bool) -> tuple[Metric, ...]:
        """The metrics that the report of a milestone has."""
        return tuple(metric for metric in self.spec.metrics if metric.due(milestone, final))

    def counts_correct(self, metrics: Iterable[Metric]) -> bool:
        """Whether a validation pass must count the labels that are the likeliest token."""
        return any(_measures(metric, "token_accuracy") for metric in metrics)

    def of_report(
        self,
        recipe: LoraRecipe,
        report: Report,
        validation: Validation | None,
        trained: float,
        answers: SavedAnswers | None = None,
    ) -> Measurement:
        """Begin to measure what a report lacks, with the numbers that are known at once.

        Args:
            report: with the scores that it has already.
            validation: the pass that the report made; None if an earlier attempt made it.
            trained: seconds in which the trial has trained.
            answers: those that an earlier attempt got before it was stopped.
        """
        metrics = self.due(report.milestone, report.final)
        measurement = Measurement(self, recipe, report.milestone, metrics, dict(report.scores))
        measurement.take_numbers(report, validation, trained)
        measurement.ask(answers or {})
        return measurement

    def of_base(self, recipe: LoraRecipe, scores: Mapping[str, float], answers: SavedAnswers) -> Measurement:
        """Begin to measure the base, as milestone 0.

        Args:
            scores, answers: what an earlier attempt has measured of it.
        """
        metrics = [metric for metric in self.spec.metrics if metric.source in BASE_SOURCES]
        measurement = Measurement(self, recipe, 0, metrics, dict(scores))
        measurement.ask(answers)
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
    _questions: dict[str, Question] = field(default_factory=dict)
    _stop: tuple[StopCause, str] | None = None

    @property
    def open(self) -> list[Metric]:
        """The metrics that are neither measured nor given up."""
        return [m for m in self.metrics if m.name not in self.scores and m.name not in self.problems]

    def take_numbers(self, report: Report, validation: Validation | None, trained: float) -> None:
        """Take the scores that need no more than what the trial knows."""
        if not self.open:
            return
        with Randomness().own():
            if validation is not None:
                self._take_validation(validation)
            for metric in self.open:
                if metric.source == "run":
                    measure = str(metric.options["measure"])
                    self._try(metric, partial(run_value, measure, report, self.recipe, trained))
                elif metric.source == "logged":
                    self._try(metric, partial(self._logged, metric))

    def ask(self, answers: SavedAnswers) -> None:
        """Ask the questions of the open metrics, one for all metrics that share its answers.

        Args:
            answers: by `Generation.asks`, those that are there already.
        """
        for metric in self.open:
            if metric.source == "generate":
                generation = self.measurer.generation(metric)
                if generation.asks not in self._questions:
                    question = self._questions[generation.asks] = generation.question()
                    question.take([tuple(answer) for answer in answers.get(generation.asks, [])])

    @property
    def asks(self) -> bool:
        """Whether prompts are still to be answered."""
        return any(question.open for question in self._questions.values())

    @property
    def answers(self) -> SavedAnswers:
        """The answers so far, for a checkpoint."""
        return {asks: [list(answer) for answer in question.answers] for asks, question in self._questions.items()}

    def next_question(self) -> Question | None:
        """See `trainer.metrics.answers.Asker`. A stop is kept, and `finish` obeys it."""
        for question in self._questions.values():
            if not question.open:
                continue
            try:
                self._stop = self._stop or self.measurer.should_stop()
            except Exception:  # `finish` asks again, where an error ends this attempt alone
                return None
            if self._stop is not None:
                return None
            question.check_time(time.monotonic())
            if question.open:
                return question
        return None

    def finish(self) -> None:
        """Measure what is open.

        Raises:
            StoppedError: the attempt was asked to stop. What was measured until then stays.
            OutOfMemoryError, OSError: there is no memory, or no space on the disk.
        """
        if not self.open:
            return
        with Randomness().own():
            self._check_stop()
            if any(metric.source == "validation" for metric in self.open):  # of a base, or of an earlier attempt
                self._take_validation(self.recipe.validate(self.measurer.counts_correct(self.open)))
            while self.asks:
                self._check_stop()
                answer_all({0: self}, lambda asked, how: {key: self._answer(asked[key], how) for key in asked})
            self._check_stop()
            for metric in self.open:
                for number in range(1, TRIES + 1):
                    self._check_stop()
                    self._try(metric, partial(self._measured, metric), last=number == TRIES)
                    if metric not in self.open:
                        break

    def _check_stop(self) -> None:
        if stop := self._stop or self.measurer.should_stop():
            raise StoppedError(*stop)

    def _answer(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Answer]:
        return answer_alone(self.recipe, prompts, sampling)

    def _measured(self, metric: Metric) -> float:
        measurer = self.measurer
        if metric.source == "generate":
            generation = measurer.generation(metric)
            tokenizer = build_tokenizer(self.recipe.cfg, measurer.cache)
            return generation.score(self._questions[generation.asks], tokenizer, measurer.files, self.milestone)
        if metric.source in PROGRAMS:
            return program_value(
                metric, self.recipe, measurer.spec, measurer.files, measurer.cache, measurer.should_stop
            )
        raise MetricError(f"metric.{metric.name}.source={metric.source} was not measured with the report")

    def _logged(self, metric: Metric) -> float:
        key, logged = logged_key(metric), self.measurer.all_logged()
        if key not in logged:
            names = short_list(sorted(self.measurer.logged()), ", ") or "nothing"
            raise MetricError(f"wandb.hook has returned no number named {key} so far, but {names}")
        return logged[key]

    def _take_validation(self, validation: Validation | None) -> None:
        for metric in self.open:
            if metric.source == "validation" and validation is not None:
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
    key, options = f"metric.{metric.name}", metric.options
    if metric.source not in SOURCES:
        known = f"{', '.join(SOURCES[:-1])} or {SOURCES[-1]}"
        raise MetricError(f"{key}.source={metric.source} is unknown; it must be {known}")
    measures = {"validation": VALIDATION, "run": RUN}.get(metric.source)
    if measures is not None and options.get("measure") not in measures:
        known = f"{', '.join(measures[:-1])} or {measures[-1]}"
        raise MetricError(f"{key}.measure={options.get('measure')} is no measure of {metric.source}; use {known}")
    if metric.source == "command" and not options.get("command"):
        raise MetricError(f"{key}.command is missing; name the program that gives the number")
    if metric.source == "lm_eval" and not options.get("tasks"):
        raise MetricError(f"{key}.tasks is empty; name tasks of lm-eval")
    if metric.source == "validation" and not validates:
        raise MetricError(f"{key} needs the validation pass; set dataset_val in the recipe's configuration")


def logged_key(metric: Metric) -> str:
    """The name under which the user's own code logs a metric."""
    return str(metric.options.get("key") or metric.name)


def _measures(metric: Metric, measure: str) -> bool:
    return metric.source == "validation" and metric.options.get("measure") == measure
