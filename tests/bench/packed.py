"""Tokens a second of a pack: `python -m tests.bench.packed [--shape 1b] [--only 4x256,1x256] [--profile] [--json OUT]`.

Llama's shapes with random weights on one CUDA GPU in bf16, rows of random tokens that all have a label. For each
micro-batch (rows x tokens of one slot) it trains one trial alone with torchtune's modules, eager and compiled, then
packs of 1, 4, 8, … slots; every ratio comes from one run. Steps are timed from end to end on the host's clock, with
the optimizer step and the losses read back; medians are printed. `--shape tiny --device cpu --dtype fp32` tries the
script itself out.

Invariant: the trials are `LoraRecipe`s as the worker makes them; only their base is left at its random draws.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from trainer import base
from trainer.base import Cache
from trainer.embedded import __file__ as embedded
from trainer.packed.pack import Pack
from trainer.recipe import LoraRecipe

LLAMA = {"rope_base": 500_000, "norm_eps": 1e-5, "max_seq_len": 8192}
SHAPES: dict[str, dict[str, Any]] = {
    "1b": {
        "_component_": "torchtune.models.llama3_2.lora_llama3_2",
        "vocab_size": 128_256,
        "num_layers": 16,
        "num_heads": 32,
        "num_kv_heads": 8,
        "embed_dim": 2048,
        "intermediate_dim": 8192,
        "scale_factor": 32,
        **LLAMA,
    },
    "8b": {
        "_component_": "torchtune.models.llama3_1.lora_llama3_1",
        "vocab_size": 128_256,
        "num_layers": 32,
        "num_heads": 32,
        "num_kv_heads": 8,
        "embed_dim": 4096,
        "intermediate_dim": 14_336,
        **LLAMA,
    },
    "tiny": {
        "_component_": "torchtune.models.llama3_2.lora_llama3_2",
        "vocab_size": 1024,
        "num_layers": 2,
        "num_heads": 4,
        "num_kv_heads": 2,
        "embed_dim": 64,
        "intermediate_dim": 128,
        "scale_factor": 32,
        **LLAMA,
    },
}
CASES = {"1x256": (1, 256), "4x256": (4, 256), "2x512": (2, 512), "1x4096": (1, 4096)}
WARM_UP = 3
STEPS = 7


class RandomRows:
    """A data set of random tokens from number `first` on; every token has a label."""

    def __init__(self, tokenizer: Any, rows: int, length: int, spread: int, vocab_size: int, first: int) -> None:
        self._rows, self._length, self._spread, self._vocab_size, self._first = rows, length, spread, vocab_size, first

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        generator = torch.Generator().manual_seed(self._first + index)
        length = self._length - int(torch.randint(self._spread + 1, (), generator=generator))
        tokens = torch.randint(self._vocab_size, (length,), generator=generator).tolist()
        return {"tokens": tokens, "labels": tokens}


@dataclass(frozen=True, slots=True)
class Timed:
    """One arm: seconds of each measured step and what each step trained."""

    seconds: list[float]
    tokens: int
    memory_gib: float

    @property
    def rate(self) -> float:
        """Tokens a second, by the median step."""
        return self.tokens / statistics.median(self.seconds)


def make_config(args: argparse.Namespace, rows: int, length: int, index: int) -> dict[str, Any]:
    """A trial of this micro-batch; trials differ in rank, rate and seed."""
    config: Any = OmegaConf.to_container(OmegaConf.load(Path(embedded).parent / "lora_cpu.yaml"), resolve=False)
    lora = {key: value for key, value in config["model"].items() if key.startswith(("lora_", "apply_lora_"))}
    config["model"] = {**lora, **SHAPES[args.shape]}
    ranks = [int(rank) for rank in args.ranks.split(",")]
    config["model"] |= {"lora_rank": ranks[index % len(ranks)], "lora_alpha": 2 * ranks[index % len(ranks)]}
    config["dataset"] = {
        "_component_": f"{RandomRows.__module__}.RandomRows",
        "rows": 4096,
        "length": length,
        "spread": args.spread,
        "vocab_size": SHAPES[args.shape]["vocab_size"],
        "first": index * 10_000,
    }
    del config["dataset_val"]
    config["optimizer"] |= {"lr": 1e-4 * (1 + index % 7)}
    return dict(config) | {
        "root": str(Path(embedded).parent),
        "batch_size": rows,
        "device": args.device,
        "dtype": args.dtype,
        "seed": index,
    }


def timed(step: Callable[[], int], device: str) -> Timed:
    """Time calls that each train a step and return its tokens."""
    for _ in range(WARM_UP):
        step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    tokens = 0
    for _ in range(STEPS):
        began = time.perf_counter()
        tokens = step()
        seconds.append(time.perf_counter() - began)
    memory = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
    return Timed(seconds, tokens, memory)


def alone(recipe: LoraRecipe) -> Callable[[], int]:
    batches = recipe.train()

    def step() -> int:
        before = recipe.tokens
        next(batches)
        return recipe.tokens - before

    return step


def together(pack: Pack) -> Callable[[], int]:
    def step() -> int:
        before = sum(slot.recipe.tokens for slot in pack.slots)
        for result in pack.step():
            if result.error:
                raise result.error
        return sum(slot.recipe.tokens for slot in pack.slots) - before

    return step


def ceilings() -> tuple[float, float]:
    """TFLOP/s of a large bf16 product and TB/s of a large copy, on random data."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    big = torch.randn(2**30, device="cuda")
    out = torch.empty_like(big)

    def seconds(act: Callable[[], object]) -> float:
        times = []
        for _ in range(12):
            torch.cuda.synchronize()
            began = time.perf_counter()
            act()
            torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
        return statistics.median(times[2:])

    return 2 * 8192**3 / seconds(lambda: a @ b) / 1e12, 2 * big.nbytes / seconds(lambda: out.copy_(big)) / 1e12


def measure(args: argparse.Namespace, case: str, scratch: Path) -> Iterator[dict[str, Any]]:
    rows, length = CASES[case]
    cache = Cache()

    def recipe(index: int, **changes: Any) -> LoraRecipe:
        config = make_config(args, rows, length, index) | changes
        return LoraRecipe(OmegaConf.create(config), cache, scratch)

    def line(arm: str, slots: int, timed: Timed) -> dict[str, Any]:
        return {
            "case": case,
            "arm": arm,
            "slots": slots,
            "tokens_per_second": round(timed.rate),
            "step_ms": round(statistics.median(timed.seconds) * 1e3, 2),
            "spread_ms": [round(min(timed.seconds) * 1e3, 2), round(max(timed.seconds) * 1e3, 2)],
            "memory_gib": round(timed.memory_gib, 1),
        }

    if not args.packed_only:
        yield line("alone, eager", 1, timed(alone(recipe(0)), args.device))
        if not args.eager_only:
            yield line("alone, compiled", 1, timed(alone(recipe(0, compile=True)), args.device))
            torch.compiler.reset()
    sizes = sorted(int(size) for size in args.slots.split(","))
    pack = Pack()
    for size in sizes:
        if size * rows * length > args.most_tokens:
            break
        while len(pack.slots) < size:
            pack.put(recipe(len(pack.slots)))
        yield line("packed", size, timed(together(pack), args.device))
    if args.profile:
        profile(pack)


def profile(pack: Pack) -> None:
    """Print where two steps of a pack spend the GPU's time."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    step = together(pack)
    with profiler(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(2):
            step()
        torch.cuda.synchronize()
    print(seen.key_averages().table(sort_by="cuda_time_total", row_limit=45, max_name_column_width=90), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--only", default=",".join(CASES), help="micro-batches, rows x tokens of a slot")
    parser.add_argument("--slots", default="1,4,8,16,32", help="packs to measure")
    parser.add_argument("--ranks", default="16", help="given to the slots in turn")
    parser.add_argument("--spread", type=int, default=0, help="rows are up to so many tokens shorter")
    parser.add_argument("--most-tokens", type=int, default=65_536, help="of a pass; larger packs are left out")
    parser.add_argument("--packed-only", action="store_true", help="leave the trials alone out")
    parser.add_argument("--eager-only", action="store_true", help="leave the compiled trial alone out")
    parser.add_argument("--profile", action="store_true", help="of each case's largest pack")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    base.load_base = lambda cfg, model, scratch: base._frozen(model)  # no checkpoint: the random draws stay
    lines: list[dict[str, Any]] = []
    if args.device == "cuda":
        product, copied = ceilings()
        lines.append({"product_tflops": round(product), "copy_tb_per_s": round(copied, 2)})
        print(json.dumps(lines[-1]), flush=True)
    with tempfile.TemporaryDirectory() as name:
        for case in args.only.split(","):
            for result in measure(args, case, Path(name)):
                lines.append({"shape": args.shape, **result})
                print(json.dumps(lines[-1]), flush=True)
                if args.json:
                    args.json.write_text(json.dumps(lines, indent=1))
            if args.device == "cuda":
                torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
