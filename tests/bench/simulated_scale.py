"""The controller at scale: 1,000 simulated workers, 10,000 trials, 1 % of the attempts end in a crash.

    python -m tests.bench.simulated_scale [--trials N] [--workers N] [--sampler random|tpe] [--pruner none|asha]

Prints what was lost, told twice or left open (nothing may be), the throughput against an ideal scheduler that knows
everything at once and takes no time, on the same workers, crashes and stragglers, and how long the replay took. That
is for sweeps without a pruner; with one, what it would have to train is not known beforehand.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import optuna

from sweep.config.space_grammar import parse_space
from sweep.model.effects import Effect, Tell
from sweep.model.limits import Limits
from sweep.model.objectives import Objective
from sweep.model.states import Finished
from sweep.queues.simulated.section import SimulationModel
from sweep.queues.simulated.state import SimulatedAttempt
from sweep.queues.simulated.tables import Table, load_table
from sweep.queues.simulated.world import World
from sweep.search.storage import memory_storage
from sweep.search.strategy.halving import AsynchronousHalving
from sweep.search.study import OptunaStudy
from sweep.search.study_config import StudyConfig
from sweep.wiring.simulate import Silent, simulate
from tests.helpers.tables import write_table
from trainer.contract import TrialSpec

SPACE = {
    "model.lora_rank": "choice(4, 8, 16, 32, 64)",
    "optimizer.lr": "tag(log, interval(1e-5, 1e-1))",
    "gradient_accumulation_steps": "choice(1, 2, 4, 8)",
}
FATES = SimulationModel(crashes=0.01, stragglers=0.01, speed_spread=0.1)


@dataclass(frozen=True)
class Scale:
    """What a run came to.

    Args:
        twice, lost: trials told more than once, and never.
        seconds, cpu: of this machine, wall clock and processor.
        simulated: seconds on the simulated clock; ideal: what an all-knowing scheduler would have taken.
    """

    complete: int
    pruned: int
    failed: int
    twice: int
    lost: int
    attempts: int
    crashes: int
    seconds: float
    cpu: float
    simulated: float
    ideal: float

    @property
    def throughput(self) -> float:
        return self.ideal / self.simulated


class Tellings(Silent):
    """Counts how often each trial was told."""

    def __init__(self) -> None:
        self.told: Counter[int] = Counter()

    def done(self, effect: Effect) -> None:
        if isinstance(effect, Tell):
            self.told[effect.trial] += 1


def run(table: Table, trials: int, workers: int, sampler: str = "random", pruner: str = "none") -> Scale:
    """One sweep through the simulated queue, in memory."""
    samplers = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
    rule = AsynchronousHalving(metric="val_loss") if pruner == "asha" else optuna.pruners.NopPruner()
    config = StudyConfig(
        name="scale",
        space=parse_space(SPACE),
        objective=Objective("val_loss"),
        seed=0,
        sampler=lambda seed: samplers[sampler](seed=seed),
        pruner=rule,
        milestones=table.milestones,
        history=1000,
    )
    study = OptunaStudy(config, memory_storage())
    world = World(table, FATES)
    tellings = Tellings()
    wall, cpu = time.perf_counter(), time.process_time()
    finish = simulate(study, world, Limits(trials=trials, workers=workers), look_seconds=8.0, listener=tellings)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert finish.how is Finished.DONE, finish
    facts = study.facts()
    assert not facts.open
    assert not facts.suspended
    attempts = [attempt for of_trial in world.attempts.values() for attempt in of_trial.values()]
    return Scale(
        complete=facts.complete,
        pruned=facts.pruned,
        failed=facts.failed,
        twice=sum(1 for count in tellings.told.values() if count > 1),
        lost=trials - len(tellings.told),
        attempts=len(attempts),
        crashes=sum(1 for job in world.jobs.values() if job.reason == "it crashed"),
        seconds=wall,
        cpu=cpu,
        simulated=world.now,
        ideal=ideal_seconds(table, study, trials, workers) if pruner == "none" else math.nan,
    )


def ideal_seconds(table: Table, study: OptunaStudy, trials: int, workers: int) -> float:
    """The same trials on the same workers under a scheduler that reacts at once, and never has to think.

    It has a world of its own, from the same seeds, in which each worker is handed its next trial the moment it is
    free, and a crashed one is replaced the moment it has crashed.
    """
    world = World(table, FATES)
    params = {trial.number: trial.params for trial in study.frozen()}
    waiting = list(range(trials))
    names = itertools.count(1)
    begun: Counter[int] = Counter()
    ended: list[SimulatedAttempt] = []
    world.ended = ended.append

    def give(name: str) -> None:
        if waiting:
            trial = heapq.heappop(waiting)
            begun[trial] += 1
            world.assign(TrialSpec("ideal", trial, begun[trial], name, params[trial], 1))

    def start(place: int) -> None:
        name = f"w{next(names):04d}"
        world.start(name, place)
        give(name)

    for place in range(workers):
        start(place)
    left = trials
    while left:
        world.advance(world.next_event())
        for attempt in ended:
            if attempt.outcome is None:
                heapq.heappush(waiting, attempt.spec.trial)
                start(world.workers[attempt.spec.worker].place)
            else:
                left -= 1
                give(attempt.spec.worker)
        ended.clear()
    return world.now


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, help="default: made-up curves of 24 milestones")
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--sampler", choices=("random", "tpe"), default="random")
    parser.add_argument("--pruner", choices=("none", "asha"), default="none")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.table or write_table(Path(folder) / "curves.npz", milestones=24)
        result = run(load_table(str(path)), args.trials, args.workers, args.sampler, args.pruner)
    print(result)
    share = "not known with a pruner" if math.isnan(result.throughput) else f"{result.throughput:.1%} of the ideal"
    print(f"throughput {share}; {result.seconds:.1f} s, {result.cpu:.1f} s of processor time")


if __name__ == "__main__":
    main()
