"""One attempt of a trial, from its specification to its outcome.

An attempt is fed: `begin` builds its trial, `after` takes each micro-batch in, whoever trained it, `fail` ends it with
an error. Each answers with the outcome where it ended the attempt. `advance` trains an attempt by itself; a
scheduler (see `trainer.scheduler`) feeds several from one pack.

Invariants: every way an attempt can end becomes exactly one `Outcome`; whatever it raises stays here. What it
writes lies in its own directory. It goes on from the newest checkpoint of an earlier attempt that can be read.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from omegaconf import DictConfig, OmegaConf

from trainer import checkpoint
from trainer.base import Cache
from trainer.components import ComponentError, check_components, components, current_path
from trainer.contract import FailureKind, Outcome, OutcomeKind, Report, StopCause, TrialSpec
from trainer.progress import DivergenceGuard, MicroBatch, Milestones
from trainer.recipe import LoraRecipe
from trainer.reporter import Reporter
from trainer.room import AttemptDir, Room

_log = logging.getLogger(__name__)

# How a stop reaches an attempt: its cause and a sentence, or None to go on.
StopSignal = Callable[[], tuple[StopCause, str] | None]


@dataclass(slots=True)
class Attempt:
    """An attempt that a worker runs, once: by `run`, or by `begin` and then `after` each micro-batch."""

    room: Room
    spec: TrialSpec
    cache: Cache
    reporter: Reporter
    should_stop: StopSignal
    _notes: list[str] = field(default_factory=list)
    _resumed_from: int | None = None
    _recipe: LoraRecipe | None = None
    _milestones: Milestones = field(init=False)
    _guard: DivergenceGuard = field(init=False)
    _began: float = field(init=False)
    _lap: tuple[float, int] = (0.0, 0)
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
        """Build the trial and go on from its checkpoint; an outcome where that failed, or it was at its end."""
        return self._guarded(self._begin)

    def advance(self) -> Outcome | None:
        """Train the next micro-batch by itself, and take it in."""
        if self._batches is None:
            self._batches = self.recipe.train()
        batches = self._batches
        return self._guarded(lambda: self._after(next(batches)))

    def after(self, batch: MicroBatch) -> Outcome | None:
        """Take in that a micro-batch was trained."""
        return self._guarded(lambda: self._after(batch))

    def obey(self) -> Outcome | None:
        """End where a stop asks for it before any micro-batch: an earlier attempt keeps what there is to go on from."""
        stop = self.should_stop()
        return self._close(self._outcome(OutcomeKind.STOPPED, stop[1], cause=stop[0])) if stop else None

    def fail(self, error: Exception) -> Outcome:
        """End with what went wrong."""
        text = "".join(traceback.format_exception(error))
        _log.error("trial %d attempt %d failed:\n%s", self.spec.trial, self.spec.attempt, text)
        for one in _chain(error):
            one.__traceback__ = None  # its frames hold the model, and often the error too: a cycle
        return self._close(self._outcome(OutcomeKind.FAILED, describe(error), failure=classify(error)))

    @property
    def recipe(self) -> LoraRecipe:
        """The trial in training, from `begin` until it ends."""
        assert self._recipe is not None
        return self._recipe

    def _guarded(self, act: Callable[[], Outcome | None]) -> Outcome | None:
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
        check_components(self.spec.config, self.spec.components)
        self._recipe = LoraRecipe(current(self.spec), self.cache, self.dir.path / "scratch")
        self._resume(self._recipe)
        self._lap = time.perf_counter(), self._recipe.tokens
        return self._completed(self._recipe) if self._recipe.position == self._recipe.total else None

    def _after(self, batch: MicroBatch) -> Outcome | None:
        recipe = self.recipe
        if ended := self._after_step(batch) or self._at_milestone(recipe, batch) or self._obey(recipe):
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
        if diverged := self._guard.at_milestone(report.loss, report.val_loss):
            return self._outcome(OutcomeKind.DIVERGED, diverged)
        if not report.final:
            self._keep(recipe, report)
        self._lap = time.perf_counter(), batch.tokens
        return None

    def _keep(self, recipe: LoraRecipe, report: Report) -> None:
        """What is written at a milestone, after its report: a crash in between repeats the report, and loses none."""
        every, adapters = self.spec.checkpoint_every, self.spec.adapter_every
        if every and report.milestone % every == 0:
            self._save(recipe)
        if adapters and report.milestone % adapters == 0:
            recipe.save_adapter(self.dir.adapter)
            self.reporter.adapter(self.dir.adapter)

    def _obey(self, recipe: LoraRecipe) -> Outcome | None:
        stop = self.should_stop() if recipe.position < recipe.total else None
        return self._stopped(recipe, *stop) if stop else None

    def _report(self, recipe: LoraRecipe) -> Report:
        number, norm = self._milestones.take(recipe.tokens)
        began, before = self._lap
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
        if not recipe.save_adapter(self.dir.adapter):
            self._notes.append("torchtune has no PEFT form for this model: the adapter is in its own format")
        self.reporter.adapter(self.dir.adapter)
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
        }
        checkpoint.save(self.dir.checkpoint, state)

    def _resume(self, recipe: LoraRecipe) -> None:
        for number in reversed([n for n in self.room.attempts(self.spec.trial) if n < self.spec.attempt]):
            path = self.room.attempt(self.spec.trial, number).resume_point()
            if not path.exists():
                continue
            try:
                state = checkpoint.load(path)
                recipe.load_state(state["recipe"])
            except checkpoint.CheckpointError as error:
                self._notes.append(f"attempt {number}'s checkpoint is unreadable and was passed over: {error}")
                continue
            self._milestones.restore(state["milestones"])
            self._guard.restore(state["guard"])
            self._resumed_from = number
            return

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
            self.dir.checkpoint.unlink(missing_ok=True)  # nothing goes on from here, and adapters are megabytes
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
    """What a person has to look at."""
    chain = _chain(error)
    if any(isinstance(e, OSError) and e.errno in checkpoint.NO_SPACE for e in chain) or any(
        "No space left" in str(e) for e in chain
    ):
        return FailureKind.NO_SPACE
    if any(isinstance(e, torch.OutOfMemoryError | MemoryError) for e in chain):
        return FailureKind.OUT_OF_MEMORY
    if any(isinstance(e, FileNotFoundError) for e in chain):
        return FailureKind.MISSING_FILE
    if isinstance(error, ComponentError | ValueError | TypeError | KeyError):
        return FailureKind.BAD_CONFIG
    return FailureKind.ERROR


def describe(error: BaseException) -> str:
    """One line for a person: the innermost cause, without the stack."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text[:500]}"


def _chain(error: BaseException | None) -> list[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def current(spec: TrialSpec) -> DictConfig:
    """A specification's configuration, with today's names of components."""
    cfg = OmegaConf.create(dict(spec.config))
    for key, path in components(spec.config):
        if current_path(path) != path:
            OmegaConf.update(cfg, key, current_path(path))
    return cfg
