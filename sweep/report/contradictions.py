"""Whether what the study says of a complete trial agrees with the trial's own files.

A damaged journal may still be a journal: one digit of a value, or of a hyperparameter, makes another trial the best
one. A value stands in three places, a hyperparameter in two.

Invariant: what stands in one place only is taken as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sweep.config.settings import Settings
from sweep.config.torchtune import seed_of_final, value_at
from sweep.model.objectives import Objective
from trainer.contract import LOSSES, Report

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

# Databases round the last digits.
TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why a trial cannot be trusted.

    Args:
        text: a clause for a person.
        value: the best objective that anything says of the trial, minimised.
    """

    text: str
    value: float


def doubt_of(settings: Settings, trial: FrozenTrial, config: Any, reports: Sequence[Report]) -> Doubt | None:
    """Why a complete trial cannot be trusted; None if nothing speaks against it.

    Args:
        config: of its last attempt, as JSON; anything else than a mapping is not compared.
        reports: of the trial's files, by milestone.
    """
    objective = settings.objectives[0]
    witnesses = _witnesses(trial, objective, reports)
    text = _of_value(trial, witnesses) or _of_space(settings, trial) or _of_params(trial, config)
    text = text or _of_seed(settings, trial, config)
    claimed = [objective.minimised(value) for value in (trial.value, *witnesses) if value is not None]
    return Doubt(text, min(claimed, default=-math.inf)) if text else None


def overlooked(objective: Objective, reports: Sequence[Report]) -> Doubt | None:
    """The doubt about a trial that the study calls failed or pruned, while it has completed and nothing stopped it."""
    value = reports[-1].value(objective.name) if reports and reports[-1].final else math.nan
    if not math.isfinite(value):
        return None
    said = f"it has completed with {value!r} by its files, and not by the study"
    return Doubt(said, objective.minimised(value))


def unsure_text(best: float | None, doubts: Mapping[int, Doubt]) -> str:
    """Why nobody can say which trial is the best; empty if no doubt could change that.

    Args:
        best: the objective of the best trial without doubt, minimised; None: there is none, or finals decide.
        doubts: by trial.
    """
    said = [
        f"trial {number}: {doubt.text}"
        for number, doubt in sorted(doubts.items())
        if best is None or doubt.value < best
    ]
    return f"which trial is the best cannot be told ({'; '.join(said)})" if said else ""


def _witnesses(trial: FrozenTrial, objective: Objective, reports: Sequence[Report]) -> list[float]:
    """The objectives in the last report of the study and in the final one of the files."""
    in_study = trial.intermediate_values
    values = [in_study[max(in_study)]] if in_study else []
    if reports and reports[-1].final and _has(reports[-1], objective.name):
        values.append(reports[-1].value(objective.name))
    return values


def _has(report: Report, metric: str) -> bool:
    """Whether a report has a metric, even one that is no number."""
    return metric in report.scores or (metric in LOSSES and getattr(report, metric) is not None)


def _of_value(trial: FrozenTrial, witnesses: Sequence[float]) -> str:
    """A value that neither the last report in the study nor the final one in the files has."""
    if trial.value is None:
        return "the study has no value of it"
    if not witnesses or any(_same(trial.value, other) for other in witnesses):
        return ""
    return f"its value in the study, {trial.value!r}, is not that of its reports, {witnesses[-1]!r}"


def _of_space(settings: Settings, trial: FrozenTrial) -> str:
    """A hyperparameter that the sweep does not have."""
    unknown = [key for key in trial.params if key not in settings.space]
    return f"the space has no {unknown[0]}" if unknown else ""


def _of_params(trial: FrozenTrial, config: Any) -> str:
    """A number that the trial was not trained with."""
    for key, value in trial.params.items():
        trained = _number_at(config, key)
        if trained is not None and _is_number(value) and not _same(value, trained):
            return f"{key} is {value!r} in the study and {trained!r} in its spec.json"
    return ""


def _of_seed(settings: Settings, trial: FrozenTrial, config: Any) -> str:
    """A seed that the trial should not have: it is a final, and the study does not say so, or the other way round."""
    from sweep.search.storage import final_of

    if settings.queue.simulated or "seed" in settings.space or {"seed", "+seed"} & settings.derive.keys():
        return ""
    trained, base = _number_at(config, "seed"), settings.torchtune.get("seed")
    base = settings.search.seed if base is None else base
    if trained is None or not _is_number(base):
        return ""
    final = final_of(trial)
    expected = base if final is None else seed_of_final(int(base), final[1])
    if trained == expected:
        return ""
    return f"its seed is {trained} in its spec.json, and {expected} by the study"


def _number_at(config: Any, key: str) -> float | None:
    if not isinstance(config, Mapping):
        return None
    try:
        value = config[key] if key in config else value_at(config, key)
    except KeyError:
        return None
    return value if _is_number(value) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(one: float, other: float) -> bool:
    return one == other or math.isclose(one, other, rel_tol=TOLERANCE)
