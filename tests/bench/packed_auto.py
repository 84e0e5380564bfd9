"""`slots: auto` against one trial at a time: `python -m tests.bench.packed_auto --case 1x4096 [--json OUT]`.

Whole trials through the worker's scheduler, building included: `--single-trials` of them with one slot, by torchtune's
own modules, then `--trials` with `slots: auto`; with `--forced N` also with N slots. Of either, label tokens a second.

`--case` is a micro-batch, rows x tokens of a slot, on a shape of Llama's with random weights and rows (`--shape`);
nothing is saved at their ends then. Without it, `--data DIR` takes base8m on GSM8K, and neither the embedded base.
`--memory-gib` limits what this process may have. The CPU's choice: `--device cpu --dtype fp32 --trials 4
--single-trials 4 --micro-batches 12 --forced 4`, with or without `--data`.

On the CPU seconds are the process's own, so that other load on the machine matters less; `OMP_NUM_THREADS=1`.

Invariant: one process, one base; the trials that one slot trains are the first of those that `auto` trains.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tests.bench import packed
from tests.bench.given import Config, ScheduledTrials
from tests.bench.packed_parity import draw
from trainer import base
from trainer.base import Cache
from trainer.recipe import LoraRecipe
from trainer.room import Room


def configs(args: argparse.Namespace) -> list[Config]:
    """The trials, the same in every run."""
    if not args.case:
        return draw(args, args.trials, args.micro_batches)
    rows, length = packed.CASES[args.case]
    made = [packed.make_config(args, rows, length, index) for index in range(args.trials)]
    return [one | {"max_steps_per_epoch": args.micro_batches, "compile": args.compile} for one in made]


def compare(args: argparse.Namespace, cache: Cache, scratch: Path) -> dict[str, Any]:
    """One run of every arm."""
    all_of_them = configs(args)
    clock = time.process_time if args.device == "cpu" else time.perf_counter
    few = all_of_them[: args.single_trials]

    def given(slots: int, chosen: list[Config], name: str) -> ScheduledTrials:
        return ScheduledTrials(slots, chosen, cache, Room(scratch / name), (f"{packed.__name__}.",))

    given(1, few[:1], "first").finish(clock)  # what is loaded once, data and base, is in no arm
    one = given(1, few, "one").finish(clock)
    print(f"one slot: {one:,.0f} label tokens/s over {len(few)} trials", flush=True)
    forced = given(args.forced, all_of_them, "forced").finish(clock) if args.forced else None
    scheduler = given(0, all_of_them, "auto")
    many = scheduler.finish(clock)
    auto = scheduler.scheduler._auto
    return {
        "said": scheduler.announced,
        "slots": scheduler.scheduler.slots,
        "rates_measured": auto.rates if auto else {},
        "settled": auto.settled if auto else True,
        "tokens_per_second": many,
        "tokens_per_second_one_slot": one,
        "tokens_per_second_forced": forced,
        "ratio": many / one,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=packed.CASES)
    parser.add_argument("--shape", choices=packed.SHAPES, default="1b")
    parser.add_argument("--data", type=Path, help="the folder that holds base8m/ and gsm8k/")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--single-trials", type=int, default=4)
    parser.add_argument("--micro-batches", type=int, default=48)
    parser.add_argument("--validation", type=int, default=32, help="rows, once, at a trial's end; none with --case")
    parser.add_argument("--forced", type=int, default=0, help="slots of a third arm")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--memory-gib", type=float)
    parser.add_argument("--compile", action="store_true", help="with --case: one slot is compiled, as the trials ask")
    parser.add_argument("--ranks", default="16", help="with --case: given to the trials in turn")
    parser.add_argument("--spread", type=int, default=0, help="with --case: rows are up to so many tokens shorter")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.case:
        base.load_base = lambda cfg, model, scratch: base._frozen(model)  # no checkpoint: the random draws stay
        LoraRecipe.save_adapter = lambda *_: True  # type: ignore[method-assign]
    if args.memory_gib:
        torch.cuda.set_per_process_memory_fraction(args.memory_gib * 2**30 / torch.cuda.mem_get_info()[1])
    cache = Cache()
    comparisons = []
    for turn in range(args.repeat):
        with tempfile.TemporaryDirectory(prefix="packed-auto-") as name:
            comparisons.append(compare(args, cache, Path(name)))
        print(json.dumps({"turn": turn, **comparisons[-1]}), flush=True)
    print(f"auto over one slot, median: {statistics.median(one['ratio'] for one in comparisons):.2f}")
    if args.json:
        args.json.write_text(json.dumps(comparisons, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
