"""Reports that no training made."""

from __future__ import annotations

from trainer.contract import Report

MILESTONES = 6


def report(milestone: int, loss: float) -> Report:
    return Report(milestone, milestone, milestone * 10, 0, loss, 1.0, 1e-3, 1.0, 0.1, final=milestone == MILESTONES)
