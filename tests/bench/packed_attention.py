"""Attention of a pack on one GPU, our kernels against those of torch: `python -m tests.bench.packed_attention`.

Each line is a layout of micro-batches: so many slots of so many rows, of one length or of lengths drawn between two.
The microseconds are of what lies between the projection to queries, keys and values, already turned, and the output
projection, and of the way back, the turning back included; means of ten calls after five. The last column is the
relative difference of outputs and of gradients, in bf16.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from unittest import mock

import torch

from trainer.packed import attention
from trainer.packed.attention import OWN_KERNEL_TOKENS, Heads
from trainer.packed.layout import Layout, build_layout

WARM_UP, CALLS = 5, 10
SHAPES = {"base8m": Heads(8, 4, 32), "1b": Heads(32, 8, 64), "8b": Heads(32, 8, 128)}
# slots, rows of each, and between which lengths
CASES = [
    (64, 1, 256, 256), (32, 2, 512, 512), (16, 1, 1024, 1024),
    (32, 4, 128, 256), (16, 2, 256, 1024), (8, 1, 2048, 4096),
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Timed:
    """Microseconds of a forward and of a backward pass, and the results of both."""

    forward: float
    backward: float
    results: tuple[torch.Tensor, torch.Tensor]


def layout_of(slots: int, rows: int, shortest: int, longest: int) -> Layout:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(slots):
        length = int(torch.randint(shortest, longest + 1, (), generator=generator))
        tokens = torch.randint(1, 100, (rows, length), generator=generator)
        batches.append({"tokens": tokens, "labels": tokens})
    return build_layout(batches, 0, -1, torch.device("cuda"))


def microseconds(act: Callable[[], object]) -> float:
    for _ in range(WARM_UP):
        act()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(CALLS):
        act()
    end.record()
    end.synchronize()
    elapsed: float = begin.elapsed_time(end)
    return elapsed * 1e3 / CALLS


def timed(qkv: torch.Tensor, d: torch.Tensor, layout: Layout, heads: Heads, ours: bool) -> Timed:
    angles = torch.outer(torch.arange(8192.0), torch.logspace(0, -5, heads.size // 2))
    table = torch.stack([angles.cos(), angles.sin()], dim=-1).cuda()
    ctx = SimpleNamespace(layout=layout, heads=heads, table=table, square=None)

    def both_passes() -> tuple[torch.Tensor, torch.Tensor]:
        out, kept = attention.attention_forward(qkv, ctx)
        return out, attention.attention_backward(d, kept, ctx)

    with mock.patch.dict(OWN_KERNEL_TOKENS, dict.fromkeys(OWN_KERNEL_TOKENS, 1 << 30) if ours else {}, clear=True):
        forward = microseconds(lambda: attention.attention_forward(qkv, ctx))
        return Timed(forward, microseconds(both_passes) - forward, both_passes())


def apart(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=",".join(SHAPES))
    args = parser.parse_args()
    print("| heads | slots | rows | tokens | torch's, there and back | ours | ratio | difference |\n|" + " --- |" * 8)
    for shape in args.shapes.split(","):
        heads = SHAPES[shape]
        for slots, rows, shortest, longest in CASES:
            layout = layout_of(slots, rows, shortest, longest)
            width = heads.queries + 2 * heads.keys
            qkv, d = (
                torch.randn(layout.size, one * heads.size, device="cuda", dtype=torch.bfloat16)
                for one in (width, heads.queries)
            )
            theirs, ours = (timed(qkv, d, layout, heads, one) for one in (False, True))
            ratio = (theirs.forward + theirs.backward) / (ours.forward + ours.backward)
            differences = " ".join(f"{apart(a, b):.4f}" for a, b in zip(ours.results, theirs.results, strict=True))
            lengths = str(longest) if shortest == longest else f"{shortest} to {longest}"
            print(
                f"| {shape}, {heads.queries}/{heads.keys} × {heads.size} | {slots} | {rows} | {lengths} "
                f"| {theirs.forward:.0f} + {theirs.backward:.0f} | {ours.forward:.0f} + {ours.backward:.0f} "
                f"| {ratio:.2f} | {differences} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
