"""One attempt of a trial, from its specification to its outcome.

`begin` builds the trial. `take` records each trained micro-batch, `after` makes the report that is due then, and `fail`
ends the attempt with an error. Each of them returns the outcome if it ended the attempt. `advance` trains a micro-batch
of this attempt alone; the scheduler (`trainer.scheduler`) trains those of several attempts in one pack, and answers the
prompts of all their metrics together between `take` and `after`.

Invariants: every end of an attempt is exactly one `Outcome`, and no exception leaves an attempt. It writes to its own
directory only. It resumes from the newest readable checkpoint of an earlier attempt. An attempt that completes has
reported the final report itself, with all metrics, also if the checkpoint left nothing to train. A report is sent once
all that it measures is measured. If a stop comes before, the checkpoint keeps the report with what was measured, and
the next attempt measures the rest.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from trainer import checkpoint
from trainer.base import Cache
from trainer.configuration import current_config
from trainer.contract import (
    ContractError,
    FailureKind,
    Outcome,
    OutcomeKind,
    Report,
    StopCause,
    StopSignal,
    TrialSpec,
    decode,
    from_plain,
)
from trainer.evaluation.external import StoppedError
from trainer.failures import classify, describe
from trainer.metrics.measure import Measurement, Measurer, SavedAnswers
from trainer.progress import DivergenceGuard, MicroBatch, Milestones
from trainer.recipe import LoraRecipe, Validation
from trainer.reporter import Reporter
from trainer.room import AttemptDir, Room, Tail, sync_tree
from trainer.space import chain, with_space

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Attempt:
    """An attempt of a trial. It runs once: by `run`, or by `begin` and then `after` for each micro-batch.

    Args:
        cache: what the worker keeps between trials.
        reporter: receives the steps, the reports and the adapter.
        should_stop: asked after every micro-batch, and while metrics are measured.
        logged: the numbers that the user's own code logged last, by name.
    """

    room: Room
    spec: TrialSpec
    cache: Cache
    reporter: Reporter
    should_stop: StopSignal
    logged: Callable[[], Mapping[str, float]] = dict
    _notes: list[str] = field(default_factory=list)
    _resumed_from: int | None = None
    _final: Report | None = None
    _recipe: LoraRecipe | None = None
    _milestones: Milestones = field(init=False)
    _guard: DivergenceGuard = field(init=False)
    _measurer: Measurer = field(init=False)
    _began: float = field(init=False)
    _trained: float = 0.0  # seconds of training, those of earlier attempts included
    _interval: tuple[float, int] = (0.0, 0)  # seconds of training and label tokens, at the last report
    _passes: float = 0.0  # seconds of this attempt's passes
    _taken: bool = False
    _pending: Report | None = None  # what is due, without the metrics that are still to be measured
    _measurement: Measurement | None = None
    _base_scores: dict[str, float] = field(default_factory=dict)  # until a report has them
    _saved_answers: SavedAnswers = field(default_factory=dict)  # of an earlier attempt that was stopped meanwhile
    _batches: Iterator[MicroBatch] | None = None

    def __post_init__(self) -> None:
        self._milestones = Milestones(self.spec.milestone_tokens)
        self._guard = DivergenceGuard(self.spec.guard)
        self._measurer = Measurer(self.spec, self.dir, self.cache, self.should_stop, self.logged)
        self._began = time.perf_counter()

    @property
    def dir(self) -> AttemptDir:
        return self.room.attempt(self.spec.trial, self.spec.attempt)

    def run(self) -> Outcome:
        """Train the trial to its end, a stop, a divergence or a failure."""
        ended = self.begin()
        while ended is None:
            ended = self.advance()
        if ended.failure is FailureKind.OUT_OF_MEMORY:
            self.cache.clear()
        return ended

    def begin(self) -> Outcome | None:
        """Build the trial and resume from its checkpoint; returns the outcome if that failed or all was trained."""
        return self._caught(self._begin)

    def advance(self) -> Outcome | None:
        """Train the next micro-batch of this attempt alone, and process it."""
        if self._batches is None:
            self._batches = self.recipe.train()
        batches = self._batches

        def train() -> Outcome | None:
            began = time.perf_counter()
            batch = next(batches)
            self.count_seconds(time.perf_counter() - began)
            return self._after(batch)

        return self._caught(train)

    def count_seconds(self, seconds: float, share: float = 1.0) -> None:
        """Count a pass, before its micro-batch is taken.

        Args:
            share: this trial's part of the pass, if others train in it.
        """
        self._passes += seconds
        self._trained += seconds * share

    def take(self, batch: MicroBatch) -> Outcome | None:
        """Record a micro-batch that was trained, and begin the report that is due; `after` must follow."""
        return self._caught(lambda: self._take(batch))

    def after(self, batch: MicroBatch) -> Outcome | None:
        """Process a micro-batch that was trained: report, write a checkpoint, end if it is time to."""
        return self._caught(lambda: self._after(batch))

    @property
    def measurement(self) -> Measurement | None:
        """What the report that is due still has to measure."""
        return self._measurement

    def obey_stop(self) -> Outcome | None:
        """End before the first micro-batch if a stop asks for it. An earlier attempt's checkpoint stays."""
        stop = self.should_stop()
        return self._close(self._outcome(OutcomeKind.STOPPED, stop[1], cause=stop[0])) if stop else None

    def fail(self, error: Exception) -> Outcome:
        """End with an error."""
        text = "".join(traceback.format_exception(error))
        _log.error("trial %d attempt %d failed:\n%s", self.spec.trial, self.spec.attempt, text)
        for link in chain(error):
            link.__traceback__ = None  # its frames hold the model, and often the error itself, which makes a cycle
        return self._close(self._outcome(OutcomeKind.FAILED, describe(error), failure=classify(error)))

    @property
    def recipe(self) -> LoraRecipe:
        """The trial in training, between `begin` and its end."""
        assert self._recipe is not None
        return self._recipe

    def _caught(self, act: Callable[[], Outcome | None]) -> Outcome | None:
        try:
            ended = act()
        except Exception as error:
            return self.fail(error)
        return None if ended is None else self._close(ended)

    def _close(self, ended: Outcome) -> Outcome:
        shutil.rmtree(self.dir.path / "scratch", ignore_errors=True)
        self._recipe = self._batches = self._measurement = None
        return ended

    def _begin(self) -> Outcome | None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._recipe = LoraRecipe(current_config(self.spec), self.cache, self.dir.path / "scratch")
        self._resume(self._recipe)
        self._interval = self._passes, self._recipe.tokens
        self._measurer.prepare(self._recipe)
        try:
            self._measure_base(self._recipe)
        except StoppedError as stop:
            return self._stopped(self._recipe, stop.cause, stop.reason)
        if self._pending is not None:
            return self._finish_report(self._recipe) or self._ended(self._recipe)
        if self._recipe.position < self._recipe.total:
            return None
        assert self._final is not None, "a checkpoint of the trial's end is used together with its final report only"
        self._final = dataclasses.replace(self._final, seconds=time.perf_counter() - self._began)
        self.reporter.report(self._final)
        return self._completed(self._recipe)

    def _measure_base(self, recipe: LoraRecipe) -> None:
        """Measure the base before the first step, when the adapter changes nothing yet; once a trial."""
        if recipe.position or not self.spec.measure_base or any(report.base_scores for report in self._reports()):
            return
        measurement = self._measurement = self._measurer.of_base(recipe, self._base_scores, self._saved_answers)
        try:
            measurement.finish()
        finally:
            self._base_scores = measurement.scores
        self._measurement, self._saved_answers = None, {}
        for name, problem in measurement.problems.items():
            _log.warning("trial %d: %s of the base could not be measured: %s", self.spec.trial, name, problem)

    def _take(self, batch: MicroBatch) -> Outcome | None:
        self._taken = True
        if ended := self._after_step(batch):
            return ended
        return self._begin_report(self.recipe) if self._milestones.add(batch) else None

    def _after(self, batch: MicroBatch) -> Outcome | None:
        recipe = self.recipe
        if not self._taken and (ended := self._take(batch)):
            return ended
        self._taken = False
        return self._finish_report(recipe) or self._check_stop(recipe) or self._ended(recipe)

    def _ended(self, recipe: LoraRecipe) -> Outcome | None:
        return self._completed(recipe) if recipe.position == recipe.total else None

    def _after_step(self, batch: MicroBatch) -> Outcome | None:
        if batch.step is None:
            return None
        self.reporter.step(batch.step)
        diverged = self._guard.after_step(batch.step)
        return self._outcome(OutcomeKind.DIVERGED, diverged) if diverged else None

    def _begin_report(self, recipe: LoraRecipe) -> Outcome | None:
        """Make the report that is due, with the numbers that are known at once."""
        number, norm = self._milestones.take(recipe.tokens)
        final = recipe.position == recipe.total
        metrics = self._measurer.due(number, final)
        report, validation = self._report(recipe, number, norm, correct=self._measurer.counts_correct(metrics))
        diverged = self._guard.at_milestone(report.loss, report.val_loss)
        finite = math.isfinite(report.loss) and math.isfinite(report.val_loss or 0.0)
        self._final = None
        self._interval = self._passes, recipe.tokens
        if diverged:
            if finite:
                self.reporter.report(report)
            return self._outcome(OutcomeKind.DIVERGED, diverged)
        if finite:
            self._pending = report
            self._measurement = self._measurer.of_report(recipe, report, validation, self._trained)
        elif final:
            self._final = report
        else:
            self._write_milestone(recipe, report)
        return None

    def _finish_report(self, recipe: LoraRecipe) -> Outcome | None:
        """Measure what the report that is due lacks, and send it."""
        if self._pending is None:
            return None
        if self._measurement is None:  # it was begun by an earlier attempt
            self._pending = dataclasses.replace(self._pending, final=recipe.position == recipe.total)
            self._measurement = self._measurer.of_report(
                recipe, self._pending, None, self._trained, self._saved_answers
            )
            self._saved_answers = {}
        measurement = self._measurement
        try:
            measurement.finish()
        except StoppedError as stop:
            self._pending = dataclasses.replace(self._pending, scores=measurement.scores)
            return self._stopped(recipe, stop.cause, stop.reason)
        self._measurement = None
        report = dataclasses.replace(
            self._pending,
            scores=measurement.scores,
            problems=measurement.problems,
            base_scores=self._base_scores,
            seconds=time.perf_counter() - self._began,
        )
        if report.final and report.problems:
            self._saved_answers = measurement.answers
            return self._unmeasured(recipe, report)
        self.reporter.report(report)
        self._pending, self._base_scores = None, {}
        self._final = report if report.final else None
        if not report.final:
            self._write_milestone(recipe, report)
        return None

    def _unmeasured(self, recipe: LoraRecipe, report: Report) -> Outcome:
        """End without the final report, which lacks a metric: the next attempt measures it with the same adapter."""
        self._pending = dataclasses.replace(report, problems={}, base_scores={})
        if self.spec.checkpoint_every:
            self._save(recipe)
        name, problem = next(iter(report.problems.items()))
        reason = f"{name} could not be measured at the end of the trial: {problem}"
        return self._outcome(OutcomeKind.FAILED, reason, failure=FailureKind.PASSING)

    def _write_milestone(self, recipe: LoraRecipe, report: Report) -> None:
        """Write checkpoint and adapter after the report, so that a crash in between repeats a report and loses none."""
        every, adapters = self.spec.checkpoint_every, self.spec.adapter_every
        if every and report.milestone % every == 0:
            self._save(recipe)
        if adapters and report.milestone % adapters == 0:
            self._save_adapter(recipe)

    def _save_adapter(self, recipe: LoraRecipe) -> bool:
        """Write the adapter; False if torchtune has no PEFT format for this model."""

        def write() -> bool:
            peft = recipe.save_adapter(self.dir.adapter)
            sync_tree(self.dir.adapter)
            return peft

        peft = with_space(write, "the adapter")
        self.reporter.adapter(self.dir.adapter)
        return peft

    def _check_stop(self, recipe: LoraRecipe) -> Outcome | None:
        stop = self.should_stop() if recipe.position < recipe.total else None
        return self._stopped(recipe, *stop) if stop else None

    def _report(self, recipe: LoraRecipe, number: int, norm: float, correct: bool) -> tuple[Report, Validation | None]:
        """The report of a milestone without metrics, and the validation pass that it made."""
        seconds, before = self._interval
        rate = (recipe.tokens - before) / max(self._passes - seconds, 1e-9)
        on_gpu = recipe.device.type == "cuda"
        loss = recipe.mean_loss()
        validation = recipe.validate(correct)
        report = Report(
            milestone=number,
            step=recipe.step,
            tokens=recipe.tokens,
            epoch=(recipe.position - 1) * recipe.epochs // recipe.total,
            loss=loss,
            grad_norm=norm,
            lr=recipe.learning_rate,
            tokens_per_second=rate,
            val_loss=None if validation is None else validation.loss,
            seconds=time.perf_counter() - self._began,
            memory_gib=torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0,
            final=recipe.position == recipe.total,
        )
        return report, validation

    def _completed(self, recipe: LoraRecipe) -> Outcome:
        if not self._save_adapter(recipe):
            self._notes.append("torchtune has no PEFT format for this model, so that the adapter is in torchtune's own")
        if self.spec.checkpoint_every:
            self._save(recipe)
        return self._outcome(OutcomeKind.COMPLETED, adapter=self.dir.adapter.name)

    def _stopped(self, recipe: LoraRecipe, cause: StopCause, reason: str) -> Outcome:
        if cause.resumable and self.spec.checkpoint_every:
            self._save(recipe)
        return self._outcome(OutcomeKind.STOPPED, reason, cause=cause)

    def _save(self, recipe: LoraRecipe) -> None:
        state = {
            "recipe": recipe.state(),
            "milestones": self._milestones.state(),
            "guard": self._guard.state(),
            "final": None if self._final is None else dataclasses.asdict(self._final),
            "metrics": {
                "trained": self._trained,
                "pending": None if self._pending is None else dataclasses.asdict(self._pending),
                "base_scores": dict(self._base_scores),
                "logged": self._measurer.all_logged(),
                "answers": self._saved_answers if self._measurement is None else self._measurement.answers,
            },
        }
        checkpoint.save(self.dir.checkpoint, state)

    def _resume(self, recipe: LoraRecipe) -> None:
        for number in reversed([n for n in self.room.attempts(self.spec.trial) if n < self.spec.attempt]):
            path = self.room.attempt(self.spec.trial, number).resume_point()
            if not path.exists():
                continue
            try:
                state = checkpoint.load(path)
            except checkpoint.CheckpointError as error:
                self._notes.append(f"attempt {number}'s checkpoint is unreadable and was skipped: {error}")
                continue
            metrics = state.get("metrics", {})  # older versions have none
            pending = None if metrics.get("pending") is None else from_plain(Report, metrics["pending"])
            at_end = pending is None and state["recipe"]["position"] == recipe.total
            final = self._final_of(state) if at_end else None
            if at_end and final is None:
                self._notes.append(f"attempt {number}'s checkpoint was skipped: the final report before it is lost")
                continue
            recipe.load_state(state["recipe"])
            self._final, self._pending = final, pending
            self._trained = float(metrics.get("trained", 0.0))
            self._base_scores = dict(metrics.get("base_scores", {}))
            self._saved_answers = metrics.get("answers", {})
            self._measurer.logged_before = metrics.get("logged", {})
            self._milestones.restore(state["milestones"])
            self._guard.restore(state["guard"])
            self._resumed_from = number
            return

    def _final_of(self, state: dict[str, Any]) -> Report | None:
        """The final report that precedes a checkpoint of the trial's end; older versions did not save it there."""
        if state.get("final") is not None:
            return from_plain(Report, state["final"])
        return next((report for report in self._reports() if report.final), None)

    def _reports(self) -> Iterator[Report]:
        """What earlier attempts reported, the newest first."""
        for number in reversed([n for n in self.room.attempts(self.spec.trial) if n < self.spec.attempt]):
            files = self.room.attempt(self.spec.trial, number)
            for line in reversed(Tail(files.reports).lines(files.counted())):
                with suppress(ContractError):
                    yield decode(Report, line)

    def _outcome(
        self,
        kind: OutcomeKind,
        reason: str = "",
        *,
        cause: StopCause | None = None,
        failure: FailureKind | None = None,
        adapter: str | None = None,
    ) -> Outcome:
        recipe = self._recipe
        keeps = kind in (OutcomeKind.COMPLETED, OutcomeKind.FAILED) or (cause is not None and cause.resumable)
        if not keeps:
            self.dir.checkpoint.unlink(missing_ok=True)  # no attempt resumes from it, and it has megabytes
        return Outcome(
            kind=kind,
            reason="; ".join(filter(None, [reason, *self._notes])),
            cause=cause,
            failure=failure,
            step=recipe.step if recipe else 0,
            tokens=recipe.tokens if recipe else 0,
            seconds=time.perf_counter() - self._began,
            resumed_from=self._resumed_from,
            adapter=adapter,
            checkpoint=self.dir.checkpoint.name if self.dir.checkpoint.exists() else None,
            steps_per_epoch=recipe.steps_per_epoch if recipe else 0,
            leftover_batches=recipe.leftover_batches if recipe else 0,
        )
