"""The section `queue` for simulated workers, and the model of what happens to them.

Invariant: a share is of attempts, a spread is a standard deviation of the logarithm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from sweep.config.queues import Queue
from sweep.config.ranges import NOT_NEGATIVE, POSITIVE, SHARE, Range


@dataclass
class SimulationModel:
    """What a simulated world does to workers and trials.

    Args:
        trial_seconds: seconds of a whole trial that is alone on a worker of speed 1.
        slot_cost: share by which a trial takes longer for each other trial in its worker.
        startup_seconds: seconds from the start of a job until its worker is ready.
        wait_seconds: mean seconds that a job waits in the queue before it starts.
        startup_spread: spread of the start-up times.
        speed_spread: spread of the speeds of the workers.
        stragglers: share of attempts that are slowed down by `straggler_factor`.
        straggler_factor: how many times longer such an attempt takes.
        crashes: share of attempts during which the worker is lost.
        preemptions: share of attempts during which the worker is signalled to end.
        stop_seconds: seconds until a running trial obeys a stop.
    """

    trial_seconds: float = 600.0
    slot_cost: float = 0.05
    startup_seconds: float = 20.0
    startup_spread: float = 0.3
    wait_seconds: float = 0.0
    speed_spread: float = 0.1
    stragglers: float = 0.0
    straggler_factor: float = 4.0
    crashes: float = 0.0
    preemptions: float = 0.0
    stop_seconds: float = 0.5


@dataclass
class SimulatedQueue(Queue, SimulationModel):
    """Simulated workers that replay recorded curves in simulated time (docs/simulated.md).

    Args:
        table: path of the curves, a .npz file.
        columns: torchtune keys by array of the table, for arrays whose key the program does not know.
        seed: seed of everything that happens to workers and trials.
        look_seconds: seconds until a controller that waits observes what has happened.
        charge: whether the time that the study takes to propose and to judge passes on the simulated clock too.
    """

    kind: str = "simulated"
    workers: int | None = 8
    table: str = ""
    columns: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    look_seconds: float = 0.2
    charge: bool = True
    poll_seconds: float = 60.0

    RANGES: ClassVar[Mapping[str, Range]] = {
        **Queue.RANGES,
        **dict.fromkeys(("trial_seconds", "straggler_factor", "look_seconds"), POSITIVE),
        **dict.fromkeys(
            ("slot_cost", "startup_seconds", "startup_spread", "wait_seconds", "speed_spread", "stop_seconds"),
            NOT_NEGATIVE,
        ),
        **dict.fromkeys(("stragglers", "crashes", "preemptions"), SHARE),
    }

    @property
    def simulated(self) -> bool:
        return True

    @property
    def simulation_model(self) -> SimulationModel:
        """What happens to workers and trials."""
        return SimulationModel(**{f.name: getattr(self, f.name) for f in dataclasses.fields(SimulationModel)})
