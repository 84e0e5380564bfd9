"""A metric that is maximised is searched for as its mirror image is minimised, by every sampler and pruner."""

from __future__ import annotations

import functools
import math
import sys
from dataclasses import replace
from typing import Any

import pytest

from sweep.config.overrides import section_of
from sweep.config.settings import Settings
from sweep.model.effects import Tell
from sweep.model.states import Ending, Ruling
from sweep.resources import conf_dir
from sweep.search.storage import memory_storage
from sweep.search.study import OptunaStudy
from sweep.wiring.compose import compose_config, freeze
from sweep.wiring.session import study_config
from tests.helpers.made_reports import MILESTONES, report

TRIALS, SLOW = 14, 8
WORDS = ("space.gradient_accumulation_steps=null", "objective.milestones=6")
METRIC = ("metric.score.source=command", f"metric.score.command=[{sys.executable}]")
Said = list[tuple[Any, ...]]


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


@functools.cache
def base() -> Settings:
    words = [*WORDS, *METRIC, "objective.metrics.score.direction=minimize"]
    return freeze(compose_config(words), "s").settings


@functools.cache
def chosen(words: tuple[str, ...]) -> Settings:
    """The same with another sampler and pruner, composed and not checked as a whole: that takes its time."""
    cfg = compose_config([*WORDS, *words])
    return replace(base(), sampler=section_of(cfg, "sampler"), pruner=section_of(cfg, "pruner"))


def settings(direction: str, *words: str, every: int = 1) -> Settings:
    configured = chosen(words)
    objective = replace(configured.objective, metrics={"score": {"direction": direction}})
    metrics = {"score": replace(configured.metrics["score"], every=every)}
    return replace(configured, objective=objective, metrics=metrics)


def played(configured: Settings, finals: int = 0, count: int = TRIALS) -> tuple[Said, Said, OptunaStudy]:
    """Proposals and ends, and decisions, of a sweep whose curves depend on the learning rate alone."""
    sign = -1.0 if configured.objectives[0].maximised else 1.0
    study = OptunaStudy(replace(study_config(configured), finalists=finals, seeds=1), memory_storage())
    asked, milestone = 0, dict[int, int]()
    decided: Said = []
    while True:
        promotion = study.promote(asked < count)
        if promotion is not None:
            number = promotion.trial
            decided.append((number, "promote", {key: abs(value) for key, value in promotion.basis.items()}))
        elif asked < count and not study.facts().exhausted:
            number, asked = study.ask(), asked + 1
        elif study.facts().finals:
            number = study.ask_final()
        else:
            break
        lr, verdict = float(study.params(number)["optimizer.lr"]), None
        while milestone.get(number, 0) < MILESTONES:
            at = milestone[number] = milestone.get(number, 0) + 1
            value = sign * (0.1 + abs(math.log10(lr) + 3) + 1 / at)
            verdict = study.record(number, [replace(report(at, 1.0), scores={"score": value})])
            if verdict is not None:
                decided.append((number, verdict.ruling, verdict.milestone, abs(verdict.value)))
                break
        if verdict is not None and verdict.ruling is Ruling.PAUSE:
            study.suspend(number)
            continue
        study.tell(Tell(number, Ending.PRUNED if verdict else Ending.COMPLETE, ""), 10, 1.0)
    trials: Said = [(t.number, t.state, t.params, None if t.value is None else abs(t.value)) for t in study.frozen()]
    return trials, decided, study


@pytest.mark.parametrize(
    "words",
    [
        *([f"sampler={sampler}", "pruner=none"] for sampler in options("sampler") if sampler != "grid"),
        *(
            ["sampler=random", f"pruner={pruner}"]
            for pruner in options("pruner")
            if pruner not in ("none", "threshold")
        ),
        ["sampler=forecast", "pruner=freeze_thaw"],
        ["sampler=tpe", "pruner=successive_halving"],
    ],
    ids=",".join,
)
def test_more_is_better_as_less_is(words: list[str]) -> None:
    count = SLOW if {"sampler=gp", "sampler=cma_es"} & set(words) else TRIALS
    less, decided, _ = played(settings("minimize", *words), count=count)
    more, mirrored, _ = played(settings("maximize", *words), count=count)
    assert more == less
    assert mirrored == decided


def test_a_threshold_bounds_a_metric_as_it_is_measured() -> None:
    _, below, _ = played(settings("maximize", "sampler=random", "pruner=threshold", "pruner.lower=-1.5"))
    _, above, _ = played(settings("minimize", "sampler=random", "pruner=threshold", "pruner.upper=1.5"))
    assert below == above
    assert below


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_best_wins_in_either_direction_and_the_study_has_what_was_measured(direction: str) -> None:
    configured = settings(direction, "sampler=random", "pruner=asha")
    _, _, study = played(configured, finals=2)
    complete = {t.number: t.value for t in study.frozen() if t.value is not None and "final" not in t.user_attrs}
    best = (max if direction == "maximize" else min)(complete, key=lambda number: complete[number])
    facts = study.facts()
    assert study.optuna_study.direction.name.lower() == direction
    assert all((value < 0) == (direction == "maximize") for value in complete.values())
    assert (facts.best_trial, facts.best) == (best, abs(complete[best]))
    assert study.winners()[-1] == best
    assert len({t.user_attrs["final"][0] for t in study.frozen() if "final" in t.user_attrs}) == 2


def test_a_report_without_the_metric_is_none_for_pruners_and_the_final_one_counts() -> None:
    configured = settings("maximize", "sampler=random", "pruner=freeze_thaw", every=3)
    study = OptunaStudy(study_config(configured), memory_storage())
    number = study.ask()
    assert study.record(number, [report(1, 1.0), report(2, 0.9)]) is None
    assert study.objective(number) is None
    study.record(number, [replace(report(3, 0.8), scores={"score": 0.25})])
    assert study.optuna_study.get_trials()[number].intermediate_values == {3: 0.25}
    other = study.ask()
    study.record(other, [report(MILESTONES, 0.5)])
    assert math.isnan(study.objective(other) or 0.0), "it cannot be told with a value that was not measured"
