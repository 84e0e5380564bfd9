"""A whole sweep packed: `python -m tests.bench.packed_sweep --data DIR [--base base8m] [--trials 64] [--json OUT]`.

DIR holds `gsm8k/` and the bases, as `../shared/data` does. The same trials on one GPU, four times: a `tune run` process
for each, as many as `--processes` says and the rest reckoned from their median; `sweep run` with one slot; with
`--slots`; and with `--slots` and successive halving. `--base random` takes Llama 3.2 1B's shape with random weights.

The printed factors: start-up saved (processes over one slot), packing (one slot over many), pruning (many over many
with halving), from each arm's median over `--repeat` turns; processes and one slot run in the first turn only. The best
configuration is then trained with eight seeds, whose spread says what a difference of best losses is worth.
Wall-clock runs from a command to its end. Every arm's figures are in the JSON as soon as it has ended.
`--device cpu --dtype fp32` tries the script out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from sweep.report.reader import read_steps
from tests.bench.arms import NAME, Job, Prepared, prepare, process
from tests.bench.clocks import ArmFailed, run_to_end
from tests.bench.gpu_dispatch import SHAPES, make_base
from trainer.base import Cache
from trainer.packed.pack import Pack
from trainer.recipe import LoraRecipe
from trainer.room import Room, read_json

RANDOM = "random"


@dataclass(frozen=True, slots=True)
class Arm:
    """One run of all trials: seconds from the command to its end, optimizer steps trained, best validation loss and the
    trial that had it."""

    name: str
    seconds: float
    steps: int
    best: float | None
    note: str = ""
    trial: int | None = None


def recipe(args: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The torchtune configuration of the sweep's trials: a base's own, on GSM8K, with validation."""
    data: Path = args.data.resolve()
    home = data / (args.base if args.base != RANDOM else "base8m")
    config: Any = OmegaConf.to_container(OmegaConf.load(home / "lora_cpu.yaml"))
    config["root"] = str(data)
    if args.base == RANDOM:
        make_base(SHAPES["1b"], scratch / "base")
        lora = {key: value for key, value in config["model"].items() if key.startswith(("lora_", "apply_lora_"))}
        shape = {key: getattr(SHAPES["1b"], key) for key in SHAPES["1b"].__slots__}
        config["model"] = {"_component_": "torchtune.models.llama3_2.lora_llama3_2", **lora, **shape}
        config["checkpointer"] |= {
            "checkpoint_dir": str(scratch / "base"),
            "checkpoint_files": ["model.safetensors"],
            "model_type": "LLAMA3_2",
        }
    rows = args.steps * args.batch_size
    config["dataset"]["split"] = f"train[:{rows}]"
    config["dataset_val"] = {
        **config["dataset"],
        "data_files": str(data / "gsm8k" / "val.jsonl"),
        "split": f"train[:{args.validation}]",
    }
    return dict(config) | {
        "output_dir": str(scratch / "output"),
        "batch_size": args.batch_size,
        "batch_size_val": args.validation,
        "gradient_accumulation_steps": 1,
        "max_steps_per_epoch": None,
        "device": args.device,
        "dtype": args.dtype,
    }


def sweep_arm(name: str, prepared: Prepared, scratch: Path) -> Arm:
    job = prepared.job
    scratch.mkdir(parents=True)
    command = [sys.executable, "-m", "sweep.cli", "run", *job.words()]
    ended = run_to_end(command, job.env(SWEEP_ROOMS=str(scratch)), scratch / "controller.log")
    room = Room(scratch / NAME)
    numbers = room.trials()
    asked = [read_json(room.attempt(number, 1).spec)["config"] for number in numbers]
    if asked != [json.loads(json.dumps(config)) for config in prepared.configs]:
        raise ArmFailed("`sweep run` trained other configurations than were drawn for the other arms")
    values = [_last_validation(room, number) for number in numbers]
    steps = sum(len(read_steps(room, number)) for number in numbers)
    note = f"{sum(value is not None for value in values)} of {len(numbers)} to their end"
    best, trial = min(((value, index) for index, value in enumerate(values) if value is not None), default=(None, None))
    return Arm(name, ended.seconds, steps, best, note, trial)


def _last_validation(room: Room, trial: int) -> float | None:
    lines = room.attempt(trial, 1).reports.read_text().splitlines()
    last = json.loads(lines[-1]) if lines else {}
    return float(last["val_loss"]) if last.get("final") and last.get("val_loss") is not None else None


def process_arm(prepared: Prepared, scratch: Path, count: int) -> Arm:
    few = Prepared(replace(prepared.job, trials=count), prepared.configs[:count], prepared.milestone_tokens)
    run = process(few, scratch)
    ends = sorted(trial.freed for trial in run.trials)
    each = statistics.median(end - begin for begin, end in zip([run.began, *ends], ends, strict=False))
    steps = sum(trial.steps for trial in run.trials) * prepared.job.trials // count
    seconds = each * prepared.job.trials
    return Arm("a `tune run` process a trial", seconds, steps, None, f"{count} run, {each:.1f} s each by the median")


def seeds(prepared: Prepared, trial: int, scratch: Path, count: int) -> list[float]:
    """The last validation losses of one configuration with so many seeds, all in one pack."""
    cache, pack = Cache(), Pack()
    for seed in range(count):
        pack.put(LoraRecipe(OmegaConf.create(dict(prepared.configs[trial]) | {"seed": 1000 + seed}), cache, scratch))
    last = []
    while pack.slots:
        for result in pack.step():
            assert result.progress is not None, result.error
            if result.progress.position == result.progress.total:
                last.append(result.slot.recipe.evaluate() or float("nan"))
                pack.remove(result.slot)
    return last


def table(runs: dict[str, list[Arm]]) -> str:
    lines = [
        "| arm | runs | wall-clock s, median | spread | optimizer steps | best validation loss | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for arms in runs.values():
        seconds = [arm.seconds for arm in arms]
        best = sorted({f"{arm.best:.4f}" for arm in arms if arm.best is not None})
        steps = sorted({arm.steps for arm in arms})
        losses = f"{best[0]} to {best[-1]}" if best else "–"
        lines.append(
            f"| {arms[0].name} | {len(arms)} | {statistics.median(seconds):.1f} | {min(seconds):.1f} to "
            f"{max(seconds):.1f} | {steps[0]} to {steps[-1]} | {losses} | {arms[0].note} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds gsm8k/ and the bases")
    parser.add_argument("--base", default="base8m", help="a folder of it, or random for Llama 3.2 1B's shape")
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--slots", default="32", help="a number, or auto")
    parser.add_argument("--processes", type=int, default=3, help="`tune run` processes that are really run; 0: none")
    parser.add_argument("--steps", type=int, default=48, help="micro-batches of a trial")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--validation", type=int, default=32, help="rows of validation at each of four milestones")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--only", default="process,one,packed,halving")
    parser.add_argument("--repeat", type=int, default=1, help="turns of packed and halving")
    parser.add_argument("--until", type=float, default=float("inf"), help="seconds after which no turn is begun")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    began = time.monotonic()
    arms: dict[str, list[Arm]] = {}
    spread: list[float] = []
    with tempfile.TemporaryDirectory(prefix="sweep-bench-") as name:
        scratch = Path(name)
        path = scratch / "lora.yaml"
        path.write_text(yaml.safe_dump(recipe(args, scratch)))
        job = Job(
            overrides=(
                "recipe=torchtune",
                f"recipe.config={path}",
                "objective=val_loss",
                "space.model.lora_rank=choice(4, 8, 16, 32, 64)",
                "space.optimizer.lr=tag(log, interval(2e-5, 1e-2))",
            ),
            trials=args.trials,
            workers=1,
            milestones=4,
            scratch=scratch,
            gpus=args.device.startswith("cuda"),
        )
        many = replace(job, overrides=(*job.overrides, f"queue.slots={args.slots}"))
        prepared = prepare(job)
        packed = replace(prepared, job=many)
        halved = replace(prepared, job=replace(many, halving=True))
        runs: dict[str, Callable[[Path], Arm]] = {
            "process": lambda to: process_arm(prepared, to, args.processes),
            "one": lambda to: sweep_arm("one slot", prepared, to),
            "packed": lambda to: sweep_arm(f"{args.slots} slots", packed, to),
            "halving": lambda to: sweep_arm(f"{args.slots} slots, halving", halved, to),
        }

        def save() -> None:
            if args.json:
                as_json = {word: [asdict(arm) for arm in done] for word, done in arms.items()}
                args.json.write_text(json.dumps({"arms": as_json, "seeds": spread}, indent=1))

        for turn in range(args.repeat):
            for word in args.only.split(","):
                if turn and (word in ("process", "one") or time.monotonic() - began > args.until):
                    continue
                arms.setdefault(word, []).append(runs[word](scratch / f"{word}-{turn}"))
                print(arms[word][-1], flush=True)
                save()
        best = min((a for repeats in arms.values() for a in repeats if a.best is not None), key=lambda a: a.best or 0.0)
        if args.seeds and best.trial is not None:
            spread = seeds(prepared, best.trial, scratch / "seeds", args.seeds)
            print(f"trial {best.trial} with {args.seeds} seeds: {spread}, deviation {statistics.stdev(spread):.4f}")
            save()
    print(table(arms))
    seconds = {word: statistics.median(arm.seconds for arm in repeats) for word, repeats in arms.items()}
    for title, over, under in (
        ("start-up saved", "process", "one"),
        ("packing", "one", "packed"),
        ("pruning", "packed", "halving"),
        ("packed over processes", "process", "packed"),
        ("all together", "process", "halving"),
    ):
        if over in seconds and under in seconds:
            print(f"{title}: {seconds[over] / seconds[under]:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
