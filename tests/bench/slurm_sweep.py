"""Part b of `python -m tests.bench.slurm`: from a prune to its stop; and the sweep that parts b and c look at.

The sweep is `experiment=demo` as it is delivered (TPE, successive halving, validation, checkpoints) on the queue
`slurm_cpu` as it is delivered; only the number of trials and workers is said.

Invariants: read from the room afterwards, so that looking costs the sweep nothing. A trial that reached its end
before its stop reached it did not stop and is counted apart. When a report was written is told from the outcome's
file, since reports and outcome both say how long the attempt had trained by then.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tests.bench.clocks import run_to_end
from tests.bench.results import p90
from tests.bench.slurm_lab import Lab
from trainer.contract import Outcome, OutcomeKind, Report, StopCause, decode
from trainer.room import AttemptDir, Room

NAME = "pruned"


@dataclass(frozen=True, slots=True)
class Swept:
    """A sweep that has ended.

    Args:
        began, ended: seconds since the epoch, of the command.
    """

    room: Room
    began: float
    ended: float

    def attempts(self) -> Iterator[AttemptDir]:
        for trial in self.room.trials():
            for number in self.room.attempts(trial):
                yield self.room.attempt(trial, number)


@dataclass(frozen=True, slots=True)
class Prune:
    """A running trial that was pruned.

    Args:
        decided: seconds from its last report before the stop to the stop.
        obeyed: seconds from the stop to the outcome.
        later: reports that it still made after the stop.
    """

    decided: float
    obeyed: float
    later: int


def swept(lab: Lab, trials: int, workers: int) -> Swept:
    """Run a sweep that prunes.

    Raises:
        ArmFailed: it failed.
    """
    words = ["experiment=demo", "queue=slurm_cpu", f"queue.workers={workers}", f"search.trials={trials}"]
    command = [sys.executable, "-m", "sweep.cli", "run", *words, f"name={NAME}"]
    ended = run_to_end(command, lab.env(), lab.scratch / f"{NAME}.log")
    print(f"b, c: a sweep of {trials} trials on {workers} workers took {ended.seconds:.0f} s", flush=True)
    return Swept(Room(lab.rooms / NAME), ended.began, ended.began + ended.seconds)


def prune_section(sweep: Swept) -> tuple[str, dict[str, Any]]:
    prunes, intervals, too_late = [], [], 0
    for files in sweep.attempts():
        reports = _reports(files)
        intervals += [after.seconds - before.seconds for before, after in pairwise(reports)]
        if files.stop.exists() and files.outcome.exists():
            outcome = decode(Outcome, files.outcome.read_text())
            if outcome.kind is OutcomeKind.STOPPED and outcome.cause is StopCause.PRUNED:
                prunes.append(_prune(files, outcome, reports))
            else:
                too_late += 1
    numbers: dict[str, Any] = {
        "prunes": len(prunes),
        "ended_before_their_stop": too_late,
        "decided_seconds": [prune.decided for prune in prunes],
        "obeyed_seconds": [prune.obeyed for prune in prunes],
        "reports_after_the_stop": [prune.later for prune in prunes],
        "report_interval_seconds": intervals,
    }
    if not prunes:
        return "### b. Prune to stop: nothing was pruned; give it more --sweep-trials", numbers
    obeyed, interval = statistics.median(numbers["obeyed_seconds"]), statistics.median(intervals)
    lines = [
        f"### b. Prune to stop: median {obeyed:.3f} s of {len(prunes)} prunes, "
        f"{obeyed / interval:.2f} of the median time between two reports\n",
        "| span | median s | p90 | highest |",
        "|---|---|---|---|",
        _line("report → `stop` written", numbers["decided_seconds"]),
        _line("`stop` → `outcome.json`", numbers["obeyed_seconds"]),
        _line("report → next report of the same trial", intervals),
        f"\nReports made after the stop: {sum(numbers['reports_after_the_stop'])} in all; "
        f"{too_late} trials reached their end before the stop reached them.",
    ]
    return "\n".join(lines), numbers


def _prune(files: AttemptDir, outcome: Outcome, reports: list[Report]) -> Prune:
    ended, stopped = files.outcome.stat().st_mtime, files.stop.stat().st_mtime
    times = [ended - (outcome.seconds - report.seconds) for report in reports]
    before = max((at for at in times if at <= stopped), default=stopped)
    return Prune(stopped - before, ended - stopped, sum(at > stopped for at in times))


def _reports(files: AttemptDir) -> list[Report]:
    lines = files.reports.read_text().splitlines() if files.reports.exists() else []
    return [decode(Report, line) for line in lines]


def _line(name: str, values: list[float]) -> str:
    return f"| {name} | {statistics.median(values):.3f} | {p90(values):.3f} | {max(values):.3f} |"
