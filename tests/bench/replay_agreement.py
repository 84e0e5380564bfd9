"""Whether `sweep replay` says what the other pruner does: its answer against sweeps that had that pruner.

    python -m tests.bench.replay_agreement [--seeds N] [--workers 1 8] [--trials N]

For each seed, a sweep without a pruner runs on simulated workers, with random proposals (which do not depend on what
was pruned), and is replayed under each pruner; then a sweep of the same name (Hyperband draws its brackets by it) with
that pruner runs on the same table with the same seeds. Both have the same trials with the same curves. With one worker,
reports come in the same order, and the two must agree in every number. With several, workers of different speed end
trials in another order than the replay's equal ones.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from sweep.cli.main import main as cli
from tests.helpers.tables import write_table

PRUNERS = (
    "median pruner.n_startup_trials=3",
    "successive_halving pruner.reduction_factor=3",
    "hyperband pruner.reduction_factor=3",
    "asha pruner.min_resource=1 pruner.reduction_factor=3",
)


@dataclass(frozen=True)
class Answer:
    """What became of a sweep under a pruner, as replayed or as it was.

    Args:
        tokens: label tokens trained.
        fate: of the trial that wins without a pruner.
        best: the best complete trial's value.
    """

    tokens: int
    fate: str
    best: float | None


def asked(*words: str, rooms: Path) -> dict[str, Any]:
    """What a verb says in JSON, where it is asked to; its rooms lie in a directory of their own."""
    said = io.StringIO()
    with mock.patch.dict(os.environ, SWEEP_ROOMS=str(rooms)), contextlib.redirect_stdout(said):
        code = cli([*words])
    assert code == 0, f"{words}: {said.getvalue()}"
    return json.loads(said.getvalue()) if "--json" in words else {}


def compare(table: Path, rooms: Path, seed: int, workers: int, trials: int) -> dict[str, tuple[Answer, Answer]]:
    """By pruner, what the replay answers and what a sweep with that pruner does."""
    words = [
        "name=s",
        "queue=simulated",
        f"queue.table={table}",
        f"queue.workers={workers}",
        f"queue.seed={seed}",
        "queue.charge=false",
        "sampler=random",
        f"search.seed={seed}",
        f"search.trials={trials}",
        "objective=val_loss",
        "space.optimizer.lr=tag(log,interval(1e-5,1e-1))",
    ]
    asked("run", "pruner=none", *words, rooms=rooms / "none")
    answers = {}
    for pruner in PRUNERS:
        kind, *more = pruner.split()
        said = asked("replay", "s", f"pruner={kind}", *more, "--json", rooms=rooms / "none")
        replayed = Answer(said["tokens"], said["winner_fate"], said["best"])
        asked("run", f"pruner={kind}", *more, *words, rooms=rooms / kind)
        rows = asked("status", "s", "--json", rooms=rooms / kind)["rows"]
        complete = [row["value"] for row in rows if row["state"] == "complete"]
        tokens = sum(row["reports"][-1]["tokens"] for row in rows if row["reports"])
        answers[kind] = replayed, Answer(tokens, rows[said["winner"]]["state"], min(complete, default=None))
    return answers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--trials", type=int, default=24)
    args = parser.parse_args()
    print(
        "| workers | pruner | tokens, replayed less real (mean, worst) | the winner's fate agrees | the best agrees |"
    )
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        table = write_table(root / "curves.npz", milestones=12)
        for workers in args.workers:
            answers = [
                compare(table, root / f"{workers}-{seed}", seed, workers, args.trials) for seed in range(args.seeds)
            ]
            for pruner in answers[0]:
                pairs = [one[pruner] for one in answers]
                off = [replayed.tokens / real.tokens - 1.0 for replayed, real in pairs]
                agreed = sum(replayed.fate == real.fate for replayed, real in pairs)
                best = sum(replayed.best == real.best for replayed, real in pairs)
                worst = max(off, key=abs)
                print(
                    f"| {workers} | {pruner} | {statistics.fmean(off):+.1%}, {worst:+.1%} | {agreed} of {args.seeds} "
                    f"| {best} of {args.seeds} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
