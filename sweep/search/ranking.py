"""The rank of a trial among all that reported at its milestone, as the reason of a verdict.

Optuna's pruners answer yes or no, without a reason.

Invariants: independent of Optuna; does no input or output. The values at a milestone are kept ascending.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping

from sweep.model.facts import Verdict
from sweep.model.objectives import Objective


class Ranking:
    """The values of all trials at each milestone.

    Args:
        objective: says which values are better.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._values: dict[int, list[float]] = {}  # minimised

    def add(self, milestone: int, value: float) -> None:
        insort(self._values.setdefault(milestone, []), self._objective.minimised(value))

    def add_all(self, values: Mapping[int, float]) -> None:
        """Add what a trial reported, by milestone."""
        for milestone, value in values.items():
            self.add(milestone, value)

    def stop_verdict(self, pruner: str, milestone: int, value: float) -> Verdict:
        """The verdict of a pruner that stops a trial for a value, which must have been added.

        Args:
            pruner: the name of the pruner, for the reason.
        """
        values, minimised = self._values[milestone], self._objective.minimised
        others, better = len(values) - 1, bisect_left(values, minimised(value))
        reason = f"{pruner} at milestone {milestone}: {self._objective.name} {value:.4f}"
        if not others:
            return Verdict(milestone, value, reason)
        best = minimised(values[0] if better else values[1])
        reason += f" is worse than {better} of {others} trials there (best {best:.4f})"
        basis = {"value": value, "better": float(better), "others": float(others), "best": best}
        return Verdict(milestone, value, reason, basis=basis)
