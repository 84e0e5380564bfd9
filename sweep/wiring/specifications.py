"""Builds the specifications that workers are given, from the settings of a sweep and the parameters of a trial.

Invariant: a specification holds all that its attempt needs, so that a worker reads no settings.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from sweep.config.settings import Settings
from sweep.config.torchtune import resolve, seed_of_final
from sweep.model.identifiers import AttemptId
from sweep.tracking.runs import tracking_of
from sweep.wiring.backends import backend_of
from trainer.contract import TrialSpec

if TYPE_CHECKING:
    from sweep.controller.loop import SpecFactory


def spec_factory(
    settings: Settings,
    params: Callable[[int], Mapping[str, Any]],
    seed_of: Callable[[int], int | None],
    stopped: Callable[[], Collection[str]] = tuple,
    measures_base: Callable[[int], bool] = lambda trial: False,
) -> SpecFactory:
    """What builds the specification of an attempt: of a torchtune configuration, or as the queue builds it.

    Args:
        params: the hyperparameters of a trial.
        seed_of: the number of the seed that a final is trained with; None if the trial is no final.
        stopped: the W&B runs that no attempt resumes.
        measures_base: whether the next attempt of a trial measures the metrics of the base too.
    """
    build = backend_of(settings).spec_builder(settings)

    def spec(trial: int, attempt: int, worker: str) -> TrialSpec:
        identity, base = AttemptId(trial, attempt, worker), measures_base(trial)
        if build is not None:
            built = build(identity, params(trial), seed_of(trial))
            return replace(built, metrics=settings.measured, measure_base=base and bool(settings.measured))
        return trial_spec(settings, params(trial), identity, seed_of(trial), stopped(), base)

    return spec


def trial_spec(
    settings: Settings,
    params: Any,
    identity: AttemptId,
    final_seed: int | None = None,
    stopped: Collection[str] = (),
    measure_base: bool = False,
) -> TrialSpec:
    """The specification of an attempt that trains a torchtune configuration.

    Args:
        final_seed: number of the final's seed; the seed itself differs from the one that the search trained with.
        stopped: see `spec_factory`.
        measure_base: the attempt measures the metrics of the base too.
    """
    config = resolve(settings.torchtune, params, settings.derive, settings.directory)
    if config.get("seed") is None:
        config["seed"] = settings.search.seed  # torchtune would draw one, and the trial could not be repeated
    if final_seed is not None:
        config["seed"] = seed_of_final(int(config["seed"]), final_seed)
    tracking = tracking_of(settings, identity.trial, config, stopped)
    return TrialSpec(
        sweep=settings.name,
        trial=identity.trial,
        attempt=identity.attempt,
        worker=identity.worker,
        config=config,
        milestone_tokens=settings.milestone_tokens,
        checkpoint_every=settings.trial.checkpoint_every,
        guard=settings.guard,
        components=tuple(settings.recipe.components),
        adapter_every=1 if tracking and settings.wandb.artifacts == "milestones" else 0,
        tracking=tracking,
        token=settings.token,
        directory=settings.directory,
        metrics=settings.measured,
        measure_base=measure_base and bool(settings.measured),
    )
