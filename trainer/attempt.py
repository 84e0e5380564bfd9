"""One attempt of a trial, from its specification to its outcome.

`begin` builds the trial. `after` processes each trained micro-batch, and `fail` ends the attempt with an error. Each of
them returns the outcome if it ended the attempt. `advance` trains a micro-batch of this attempt alone; the scheduler
(`trainer.scheduler`) trains those of several attempts in one pack.

Invariants: every end of an attempt is exactly one `Outcome`, and no exception leaves an attempt. It writes to its own
directory only. It resumes from the newest readable checkpoint of an earlier attempt. An attempt that completes has
reported the final report itself, also if the checkpoint left nothing to train.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from trainer import checkpoint
from trainer.base import Cache
from trainer.components import ComponentError
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
from trainer.environment import mask
from trainer.progress import DivergenceGuard, MicroBatch, Milestones
from trainer.recipe import LoraRecipe
from trainer.reporter import Reporter
from trainer.room import AttemptDir, Room, Tail, sync_tree
from trainer.space import chain, is_no_space, with_space

_log = logging.getLogger(__name__)


@dataclass(slots=True)
class Attempt:
    """An attempt of a trial. It runs once: by `run`, or by `begin` and then `after` for each micro-batch.

    Args:
        cache: what the worker keeps between trials.
        reporter: receives the steps, the reports and the adapter.
        should_stop: asked after every micro-batch.
    """

    room: Room
    spec: TrialSpec
    cache: Cache
    reporter: Reporter
    should_stop: StopSignal
    _notes: list[str] = field(default_factory=list)
    _resumed_from: int | None = None
    _final: Report | None = None
    _recipe: LoraRecipe | None = None
    _milestones: Milestones = field(init=False)
    _guard: DivergenceGuard = field(init=False)
    _began: float = field(init=False)
    _interval_start: tuple[float, int] = (0.0, 0)
    _batches: Iterator[MicroBatch] | None = None

    def __post_init__(self) -> None:
        self._milestones = Milestones(self.spec.milestone_tokens)
        self._guard = DivergenceGuard(self.spec.guard)
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
        return self._caught(lambda: self._after(next(batches)))

    def after(self, batch: MicroBatch) -> Outcome | None:
        """Process a micro-batch that was trained: report, write a checkpoint, end if it is time to."""
        return self._caught(lambda: self._after(batch))

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
        self._recipe = self._batches = None
        return ended

    def _begin(self) -> Outcome | None:
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._recipe = LoraRecipe(current_config(self.spec), self.cache, self.dir.path / "scratch")
        self._resume(self._recipe)
        self._interval_start = time.perf_counter(), self._recipe.tokens
        if self._recipe.position < self._recipe.total:
            return None
        assert self._final is not None, "a checkpoint of the trial's end is used together with its final report only"
        self._final = dataclasses.replace(self._final, seconds=time.perf_counter() - self._began)
        self.reporter.report(self._final)
        return self._completed(self._recipe)

    def _after(self, batch: MicroBatch) -> Outcome | None:
        recipe = self.recipe
        if ended := self._after_step(batch) or self._at_milestone(recipe, batch) or self._check_stop(recipe):
            return ended
        return self._completed(recipe) if batch.position == batch.total else None

    def _after_step(self, batch: MicroBatch) -> Outcome | None:
        if batch.step is None:
            return None
        self.reporter.step(batch.step)
        diverged = self._guard.after_step(batch.step)
        return self._outcome(OutcomeKind.DIVERGED, diverged) if diverged else None

    def _at_milestone(self, recipe: LoraRecipe, batch: MicroBatch) -> Outcome | None:
        if not self._milestones.add(batch):
            return None
        report = self._report(recipe)
        if math.isfinite(report.loss) and math.isfinite(report.val_loss or 0.0):
            self.reporter.report(report)
        self._final = report if report.final else None
        if diverged := self._guard.at_milestone(report.loss, report.val_loss):
            return self._outcome(OutcomeKind.DIVERGED, diverged)
        if not report.final:
            self._write_milestone(recipe, report)
        self._interval_start = time.perf_counter(), batch.tokens
        return None

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

    def _report(self, recipe: LoraRecipe) -> Report:
        number, norm = self._milestones.take(recipe.tokens)
        began, before = self._interval_start
        rate = (recipe.tokens - before) / max(time.perf_counter() - began, 1e-9)
        on_gpu = recipe.device.type == "cuda"
        return Report(
            milestone=number,
            step=recipe.step,
            tokens=recipe.tokens,
            epoch=(recipe.position - 1) * recipe.epochs // recipe.total,
            loss=recipe.mean_loss(),
            grad_norm=norm,
            lr=recipe.learning_rate,
            tokens_per_second=rate,
            val_loss=recipe.evaluate(),
            seconds=time.perf_counter() - self._began,
            memory_gib=torch.cuda.max_memory_allocated() / 2**30 if on_gpu else 0.0,
            final=recipe.position == recipe.total,
        )

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
            final = self._final_of(state) if state["recipe"]["position"] == recipe.total else None
            if state["recipe"]["position"] == recipe.total and final is None:
                self._notes.append(f"attempt {number}'s checkpoint was skipped: the final report before it is lost")
                continue
            recipe.load_state(state["recipe"])
            self._final = final
            self._milestones.restore(state["milestones"])
            self._guard.restore(state["guard"])
            self._resumed_from = number
            return

    def _final_of(self, state: dict[str, Any]) -> Report | None:
        """The final report that precedes a checkpoint of the trial's end; older versions did not save it there."""
        if state.get("final") is not None:
            return from_plain(Report, state["final"])
        for number in reversed([n for n in self.room.attempts(self.spec.trial) if n < self.spec.attempt]):
            files = self.room.attempt(self.spec.trial, number)
            for line in reversed(Tail(files.reports).lines(files.counted())):
                with suppress(ContractError):
                    if (report := decode(Report, line)).final:
                        return report
        return None

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


def classify(error: BaseException) -> FailureKind:
    """The kind of a failure, by the error and its causes."""
    links = chain(error)
    if is_no_space(error):
        return FailureKind.NO_SPACE
    if any(isinstance(e, torch.OutOfMemoryError | MemoryError) for e in links):
        return FailureKind.OUT_OF_MEMORY
    if any(isinstance(e, FileNotFoundError) for e in links):
        return FailureKind.MISSING_FILE
    if isinstance(error, ComponentError | ValueError | TypeError | KeyError):
        return FailureKind.BAD_CONFIG
    return FailureKind.ERROR


def describe(error: BaseException) -> str:
    """One line for a person: type and message of an error and of its innermost cause, without stack and secrets."""
    text, cause = _said(error), innermost_cause(error)
    if cause is error or " ".join(str(cause).split()) in text:
        return text
    return f"{text} (cause: {_said(cause)})"


def innermost_cause(error: BaseException) -> BaseException:
    """The error behind an error: what it was raised from, or what it was raised beside if it says nothing itself.

    It is the error itself if nothing is behind it. A cause that says nothing is passed over, unless all of them do.
    """
    said, seen = error, {id(error)}
    while True:
        implied = None if error.__suppress_context__ or str(error) else error.__context__
        behind = error.__cause__ or implied
        if behind is None or id(behind) in seen:
            return said
        seen.add(id(behind))
        error = behind
        said = error if str(error) or not str(said) else said


def _said(error: BaseException) -> str:
    """Type and message of an error; without a message, where it was raised."""
    text = " ".join(mask(str(error)).split())[:500] or f"no message, {_raised_in(error)}"
    return f"{type(error).__name__}: {text}"


def _raised_in(error: BaseException) -> str:
    """The function and line that raised an error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "never raised"
    where = trace.tb_frame
    return f"raised in {where.f_globals.get('__name__', '?')}.{where.f_code.co_name}, line {trace.tb_lineno}"
