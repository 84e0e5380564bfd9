"""The constants of the forecasting search, tuned once on recorded and synthetic curves (docs/search.md).

Invariant: nothing changes them while a sweep runs; a sweep that resumes continues with the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Policy:
    """What the search holds constant. Gaps are differences of log loss to the best trial at the same milestone.

    Args:
        max_reports: reports that the model is fitted to, at most: the cost of a forecast does not grow beyond that.
        max_trials: trials that these reports come from, at most.
        earlier_shares: besides its last report, a contender gives those at these shares of its progress.
        contender_gap: a trial with a smaller gap is a contender; the loss of any other says little about the optimum.
        own_share: share of the gap beyond `contender_gap` that the model takes for the trial's own (o).
        linear_gap: gaps are used as they are up to this one; beyond it they grow with their logarithm.
        min_improvement: log loss by which an end must be better to count as better. No seed confirms less.
        shape_reports: reports that the kernel's parameters are fitted to, at most.
        shape_marks: shares of a trial at which a report may be one of these, so that the parameters are fitted anew
            only when a trial reaches one.
        feature_variance: prior variance of the effects of the features (B2), if features are used. A feature one
            standard deviation off then moves an end by a seventh of the scale at first.
        guaranteed_fraction: a trial among the best 1/`guaranteed_fraction` at a milestone continues in any case.
        unpenalised: the best trials at a milestone that never get a rank penalty.
        rank_penalty: what the rank penalty of the last of many trials at a milestone is.
        proximity_penalty: what the proximity penalty at distance zero is.
        radius: share of every coordinate within which a complete trial causes a proximity penalty.
        full_radius_trials: the radius shrinks if there are more trials than this.
        patience: complete trials without improvement after which the search changes: see the next two.
        halve_radius_after: further ones after which the radius is halved, since the optimum may lie between two trials.
        searched_centres: how many of the best trials are then searched around, in place of one.
        neighbour_distance: largest difference in a coordinate at which a configuration is a neighbour.
        neighbour_spacing: smallest difference of a neighbour to every trial, in radii.
        rotate_after: complete trials without improvement after which neighbours vary the parameters in turn.
        guarantee_bonus: what is added to the value of a trial that continues in any case: more than any value.
        reach: standard deviations of an end that must reach the best, for a paused trial to be worth continuing when
            no new trial is allowed.
    """

    max_reports: int = 120
    max_trials: int = 80
    earlier_shares: tuple[float, ...] = (0.125, 0.35, 0.65)
    contender_gap: float = 0.1
    own_share: float = 0.1
    linear_gap: float = 0.15
    min_improvement: float = 0.003
    shape_reports: int = 48
    shape_marks: tuple[float, ...] = (0.0, 0.125, 0.35, 1.0)
    feature_variance: float = 0.02
    guaranteed_fraction: int = 4
    unpenalised: int = 3
    rank_penalty: float = 5.0
    proximity_penalty: float = 6.0
    radius: float = 0.08
    full_radius_trials: int = 16
    patience: int = 8
    halve_radius_after: int = 4
    searched_centres: int = 3
    neighbour_distance: float = 0.35
    neighbour_spacing: float = 0.6
    rotate_after: int = 4
    guarantee_bonus: float = 1e3
    reach: float = 2.0


POLICY = Policy()
