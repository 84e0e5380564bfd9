"""Turns what a controller does into log lines.

Invariants: each event is one line. A failed trial, a cancelled worker and an error after which the controller retries
are warnings, so that `--quiet` shows them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sweep.model.effects import Assign, Cancel, Effect, StartWorkers, Stop, Tell
from sweep.model.facts import View
from sweep.model.objectives import Objective
from sweep.model.states import Ending, JobState
from sweep.report.formatting import number, params_text, scores_text
from sweep.report.metric_notes import ZERO_TRIALS, zero_text
from sweep.report.terminal import waiting_text
from trainer.contract import Report
from trainer.room import Room

if TYPE_CHECKING:
    from sweep.search.strategy.protocol import Promotion
    from sweep.search.study import OptunaStudy

logger = logging.getLogger(__name__)


@dataclass
class LineLog:
    """Logs the events of a controller.

    Args:
        objective: what the sweep searches for.
        scored: metrics of which it is said if they are 0 in the first trials.
        log_reports: whether each report is a line; the live view shows reports in its table.
        on_tell: called when a trial has ended.
        on_event: called after each event; the live view redraws itself.
        on_wait: called with what the sweep waits for, if not for its workers; empty: it goes on.
    """

    study: OptunaStudy
    objective: Objective
    scored: Collection[str] = ()
    log_reports: bool = True
    on_tell: Callable[[], None] = lambda: None
    on_event: Callable[[], None] = lambda: None
    on_wait: Callable[[str], None] = lambda text: None
    _no_space: str = ""
    _waiting: str = ""
    _cancelled: set[str] = field(default_factory=set)
    _problems: set[tuple[int, str]] = field(default_factory=set)
    _zeros: dict[str, set[int] | None] = field(default_factory=dict)

    def reported(self, trial: int, report: Report) -> None:
        """Log a report."""
        if self.log_reports:
            name = self.objective.name
            scores = "".join(f" {key} {number(value)}" for key, value in report.scores.items() if key != name)
            text = f"{name} {number(report.value(name))} loss {number(report.loss)}{scores}"
            text += f" grad_norm {number(report.grad_norm, 3)}"
            logger.info("trial %d milestone %d: %s", trial, report.milestone, text)
        self._watch_metrics(trial, report)

    def _watch_metrics(self, trial: int, report: Report) -> None:
        """Warn once of each metric that a trial could not measure, and of one that is 0 in the first trials."""
        if report.base_scores:
            logger.info("the base has %s", scores_text(report.base_scores))
        for name, reason in report.problems.items():
            if (trial, name) not in self._problems:
                self._problems.add((trial, name))
                logger.warning(
                    "trial %d: %s could not be measured at milestone %d: %s", trial, name, report.milestone, reason
                )
        for name, value in report.scores.items() if self.scored else ():
            zeros = self._zeros.setdefault(name, set())
            if zeros is None or name not in self.scored:
                continue
            zeros.add(trial)
            if value != 0:
                self._zeros[name] = None
            elif len(zeros) >= ZERO_TRIALS:
                self._zeros[name] = None
                logger.warning("%s", zero_text(name, len(zeros)))

    def done(self, effect: Effect) -> None:
        """Log an effect."""
        logger.debug("%s", effect)
        match effect:
            case StartWorkers(places):
                logger.info("starting %d worker%s", len(places), "s" if len(places) > 1 else "")
            case Assign(trial, attempt, worker):
                logger.info(
                    "starting trial %d%s on %s: %s",
                    trial,
                    _attempt_text(attempt),
                    worker,
                    params_text(self.study.params(trial)),
                )
            case Stop(trial, _, cause, reason):
                logger.info("stopping trial %d (%s): %s", trial, cause, reason)
            case Tell(trial, ending, reason):
                text = f"trial {trial} {ending.value}{self._best_text(trial)}{': ' if reason else ''}{reason}"
                logger.log(logging.WARNING if ending is Ending.FAIL else logging.INFO, "%s", text)
                self.on_tell()
            case Cancel(worker, reason):
                self.log_cancel(worker, reason)
        self.on_event()

    def wait_for_space(self, no_space: str) -> None:
        """Log that the sweep waits because no space is left, or that it goes on; once each.

        Args:
            no_space: where no space is left; empty: there is some.
        """
        if no_space and not self._no_space:
            logger.warning("%s; the sweep waits", no_space)
        elif self._no_space and not no_space:
            logger.info("there is space again; the sweep goes on")
        self._no_space = no_space
        self.on_wait(f"{no_space}; the sweep waits" if no_space else "")

    def waited(self, view: View) -> None:
        """Log what the queue says about jobs that have not started, whenever that changes."""
        self.wait_for_space(view.no_space)
        waiting = waiting_text([worker for worker in view.workers if worker.job is not JobState.GONE])
        if waiting and waiting != self._waiting:
            logger.info("%s", waiting)
        self._waiting = waiting
        self.on_event()

    def promoted(self, promotion: Promotion) -> None:
        """Log that a paused trial resumes."""
        logger.info("promoting trial %d: %s", promotion.trial, promotion.reason)

    def round_failed(self, message: str) -> None:
        """Log an error after which the controller retries."""
        logger.warning("error, retrying: %s", message)

    def log_cancel(self, worker: str, reason: str) -> None:
        """Log a worker's cancellation, once: it is repeated until the queue has obeyed."""
        if worker not in self._cancelled:
            self._cancelled.add(worker)
            logger.warning("cancelling worker %s: %s", worker, reason)

    def _best_text(self, trial: int) -> str:
        facts = self.study.facts()
        if facts.best_trial != trial or facts.best is None:
            return ""
        return f" {self.objective.name} {number(self.objective.minimised(facts.best))} (best so far)"


@dataclass
class EvaluationLog:
    """Logs the events of the evaluations' controller, among those of the search."""

    log: LineLog
    room: Room

    def reported(self, trial: int, report: Report) -> None:
        """Log nothing: an evaluation has no reports."""

    def done(self, effect: Effect) -> None:
        """Log an effect."""
        from sweep.report.reader import read_evaluation

        logger.debug("evaluations: %s", effect)
        match effect:
            case Assign(trial, attempt, worker):
                logger.info(
                    "starting evaluation of trial %d%s on evaluations/%s", trial, _attempt_text(attempt), worker
                )
            case Stop(trial, _, cause, reason):
                logger.info("stopping evaluation of trial %d (%s): %s", trial, cause, reason)
            case Tell(trial, Ending.COMPLETE):
                scores = scores_text(read_evaluation(self.room, trial).scores)
                logger.info("evaluation of trial %d: %s", trial, scores)
            case Tell(trial, _, reason):
                logger.warning("evaluation of trial %d failed: %s", trial, reason)
            case Cancel(worker, reason):
                self.log.log_cancel(f"evaluations/{worker}", reason)

    def waited(self, view: View) -> None:
        """Log nothing: the search logs what waits."""

    def promoted(self, promotion: Promotion) -> None:
        """Log nothing: an evaluation is never paused."""

    def round_failed(self, message: str) -> None:
        """Log an error after which the controller retries."""
        logger.warning("evaluations: error, retrying: %s", message)


def _attempt_text(attempt: int) -> str:
    return f" again (attempt {attempt})" if attempt > 1 else ""
