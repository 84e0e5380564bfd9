"""The Optuna study of a sweep: proposals, verdicts, promotions, endings.

Invariants: one process writes the study, under the room's lock. A proposal is a pure function of the study's
history and the trial's number: the sampler is made anew for each number with a seed of its own, so that a
resumed sweep proposes what an undisturbed one would have. A verdict stands: later reports of that trial are
ignored, or held back until it is promoted, so that what the study knows does not depend on how fast a stop arrives.
In the storage a paused trial is running; a sampler is shown it as pruned. What is asked often is counted as it
changes: no call but `frozen` walks over all trials, once a study is open, unless Optuna's own sampler or pruner does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from sweep.config.space import Space
from sweep.model import Ending, Ruling, StudyFacts, Tell, Verdict
from sweep.search.curves import Curves
from sweep.search.distributions import decode_params, encode, suggest
from sweep.search.finals import Repeats
from sweep.search.grid import GridWalk
from sweep.search.history import History, KnownSpace, WatchedStudy
from sweep.search.ranking import Ranking
from sweep.search.statistics import Statistics
from sweep.search.storage import (
    CANCELLED,
    FINAL,
    IMPORTED,
    PROMOTED,
    REASON,
    SECONDS,
    STOPPED,
    TOKENS,
    load_study,
    own_trials,
)
from sweep.search.strategy.halving import Promotion, Standing, Strategy
from sweep.search.warm_start import taken_in
from trainer.contract import Report

# Makes a sampler from a seed.
SamplerFactory = Callable[[int], optuna.samplers.BaseSampler]


@dataclass(frozen=True, slots=True)
class StudyConfig:
    """What makes a study.

    Args:
        metric: the report's field that is minimised.
        pruner: Optuna's, which stops; or a strategy of ours, which may also pause and promote.
        milestones: reports of a trial that runs to its end.
        finalists, seeds: how many of the best are trained again in the end, and with how many seeds.
        history: ended trials that a TPE sampler is shown at most, the best and the newest; None: all.
        per_trial_seed: whether the sampler gets a seed for each trial; grid and quasi-random samplers keep one,
            because theirs says which sequence is walked.
    """

    name: str
    space: Space
    metric: str
    seed: int
    sampler: SamplerFactory
    pruner: optuna.pruners.BasePruner | Strategy
    per_trial_seed: bool = True
    milestones: int = 12
    history: int | None = None
    finalists: int = 0
    seeds: int = 0


STANDINGS = {
    TrialState.RUNNING: Standing.RUNNING,
    TrialState.COMPLETE: Standing.COMPLETE,
    TrialState.PRUNED: Standing.PRUNED,
    TrialState.FAIL: Standing.FAILED,
}


@dataclass(slots=True)
class _Open:
    """A trial that was asked and not told.

    Args:
        values: what it reported, by milestone, as the storage has it.
        judged: the milestone of the last verdict or the last decision to go on.
        lifted: the milestone of the last pause that a promotion ended; the storage has it, so that it outlives us.
        held: reports after a pause, each with its worker, not known to anybody until the trial is promoted.
    """

    trial: optuna.Trial
    params: dict[str, Any]
    values: dict[int, float]
    judged: int | None = None
    lifted: int | None = None
    verdict: Verdict | None = None
    held: list[tuple[Report, str]] = field(default_factory=list)
    final: bool = False


class OptunaStudy:
    """A `Study` (see `ports`) on any Optuna storage.

    Args:
        exists: whether the storage must hold it already, or must not; None: it is made where it is not there.

    Raises:
        DuplicatedStudyError: it exists, and must not. GiveUp: it does not, and must.
    """

    def __init__(self, config: StudyConfig, storage: BaseStorage | str, exists: bool | None = None) -> None:
        self._config = config
        strategy = None if isinstance(config.pruner, optuna.pruners.BasePruner) else config.pruner
        sampler = config.sampler(config.seed)
        made = (
            load_study(storage, config.name)
            if exists
            else optuna.create_study(
                storage=storage, study_name=config.name, load_if_exists=exists is None, direction="minimize"
            )
        )
        pruner = config.pruner if isinstance(config.pruner, optuna.pruners.BasePruner) else optuna.pruners.NopPruner()
        self._study = WatchedStudy(config.name, made._storage, sampler, pruner)
        self._curves = Curves(strategy, config.milestones) if strategy else None
        self._never_prunes = isinstance(pruner, optuna.pruners.NopPruner)  # it would be handed a copy of the trial
        self._exhausted = False
        self._load()

    def _load(self) -> None:
        """Take in all that the storage holds."""
        bounded = isinstance(self._study.sampler, optuna.samplers.TPESampler)
        self._history = History(self._config.history if bounded else None)
        self._open: dict[int, _Open] = {}
        self._active: set[int] = set()
        self._aside: set[int] = set()
        self._statistics = Statistics()
        self._ranking = Ranking()
        self._stuck = False
        self._facts: StudyFacts | None = None
        trials = self._study.get_trials(deepcopy=False)
        self._asked = len(trials)
        self._waiting = {t.number for t in trials if t.state is TrialState.WAITING and FINAL not in t.user_attrs}
        sampler = self._study.sampler
        self._walk = GridWalk(sampler, trials) if isinstance(sampler, optuna.samplers.GridSampler) else None
        self._repeats = Repeats(self._config.finalists, self._config.seeds, trials)
        for trial in trials:
            self._ranking.add_all(trial.intermediate_values)
            if trial.state.is_finished() and FINAL in trial.user_attrs:
                self._statistics.add(trial)
            elif trial.state.is_finished():
                self._history.ended(trial)
                if IMPORTED not in trial.user_attrs:
                    self._statistics.add(trial)
                    self._begin(trial.number, decode_params(self._config.space, trial), STANDINGS[trial.state])
        for trial in trials:
            if trial.state is TrialState.RUNNING:  # asked by an earlier controller, perhaps only half
                self._seed_for(trial.number)
                self._sample(trial._trial_id)

    def ask(self) -> int:
        number = min(self._waiting, default=self._asked)
        self._seed_for(number)
        if self._waiting:
            trial_id = self._id_of(number)
            self._study._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
            self._waiting.discard(number)
        else:
            trial_id = self._study._storage.create_new_trial(self._study._study_id)
            self._asked += 1
        self._changed()
        return self._sample(trial_id)

    def ask_final(self) -> int:
        final = self._repeats.left(self._statistics.ranks)[0]
        found = self._repeats.begin(final)
        if found is None:
            params = dict(self._study._storage.get_trial(self._id_of(final[0])).params.items())
            self._study.enqueue_trial(params, user_attrs={FINAL: list(final)})
            found, self._asked = self._asked, self._asked + 1
        self._study._storage.set_trial_state_values(self._id_of(found), TrialState.RUNNING)
        self._changed()
        return self._sample(self._id_of(found))

    def seed_of(self, number: int) -> int | None:
        """Which of the seeds an open final is to be trained with; None for any other trial."""
        final = self._open[number].trial.user_attrs.get(FINAL)
        return None if final is None else int(final[1])

    def params(self, number: int) -> Mapping[str, Any]:
        return self._open[number].params

    def record(self, number: int, reports: Sequence[Report], worker: str = "", new: bool = True) -> Verdict | None:
        known = self._open[number]
        for report in reports:
            if known.verdict is None:
                self._take(number, report, worker, new)
            elif known.verdict.ruling is Ruling.PAUSE:
                if report.milestone in known.values:  # of an earlier controller's time
                    self._add(number, report, worker)
                else:
                    known.held.append((report, worker))
        return known.verdict

    def restore_pause(self, number: int, reason: str) -> None:
        known = self._open[number]
        at = max(known.values, default=0)
        if known.verdict is None and self._curves is not None and (known.lifted is None or known.lifted < at):
            known.verdict = Verdict(at, known.values.get(at, math.nan), reason, Ruling.PAUSE)
            self._curves.stand(number, Standing.PAUSED)
            self._history.paused(self._frozen(known))

    def suspend(self, number: int) -> None:
        self._active.discard(number)
        self._aside.add(number)
        self._facts = None

    def promote(self, new_allowed: bool, worker: str = "") -> Promotion | None:
        if self._curves is None or self._stuck:
            return None
        found = self._curves.promote(new_allowed, worker)
        if found is None:
            if not new_allowed:  # else a new trial changes everything anyway
                self._stuck = True
                self._facts = None
            return None
        known = self._open[found.trial]
        known.lifted = max(known.values, default=0)
        known.trial.set_user_attr(PROMOTED, known.lifted)  # from here on it is a fact
        held, known.held, known.verdict = known.held, [], None
        self._aside.discard(found.trial)
        self._active.add(found.trial)
        self._history.running(self._frozen(known))
        self._changed()
        for report, where in held:
            self.record(found.trial, [report], where, new_allowed)
        return found

    def trials_without_reports(self) -> Sequence[int]:
        return self._curves.without_reports() if self._curves else ()

    def restore_reports(self, number: int, reports: Sequence[Report]) -> None:
        known = self._study._storage.get_trial(self._id_of(number)).intermediate_values
        for report in reports:
            if report.milestone in known:
                self._add(number, report)

    def tell(self, told: Tell, tokens: int, seconds: float = 0.0) -> None:
        known = self._open.get(told.trial)
        if known is None:
            return
        trial = known.trial
        for report, where in known.held:  # made before the pause had reached it, perhaps to its very end
            self._hear(told.trial, report, where)
        attrs = {REASON: told.reason, CANCELLED: told.cancelled, TOKENS: tokens, SECONDS: seconds}
        said = self._frozen(known).user_attrs  # by a controller that died before it could tell
        for key, value in attrs.items():
            if value and said.get(key) != value:
                trial.set_user_attr(key, value)
        self._seed_for(told.trial)
        try:
            complete = told.ending is Ending.COMPLETE
            value = known.values[max(known.values)] if complete and known.values else None
            self._study.tell(trial, value, state=TrialState[told.ending.value])
        except RuntimeError:  # a grid sampler asks to stop a loop that is ours; the trial has been told by then
            if not self._frozen(known).state.is_finished():
                raise
            self._exhausted = self._walk is None
        frozen = self._frozen(known)
        del self._open[told.trial]
        self._active.discard(told.trial)
        self._aside.discard(told.trial)
        self._statistics.add(frozen)
        if not known.final:
            self._history.ended(frozen)
        if self._curves is not None and not known.final:
            self._curves.stand(told.trial, STANDINGS[frozen.state])
        self._changed()

    def facts(self) -> StudyFacts:
        if self._facts is None:
            self._facts = self._count()
        return self._facts

    def winners(self) -> list[int]:
        """The trials that were the best when they ended, in that order; finals are left out."""
        done = [t for t in self.frozen() if t.state is TrialState.COMPLETE and FINAL not in t.user_attrs]
        best, found = math.inf, []
        for trial in sorted(done, key=lambda trial: (str(trial.datetime_complete), trial.number)):
            if trial.value is not None and trial.value < best:
                best = trial.value
                found.append(trial.number)
        return found

    def frozen(self) -> list[FrozenTrial]:
        """Every trial of this sweep that was asked for."""
        return own_trials(self._study)

    @property
    def optuna_study(self) -> optuna.Study:
        return self._study

    def enqueue(self, params: Mapping[str, Any], again: bool = False) -> None:
        """Have this configuration tried first; nothing where it is known already, unless it shall be tried again."""
        encoded = {key: encode(self._config.space[key].domain, value) for key, value in params.items()}
        self._study.enqueue_trial(encoded, skip_if_exists=not again)
        if len(self._study.get_trials(deepcopy=False)) > self._asked:
            self._waiting.add(self._asked)
            self._asked += 1

    def import_trials(self, source: str, trials: Sequence[FrozenTrial]) -> int:
        """Add the ended trials of an earlier study of the same space; returns how many were new."""
        known = {trial.user_attrs.get(IMPORTED) for trial in self._study.get_trials(deepcopy=False)}
        added = taken_in(self._config.space, source, trials, known)
        self._study.add_trials(added)
        self._load()
        return len(added)

    def _sample(self, trial_id: int) -> int:
        """Sample what a trial lacks; returns its number."""
        if self._walk is not None:
            self._walk.place(self._study, trial_id)
        self._study.shown = self._history.show
        try:
            trial = optuna.Trial(self._study, trial_id)
            params: dict[str, Any] = {}
            for parameter in self._config.space:
                if parameter.exists(params):
                    params[parameter.key] = suggest(trial, parameter.key, parameter.domain)
        finally:
            self._study.shown = None
        known = _Open(trial, params, {}, final=FINAL in trial.user_attrs)
        frozen = self._frozen(known)
        if self._walk is not None:
            self._walk.asked(frozen.params)
        known.values = dict(frozen.intermediate_values)
        known.judged = known.lifted = frozen.user_attrs.get(PROMOTED)
        stopped = frozen.user_attrs.get(STOPPED)
        known.verdict = None if stopped is None else Verdict(**stopped)
        self._open[trial.number] = known
        self._active.add(trial.number)
        if not known.final:
            self._history.running(frozen)
            self._begin(trial.number, params, Standing.RUNNING)
        return trial.number

    def _take(self, number: int, report: Report, worker: str, new: bool) -> None:
        known = self._open[number]
        if not self._hear(number, report, worker) and (
            report.milestone != max(known.values) or known.judged == report.milestone
        ):
            return
        if self._stuck:
            self._changed()
        if not report.final and not known.final:
            self._judge(number, report, new)
        known.judged = report.milestone

    def _judge(self, number: int, report: Report, new: bool) -> None:
        known = self._open[number]
        if self._curves is not None:
            known.verdict = self._curves.verdict(number, new)
        elif not self._never_prunes and known.trial.should_prune():
            metric, pruner = self._config.metric, type(self._study.pruner).__name__
            known.verdict = self._ranking.stop(pruner, metric, report.milestone, getattr(report, metric))
            # at once: a pruner that counts rungs would not say it again to a later controller
            known.trial.set_user_attr(STOPPED, known.verdict.to_json())
        if known.verdict is not None and known.verdict.ruling is Ruling.PAUSE:
            self._history.paused(self._frozen(known))

    def _hear(self, number: int, report: Report, worker: str) -> bool:
        """Take a report down, without a verdict; False where that was done before."""
        known = self._open[number]
        self._add(number, report, worker)
        if report.milestone in known.values:
            return False
        value = getattr(report, self._config.metric)
        known.trial.report(value, report.milestone)
        known.values[report.milestone] = value
        self._ranking.add(report.milestone, value)
        return True

    def _frozen(self, known: _Open) -> FrozenTrial:
        return self._study._storage.get_trial(known.trial._trial_id)

    def _id_of(self, number: int) -> int:
        return self._study._storage.get_trial_id_from_study_id_trial_number(self._study._study_id, number)

    def _begin(self, number: int, params: Mapping[str, Any], standing: Standing) -> None:
        if self._curves is not None:
            self._curves.begin(number, params, standing)

    def _add(self, number: int, report: Report, worker: str = "") -> None:
        if self._curves is not None and not self._is_final(number):
            self._curves.add(number, report, worker)

    def _is_final(self, number: int) -> bool:
        return number in self._open and self._open[number].final

    def _changed(self) -> None:
        """Something was learnt."""
        self._stuck = False
        self._facts = None

    def _seed_for(self, number: int) -> None:
        if self._config.per_trial_seed:
            words = np.random.SeedSequence([self._config.seed, number]).generate_state(1)
            self._study.sampler = self._config.sampler(int(words[0] >> 1))
        if isinstance(self._study.sampler, optuna.samplers.TPESampler):
            self._study.sampler._search_space = KnownSpace(self._history)

    def _count(self) -> StudyFacts:
        tally, counts = self._statistics, self._statistics.counts
        return StudyFacts(
            open=tuple(sorted(self._active)),
            suspended=tuple(sorted(self._aside)),
            complete=counts[TrialState.COMPLETE],
            pruned=counts[TrialState.PRUNED],
            failed=counts[TrialState.FAIL] - tally.cancelled,
            cancelled=tally.cancelled,
            best=tally.best,
            best_trial=tally.best_trial,
            tokens=tally.tokens,
            exhausted=self._exhausted or (self._walk is not None and self._walk.exhausted),
            stuck=self._stuck,
            seconds=tally.seconds,
            gain=tally.gain,
            finals=len(self._repeats.left(tally.ranks)),
            searching=bool(self._aside) or any(not self._open[number].final for number in self._active),
        )
