"""The contracts of `Study`, `PausingStudy` and `FinalsStudy`, held by every implementation.

Below them: what every storage under an `OptunaStudy` keeps, and what every sampler and pruner does in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import optuna
import pytest

from sweep.config.settings import Settings
from sweep.config.space_grammar import parse_space
from sweep.controller.ports import Channel, Dispatcher, Ports, SearchStudy, Study
from sweep.evaluation.controller import EvaluationStudy
from sweep.model.effects import Tell
from sweep.model.facts import Verdict
from sweep.model.objectives import Objective
from sweep.model.states import Ending, Ruling
from sweep.queues.simulated.dispatcher import ChargedStudy
from sweep.resources import conf_dir
from sweep.search.journal import journal_storage
from sweep.search.storage import memory_storage
from sweep.search.strategy.freeze_thaw import FreezeThaw
from sweep.search.strategy.halving import AsynchronousHalving
from sweep.search.strategy.protocol import Curve
from sweep.search.study import OptunaStudy
from sweep.search.study_config import StudyConfig
from sweep.wiring.compose import compose_config, freeze
from sweep.wiring.session import study_config as study_config_of
from tests.helpers.made_reports import MILESTONES, report
from trainer.contract import Report
from trainer.room import Room

SPACE = {
    "optimizer.lr": "tag(log, interval(1e-5, 1e-1))",
    "model.lora_rank": "choice(4, 8, 16)",
    "model.lora_attn_modules": "choice([q_proj, v_proj], [q_proj, k_proj, v_proj])",
}

Open = Callable[[], OptunaStudy]
OpenStudy = Callable[[], Study]
OpenSearch = Callable[[], SearchStudy]


def study_config(
    sampler: Any = optuna.samplers.TPESampler, pruner: Any = None, finals: tuple[int, int] = (0, 0), **space: str
) -> StudyConfig:
    return StudyConfig(
        name="s",
        space=parse_space(space or SPACE),
        objective=Objective("loss"),
        seed=1,
        sampler=lambda seed: sampler(seed=seed),
        pruner=pruner or optuna.pruners.NopPruner(),
        milestones=MILESTONES,
        finalists=finals[0],
        seeds=finals[1],
    )


@pytest.fixture(params=["journal", "sqlite"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    def journal() -> OptunaStudy:
        return OptunaStudy(study_config(), journal_storage(tmp_path / "study.journal"))

    def sqlite() -> OptunaStudy:
        return OptunaStudy(study_config(), f"sqlite:///{tmp_path}/study.db")

    return journal if request.param == "journal" else sqlite


class StillClock:
    """A clock on which no time passes."""

    def now(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        pass


# --- Study -----------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["optuna", "charged", "evaluation"])
def any_study(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStudy:
    """Opens the study as each controller of one sweep would."""

    def optuna_study() -> OptunaStudy:
        return OptunaStudy(study_config(), journal_storage(tmp_path / "study.journal"))

    def evaluation_study() -> EvaluationStudy:
        return EvaluationStudy(Room(tmp_path), lambda: [0, 1, 2])

    kinds: dict[str, OpenStudy] = {
        "optuna": optuna_study,
        "charged": lambda: ChargedStudy(optuna_study(), StillClock()),
        "evaluation": evaluation_study,
    }
    return kinds[request.param]


def test_an_asked_trial_is_open_until_it_is_told(any_study: OpenStudy) -> None:
    study = any_study()
    first, second = study.ask(), study.ask()
    assert first != second
    assert study.facts().open == tuple(sorted((first, second)))
    study.record(first, [report(MILESTONES, 1.0)])
    study.tell(Tell(first, Ending.COMPLETE, ""), 10)
    study.tell(Tell(second, Ending.FAIL, "why"), 10)
    facts = study.facts()
    assert (facts.open, facts.complete, facts.failed) == ((), 1, 1)


def test_a_later_controller_knows_open_and_ended_trials(any_study: OpenStudy) -> None:
    study = any_study()
    first, second = study.ask(), study.ask()
    study.record(first, [report(MILESTONES, 1.0)])
    study.tell(Tell(first, Ending.COMPLETE, ""), 10)
    again = any_study()
    assert (again.facts().open, again.facts().complete) == ((second,), 1)
    assert again.params(second) == study.params(second)
    assert again.ask() not in (first, second)


def test_an_end_is_recorded_once(any_study: OpenStudy) -> None:
    study = any_study()
    number = study.ask()
    study.record(number, [report(MILESTONES, 1.0)])
    study.tell(Tell(number, Ending.COMPLETE, ""), 10)
    for later in (study, any_study()):
        later.tell(Tell(number, Ending.FAIL, "too late"), 10)
        assert (later.facts().complete, later.facts().failed) == (1, 0)


def test_the_end_of_a_trial_that_was_never_asked_is_ignored(any_study: OpenStudy) -> None:
    study = any_study()
    study.tell(Tell(7, Ending.FAIL, "why"), 10)
    assert (study.facts().open, study.facts().failed) == ((), 0)


def test_a_study_of_no_pauses_gives_no_verdict(any_study: OpenStudy) -> None:
    study = any_study()
    assert study.record(study.ask(), [report(1, 3.0)], "w0001", new_allowed=False) is None


def test_only_a_study_that_can_pause_and_train_finals_says_so(any_study: OpenStudy) -> None:
    study = any_study()
    ports = Ports(study, cast(Channel, None), cast(Dispatcher, None), StillClock())
    able: object = None if isinstance(study, EvaluationStudy) else study
    assert (ports.pausing is able, ports.finals is able) == (True, True)


# --- PausingStudy ----------------------------------------------------------------------------------------------------


@pytest.fixture(params=["halving", "freeze_thaw", "charged"])
def pausing(request: pytest.FixtureRequest, tmp_path: Path) -> OpenSearch:
    """Opens a study whose first trial pauses at its first report, once three more have reported better ones."""
    pruner = FreezeThaw("loss", design=4) if request.param == "freeze_thaw" else AsynchronousHalving("loss", 1, 2)

    def opened() -> OptunaStudy:
        return OptunaStudy(study_config(pruner=pruner, finals=(2, 2)), journal_storage(tmp_path / "study.journal"))

    return (lambda: ChargedStudy(opened(), StillClock())) if request.param == "charged" else opened


def paused(study: SearchStudy) -> int:
    """A trial that has paused at milestone 1."""
    for value in (1.0, 2.0, 3.0, 4.0):
        number = study.ask()
        verdict = study.record(number, [report(1, value)])
        if verdict is not None:
            assert verdict.ruling is Ruling.PAUSE
            return number
    raise AssertionError("no trial was paused")


def test_a_pause_stands_and_later_reports_are_held_back(pausing: OpenSearch) -> None:
    study = pausing()
    number = paused(study)
    verdict = study.record(number, [report(2, 0.1)])
    assert verdict is not None
    assert verdict.milestone == 1
    assert study.record(number, []) == verdict
    assert number in study.facts().open, "its attempt still runs"


def test_a_suspended_trial_is_not_open(pausing: OpenSearch) -> None:
    study = pausing()
    number = paused(study)
    study.suspend(number)
    assert number not in study.facts().open
    assert number in study.facts().suspended
    asked = study.facts().asked
    study.tell(Tell(number, Ending.PRUNED, "it was paused"), 10)
    facts = study.facts()
    assert (facts.suspended, facts.pruned, facts.asked) == ((), 1, asked)


def test_a_suspended_trial_that_had_trained_to_its_end_is_known_and_may_complete(pausing: OpenSearch) -> None:
    study = pausing()
    number = paused(study)
    last = replace(report(9, 1.5), final=True)
    study.record(number, [last])
    study.suspend(number, trained=True)
    assert (study.facts().suspended, study.facts().trained) == ((number,), (number,))
    study.tell(Tell(number, Ending.COMPLETE, "it had trained to its end"), 10)
    facts = study.facts()
    assert (facts.trained, facts.complete, facts.best, facts.best_trial) == ((), 1, 1.5, number)


@pytest.mark.parametrize("value", [float("nan"), None], ids=["not finite", "no final report"])
def test_a_suspended_trial_without_a_finite_final_value_cannot_complete(
    pausing: OpenSearch, value: float | None
) -> None:
    study = pausing()
    number = paused(study)
    if value is not None:
        study.record(number, [replace(report(9, value), final=True)])
    study.suspend(number, trained=True)
    assert (study.facts().suspended, study.facts().trained) == ((number,), ())


def test_a_promoted_trial_is_open_and_without_verdict(pausing: OpenSearch) -> None:
    study = pausing()
    number = paused(study)
    study.suspend(number)
    promotion = None
    while promotion is None:  # the other trials end at worse values until the paused one is worth continuing
        other = study.ask()
        study.record(other, [report(1, 9.0)])
        study.tell(Tell(other, Ending.PRUNED, "why"), 10)
        promotion = study.promote(new_allowed=False)
        assert other < 30
    assert promotion.reason
    assert promotion.trial in study.facts().open or promotion.trial == number
    assert promotion.trial not in study.facts().suspended
    assert study.record(promotion.trial, []) is None


def test_without_a_paused_trial_nothing_is_promoted(pausing: OpenSearch) -> None:
    study = pausing()
    study.ask()
    assert study.promote(new_allowed=True) is None
    assert study.promote(new_allowed=False) is None
    assert study.facts().none_to_promote, "the controller need not ask again before something has changed"
    study.ask()
    assert not study.facts().none_to_promote


def test_a_later_controller_restores_a_pause_unless_a_promotion_has_ended_it(pausing: OpenSearch) -> None:
    number = paused(pausing())
    again = pausing()
    again.restore_pause(number, "an earlier controller's reason")
    verdict = again.record(number, [report(1, 4.0)])
    assert verdict is not None
    assert (verdict.ruling, verdict.reason, verdict.milestone) == (Ruling.PAUSE, "an earlier controller's reason", 1)
    again.suspend(number)
    promotion = None
    while promotion is None:
        other = again.ask()
        again.record(other, [report(1, 9.0)])
        again.tell(Tell(other, Ending.PRUNED, "why"), 10)
        promotion = again.promote(new_allowed=False)
        assert other < 30
    last = pausing()
    last.restore_pause(promotion.trial, "too late")
    assert last.record(promotion.trial, []) is None


def test_a_later_controller_is_asked_for_the_reports_of_ended_trials_once(pausing: OpenSearch) -> None:
    study = pausing()
    number = study.ask()
    study.record(number, [report(1, 1.0)])
    study.tell(Tell(number, Ending.PRUNED, "why"), 10)
    assert study.trials_without_reports() == []
    again = pausing()
    assert again.trials_without_reports() == [number]
    again.restore_reports(number, [report(1, 1.0), report(2, 0.5)])
    assert again.trials_without_reports() == []


# --- FinalsStudy -----------------------------------------------------------------------------------------------------


def ended_search(study: SearchStudy) -> list[int]:
    """The two best of three complete trials, best first."""
    numbers = [study.ask() for _ in range(3)]
    for number, value in zip(numbers, (2.0, 1.0, 3.0), strict=True):
        study.record(number, [report(MILESTONES, value)])
        study.tell(Tell(number, Ending.COMPLETE, ""), 10)
    return [numbers[1], numbers[0]]


def test_each_of_the_best_trials_is_trained_with_each_seed_once(pausing: OpenSearch) -> None:
    study = pausing()
    best = ended_search(study)
    params = {}
    for left in (4, 3, 2, 1):
        study = pausing()  # whatever controller goes on
        assert study.facts().finals == left
        number = study.ask_final()
        params[number] = study.params(number)
        study.record(number, [report(MILESTONES, 9.0)])
        study.tell(Tell(number, Ending.COMPLETE, ""), 10)
    assert study.facts().finals == 0
    assert len(params) == 4
    assert not params.keys() & set(best)
    assert len({str(sorted(one.items())) for one in params.values()}) == 2


def test_a_final_is_never_judged_and_never_the_best(pausing: OpenSearch) -> None:
    study = pausing()
    best = ended_search(study)
    number = study.ask_final()
    assert study.record(number, [report(1, 99.0), report(2, 99.0), report(3, math.inf)]) is None
    study.record(number, [report(MILESTONES, 0.0)])
    study.tell(Tell(number, Ending.COMPLETE, ""), 10)
    facts = study.facts()
    assert (facts.best_trial, facts.complete, facts.tokens) == (best[0], 3, 40)


# --- OptunaStudy -----------------------------------------------------------------------------------------------------


def test_a_trial_from_ask_to_tell(opened: Open) -> None:
    study = opened()
    number = study.ask()
    assert number == 0
    assert study.facts().open == (0,)
    assert set(study.params(0)) == set(SPACE)
    assert isinstance(study.params(0)["model.lora_attn_modules"], list)
    assert study.record(0, [report(1, 3.0), report(MILESTONES, 2.0)]) is None
    study.tell(Tell(0, Ending.COMPLETE, ""), tokens=60)
    facts = study.facts()
    assert (facts.open, facts.complete, facts.best, facts.best_trial, facts.tokens) == ((), 1, 2.0, 0, 60)


def test_a_second_tell_changes_nothing(opened: Open) -> None:
    study = opened()
    study.ask()
    study.record(0, [report(1, 3.0)])
    study.tell(Tell(0, Ending.PRUNED, "why"), 10)
    study.tell(Tell(0, Ending.COMPLETE, "no"), 10)
    (trial,) = opened().frozen()
    assert (trial.state.name, trial.value, trial.user_attrs["reason"]) == ("PRUNED", 3.0, "why")


def test_a_restarted_study_knows_open_trials_their_parameters_and_reports(opened: Open) -> None:
    first = opened()
    first.ask()
    first.record(0, [report(1, 3.0)])
    again = opened()
    assert again.facts().open == (0,)
    assert again.params(0) == first.params(0)
    again.record(0, [report(1, 3.0), report(2, 2.5)])
    (trial,) = again.frozen()
    assert trial.intermediate_values == {1: 3.0, 2: 2.5}


def test_a_half_asked_trial_is_completed_with_what_would_have_been_proposed(opened: Open) -> None:
    whole = opened()
    whole.ask()
    whole.tell(Tell(0, Ending.FAIL, "x"), 0)
    whole._sampler.seed_for(1)
    whole.optuna_study.ask()  # the controller died here: a number, but no parameter yet
    again = opened()
    assert again.facts().open == (1,)
    assert set(again.params(1)) == set(SPACE)
    (_, trial) = again.frozen()
    assert set(trial.params) == set(SPACE)


def test_cancelled_trials_are_counted_apart(opened: Open) -> None:
    study = opened()
    for cancelled in (True, False):
        study.tell(Tell(study.ask(), Ending.FAIL, "why", cancelled=cancelled), 0)
    assert (study.facts().failed, study.facts().cancelled) == (1, 1)


def test_enqueued_configurations_come_first_and_once(opened: Open) -> None:
    wanted = {"optimizer.lr": 1e-3, "model.lora_rank": 8, "model.lora_attn_modules": ["q_proj", "v_proj"]}
    opened().enqueue(wanted)
    study = opened()
    study.enqueue(wanted)
    assert study.facts().asked == 0
    assert [study.ask(), study.ask()] == [0, 1]
    assert study.params(0) == wanted
    assert study.params(1) != wanted


def test_imported_trials_teach_the_sampler_and_are_none_of_ours(tmp_path: Path) -> None:
    other = OptunaStudy(study_config(), journal_storage(tmp_path / "a"))
    for loss in (3.0, 2.0, 1.0):
        number = other.ask()
        other.record(number, [report(1, loss), report(MILESTONES, loss)])
        other.tell(Tell(number, Ending.COMPLETE, ""), 0)
    other.ask()
    study = OptunaStudy(study_config(), journal_storage(tmp_path / "b"))
    assert study.import_trials("a", other.frozen()) == 3, "the open one stays behind"
    assert study.import_trials("a", other.frozen()) == 0
    assert study.facts().asked == 0
    assert study.facts().best is None, "the best is one of our own"
    assert study.ask() == 3
    assert len(study.optuna_study.get_trials()) == 4


def test_a_verdict_says_why_and_stands(tmp_path: Path) -> None:
    pruner = optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=2)
    study = OptunaStudy(study_config(pruner=pruner), journal_storage(tmp_path / "j"))
    study.ask()
    study.record(0, [report(m, 1.0) for m in range(1, MILESTONES + 1)])
    study.tell(Tell(0, Ending.COMPLETE, ""), 0)
    study.ask()
    verdict = study.record(1, [report(1, 2.0), report(2, 3.0), report(3, 0.1)])
    assert verdict is not None
    assert (verdict.milestone, verdict.value) == (2, 3.0)
    assert verdict.reason == "MedianPruner at milestone 2: loss 3.0000 is worse than 1 of 1 trials there (best 1.0000)"
    assert study.record(1, [report(4, 0.0)]) == verdict
    assert study.frozen()[1].intermediate_values == {1: 2.0, 2: 3.0}, "what came after the verdict is not known"


def test_the_last_report_is_never_pruned(tmp_path: Path) -> None:
    study = OptunaStudy(study_config(pruner=optuna.pruners.ThresholdPruner(upper=1.0)), journal_storage(tmp_path / "j"))
    study.ask()
    assert study.record(0, [report(MILESTONES, 9.0)]) is None


def settings(*overrides: str) -> Settings:
    words = ["space.gradient_accumulation_steps=null", "search.trials=12", "objective=loss", *overrides]
    return freeze(compose_config(words), "s").settings


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


def simulate(configured: Settings, storage: Path, restart: bool) -> list[tuple[Any, ...]]:
    """Twelve trials on a made-up curve, by one worker; with `restart` the study is opened anew for each."""

    said: dict[int, list[Report]] = {}

    def opened() -> OptunaStudy:
        """A controller's first look: the study, and what the room still holds of all trials' reports."""
        study = OptunaStudy(study_config_of(configured), journal_storage(storage))
        for ended in study.trials_without_reports():
            study.restore_reports(ended, said[ended])
        for running in study.facts().open:
            study.record(running, said.get(running, []))
        return study

    study = opened()
    for _ in range(12):
        study = opened() if restart else study
        if study.facts().exhausted:
            break
        number = study.ask()
        lr = float(study.params(number)["optimizer.lr"])
        for milestone in range(1, MILESTONES + 1):
            study = opened() if restart else study
            said.setdefault(number, []).append(report(milestone, abs(math.log10(lr) + 3) + 1 / milestone))
            verdict = study.record(number, said[number][-1:])
            if verdict:
                break
        study.tell(Tell(number, Ending.PRUNED if verdict else Ending.COMPLETE, ""), 0)
    return [(t.number, t.state.name, t.params, t.value) for t in study.frozen()]


@pytest.mark.parametrize("sampler", options("sampler"))
def test_every_sampler_proposes_the_same_after_restarts(sampler: str, tmp_path: Path) -> None:
    words = [f"sampler={sampler}"]
    if sampler == "grid":
        words += ["space.optimizer.lr=choice(1e-4,1e-3,1e-2)", "space.model.lora_rank=choice(4,8)"]
    configured = settings(*words)
    undisturbed = simulate(configured, tmp_path / "a", restart=False)
    assert simulate(configured, tmp_path / "b", restart=True) == undisturbed
    assert len(undisturbed) == (6 if sampler == "grid" else 12)
    assert len({str(params) for _, _, params, _ in undisturbed}) == len(undisturbed), "no proposal twice"


GRID = ("sampler=grid", "space.optimizer.lr=choice(1e-4,1e-3,1e-2)", "space.model.lora_rank=choice(4,8)")
POINT, PART = {"optimizer.lr": 1e-3, "model.lora_rank": 8}, {"model.lora_rank": 8}


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(
    "first", [[POINT], [POINT, POINT], [PART], [PART, PART, POINT]], ids=["a point", "twice", "a part", "parts"]
)
def test_a_grid_is_walked_to_its_end_whatever_was_enqueued(
    first: list[dict[str, Any]], restart: bool, tmp_path: Path
) -> None:
    configured = settings(*GRID)
    study = OptunaStudy(study_config_of(configured), journal_storage(tmp_path / "a"))
    for params in first:
        study.enqueue(params, again=True)
    found = [params for _, _, params, _ in simulate(configured, tmp_path / "a", restart=restart)]
    twice = first.count(POINT) - 1 if POINT in first else 0
    assert len(found) == 6 + twice
    assert len({str(sorted(params.items())) for params in found}) == 6
    assert all(params.items() >= given.items() for params, given in zip(found, first, strict=False))


@pytest.mark.parametrize("pruner", options("pruner"))
def test_every_pruner_gives_the_same_verdicts_after_restarts(pruner: str, tmp_path: Path) -> None:
    configured = settings(
        "sampler=random", f"pruner={pruner}", *(["pruner.upper=1.5"] if pruner == "threshold" else [])
    )
    undisturbed = simulate(configured, tmp_path / "a", restart=False)
    assert simulate(configured, tmp_path / "b", restart=True) == undisturbed
    pruned = sum(1 for _, state, _, _ in undisturbed if state == "PRUNED")
    assert (pruned == 0) == (pruner in ("none", "patient")), f"{pruned} pruned"


@pytest.mark.parametrize("pruner", ["successive_halving", "hyperband", "median", "wilcoxon"])
def test_a_stop_stands_though_the_controller_dies_before_anybody_heard_of_it(pruner: str, tmp_path: Path) -> None:
    """Successive halving notes the rung as it decides, and would say nothing more at that milestone."""
    configured = study_config_of(settings("sampler=random", f"pruner={pruner}"))
    path = tmp_path / "study.journal"
    study = OptunaStudy(configured, journal_storage(path))
    for value in (1.0, 1.1, 1.2, 1.3, 1.4, 1.5):
        number = study.ask()
        verdict = study.record(number, [report(milestone, value) for milestone in range(1, MILESTONES + 1)])
        study.tell(Tell(number, Ending.PRUNED if verdict else Ending.COMPLETE, ""), 0)
    number = study.ask()
    said = [report(milestone, 9.0) for milestone in range(1, MILESTONES)]
    verdict = next(found for count in range(MILESTONES) if (found := study.record(number, said[count : count + 1])))
    again = OptunaStudy(configured, journal_storage(path))
    assert again.record(number, said) == verdict


class Hasty(FreezeThaw):
    """Stops a trial on its second report, unless more reports are there by then."""

    def verdict(
        self, number: int, curves: Mapping[int, Curve], milestones: int, new_allowed: bool = True
    ) -> Verdict | None:
        last = curves[number].reports[-1]
        return Verdict(last.milestone, last.loss, "hopeless") if last.milestone == 2 else None


def test_a_strategy_s_stop_stands_though_a_later_controller_has_more_reports(tmp_path: Path) -> None:
    """It would decide otherwise on them; but the ledger has the stop, and the worker may have heard of it."""
    configured, path = study_config(pruner=Hasty("loss")), tmp_path / "study.journal"
    study = OptunaStudy(configured, journal_storage(path))
    number = study.ask()
    said = [report(milestone, 3.0) for milestone in (1, 2, 3)]
    verdict = study.record(number, said[:2])
    assert verdict is not None
    again = OptunaStudy(configured, journal_storage(path))
    assert again.record(number, said) == verdict
    again.tell(Tell(number, Ending.PRUNED, "hopeless"), 20)
    assert again.frozen()[number].intermediate_values == {1: 3.0, 2: 3.0}
    assert again.trials_without_reports() == [], "the strategy has the curve of the stopped trial too"


def test_another_seed_proposes_something_else(tmp_path: Path) -> None:
    a = simulate(settings("search.seed=1"), tmp_path / "a", restart=False)
    b = simulate(settings("search.seed=2"), tmp_path / "b", restart=False)
    assert a[0][2] != b[0][2]


def test_what_a_trial_reported_after_its_pause_is_in_the_study_when_it_is_told() -> None:
    """It had not heard of the pause yet; and was never promoted."""
    study = OptunaStudy(study_config(pruner=FreezeThaw("loss")), memory_storage())
    number = study.ask()
    assert study.record(number, [report(1, 3.0)]) is not None
    study.record(number, [report(2, 2.0)])
    study.tell(Tell(number, Ending.PRUNED, "it was paused"), 20)
    assert study.frozen()[number].intermediate_values == {1: 3.0, 2: 2.0}
