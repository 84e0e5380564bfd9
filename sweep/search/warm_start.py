"""Selects the trials of an earlier study that a new study of the same space imports.

Invariants: only trials that ended with a result are imported, and each only once: a mark says where it came from.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import optuna
from optuna.trial import FrozenTrial, TrialState

from sweep.config.space import Space
from sweep.search.attributes import IMPORTED
from sweep.search.distributions import distribution


def importable_trials(
    space: Space, source: str, trials: Sequence[FrozenTrial], imported: Collection[str | None]
) -> list[FrozenTrial]:
    """Copies of the complete and pruned trials of an earlier study, ready to be added to a new one.

    Args:
        source: the name of the earlier study.
        imported: the marks of the trials that were imported before; these are left out.
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
        if (mark := f"{source}/{trial.number}") not in imported
        and trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
    ]
