"""What the arms of `dispatch.py` and `gpu_dispatch.py` measured, and the tables and JSON made of it.

Invariants: pure. A ratio compares two arms of the same repetition; over repetitions its median is given.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

AIMS = {"process": 10.0, "ray": 1.0}
TITLES = {
    "warm": "sweep, warm local queue",
    "process": "`tune run`, a process a trial",
    "ray": "Ray Tune, reuse_actors",
}


@dataclass(frozen=True, slots=True)
class Trained:
    """One trial of one arm.

    Args:
        slot: worker, process slot or actor that trained it.
        first_step, freed: seconds since the epoch: its first optimizer step is done, its slot is free again.
        steps: optimizer steps trained.
        loss: of the last of them.
    """

    number: int
    slot: str
    first_step: float
    freed: float
    steps: int
    loss: float


@dataclass(frozen=True, slots=True)
class Measured:
    """One arm, once.

    Args:
        began: seconds since the epoch.
        seconds: from the command to its end, start-up and shut-down included.
        cpu: seconds of processor time of the controlling process alone; None where there is none.
    """

    arm: str
    began: float
    seconds: float
    trials: tuple[Trained, ...]
    cpu: float | None = None

    @property
    def start_up(self) -> float:
        """Seconds until the first optimizer step of any trial was done."""
        return min(trial.first_step for trial in self.trials) - self.began

    @property
    def running(self) -> float:
        """Seconds from that step to the end of the last trial."""
        return max(trial.freed for trial in self.trials) - self.began - self.start_up

    @property
    def steps(self) -> int:
        return sum(trial.steps for trial in self.trials)

    @property
    def lasting(self) -> float:
        """Median seconds from a trial's first step to its freed slot: its other steps, reports and saving."""
        return statistics.median(trial.freed - trial.first_step for trial in self.trials)

    def gaps(self) -> list[float]:
        """Seconds from a freed slot to the next trial's first optimizer step on it, that step's training included."""
        gaps = []
        for slot in {trial.slot for trial in self.trials}:
            own = sorted((t for t in self.trials if t.slot == slot), key=lambda t: t.first_step)
            gaps += [after.first_step - before.freed for before, after in pairwise(own)]
        return gaps

    def to_json(self) -> dict[str, Any]:
        gaps = self.gaps()
        return {
            "arm": self.arm,
            "trials": len(self.trials),
            "steps": self.steps,
            "seconds": self.seconds,
            "start_up_seconds": self.start_up,
            "running_seconds": self.running,
            "trial_median_seconds": self.lasting,
            "gap_median_seconds": statistics.median(gaps) if gaps else None,
            "gap_p90_seconds": p90(gaps) if gaps else None,
            "controller_cpu_seconds": self.cpu,
            "controller_cpu_share": None if self.cpu is None else self.cpu / self.seconds,
        }


Repetition = Mapping[str, Measured]


def p90(values: Sequence[float]) -> float:
    """The 90th percentile, interpolated."""
    return statistics.quantiles(values, n=10, method="inclusive")[-1] if len(values) > 1 else values[0]


def table(repetitions: Sequence[Repetition]) -> str:
    """A Markdown table with a line for each arm, medians over the repetitions."""
    head = (
        "| arm | steps | wall-clock s | first step after s | then s | "
        "a trial from its first step on, median ms | freed slot → next first step, median / p90 ms | controller CPU |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for arm in repetitions[0]:
        runs = [repetition[arm] for repetition in repetitions]
        gaps = [[gap * 1e3 for gap in run.gaps()] for run in runs if run.gaps()]
        gap = f"{_median(map(statistics.median, gaps)):.0f} / {_median(map(p90, gaps)):.0f}" if gaps else "–"
        cpu = [(run.cpu, run.cpu / run.seconds) for run in runs if run.cpu is not None]
        share = f"{_median(c for c, _ in cpu):.1f} s, {_median(s for _, s in cpu):.1%}" if cpu else "–"
        cells = [
            TITLES[arm],
            f"{_median(run.steps for run in runs):.0f}",
            f"{_median(run.seconds for run in runs):.1f}",
            f"{_median(run.start_up for run in runs):.1f}",
            f"{_median(run.running for run in runs):.1f}",
            f"{_median(run.lasting for run in runs) * 1e3:.0f}",
            gap,
            share,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ratios(repetitions: Sequence[Repetition]) -> dict[str, dict[str, Any]]:
    """Wall-clock of each other arm over the warm queue's, with its aim, and the same without start-up and end."""
    by_pair: dict[str, dict[str, Any]] = {}
    for arm, aim in AIMS.items():
        pairs = [(r[arm], r["warm"]) for r in repetitions if arm in r and "warm" in r]
        if pairs:
            walls = [other.seconds / ours.seconds for other, ours in pairs]
            by_pair[f"{arm}/warm"] = {
                "wall_clock": _median(walls),
                "lowest": min(walls),
                "highest": max(walls),
                "running": _median(other.running / ours.running for other, ours in pairs),
                "aim": aim,
                "reached": _median(walls) >= aim,
            }
    return by_pair


def ratio_lines(by_pair: Mapping[str, Mapping[str, Any]]) -> str:
    return "\n".join(
        f"{name} {r['wall_clock']:.2f} ({r['lowest']:.2f}–{r['highest']:.2f}); aim >= {r['aim']:g}: "
        f"{'reached' if r['reached'] else 'NOT reached'}; from the first step on {r['running']:.2f}"
        for name, r in by_pair.items()
    )


def sameness(repetition: Repetition) -> str:
    """Whether the arms trained the same: steps, and the largest relative difference of a trial's last loss."""
    first, *others = repetition.values()
    known = {trial.number: trial for trial in first.trials}
    lines = []
    for other in others:
        pairs = [(known[trial.number], trial) for trial in other.trials if trial.number in known]
        worst = max((abs(a.loss - b.loss) / max(abs(a.loss), 1e-30) for a, b in pairs if a.steps == b.steps), default=0)
        uneven = sum(a.steps != b.steps for a, b in pairs)
        lines.append(
            f"{first.arm} and {other.arm}: {len(pairs)} trials in both, {uneven} of other length, "
            f"last losses differ by {worst:.1e} at most"
        )
    return "\n".join(lines)


def _median(values: Iterable[float]) -> float:
    return statistics.median(values)
