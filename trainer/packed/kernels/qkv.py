"""A Triton kernel between the frozen product of queries, keys and values and attention: it adds the adapters' part and
turns by the positions in one go, where the product's output lies (docs/performance.md).

Invariants: as those of `packed_adapter_kernels`. A rank is walked in the next larger of `RANKS`; each of them is
compiled when a base is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from trainer.packed import layout
from trainer.packed.kernels.adapters import places, units
from trainer.packed.layout import RANKS, ROWS

Tensor = torch.Tensor
UNIT = tl.constexpr(layout.UNIT)


@dataclass(frozen=True, slots=True)
class Parts:
    """How a row divides: `queries` heads of `size` features, then `keys` heads, then as many for the values.

    Args:
        adapted: of queries, keys and values, which adapter each has, counted from 0; -1: none.
    """

    queries: int
    keys: int
    size: int
    adapted: tuple[int, int, int]


@triton.jit(do_not_specialize=["h_units", "b_slot", "b_row", "rank_units"])  # type: ignore[untyped-decorator]
def _add_and_turn(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    y_ptr, table_ptr, positions_ptr, blocks_ptr, h_ptr, h_units, q_b, k_b, v_b, b_slot, b_row, rank_units,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr, Q: tl.constexpr, K: tl.constexpr, V: tl.constexpr,
    ROWS: tl.constexpr, RANK: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    block = blocks_ptr + 3 * tl.program_id(1)
    slot = tl.load(block).to(tl.int64)
    row = tl.load(block + 1).to(tl.int64) + tl.arange(0, ROWS)
    rows = row < tl.load(block + 2)
    begin, heads, b_ptr, adapter = 0, QUERIES, q_b, Q
    if tl.program_id(0) == 1:
        begin, heads, b_ptr, adapter = QUERIES * SIZE, KEYS, k_b, K
    elif tl.program_id(0) == 2:
        begin, heads, b_ptr, adapter = (QUERIES + KEYS) * SIZE, KEYS, v_b, V
    position = tl.load(positions_ptr + row, mask=rows, other=0)
    angles = tl.load(table_ptr + position[:, None] * SIZE + tl.arange(0, SIZE)[None, :])
    cos, sin = tl.split(tl.reshape(angles, (ROWS, SIZE // 2, 2)))
    turns = tl.program_id(0) < 2  # values stay as they are
    cos, sin = tl.where(turns, cos, 1.0), tl.where(turns, sin, 0.0)
    inner = tl.arange(0, RANK)
    known = (inner < rank_units * UNIT) & (adapter >= 0)
    h_at = h_ptr + row[:, None] * (h_units * UNIT) + adapter * rank_units * UNIT + inner[None, :]
    h = tl.load(h_at, mask=rows[:, None] & known[None, :], other=0.0)
    kind = y_ptr.dtype.element_ty
    b_ptr += slot * (b_slot * UNIT)
    for head in tl.range(0, heads, num_stages=STAGES):
        column = head * SIZE + tl.arange(0, SIZE)
        at = y_ptr + row[:, None] * ((QUERIES + 2 * KEYS) * SIZE) + (begin + column)[None, :]
        y = tl.load(at, mask=rows[:, None], other=0.0).to(tl.float32)
        b = tl.load(b_ptr + column[None, :] * (b_row * UNIT) + inner[:, None], mask=known[:, None], other=0.0)
        y = tl.dot(h, b, y, input_precision="ieee").to(kind).to(tl.float32)  # rounded, as torchtune's is
        even, odd = tl.split(tl.reshape(y, (ROWS, SIZE // 2, 2)))
        y = tl.reshape(tl.join(even * cos - odd * sin, odd * cos + even * sin), (ROWS, SIZE))
        tl.store(at, y.to(kind), mask=rows[:, None])


def add_and_turn(  # noqa: PLR0913, PLR0917
    y: Tensor, h: Tensor, b: Sequence[Tensor], table: Tensor, positions: Tensor, blocks: Tensor, parts: Parts
) -> None:
    """Add the adapters' part to queries, keys and values, and turn the first two by their positions, in place.

    Args:
        y: the frozen product's output, [T, (queries + 2 keys) · size].
        h: what the A made of their input, scaled, [T, M·R]; b: M adapters' B, [k, N_m, R].
        table: cosines and sines by position, [positions, size / 2, 2], fp32; positions: [T].
        blocks: as `packed_adapter_kernels.expand` takes them.
    """
    assert len({one.stride()[1:] for one in b}) == 1, "they are rows of one store"
    rank = next(one for one in RANKS if b[0].shape[2] <= one)
    q, k, v = parts.adapted
    _add_and_turn[(3, blocks.shape[0])](
        y, table, positions, blocks, h, *units(h.stride(0)), *(b[max(nth, 0)] for nth in parts.adapted), *places(b[0]),
        QUERIES=parts.queries, KEYS=parts.keys, SIZE=parts.size, Q=q, K=k, V=v,
        ROWS=ROWS, RANK=rank, STAGES=3, num_warps=4,
    )  # fmt: skip
