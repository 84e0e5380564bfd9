"""What one view means for the sweep as a whole: whether it continues, and what it could still start.

Invariant: a pure function of facts and limits; imports nothing that acts.
"""

from __future__ import annotations

from functools import cached_property

from sweep.controller.budget import Budget
from sweep.controller.occupancy import Occupancy
from sweep.model.facts import View
from sweep.model.limits import Limits
from sweep.model.states import Mode


class Situation:
    """One view together with all that is derived from it for the sweep as a whole."""

    def __init__(self, view: View, limits: Limits) -> None:
        self.view, self.limits = view, limits
        self.budget = Budget(view, limits)
        self.occupancy = Occupancy(view, limits)

    @cached_property
    def continues(self) -> bool:
        """Whether the sweep may start trials and workers at all, apart from its budget."""
        return self.view.mode is Mode.RUN and self.abort_reason is None and not self.target_ends_search

    @property
    def may_start(self) -> bool:
        """Whether anything may be started now: the sweep continues, and there is space for what that would write."""
        return self.continues and not self.view.no_space

    @cached_property
    def target_ends_search(self) -> bool:
        """Whether the target was reached while trials of the search are open; finals are still trained after it."""
        return self.budget.target_reached and self.view.study.searching

    @cached_property
    def abort_reason(self) -> str | None:
        """Why the sweep must end with an error, if it must: too many trials failed, or too many workers in a row."""
        study, limits = self.view.study, self.limits
        ended = study.complete + study.pruned + study.failed
        if ended >= limits.min_ended_for_share and study.failed > limits.max_failure_share * ended:
            return (
                f"{study.failed} of {ended} trials failed, more than search.max_failure_share="
                f"{limits.max_failure_share:g}; see their reasons, fix the cause, raise the share and resume"
            )
        if self.first_alone and study.unbuildable:
            return f"the first trial cannot be built: {study.failure}; correct the cause, and start the sweep anew"
        if self.view.start_failures >= limits.max_start_failures:
            last = f" ({self.view.start_failure})" if self.view.start_failure else ""
            return f"{self.view.start_failures} workers in a row ended before they were ready{last}; see `sweep logs`"
        return None

    @cached_property
    def first_alone(self) -> bool:
        """Whether nobody knows yet that the configuration builds, so that one trial goes first and the others wait."""
        study = self.view.study
        return self.limits.first_alone and not (self.view.tokens or study.complete or study.pruned)

    @cached_property
    def has_paused(self) -> bool:
        """Whether there are paused trials of which no attempt can be running."""
        return bool(self.view.study.suspended) or any(
            trial.paused and not self.occupancy.is_running(trial) for trial in self.view.trials
        )

    @cached_property
    def may_promote(self) -> bool:
        """Whether the study may have a paused trial that is worth resuming."""
        return self.budget.allows_more and not self.view.study.none_to_promote and self.has_paused

    @cached_property
    def finals(self) -> int:
        """How many finals to ask for now: none until nothing else can start and all other trials have ended."""
        if self.budget.new_trials > 0 or self.has_paused or self.view.study.searching:
            return 0
        return self.view.study.finals

    @cached_property
    def paused_are_final(self) -> bool:
        """Whether paused trials can no longer be promoted, so that they end as they are."""
        if self.view.mode is Mode.CANCEL or self.target_ends_search:
            return True
        only_paused = all(trial.paused and not self.occupancy.is_running(trial) for trial in self.view.trials)
        return self.continues and only_paused and self.budget.new_trials <= 0 and not self.may_promote
