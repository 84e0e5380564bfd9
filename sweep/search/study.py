"""The Optuna study of a sweep: proposals, verdicts, promotions and ends of trials.

Invariants: one process writes the study, under the room's lock. Proposals do not depend on restarts (see `sampling`).
A verdict stands: later reports of that trial are ignored, or held back until the trial is promoted. So what the study
knows does not depend on how fast a stop reaches a worker. In the storage a paused trial is running; samplers are shown
it as pruned (see `history`). Counts are updated as trials change: once a study is open, only `frozen` and `winners` go
through all trials, unless Optuna's own sampler or pruner does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from sweep.model.effects import Tell
from sweep.model.facts import StudyFacts, Verdict
from sweep.model.objectives import Objective
from sweep.model.states import Ending, Ruling
from sweep.search.attributes import (
    CANCELLED,
    FINAL,
    IMPORTED,
    PROMOTED,
    REASON,
    ROOM,
    SECONDS,
    STOPPED,
    TOKENS,
    UNBUILDABLE,
)
from sweep.search.counts import TrialCounts
from sweep.search.distributions import decode_params, encode
from sweep.search.finals import FinalsPlan
from sweep.search.judging import TrialJudge, optuna_pruner
from sweep.search.open_trial import OpenTrial
from sweep.search.optuna_private import (
    create_trial,
    filtered,
    frozen_id,
    start_waiting_trial,
    stored_trial,
    stored_trial_of,
)
from sweep.search.sampling import TrialSampler
from sweep.search.statistics import Statistics
from sweep.search.storage import load_study, own_trials, winners
from sweep.search.strategy.protocol import Promotion
from sweep.search.study_config import StudyConfig
from sweep.search.warm_start import importable_trials
from trainer.contract import Report


def create_or_load(storage: BaseStorage, name: str, objective: Objective) -> optuna.Study:
    """The study of this name in a storage, as it is or a new one."""
    return optuna.create_study(
        storage=storage, study_name=name, load_if_exists=True, direction=objective.direction.value
    )


class OptunaStudy:
    """A `SearchStudy` (see `ports`) on any Optuna storage.

    Args:
        exists: True: the storage must hold the study. False: it must not. None: the study is created if needed.

    Raises:
        DuplicatedStudyError: the study exists and must not.
        GiveUp: the study does not exist and must.
    """

    def __init__(self, config: StudyConfig, storage: BaseStorage | str, exists: bool | None = None) -> None:
        self._config = config
        sampler = config.sampler(config.seed)
        study = (
            load_study(storage, config.name)
            if exists
            else optuna.create_study(
                storage=storage,
                study_name=config.name,
                load_if_exists=exists is None,
                direction=config.objective.direction.value,
            )
        )
        self._study = filtered(study, sampler, optuna_pruner(config.pruner))
        self._load()

    def _load(self) -> None:
        """Read everything from the storage."""
        config, trials = self._config, self._study.get_trials(deepcopy=False)
        self._asked = len(trials)
        own = (trial.number for trial in trials if IMPORTED not in trial.user_attrs)
        self._first = next(own, self._asked)
        self._waiting = {t.number for t in trials if t.state is TrialState.WAITING and FINAL not in t.user_attrs}
        self._finals = FinalsPlan(config.finalists, config.seeds, trials)
        self._counts = TrialCounts(self._finals, Statistics(config.objective))
        self._judge = TrialJudge(config.pruner, config.objective, config.milestones)
        self._sampler = TrialSampler(
            self._study,
            config.space,
            config.sampler,
            config.seed,
            per_trial_seed=config.per_trial_seed,
            history_bound=config.history,
            objective=config.objective,
            trials=trials,
        )
        for trial in trials:
            self._load_trial(trial)
        for trial in trials:
            if trial.state is TrialState.RUNNING:  # an earlier controller asked it, and may have died while sampling
                self._sampler.seed_for(trial.number)
                self._sample(frozen_id(trial))

    def _load_trial(self, trial: FrozenTrial) -> None:
        self._judge.load(trial)
        if not trial.state.is_finished():
            return
        if FINAL in trial.user_attrs:
            self._counts.statistics.add(trial)
            return
        self._sampler.history.add_ended(trial)
        if IMPORTED not in trial.user_attrs:
            self._counts.statistics.add(trial)
            self._judge.begin(trial.number, decode_params(self._config.space, trial), trial.state)

    # --- Study ------------------------------------------------------------------------------------------------

    def ask(self) -> int:
        number = min(self._waiting, default=self._asked)
        self._sampler.seed_for(number)
        if self._waiting:
            trial_id = start_waiting_trial(self._study, number)
            self._waiting.discard(number)
        else:
            trial_id = create_trial(self._study)
            self._asked += 1
        return self._sample(trial_id)

    def params(self, number: int) -> Mapping[str, Any]:
        return self._counts.open[number].params

    def record(
        self, number: int, reports: Sequence[Report], worker: str = "", new_allowed: bool = True
    ) -> Verdict | None:
        trial = self._counts.open[number]
        for report in reports:
            if trial.verdict is None:
                self._add_and_judge(trial, report, worker, new_allowed)
            elif trial.verdict.ruling is Ruling.PAUSE:
                if report.milestone in trial.values:  # an earlier controller has stored it
                    self._judge.add(trial, report, worker)
                else:
                    trial.held_back.append((report, worker))
            elif report.milestone in trial.values:  # before a stop that an earlier controller has stored
                self._judge.add_to_curve(number, report, worker)
        return trial.verdict

    def objective(self, number: int) -> float | None:
        return self._counts.open[number].objective

    def tell(self, result: Tell, tokens: int, seconds: float = 0.0) -> None:
        trial = self._counts.open.get(result.trial)
        if trial is None:
            return
        for report, worker in trial.held_back:  # made before the pause reached the trial, perhaps up to its end
            self._judge.add(trial, report, worker)
        attributes = {
            REASON: result.reason,
            CANCELLED: result.cancelled,
            UNBUILDABLE: result.unbuildable,
            TOKENS: tokens,
            SECONDS: seconds,
        }
        stored = self._stored(trial).user_attrs  # by a controller that died before it could tell
        for key, value in attributes.items():
            if value and stored.get(key) != value:
                trial.trial.set_user_attr(key, value)
        value = trial.objective if result.ending is Ending.COMPLETE else None
        self._sampler.tell(trial.trial, value, TrialState[result.ending.value])
        ended = self._stored(trial)
        self._counts.close(ended)
        if not trial.final:
            self._sampler.history.add_ended(ended)
            self._judge.end(result.trial, ended.state)

    def facts(self) -> StudyFacts:
        return self._counts.facts(self._sampler.exhausted)

    # --- PausingStudy -----------------------------------------------------------------------------------------

    def restore_pause(self, number: int, reason: str) -> None:
        trial = self._counts.open[number]
        if self._judge.restore_pause(trial, reason):
            self._sampler.history.add_paused(self._stored(trial))

    def suspend(self, number: int, trained: bool = False) -> None:
        trial = self._counts.open[number]
        finals = [self._judge.value(report) for report, _ in trial.held_back if report.final]
        value = finals[-1] if finals else trial.objective
        self._counts.suspend(number, trained and value is not None and math.isfinite(value))

    def promote(self, new_allowed: bool, worker: str = "") -> Promotion | None:
        if self._counts.none_to_promote or not self._judge.can_pause:
            return None
        promotion = self._judge.promote(new_allowed, worker)
        if promotion is None:
            if not new_allowed:  # if allowed, the new trial changes the answer anyway
                self._counts.nothing_promoted()
            return None
        trial = self._counts.open[promotion.trial]
        trial.promoted_at = max(trial.values, default=0)
        trial.trial.set_user_attr(PROMOTED, trial.promoted_at)  # from here on, a later controller knows of it
        held_back, trial.held_back, trial.verdict = trial.held_back, [], None
        self._sampler.history.add_running(self._stored(trial))
        self._counts.resume(promotion.trial)
        for report, reporter in held_back:
            self.record(promotion.trial, [report], reporter, new_allowed)
        return promotion

    def trials_without_reports(self) -> Sequence[int]:
        return self._judge.trials_without_reports()

    def restore_reports(self, number: int, reports: Sequence[Report]) -> None:
        stored = stored_trial_of(self._study, number).intermediate_values
        for report in reports:
            if report.milestone in stored:  # so its value is finite
                self._judge.add_to_curve(number, report)

    # --- FinalsStudy ------------------------------------------------------------------------------------------

    def ask_final(self) -> int:
        final = self._finals.remaining(self._counts.statistics.ranks)[0]
        number = self._finals.start(final)
        if number is None:
            params = dict(stored_trial_of(self._study, final[0]).params.items())
            self._study.enqueue_trial(params, user_attrs={FINAL: list(final)})
            number, self._asked = self._asked, self._asked + 1
        return self._sample(start_waiting_trial(self._study, number))

    def seed_of(self, number: int) -> int | None:
        """The index of the seed that an open final is trained with; None for any other trial."""
        final = self._counts.open[number].trial.user_attrs.get(FINAL)
        return None if final is None else int(final[1])

    # --- what the commands ask of a study ---------------------------------------------------------------------

    @property
    def first(self) -> int:
        """The number of the first trial that this sweep asks itself: before it are those that were imported."""
        return self._first

    def winners(self) -> list[int]:
        """The trials that were the best when they ended, in that order; finals are left out."""
        return winners(self.frozen(), self._config.objective)

    def frozen(self) -> list[FrozenTrial]:
        """The stored trials that this sweep asked."""
        return own_trials(self._study)

    @property
    def optuna_study(self) -> optuna.Study:
        return self._study

    def claim(self, token: str) -> None:
        """Make this the study of the room with a token.

        Raises:
            DuplicatedStudyError: it is another room's, or has trials and no token.
        """
        owner = self._study.user_attrs.get(ROOM)
        if owner is None and not self._asked:
            self._study.set_user_attr(ROOM, token)
        elif owner != token:
            raise DuplicatedStudyError(self._study.study_name)

    def enqueue(self, params: Mapping[str, Any], again: bool = False) -> None:
        """Have these hyperparameters tried next. Does nothing if a trial has them already, unless `again`."""
        encoded = {key: encode(self._config.space[key].domain, value) for key, value in params.items()}
        self._study.enqueue_trial(encoded, skip_if_exists=not again)
        if len(self._study.get_trials(deepcopy=False)) > self._asked:
            self._waiting.add(self._asked)
            self._asked += 1

    def import_trials(self, source: str, trials: Sequence[FrozenTrial]) -> int:
        """Add the ended trials of an earlier study of the same space; returns how many were new."""
        imported = {trial.user_attrs.get(IMPORTED) for trial in self._study.get_trials(deepcopy=False)}
        added = importable_trials(self._config.space, source, trials, imported)
        self._study.add_trials(added)
        self._load()
        return len(added)

    # --- details ----------------------------------------------------------------------------------------------

    def _sample(self, trial_id: int) -> int:
        """Sample what a trial lacks and open it; returns its number."""
        asked, params = self._sampler.sample(trial_id)
        stored = stored_trial(self._study, asked)
        self._sampler.note_asked(stored)
        promoted_at, stopped = stored.user_attrs.get(PROMOTED), stored.user_attrs.get(STOPPED)
        trial = OpenTrial(
            asked.number,
            asked,
            params,
            dict(stored.intermediate_values),
            judged=promoted_at,
            promoted_at=promoted_at,
            verdict=None if stopped is None else Verdict(**stopped),
            final=FINAL in stored.user_attrs,
        )
        self._counts.add(trial)
        if not trial.final:
            self._sampler.history.add_running(stored)
            self._judge.begin(trial.number, params, TrialState.RUNNING if stopped is None else TrialState.PRUNED)
        return trial.number

    def _add_and_judge(self, trial: OpenTrial, report: Report, worker: str, new_allowed: bool) -> None:
        """Store a report, and judge it if it is the newest and was not judged before."""
        added = self._judge.add(trial, report, worker)
        newest = report.milestone == max(trial.values, default=0)
        if not added and (not newest or trial.judged == report.milestone):
            return
        if self._counts.none_to_promote:
            self._counts.changed()
        verdict = None if report.final or trial.final else self._judge.judge(trial, report, new_allowed)
        if verdict is not None and verdict.ruling is Ruling.PAUSE:
            self._sampler.history.add_paused(self._stored(trial))
        trial.judged = report.milestone

    def _stored(self, trial: OpenTrial) -> FrozenTrial:
        return stored_trial(self._study, trial.trial)
