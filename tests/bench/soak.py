"""Whether the controller's memory and open files stay flat over many trials, on the simulated queue over a real room.

    python -m tests.bench.soak [--trials 10000] [--pruner none|asha] [--sampler random|tpe] [--memory]

Prints resident memory, open files and the CPU time for each trial at ten checkpoints, then the growth for each trial
between the second checkpoint and the last. Optuna's storage keeps every trial of the study in memory, about 2.5 KiB for
each with three hyperparameters and eight milestones; `--memory` leaves the journal file out and shows what is left
without its lines. Everything else that grows is this program's, less than 1 KiB.

The study, the ledger and the files of the attempts are written as in any sweep; only the workers are simulated.
"""

from __future__ import annotations

import argparse
import gc
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import optuna

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
from sweep.search.storage import memory_storage
from sweep.search.strategy.halving import AsynchronousHalving
from sweep.search.study import OptunaStudy
from sweep.search.study_config import StudyConfig
from sweep.wiring.simulate import Silent
from tests.bench.simulated_scale import SPACE
from tests.helpers.tables import write_table
from trainer.contract import TrialSpec
from trainer.room import Room

CHECKPOINTS = 10


@dataclass(frozen=True)
class Usage:
    """What this process uses.

    Args:
        memory: resident, in bytes.
        seconds: of processor time.
    """

    trials: int
    memory: int
    files: int
    seconds: float


def usage(trials: int) -> Usage:
    """The usage of this process at this moment, after `trials` trials."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = len(list(Path("/proc/self/fd").iterdir()))
    return Usage(trials, pages * resource.getpagesize(), files, time.process_time())


class Checkpoints(Silent):
    """Prints the usage whenever a tenth of the trials has ended."""

    def __init__(self, trials: int) -> None:
        self.every = max(1, trials // CHECKPOINTS)
        self.ended = 0
        self.usages: list[Usage] = []

    def done(self, effect: Effect) -> None:
        if isinstance(effect, Tell):
            self.ended += 1
            if self.ended % self.every == 0:
                self.usages.append(usage(self.ended))
                print(line(self.usages), flush=True)


def line(usages: list[Usage]) -> str:
    """The last usage as text, with the processor time of a trial since the one before."""
    last, before = usages[-1], usages[-2] if len(usages) > 1 else Usage(0, 0, 0, 0.0)
    cost = (last.seconds - before.seconds) / (last.trials - before.trials)
    return (
        f"{last.trials:8} trials  {last.memory / 2**20:7.1f} MiB  {last.files:4} files  {1000 * cost:6.1f} ms a trial"
    )


def run(folder: Path, trials: int, sampler: str, pruner: str, in_memory: bool) -> list[Usage]:
    """One sweep in an empty directory; returns the usage at the checkpoints."""
    table = load_table(str(write_table(folder / "curves.npz")))
    room = Room(folder / "room")
    room.root.mkdir()
    samplers = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
    config = StudyConfig(
        name="soak",
        space=parse_space(SPACE),
        objective=Objective("val_loss"),
        seed=0,
        sampler=lambda seed: samplers[sampler](seed=seed),
        pruner=AsynchronousHalving(metric="val_loss") if pruner == "asha" else optuna.pruners.NopPruner(),
        milestones=table.milestones,
        history=1000,
    )
    study = OptunaStudy(config, memory_storage() if in_memory else journal_storage(room.root / "study.journal"))
    world = world_of(room, lambda: World(table, SimulationModel(crashes=0.01, preemptions=0.01)))
    checkpoints = Checkpoints(trials)
    controller = Controller(
        ports=Ports(study, SimulatedChannel(world, 8.0), SimulatedDispatcher(world), SimulatedClock(world)),
        limits=Limits(trials=trials, workers=8, max_attempts=20),
        spec=lambda trial, attempt, worker: TrialSpec("soak", trial, attempt, worker, {**study.params(trial)}, 1),
        listener=checkpoints,
        mode=lambda: Mode.RUN,
        created=0.0,
        poll_seconds=60.0,
        ledger=RoomLedger(room),
    )
    finish = controller.run()
    assert finish.how is Finished.DONE, finish
    return checkpoints.usages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--sampler", choices=("random", "tpe"), default="random")
    parser.add_argument("--pruner", choices=("none", "asha"), default="none")
    parser.add_argument("--memory", action="store_true", help="keep the study in memory, without a journal file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        usages = run(Path(folder), args.trials, args.sampler, args.pruner, args.memory)
    if len(usages) > 2:
        first, last = usages[1], usages[-1]
        print(f"{(last.memory - first.memory) / (last.trials - first.trials):.0f} bytes for each trial")


if __name__ == "__main__":
    main()
