"""The benchmark of dispatch: `python -m tests.bench.dispatch --trials 64 --workers 2 [--repeat 3] [--json OUT]`.

Measures in one run the wall-clock of the same short trials of the embedded base on the CPU, three ways:

- warm: `sweep run` as a person starts it (random sampler, no pruner, no checkpoints in between);
- process: one `tune run lora_finetune_single_device` for each trial, `--workers` at a time;
- ray: Ray Tune with `reuse_actors=True` driving the same trainer under ASHA, loggers and callbacks off.

Every arm trains the same resolved configurations with the same data, steps, threads and slots and saves each adapter;
start-up is in the wall-clock and printed apart. Nothing is pruned: ASHA's grace period lies beyond a trial's end, so
that it is asked after each report and stops nobody. Which trials an asynchronous rule stops depends on the order of
their reports, so that with pruning the arms would train different amounts, and a ratio would mix the dispatcher's
speed with its luck. `--halving` measures just that for warm and ray (rungs at milestones 1, 3, 9, a third goes on);
its ratio is no like for like, and the steps trained stand beside it.

Invariant: the ratios are of one machine in one run; nothing is kept from an earlier one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.bench.arms import Job
from tests.bench.bench import add_options, measure, wanted_arms

BATCH_SIZE = 8
OVERRIDES = (
    "recipe=embedded",
    "recipe.overrides.dataset_val=null",
    f"recipe.overrides.batch_size={BATCH_SIZE}",
    "space.optimizer.lr=tag(log, interval(1e-4, 1e-2))",
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, trials=64, workers=2)
    parser.add_argument("--micro-batches", type=int, default=16, help="optimizer steps of a trial (default 16)")
    parser.add_argument("--halving", action="store_true", help="prune, in warm and ray")
    args = parser.parse_args()
    rows = args.micro_batches * BATCH_SIZE
    with tempfile.TemporaryDirectory(prefix="sweep-bench-") as scratch:
        job = Job(
            overrides=(*OVERRIDES, f"recipe.overrides.dataset.split='train[:{rows}]'", *args.set),
            trials=args.trials,
            workers=args.workers,
            milestones=4,
            scratch=Path(scratch),
            halving=args.halving,
            ray_python=args.ray_python,
        )
        arms = [arm for arm in wanted_arms(args) if not (args.halving and arm == "process")]
        return measure(job, arms, args)


if __name__ == "__main__":
    sys.exit(main())
