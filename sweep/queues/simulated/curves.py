"""A table's curves, as an attempt that trains along one of its rows reads them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sweep.queues.simulated.scores import base_scores, recorded_scores, scores_of
from sweep.queues.simulated.state import SimulatedAttempt
from sweep.queues.simulated.tables import CURVES, Table
from trainer.contract import Report


class Curves:
    """The reports and the tokens of attempts.

    A progress is a number of milestones, with the fraction of the one that is being trained.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        self._milestones, self._has_validation = table.milestones, table.has_validation
        self._has_scores = any(name not in CURVES for name in table.curves)
        self._tokens = table.curves["tokens"]
        # Lists, since each report reads single elements.
        self._curves: dict[str, list[list[float]]] = {name: curve.tolist() for name, curve in table.curves.items()}
        share = np.diff(self._tokens, axis=1, prepend=0.0) / self._tokens[:, -1:]
        self._share: list[list[float]] = share.tolist()

    def share(self, row: int, milestone: int) -> float:
        """The share of a trial's tokens that the milestone after this one holds."""
        return self._share[row][milestone]

    def tokens(self, row: int, progress: float) -> int:
        """Label tokens trained at this progress."""
        return int(np.interp(progress, np.arange(self._milestones + 1), [0.0, *self._tokens[row]]))

    def progress(self, row: int, tokens: int) -> float:
        """The progress at which so many label tokens are trained."""
        return float(np.interp(tokens, [0.0, *self._tokens[row]], np.arange(self._milestones + 1)))

    def report(self, attempt: SimulatedAttempt) -> Report:
        """The report of the milestone that an attempt has just ended."""
        row, milestone = attempt.row, attempt.milestone
        at, curves = milestone - 1, self._curves
        tokens = curves["tokens"][row]
        steps = curves.get("optimizer_steps")
        report = Report(
            milestone=milestone,
            step=int(steps[row][at]) if steps is not None else milestone,
            tokens=int(tokens[at]),
            epoch=0,
            loss=curves["train_loss"][row][at],
            grad_norm=curves["grad_norm"][row][at],
            lr=0.0,
            tokens_per_second=(int(tokens[at]) - (int(tokens[at - 1]) if at else 0)) / max(attempt.pace, 1e-9),
            seconds=attempt.seconds,
            val_loss=curves["val_loss"][row][at] if self._has_validation else None,
            final=milestone == self._milestones,
        )
        spec = attempt.spec
        if spec.metrics:
            scores = scores_of(spec.metrics, self._table, row, report, spec.config)
            base = base_scores(spec.metrics, self._table, report) if spec.measure_base else {}
            return replace(report, scores=scores, base_scores=base)
        if self._has_scores:
            return replace(report, scores=recorded_scores(self._table, row, milestone))
        return report
