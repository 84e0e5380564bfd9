"""Parity and refill: `python -m tests.bench.packed_parity --data DIR [--only parity,refill] [--json OUT]`.

DIR holds `base8m/` and `gsm8k/`, as `../shared/data` does; without it the embedded base and its rows serve. Parts:

- parity: the same trials (rates, ranks, accumulations, seeds differ) each alone, by torchtune's modules, and all in
  one pack: Kendall's tau and drift of the last validation losses, the spread of one of them over seeds, and what the
  shipped pruners decide on either set of recorded curves, fed in the same order.
- refill: a full scheduler in mid-training; one trial after another is stopped and the next one given. Passes until its
  first micro-batch, what that pass costs, and what was compiled meanwhile.
- steps: of the first `--step-trials` trials each optimizer step's loss and grad_norm, packed against alone.
- rounding: the trials alone once more, the rows of each micro-batch in reverse order. The mathematics are the same:
  what differs is rounding alone, and says what tau and drift two runs of torchtune's own loop would have.

`--device cpu --dtype fp32 --trials 4 --slots 3 --micro-batches 8 --seeds 2 --refills 1` tries it out.

Invariants: one process, one base, the worker's own classes. Nothing is tuned to pass: every trial drawn counts, also
one that diverges; a loss that is not finite ranks last.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import optuna
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy.stats import kendalltau

from tests.bench.given import ScheduledTrials
from trainer.base import Cache
from trainer.contract import Step
from trainer.embedded import __file__ as embedded
from trainer.packed.pack import Pack
from trainer.recipe import LoraRecipe
from trainer.room import Room

PRUNERS = Path(__file__).parents[2] / "conf" / "pruner"
RANKS = (4, 8, 16, 32, 64)
ACCUMULATIONS = (1, 2, 4)
ROWS = 4  # of a micro-batch
WARM_UP = 8  # passes of the full scheduler before the first stop
BETWEEN = 6  # passes from one stop to the next
Config = dict[str, Any]
Curves = list[list[float]]
Findings = dict[str, Any]


# --- trials -----------------------------------------------------------------------------------------------------------


def draw(args: argparse.Namespace, count: int, micro_batches: int) -> list[Config]:
    """Configurations of so many trials, the same in every run."""
    chance = random.Random(0)
    configs = []
    for index in range(count):
        lr = math.exp(chance.uniform(math.log(3e-4), math.log(3e-2)))
        rank, accumulation = chance.choice(RANKS), chance.choice(ACCUMULATIONS)
        configs.append(config(args, micro_batches, lr, rank) | {"gradient_accumulation_steps": accumulation})
        configs[-1]["seed"] = index
    return configs


def config(args: argparse.Namespace, micro_batches: int, lr: float, rank: int) -> Config:
    home = args.data.resolve() / "base8m" if args.data else Path(embedded).parent
    loaded: Any = OmegaConf.load(home / "lora_cpu.yaml")
    loaded.root = str(home.parent if args.data else home)
    raw: Any = OmegaConf.to_container(loaded, resolve=True)
    raw["model"] |= {"lora_rank": rank, "lora_alpha": 2 * rank}
    raw["optimizer"]["lr"] = lr
    raw["dataset"]["split"] = f"train[:{ROWS * micro_batches}]"
    rows = str(Path(raw["dataset"]["data_files"]).with_name("val.jsonl"))
    raw["dataset_val"] = {**raw["dataset"], "data_files": rows, "split": f"train[:{args.validation}]"}
    return dict(raw) | {
        "batch_size": ROWS,
        "batch_size_val": args.validation,
        "max_steps_per_epoch": None,
        "device": args.device,
        "dtype": args.dtype,
    }


def build(cfg: Config, cache: Cache, scratch: Path) -> LoraRecipe:
    return LoraRecipe(OmegaConf.create(cfg), cache, scratch)


# --- parity -----------------------------------------------------------------------------------------------------------


def validated(recipe: LoraRecipe) -> float:
    value = recipe.evaluate()
    assert value is not None
    return value if math.isfinite(value) else math.inf


def curve_alone(recipe: LoraRecipe, every: int) -> list[float]:
    return [validated(recipe) for batch in recipe.train() if batch.position % every == 0]


def curves_packed(configs: Sequence[Config], cache: Cache, scratch: Path, every: int) -> Curves:
    pack = Pack()
    curves = {pack.put(build(cfg, cache, scratch)): list[float]() for cfg in configs}
    while pack.slots:
        for result in pack.step():
            if result.error or result.progress is None:
                raise result.error or RuntimeError("no micro-batch")
            if result.progress.position % every == 0:
                curves[result.slot].append(validated(result.slot.recipe))
            if result.progress.position == result.progress.total:
                pack.remove(result.slot)
    return list(curves.values())


def compared(ours: Curves, theirs: Curves) -> Findings:
    """Ranking and drift of the last values; what each pruner decides on either."""
    a, b = [curve[-1] for curve in ours], [curve[-1] for curve in theirs]
    drift = [abs(x - y) if x != y else 0.0 for x, y in zip(a, b, strict=True)]
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    swapped = [[i, j, b[i] - b[j]] for i, j in pairs if (a[i] - a[j]) * (b[i] - b[j]) < 0]
    return {
        "tau": float(kendalltau(a, b).statistic),
        "pairs": len(pairs),
        "swapped": swapped,
        "drift_largest": max(drift),
        "drift_median": statistics.median(drift),
        "drift_mean": statistics.fmean(drift),
        "best": [a.index(min(a)), b.index(min(b))],
        "pruning": list(pruning(ours, theirs)),
    }


def pruning(ours: Curves, theirs: Curves) -> Iterator[Findings]:
    """Shares of trials × milestones at which both sets of curves have kept, or have lost, the trial."""
    for name in ("successive_halving", "median"):
        for stride in (1, 2):
            for wave in (1, 8):
                a, b = (decisions(name, [c[stride - 1 :: stride] for c in curves], wave) for curves in (ours, theirs))
                if a:
                    yield {
                        "pruner": name,
                        "milestones": len(ours[0]) // stride,
                        "at_once": wave,
                        "decisions": len(a),
                        "pruned": [sum(a.values()), sum(b.values())],
                        "equal": sum(a[key] == b[key] for key in a) / len(a),
                        "different": [list(key) for key in a if a[key] != b[key]],
                    }


def decisions(name: str, curves: Curves, wave: int) -> dict[tuple[int, int], bool]:
    """Whether a pruner has stopped a trial by a milestone, the last left out: nobody asks there.

    Args:
        wave: trials that train side by side; the next ones begin when all of them are done.
    """
    study = optuna.create_study(pruner=instantiate(OmegaConf.load(PRUNERS / f"{name}.yaml")))
    last = len(curves[0])
    gone: dict[tuple[int, int], bool] = {}
    for first in range(0, len(curves), wave):
        trials = {number: study.ask() for number in range(first, min(first + wave, len(curves)))}
        for milestone in range(1, last + 1):
            for number in list(trials):
                value = curves[number][milestone - 1]
                trials[number].report(value, milestone)
                if milestone == last:
                    study.tell(trials[number], value)
                elif trials[number].should_prune():
                    study.tell(trials.pop(number), state=optuna.trial.TrialState.PRUNED)
            if milestone < last:
                for number in range(first, min(first + wave, len(curves))):
                    gone[number, milestone] = number not in trials
    return gone


def parity(args: argparse.Namespace, cache: Cache, scratch: Path) -> Findings:
    configs = draw(args, args.trials, args.micro_batches)
    every = args.micro_batches // args.milestones
    began = time.perf_counter()
    packed = curves_packed(configs, cache, scratch, every)
    middle = time.perf_counter()
    alone = [curve_alone(build(cfg, cache, scratch), every) for cfg in configs]
    ended = time.perf_counter()
    ranked = sorted(range(len(alone)), key=lambda index: alone[index][-1])
    chosen = ranked[len(ranked) // 2]
    seeds = [alone[chosen][-1]]
    for seed in range(1, args.seeds):
        seeds.append(curve_alone(build(configs[chosen] | {"seed": 1000 + seed}, cache, scratch), every)[-1])
    return {
        **compared(packed, alone),
        "seconds_packed": middle - began,
        "seconds_alone": ended - middle,
        "seeds_of": chosen,
        "seeds": seeds,
        "seeds_deviation": statistics.stdev(seeds),
        "trials": [[c["optimizer"]["lr"], c["model"]["lora_rank"], c["gradient_accumulation_steps"]] for c in configs],
        "packed": packed,
        "alone": alone,
    }


def rounding(args: argparse.Namespace, cache: Cache, scratch: Path, alone: Curves) -> Findings:
    every = args.micro_batches // args.milestones
    other = []
    for cfg in draw(args, args.trials, args.micro_batches):
        recipe = build(cfg, cache, scratch)
        collate = recipe._loader.collate_fn
        recipe._loader.collate_fn = backwards(collate)
        other.append(curve_alone(recipe, every))
    return {**compared(other, alone), "reversed": other}


def differences(args: argparse.Namespace, cache: Cache, scratch: Path) -> Findings:
    """The largest relative difference of each trial, as `sweep export --verify` takes it."""
    pack = Pack()
    configs = draw(args, args.step_trials, args.micro_batches)
    steps = {pack.put(build(cfg, cache, scratch)): list[Step]() for cfg in configs}
    while pack.slots:
        for result in pack.step():
            assert result.progress is not None, result.error
            steps[result.slot] += [result.progress.step] if result.progress.step else []
            if result.progress.position == result.progress.total:
                pack.remove(result.slot)
    rows = []
    for cfg, ours in zip(configs, steps.values(), strict=True):
        theirs = [batch.step for batch in build(cfg, cache, scratch).train() if batch.step]
        pairs = list(zip(ours, theirs, strict=True))
        loss = max(abs(a.loss - b.loss) / abs(b.loss) for a, b in pairs)
        norm = max(abs(a.grad_norm - b.grad_norm) / abs(b.grad_norm) for a, b in pairs)
        rows.append([cfg["optimizer"]["lr"], loss, norm, theirs[0].loss, theirs[-1].loss])
    return {"lr_loss_norm_first_last": sorted(rows)}


def backwards(collate: Callable[[list[Any]], Any]) -> Callable[[list[Any]], Any]:
    return lambda rows: collate(rows[::-1])


# --- refill -----------------------------------------------------------------------------------------------------------


def compiled() -> set[str]:
    """What has been compiled so far: TorchDynamo's graphs by number, variants of the pack's Triton kernels by key."""
    from torch._dynamo.utils import counters

    names = {f"dynamo graph {number}" for number in range(counters["stats"]["unique_graphs"])}
    if torch.cuda.is_available():
        from trainer.packed.kernels import adapters, basic

        for module in (basic, adapters):
            for name, value in vars(module).items():
                for cache in getattr(value, "device_caches", {}).values():
                    names |= {f"{name} {key}" for key in cache[0]}
    return names


def refill(args: argparse.Namespace, cache: Cache, scratch: Path) -> Findings:
    passes = WARM_UP + BETWEEN * (args.refills + 1)
    given = ScheduledTrials(
        args.slots, draw(args, args.slots + args.refills, 4 * passes), cache, Room(scratch / "refill")
    )
    usual, refills = [], []
    known: set[str] = set()
    since: list[tuple[int, str]] = []  # passes in which something was compiled
    awaited: tuple[int, int, int] | None = None  # the trial that was stopped, the pass of its stop, the next trial
    for number in range(passes):
        if number == WARM_UP:
            known = compiled()
        at = number - WARM_UP
        stopped = at // BETWEEN
        if at >= 0 and at % BETWEEN == 0 and stopped < args.refills:
            given.stops.add(stopped)
            awaited = stopped, number, args.slots + stopped
        seconds = given.step()
        if number >= WARM_UP:
            since += [(number, one) for one in sorted(compiled() - known)]
            known |= {one for _, one in since}
        began = {task.spec.trial for slot, task in given.scheduler._packed.items() if slot.recipe.position == 1}
        if awaited and awaited[2] in began:
            assert awaited[0] in given.ended, "it was stopped"
            refills.append(
                {
                    "pass": number,
                    "passes": number - awaited[1],
                    "ms": 1e3 * seconds,
                    "ms_beginning": 1e3 * given.scheduler.beginning,
                    "rank": given.scheduler._packed[given.scheduler._pack.slots[-1]].spec.config["model"]["lora_rank"],
                }
            )
            awaited = None
        elif number >= WARM_UP and not awaited:
            usual.append(1e3 * seconds)
    return {
        "slots": args.slots,
        "refills": refills,
        "usual_ms_median": statistics.median(usual),
        "usual_ms_spread": [min(usual), max(usual)],
        "compiled": len(known),
        "compiled_since_warm_up": since,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder that holds base8m/ and gsm8k/; without it: embedded")
    parser.add_argument("--only", default="parity,refill,steps,rounding", help="rounding needs parity before it")
    parser.add_argument("--trials", type=int, default=32, help="of parity, all in one pack")
    parser.add_argument("--micro-batches", type=int, default=48, help="of a trial of parity")
    parser.add_argument("--milestones", type=int, default=8, help="a divisor of --micro-batches")
    parser.add_argument("--validation", type=int, default=32, help="rows")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--step-trials", type=int, default=12)
    parser.add_argument("--slots", type=int, default=16, help="of refill")
    parser.add_argument("--refills", type=int, default=8)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    cache = Cache()
    findings: dict[str, Findings] = {}
    with tempfile.TemporaryDirectory(prefix="packed-parity-") as name:
        scratch = Path(name)
        parts: dict[str, Callable[[], Findings]] = {
            "parity": lambda: parity(args, cache, scratch),
            "refill": lambda: refill(args, cache, scratch),
            "steps": lambda: differences(args, cache, scratch),
            "rounding": lambda: rounding(args, cache, scratch, findings["parity"]["alone"]),
        }
        for part in args.only.split(","):
            began = time.perf_counter()
            findings[part] = parts[part]() | {"seconds": time.perf_counter() - began}
            for key, value in findings[part].items():
                if key not in ("packed", "alone", "reversed", "trials"):
                    print(f"{part}: {key} {value}", flush=True)
            if args.json:
                args.json.write_text(json.dumps(findings, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
