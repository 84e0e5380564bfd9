"""Runs a whole sweep in a simulated world, in memory: for benchmarks and for `sweep replay`.

Invariant: the controller, its decisions and its study are those of a real sweep. Nothing is written.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sweep.controller.ledger import NoLedger
from sweep.controller.loop import Controller
from sweep.controller.ports import Ledger
from sweep.model.effects import Effect, Finish
from sweep.model.facts import View
from sweep.model.limits import Limits
from sweep.model.states import Mode
from sweep.queues.simulated.dispatcher import simulated_ports
from sweep.queues.simulated.world import World
from trainer.contract import Metric, Report, TrialSpec

if TYPE_CHECKING:
    from sweep.search.strategy.protocol import Promotion
    from sweep.search.study import OptunaStudy

COLLECT_EVERY = 200_000  # new objects between two garbage collections


class Silent:
    """A listener that ignores everything."""

    def reported(self, trial: int, report: Report) -> None:
        pass

    def done(self, effect: Effect) -> None:
        pass

    def waited(self, view: View) -> None:
        pass

    def promoted(self, promotion: Promotion) -> None:
        pass

    def round_failed(self, message: str) -> None:
        pass


def simulate(  # noqa: PLR0913
    study: OptunaStudy,
    world: World,
    limits: Limits,
    *,
    base: Mapping[str, Any] | None = None,
    look_seconds: float = 0.2,
    charge: bool = False,
    ledger: Ledger | None = None,
    listener: Any = None,
    configure: Callable[[int], Mapping[str, Any]] | None = None,
    metrics: tuple[Metric, ...] = (),
) -> Finish:
    """Run a sweep to its end on simulated workers; returns how it ended.

    Args:
        base: values of those keys of the table that the study does not propose.
        look_seconds, charge: see `sweep.queues.simulated.section`.
        configure: the configuration of a trial by its number; None: what the study proposed, over `base`.
        metrics: what each trial measures, beside what the table has.
    """

    def spec(trial: int, attempt: int, worker: str) -> TrialSpec:
        config = configure(trial) if configure else {**(base or {}), **study.params(trial)}
        return TrialSpec("simulated", trial, attempt, worker, config, milestone_tokens=1, metrics=metrics)

    controller = Controller(
        ports=simulated_ports(world, study, look_seconds, charge),
        limits=limits,
        spec=spec,
        listener=listener or Silent(),
        mode=lambda: Mode.RUN,
        created=0.0,
        poll_seconds=60.0,
        ledger=ledger or NoLedger(),
    )
    with _rare_collections():
        return controller.run()


@contextmanager
def _rare_collections() -> Iterator[None]:
    """While the block runs, Python collects garbage rarely: a simulation has millions of values and hardly a cycle, and
    each collection visits all of them."""
    before = gc.get_threshold()
    gc.set_threshold(COLLECT_EVERY, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
