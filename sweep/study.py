"""The Optuna study of a sweep: proposals, verdicts, endings. The only importer of Optuna.

Invariants: one process writes the study, under the room's lock. A proposal is a pure function of the study's
history and the trial's number: the sampler is made anew for each number with a seed of its own, so that a
resumed sweep proposes what an undisturbed one would have. A verdict stands: later reports of that trial are
ignored, so that what the study knows does not depend on how fast a stop arrives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from sweep.distributions import distribution, encode, suggest
from sweep.errors import GiveUp
from sweep.model import Ending, StudyFacts, Tell, Verdict
from sweep.space import Space
from trainer.contract import Report

optuna.logging.set_verbosity(optuna.logging.ERROR)

# Makes a sampler from a seed.
SamplerFactory = Callable[[int], optuna.samplers.BaseSampler]
IMPORTED = "imported_from"
REASON = "reason"
CANCELLED = "cancelled"
TOKENS = "tokens"


@dataclass(frozen=True, slots=True)
class StudyConfig:
    """What makes a study.

    Args:
        metric: the report's field that is minimised.
        per_trial_seed: whether the sampler gets a seed for each trial; grid and quasi-random samplers keep one,
            because theirs says which sequence is walked.
    """

    name: str
    space: Space
    metric: str
    seed: int
    sampler: SamplerFactory
    pruner: optuna.pruners.BasePruner
    per_trial_seed: bool = True


def journal_storage(path: Path) -> BaseStorage:
    """The journal file of a room, for its one writer: a line that a crash left torn is cut off first."""
    if path.exists():
        data = path.read_bytes()
        complete = data.rfind(b"\n") + 1
        if complete < len(data):
            with path.open("r+b") as file:
                file.truncate(complete)
        Path(f"{path}.lock").unlink(missing_ok=True)  # left by a killed writer; the room's lock says there is no other
    return JournalStorage(JournalFileBackend(str(path)))


def reading_storage(path: Path) -> BaseStorage:
    """The same for a reader beside a running controller: nothing is repaired."""
    return JournalStorage(JournalFileBackend(str(path)))


def memory_storage() -> BaseStorage:
    """A storage that ends with the process."""
    return InMemoryStorage()


class OptunaStudy:
    """A `Study` (see `ports`) on any Optuna storage."""

    def __init__(self, config: StudyConfig, storage: BaseStorage | str) -> None:
        self._config = config
        self._study = optuna.create_study(
            storage=storage,
            study_name=config.name,
            load_if_exists=True,
            direction="minimize",
            sampler=config.sampler(config.seed),
            pruner=config.pruner,
        )
        self._trials: dict[int, optuna.Trial] = {}
        self._params: dict[int, dict[str, Any]] = {}
        self._judged: dict[int, int] = {}
        self._verdicts: dict[int, Verdict] = {}
        self._exhausted = False
        for trial in self.frozen():
            if trial.state is TrialState.RUNNING:  # asked by an earlier controller, perhaps only half
                self._sample(optuna.Trial(self._study, trial._trial_id))
        self._facts = self._count()

    def ask(self) -> int:
        trials = self._study.get_trials(deepcopy=False)
        waiting = [trial.number for trial in trials if trial.state is TrialState.WAITING]
        self._seed_for(min(waiting, default=len(trials)))
        trial = self._study.ask()
        self._sample(trial)
        self._facts = self._count()
        return trial.number

    def params(self, number: int) -> Mapping[str, Any]:
        return self._params[number]

    def record(self, number: int, reports: Sequence[Report]) -> Verdict | None:
        trial = self._trials[number]
        for report in reports:
            if number in self._verdicts:
                break
            value = getattr(report, self._config.metric)
            known = self._study._storage.get_trial(trial._trial_id).intermediate_values
            if report.milestone not in known:
                trial.report(value, report.milestone)
            elif report.milestone != max(known) or self._judged.get(number) == report.milestone:
                continue
            self._judged[number] = report.milestone
            if not report.final and trial.should_prune():
                self._verdicts[number] = self._verdict(number, report, value)
        return self._verdicts.get(number)

    def tell(self, told: Tell, tokens: int) -> None:
        trial = self._trials.get(told.trial)
        frozen = self._study._storage.get_trial(trial._trial_id) if trial else None
        if trial is None or frozen is None or frozen.state.is_finished():
            return
        attrs = {REASON: told.reason, CANCELLED: told.cancelled, TOKENS: tokens}
        for key, value in attrs.items():
            if value:
                trial.set_user_attr(key, value)
        final = frozen.intermediate_values.get(frozen.last_step) if frozen.last_step is not None else None
        self._seed_for(told.trial)
        try:
            value = final if told.ending is Ending.COMPLETE else None
            self._study.tell(trial, value, state=TrialState[told.ending.value])
        except RuntimeError:  # a grid sampler asks to stop a loop that is ours; the trial has been told by then
            if not self._study._storage.get_trial(trial._trial_id).state.is_finished():
                raise
            self._exhausted = True
        for kept in (self._trials, self._judged, self._verdicts):
            kept.pop(told.trial, None)
        self._facts = self._count()

    def facts(self) -> StudyFacts:
        return self._facts

    def winners(self) -> list[int]:
        """The trials that were the best when they ended, in that order."""
        done = [trial for trial in self.frozen() if trial.state is TrialState.COMPLETE]
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

    def enqueue(self, params: Mapping[str, Any]) -> None:
        """Have this configuration tried first; nothing where it is known already."""
        encoded = {key: encode(self._config.space[key].domain, value) for key, value in params.items()}
        self._study.enqueue_trial(encoded, skip_if_exists=True)

    def import_trials(self, source: str, trials: Sequence[FrozenTrial]) -> int:
        """Add the ended trials of an earlier study of the same space; returns how many were new."""
        known = {trial.user_attrs.get(IMPORTED) for trial in self._study.get_trials(deepcopy=False)}
        added = 0
        for trial in trials:
            mark = f"{source}/{trial.number}"
            if mark in known or trial.state not in (TrialState.COMPLETE, TrialState.PRUNED):
                continue
            self._study.add_trial(
                optuna.create_trial(
                    state=trial.state,
                    value=trial.value,
                    params=trial.params,
                    distributions={key: distribution(self._config.space[key].domain) for key in trial.params},
                    intermediate_values=trial.intermediate_values,
                    user_attrs={IMPORTED: mark},
                )
            )
            added += 1
        return added

    def _sample(self, trial: optuna.Trial) -> None:
        params: dict[str, Any] = {}
        for parameter in self._config.space:
            if parameter.exists(params):
                params[parameter.key] = suggest(trial, parameter.key, parameter.domain)
        self._trials[trial.number], self._params[trial.number] = trial, params

    def _seed_for(self, number: int) -> None:
        if self._config.per_trial_seed:
            words = np.random.SeedSequence([self._config.seed, number]).generate_state(1)
            self._study.sampler = self._config.sampler(int(words[0] >> 1))

    def _verdict(self, number: int, report: Report, value: float) -> Verdict:
        others = [
            trial.intermediate_values[report.milestone]
            for trial in self._study.get_trials(deepcopy=False)
            if trial.number != number and report.milestone in trial.intermediate_values
        ]
        better = sum(1 for other in others if other < value)
        pruner = type(self._study.pruner).__name__
        metric = self._config.metric
        reason = f"{pruner} at milestone {report.milestone}: {metric} {value:.4f}"
        if others:
            reason += f" is worse than {better} of {len(others)} trials there (best {min(others):.4f})"
        return Verdict(report.milestone, value, reason)

    def _count(self) -> StudyFacts:
        own = self.frozen()
        by_state = {state: [t for t in own if t.state is state] for state in TrialState}
        complete = by_state[TrialState.COMPLETE]
        best = min(complete, key=lambda trial: trial.value or 0.0, default=None)
        cancelled = sum(1 for trial in by_state[TrialState.FAIL] if CANCELLED in trial.user_attrs)
        return StudyFacts(
            open=tuple(trial.number for trial in by_state[TrialState.RUNNING]),
            complete=len(complete),
            pruned=len(by_state[TrialState.PRUNED]),
            failed=len(by_state[TrialState.FAIL]) - cancelled,
            cancelled=cancelled,
            best=best.value if best else None,
            best_trial=best.number if best else None,
            tokens=sum(int(trial.user_attrs.get(TOKENS, 0)) for trial in own),
            exhausted=self._exhausted or self._grid_is_exhausted(len(own)),
        )

    def _grid_is_exhausted(self, asked: int) -> bool:
        sampler = self._study.sampler
        return isinstance(sampler, optuna.samplers.GridSampler) and asked >= len(sampler._all_grids)


def own_trials(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that a sweep asked for: neither imported nor still enqueued."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False)
        if IMPORTED not in trial.user_attrs and trial.state is not TrialState.WAITING
    ]


def load_study(storage: BaseStorage | str, name: str) -> optuna.Study:
    """An existing study, for reading.

    Raises:
        GiveUp: the storage holds no study of this name.
    """
    try:
        return optuna.load_study(study_name=name, storage=storage)
    except KeyError as error:
        raise GiveUp(f"the storage holds no study named {name}") from error
