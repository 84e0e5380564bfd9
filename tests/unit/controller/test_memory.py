"""What a controller keeps of each trial that has ended, in bytes as Python allocates them.

Of a sweep on the simulated queue over a real room. Growth is counted where this program allocated it: what Optuna's
storage keeps is Optuna's, apart from what the places of its journal's lines took.
"""

from __future__ import annotations

import gc
import tracemalloc
from pathlib import Path

import pytest
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import RandomSampler

from sweep.config.space_grammar import parse_space
from sweep.controller.ledger import RoomLedger
from sweep.controller.loop import Controller
from sweep.controller.ports import Ports
from sweep.model.effects import Effect, Tell
from sweep.model.limits import Limits
from sweep.model.objectives import Objective
from sweep.model.states import Finished, Mode
from sweep.queues.simulated.dispatcher import SimulatedChannel, SimulatedClock, SimulatedDispatcher
from sweep.queues.simulated.recorder import world_of
from sweep.queues.simulated.section import SimulationModel
from sweep.queues.simulated.tables import load_table
from sweep.queues.simulated.world import World
from sweep.search.journal import journal_storage
from sweep.search.strategy.halving import AsynchronousHalving
from sweep.search.strategy.protocol import Strategy
from sweep.search.study import OptunaStudy
from sweep.search.study_config import StudyConfig
from sweep.wiring.simulate import Silent
from tests.bench.simulated_scale import SPACE
from tests.helpers.tables import write_table
from trainer.contract import TrialSpec
from trainer.room import Room

FROM, TO = 50, 150
MILESTONES = 8
# Bytes for each trial. Before this was bounded: 3,300 without a pruner and 4,400 with one that judges whole curves.
OURS, OURS_WITH_CURVES, OPTUNAS = 900, 2600, 3400


class Snapshots(Silent):
    """Takes a snapshot of the allocations when a number of trials has ended."""

    def __init__(self) -> None:
        self.ended = 0
        self.taken: list[tracemalloc.Snapshot] = []

    def done(self, effect: Effect) -> None:
        if isinstance(effect, Tell):
            self.ended += 1
            if self.ended in (FROM, TO):
                gc.collect()
                self.taken.append(tracemalloc.take_snapshot())


def grown(folder: Path, pruner: BasePruner | Strategy) -> tuple[float, float]:
    """Bytes for each trial between two numbers of ended trials: this program's, and Optuna's."""
    table = load_table(str(write_table(folder / "curves.npz", milestones=MILESTONES)))
    room = Room(folder / "room")
    room.root.mkdir()
    config = StudyConfig(
        name="s",
        space=parse_space(SPACE),
        objective=Objective("val_loss"),
        seed=0,
        sampler=lambda seed: RandomSampler(seed=seed),
        pruner=pruner,
        milestones=MILESTONES,
    )
    study = OptunaStudy(config, journal_storage(room.root / "study.journal"))
    world = world_of(room, lambda: World(table, SimulationModel(crashes=0.05)))
    snapshots = Snapshots()
    controller = Controller(
        ports=Ports(study, SimulatedChannel(world, 8.0), SimulatedDispatcher(world), SimulatedClock(world)),
        limits=Limits(trials=TO, workers=8, max_attempts=20),
        spec=lambda trial, attempt, worker: TrialSpec("s", trial, attempt, worker, {**study.params(trial)}, 1),
        listener=snapshots,
        mode=lambda: Mode.RUN,
        created=0.0,
        poll_seconds=60.0,
        ledger=RoomLedger(room),
    )
    tracemalloc.start(8)
    try:
        assert controller.run().how is Finished.DONE
    finally:
        tracemalloc.stop()
    ours = optunas = 0
    for change in snapshots.taken[1].compare_to(snapshots.taken[0], "traceback"):
        files = [frame.filename for frame in change.traceback]
        if any("/optuna/" in file for file in files):
            optunas += change.size_diff
        elif any("/sweep/" in file or "/trainer/" in file for file in files):
            ours += change.size_diff
    return ours / (TO - FROM), optunas / (TO - FROM)


@pytest.mark.slow
@pytest.mark.parametrize("judged", [False, True], ids=["no pruner", "a pruner that judges whole curves"])
def test_little_is_kept_of_a_trial_that_has_ended(tmp_path: Path, judged: bool) -> None:
    pruner: BasePruner | Strategy = AsynchronousHalving("val_loss", MILESTONES) if judged else NopPruner()
    ours, optunas = grown(tmp_path, pruner)
    print(f"{ours:.0f} bytes for each trial are ours, {optunas:.0f} Optuna's")
    assert ours < (OURS_WITH_CURVES if judged else OURS)
    assert optunas < OPTUNAS
