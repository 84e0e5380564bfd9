"""The cluster that `python -m tests.bench.slurm` measures on, and the count of what its scheduler is asked.

Invariants: the cluster is the benchmark's own, in a scratch directory, and gone when the block ends, however it ends.
A command that is counted is SLURM's own: its stand-in on PATH appends a line with the time, and becomes it. The
cluster's daemons and the jobs' srun never meet a stand-in.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.arms import environment
from tests.slurm.cluster import PATH, Cluster

COUNTED = ("squeue", "sacct", "scontrol", "sbatch", "scancel")
STAND_IN = '#!/bin/sh\necho "$(date +%s.%N) {name}" >>"{log}"\nexec "{real}" "$@"\n'


@dataclass(frozen=True, slots=True)
class Calls:
    """Counts calls of SLURM's commands by whoever has `directory` first on its PATH."""

    directory: Path

    def set_up(self) -> None:
        self.directory.mkdir()
        for name in COUNTED:
            if real := shutil.which(name, path=PATH):
                stand_in = self.directory / name
                stand_in.write_text(STAND_IN.format(name=name, log=self._log, real=real))
                stand_in.chmod(0o755)

    def between(self, began: float, ended: float) -> list[tuple[float, str]]:
        """Time (seconds since the epoch) and command of each call in a span of time, in order."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        calls = ((float(at), name) for at, name in map(str.split, lines))
        return sorted(call for call in calls if began <= call[0] <= ended)

    @property
    def _log(self) -> Path:
        return self.directory.with_suffix(".log")


@dataclass(frozen=True, slots=True)
class Lab:
    """A running cluster, and a directory for what is run on it."""

    scratch: Path
    calls: Calls
    cluster: Cluster

    @property
    def rooms(self) -> Path:
        return self.scratch / "sweeps"

    def env(self) -> dict[str, str]:
        """The environment of a command line on the cluster's login node."""
        return environment(self.scratch, SWEEP_ROOMS=str(self.rooms))

    def processor_seconds(self, prefix: str) -> float:
        """What all jobs used whose names begin so, user and system, by the cluster's accounting."""
        # without -X, else the line of a job lacks what its steps used
        listing = self.cluster.run("sacct", "-nP", "-S", "now-1days", "-o", "TotalCPU,JobName")
        jobs = (line.partition("|") for line in listing.splitlines())
        return sum(_seconds(used) for used, _, name in jobs if name.startswith(prefix))


@contextmanager
def lab(nodes: int, cpus: int) -> Iterator[Lab]:
    """Bring a cluster up and point this process, and those that it starts, at it."""
    with tempfile.TemporaryDirectory(prefix="sweep-bench-", ignore_cleanup_errors=True) as name:
        scratch = Path(name)
        calls = Calls(scratch / "bin")
        calls.set_up()
        before = dict(os.environ)
        with Cluster(scratch / "lab", nodes=nodes, cpus=cpus) as cluster:
            os.environ.update(cluster.env(), PATH=f"{calls.directory}{os.pathsep}{PATH}")
            try:
                yield Lab(scratch, calls, cluster)
            finally:
                os.environ.clear()
                os.environ.update(before)


def _seconds(text: str) -> float:
    """Of a duration as sacct writes it: [days-][hours:]minutes:seconds.milliseconds, or nothing."""
    days, _, rest = text.rpartition("-")
    parts = [float(part) for part in (rest or "0").split(":")]
    return int(days or 0) * 86400.0 + sum(part * 60.0**power for power, part in enumerate(reversed(parts)))
