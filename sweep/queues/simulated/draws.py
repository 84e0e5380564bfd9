"""What chance does to simulated workers and attempts.

Invariant: each draw is a function of the world's seed and of the worker's name, the trial or the attempt alone, so no
draw depends on the order of what a controller does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sweep.queues.simulated.section import SimulationModel

# The streams of random numbers: what happens to a worker, to an attempt, and which seed of the table a trial has.
_WORKER, _ATTEMPT, _TRIAL = 1, 2, 3


@dataclass(frozen=True, slots=True)
class WorkerDraw:
    """What happens to a worker.

    Args:
        speed: factor by which it trains faster than the model's `trial_seconds`.
        wait: seconds that its job waits in the queue.
        startup: seconds from then on until it is ready.
    """

    speed: float
    wait: float
    startup: float


@dataclass(frozen=True, slots=True)
class AttemptDraw:
    """What happens to an attempt.

    Args:
        slowness: factor by which it takes longer.
        share: of what it has to train, after which its worker is lost or preempted; None: never.
        preempted: whether its worker is then preempted, and not lost.
    """

    slowness: float
    share: float | None = None
    preempted: bool = False

    def dies(self, progress: float, milestones: int) -> float:
        """The progress at which its worker is lost or preempted; infinity: never.

        Args:
            progress: with which it begins.
            milestones: of a whole trial.
        """
        return math.inf if self.share is None else progress + (milestones - progress) * self.share


def draw_worker(model: SimulationModel, seed: int, name: str) -> WorkerDraw:
    """What happens to the worker of this name."""
    generator = _generator(seed, _WORKER, name)
    speed = math.exp(model.speed_spread * generator.standard_normal())
    wait = generator.exponential(model.wait_seconds) if model.wait_seconds else 0.0
    startup = model.startup_seconds * math.exp(model.startup_spread * generator.standard_normal())
    return WorkerDraw(speed, wait, startup)


def draw_attempt(model: SimulationModel, seed: int, trial: int, attempt: int) -> AttemptDraw:
    """What happens to an attempt of a trial."""
    straggles, ends_worker, share = _generator(seed, _ATTEMPT, trial, attempt).random(3)
    slowness = model.straggler_factor if straggles < model.stragglers else 1.0
    if ends_worker >= model.crashes + model.preemptions:
        return AttemptDraw(slowness)
    return AttemptDraw(slowness, float(share), preempted=bool(ends_worker >= model.crashes))


def draw_seed(seed: int, trial: int) -> int:
    """The training seed of a trial whose configuration names none."""
    return int(_generator(seed, _TRIAL, trial).integers(2**31))


def _generator(seed: int, stream: int, *key: int | str) -> np.random.Generator:
    numbers = [int.from_bytes(part.encode(), "little") if isinstance(part, str) else part for part in key]
    return np.random.default_rng([seed, stream, *numbers])
