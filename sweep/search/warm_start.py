"""Trials of an earlier study, as a new one of the same space takes them in.

Invariant: only what ended with something to learn from is taken, and once: each has a mark that says whence it came.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweep.config.space import Space
from sweep.search.distributions import distribution
from sweep.search.storage import IMPORTED


def taken_in(
    space: Space, source: str, trials: Sequence[FrozenTrial], known: Collection[str | None]
) -> list[FrozenTrial]:
    """Complete and pruned trials of an earlier study, ready to be added.

    Args:
        source: its name.
        known: the marks of those that were taken before.
    """
    return [
        optuna.create_trial(
            state=trial.state,
            value=trial.value,
            params=trial.params,
            distributions={key: distribution(space[key].domain) for key in trial.params},
            intermediate_values=trial.intermediate_values,
            user_attrs={IMPORTED: mark},
        )
        for trial in trials
        if (mark := f"{source}/{trial.number}") not in known and trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    ]
