"""Random schedules of kills: the configuration of a sweep, and what happens to its processes, drawn from a seed.

Invariant: pure. A schedule is a function of the queue's kind and the seed. It counts in events (effects, durable acts,
acts of a worker) and not in seconds, so that it means the same on a slow machine, as far as the events of processes
that run at the same time can mean the same.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

QUEUES = ("simulated", "local", "slurm")
# Sampler and pruner with the pruner's options, and how often each pair is drawn. The first is the default.
SEARCHES = {
    ("sampler=forecast", "pruner=freeze_thaw"): 8,
    ("sampler=tpe", "pruner=asha", "pruner.min_resource=1", "pruner.reduction_factor=2"): 2,
    ("sampler=forecast", "pruner=asha", "pruner.min_resource=1", "pruner.reduction_factor=2"): 1,
    ("sampler=tpe", "pruner=freeze_thaw"): 1,
    ("sampler=tpe", "pruner=successive_halving"): 2,
    ("sampler=random", "pruner=median", "pruner.n_startup_trials=2"): 1,
    ("sampler=qmc", "pruner=hyperband"): 1,
    ("sampler=random", "pruner=none"): 1,
}
EVALUATION = ("evaluate=heldout", "evaluate.dataset._component_=torchtune.datasets.alpaca_dataset")
# How a trial can be enqueued before a sweep begins.
ENQUEUED = "warm_start.enqueue=[{optimizer.lr: 1e-3}]"


class How(StrEnum):
    """What ends one life of a controller, or interrupts it."""

    EFFECT = "killed after an effect"
    ACT = "killed before a durable act"
    TERMINATED = "SIGTERM after an effect"
    INTERRUPTED = "two times SIGINT after an effect"
    SUSPENDED = "SIGSTOP after an effect, and SIGCONT"


@dataclass(frozen=True, slots=True)
class Life:
    """One process of a sweep's controller.

    Args:
        at: the number of the effect or act, from 1. If the sweep ends before, nothing happens.
    """

    how: How
    at: int


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the budget between two lives, with the process that makes it killed.

    Args:
        after: the number of lives before it.
        trials: the new `search.trials`.
        killed: before which durable act the process is killed; 0: it is not.
    """

    after: int
    trials: int
    killed: int


@dataclass(frozen=True, slots=True)
class Schedule:
    """A sweep, and what happens to it.

    Args:
        words: the overrides of its configuration, without the queue's own.
        trials: `search.trials`.
        tokens: `search.tokens`, in whole trials; None: no such limit.
        finals: `search.finalists`.
        sqlite: the study is in a database and not in a journal.
        creation: before which durable acts processes that create the room are killed, one after the other.
        lives: the controllers; after the last of them one runs to the end.
        signals: by worker, the signal that it gets before one of its acts, and the number of that act.
    """

    queue: str
    seed: int
    words: tuple[str, ...]
    trials: int
    workers: int
    slots: int
    tokens: int | None
    finals: int
    sqlite: bool
    evaluated: bool
    creation: tuple[int, ...]
    lives: tuple[Life, ...]
    change: Change | None
    signals: Mapping[str, tuple[str, int]] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """The command line that repeats this schedule."""
        return f"python -m tests.fuzz.kills --queue {self.queue} --schedules 1 --seed {self.seed}"

    @property
    def final_trials(self) -> int:
        """`search.trials` at the end."""
        return self.change.trials if self.change else self.trials


def draw(queue: str, seed: int) -> Schedule:
    """The schedule of a seed.

    Args:
        queue: one of `QUEUES`.
    """
    rng = random.Random(f"{queue} {seed}")
    few = queue == "slurm"  # an effect there takes a second
    trials, workers, slots = rng.randint(3, 5 if few else 9), rng.randint(1, 3), rng.choice((1, 1, 4))
    finals = rng.choice((0, 0, 2))
    lives = tuple(_life(rng, queue) for _ in range(rng.randint(1, 4 if few else 10)))
    changed = rng.random() < 0.3
    words = [*_chosen(rng), f"search.trials={trials}", f"queue.workers={workers}", f"queue.slots={slots}"]
    words += [f"search.finalists={finals}", "search.seeds=2", f"search.seed={rng.randrange(1000)}"]
    per_worker = rng.choice(("null", "null", 1)) if queue != "simulated" else "null"  # simulated workers count none
    words += ["search.max_attempts=50", f"queue.trials_per_worker={per_worker}"]
    tokens = rng.randint(2, trials) if rng.random() < 0.25 else None
    if rng.random() < 0.15:
        words.append("search.target=2.0" if queue == "simulated" else "search.target=1.8")
    if rng.random() < 0.3:
        words.append(ENQUEUED)
    evaluated = queue != "simulated" and rng.random() < 0.35
    if queue == "simulated":
        words += _simulation(rng)
    return Schedule(
        queue=queue,
        seed=seed,
        words=(*words, *(EVALUATION if evaluated else ())),
        trials=trials,
        workers=workers,
        slots=slots,
        tokens=tokens,
        finals=finals,
        sqlite=rng.random() < 0.35,
        evaluated=evaluated,
        creation=tuple(rng.randint(1, 12) for _ in range(rng.choice((0, 0, 1, 2)))),
        lives=lives,
        change=Change(rng.randint(0, len(lives)), trials + rng.randint(1, 3), rng.randint(0, 4)) if changed else None,
        signals={} if queue == "simulated" else _signals(rng),
    )


def _chosen(rng: random.Random) -> Sequence[str]:
    return rng.choices(list(SEARCHES), list(SEARCHES.values()))[0]


def _life(rng: random.Random, queue: str) -> Life:
    ways = [How.EFFECT] * 4 + [How.ACT] * 4 + [How.TERMINATED, How.INTERRUPTED, How.SUSPENDED]
    if queue == "simulated":  # workers end with their controller, so that nothing can go on without it
        ways = [How.EFFECT, How.ACT, How.INTERRUPTED, How.SUSPENDED]
    return Life(rng.choice(ways), round(rng.lognormvariate(1.8, 0.9)) + 1)


def _signals(rng: random.Random) -> dict[str, tuple[str, int]]:
    names = [f"w{number:04d}" for number in range(1, 7) if rng.random() < 0.3]
    return {name: (rng.choice(("SIGKILL", "SIGKILL", "SIGTERM", "SIGSTOP")), rng.randint(1, 12)) for name in names}


def _simulation(rng: random.Random) -> list[str]:
    shares = {"crashes": 0.2, "preemptions": 0.2, "stragglers": 0.2}
    drawn = [f"queue.{key}={rng.choice((0, share))}" for key, share in shares.items()]
    return [*drawn, f"queue.wait_seconds={rng.choice((0, 30))}", f"queue.seed={rng.randrange(1000)}"]
