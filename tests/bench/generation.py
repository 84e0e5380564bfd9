"""Generated tokens a second: all slots of a pack together, against torchtune's `generate` one trial after another.

    PYTHONPATH=. python tests/bench/generation.py --json generation.json

Llama 3.2 1B's shape with random weights and random adapters of rank 16, in bf16; 32 slots × 32 prompts of 128 random
tokens × 128 new tokens, greedily, and no token ends an answer. The arms are timed in one call, from end to end on the
host's clock, prompts included, once each after a short warm-up: torchtune's `generate` with its KV caches on a batch of
all prompts of one trial, for `--alone` trials; `answer_alone` for as many; the pack for all slots. Trials one after
another take the sum of their times, so that tokens a second are those of the trials that were timed. Then passes of
training (4 × 256 tokens a slot) say what share of a sweep's time the answers take if they come with every third
milestone of `--passes` passes. `--shape tiny --device cpu --dtype fp32 --slots 4 --prompts 4 --tokens 16` tries the
script itself out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from omegaconf import OmegaConf
from torchtune.generation import generate
from torchtune.modules.common_utils import local_kv_cache

from tests.bench.packed import SHAPES, make_config
from tests.helpers.answers import NEVER, random_prompts, with_random_adapter
from trainer import base, sampling
from trainer.base import Cache
from trainer.generation import Sampling, answer_alone
from trainer.packed.pack import Pack
from trainer.recipe import LoraRecipe
from trainer.sampling import Answer, Prompt

T = TypeVar("T")
WARM_UP_TOKENS = 4


def by_torchtune(recipe: LoraRecipe, prompts: Sequence[Prompt], tokens: int) -> list[Answer]:
    """torchtune's own greedy answers to prompts of one length, all in one batch."""
    model: Any = recipe.model
    model.eval()
    chunks, model.num_output_chunks = model.num_output_chunks, 0
    ids = torch.tensor(prompts, device=recipe.device)
    size = ids.shape[1] + tokens
    dtype = model.tok_embeddings.weight.dtype
    with (
        recipe.device,
        local_kv_cache(model, batch_size=len(prompts), device=recipe.device, dtype=dtype, decoder_max_seq_len=size),
    ):
        out, _ = generate(model, ids, max_generated_tokens=tokens, pad_id=NEVER, temperature=1.0, top_k=1)
    model.num_output_chunks = chunks
    model.train()
    return [tuple(row) for row in out[:, ids.shape[1] :].tolist()]


def timed(act: Callable[[], T]) -> tuple[float, T]:
    """Seconds that a call takes, and what it returns; it ends with a copy to the host, so that the device is done."""
    began = time.perf_counter()
    result = act()
    return time.perf_counter() - began, result


def equal_share(ours: Sequence[Answer], theirs: Sequence[Answer]) -> float:
    """The share of tokens up to the first difference of each answer."""
    same = total = 0
    for a, b in zip(ours, theirs, strict=True):
        differ = [index for index, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]]
        same, total = same + (differ[0] if differ else len(a)), total + len(a)
    return same / total


def measure(args: argparse.Namespace, scratch: Path) -> list[dict[str, Any]]:
    cache, pack = Cache(), Pack()
    slots = []
    for index in range(args.slots):
        config = OmegaConf.create(make_config(args, 4, 256, index))
        slots.append(pack.put(with_random_adapter(LoraRecipe(config, cache, scratch), index)))
    vocab_size = SHAPES[args.shape]["vocab_size"]
    prompts = [random_prompts(index, [args.length] * args.prompts, vocab_size) for index in range(args.slots)]
    timing = slots[: args.alone]
    lines: list[dict[str, Any]] = []

    def line(arm: str, trials: int, seconds: float) -> float:
        rate: float = trials * args.prompts * args.tokens / seconds
        lines.append({"arm": arm, "trials": trials, "seconds": round(seconds, 3), "tokens_per_second": round(rate)})
        print(json.dumps(lines[-1]), flush=True)
        return rate

    arms: dict[str, Callable[[LoraRecipe, Sequence[Prompt], int], list[Answer]]] = {
        "torchtune's generate": by_torchtune,
        "alone": lambda recipe, of_trial, tokens: answer_alone(recipe, of_trial, Sampling(tokens)),
    }
    answers: dict[str, list[Answer]] = {}
    rates: dict[str, float] = {}
    for name, act in arms.items():
        act(slots[0].recipe, prompts[0], WARM_UP_TOKENS)
        seconds, answers[name] = timed(
            lambda act=act: [  # type: ignore[misc]
                answer
                for slot, of_trial in zip(timing, prompts, strict=False)
                for answer in act(slot.recipe, of_trial, args.tokens)
            ]
        )
        rates[name] = line(name, len(timing), seconds)

    requests = dict(zip(slots, prompts, strict=True))
    pack.answer(requests, Sampling(WARM_UP_TOKENS))
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    runs = [timed(lambda: pack.answer(requests, Sampling(args.tokens))) for _ in range(args.repeat)]
    seconds = statistics.median(run[0] for run in runs)
    rates["packed"] = line("packed", len(slots), seconds)
    lines[-1]["spread"] = [round(min(run[0] for run in runs), 3), round(max(run[0] for run in runs), 3)]
    if args.device == "cuda":
        lines[-1]["memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 1)
    ours = [answer for slot in timing for answer in runs[0][1][slot]]
    first_token, _ = timed(lambda: pack.answer(requests, Sampling(1)))
    hot, _ = timed(lambda: pack.answer(requests, Sampling(args.tokens, temperature=0.8)))
    passes = [timed(pack.step)[0] for _ in range(8)][3:]
    training = 3 * args.passes * statistics.median(passes)
    lines.append(
        {
            "times torchtune's": round(rates["packed"] / rates["torchtune's generate"], 1),
            "times alone": round(rates["packed"] / rates["alone"], 1),
            "equal tokens": {name: round(equal_share(ours, theirs), 4) for name, theirs in answers.items()},
            "prompts only, seconds": round(first_token, 3),
            "a token of each, ms": round((seconds - first_token) / max(args.tokens - 1, 1) * 1e3, 2),
            "drawn, seconds": round(hot, 3),
            "training pass, ms": round(statistics.median(passes) * 1e3, 1),
            f"share of a sweep with {args.passes} passes a milestone": round(seconds / (seconds + training), 4),
        }
    )
    print(json.dumps(lines[-1]), flush=True)
    if args.profile:
        profile(lambda: pack.answer(requests, Sampling(16)))
    return lines


def profile(act: Callable[[], object]) -> None:
    """Print where the GPU's and the host's time goes."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as seen:
        act()
    for order in ("cuda_time_total", "self_cpu_time_total"):
        print(seen.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=70), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="1b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bf16")
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=32, help="of each slot")
    parser.add_argument("--length", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=128, help="new ones of each answer")
    parser.add_argument("--ranks", default="16", help="given to the slots in turn")
    parser.add_argument("--alone", type=int, default=2, help="trials that are timed one after another")
    parser.add_argument("--repeat", type=int, default=3, help="measurements of the pack")
    parser.add_argument("--most", type=int, default=sampling.MOST_SEQUENCES, help="sequences decoded at one time")
    parser.add_argument("--passes", type=int, default=50, help="of training between two milestones")
    parser.add_argument("--spread", type=int, default=0, help=argparse.SUPPRESS)  # `make_config` asks for it
    parser.add_argument("--profile", action="store_true", help="of the pack, 16 tokens")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    base.load_base = lambda cfg, model, scratch: base._frozen(model)  # no checkpoint: the random draws stay
    sampling.MOST_SEQUENCES = args.most
    with tempfile.TemporaryDirectory() as name:
        lines = measure(args, Path(name))
    if args.json:
        args.json.write_text(json.dumps([{"shape": args.shape, "dtype": args.dtype, **one} for one in lines], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
