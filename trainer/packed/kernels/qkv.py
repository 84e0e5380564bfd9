"""A Triton kernel between the frozen product of queries, keys and values, and attention.

It adds the adapters' part and applies the rotary embedding in place, in one kernel (docs/performance.md).

Invariants: as those of `kernels.adapters`. A rank is padded to the next larger of `RANKS`; the kernel is compiled for
each of these when the pack gets its base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from trainer.packed import layout
from trainer.packed.kernels.adapters import units, weight_units
from trainer.packed.layout import RANKS, ROWS

Tensor = torch.Tensor
UNIT = tl.constexpr(layout.UNIT)


@dataclass(frozen=True, slots=True)
class QkvLayout:
    """How a row divides into heads and adapters.

    Args:
        queries, keys: how many heads there are of queries, and of keys (and as many of values).
        size: features of a head.
        adapted: the index of the adapter of queries, of keys and of values; -1: none.
    """

    queries: int
    keys: int
    size: int
    adapted: tuple[int, int, int]


@triton.jit(do_not_specialize=["h_units", "b_slot", "b_row", "rank_units"])  # type: ignore[untyped-decorator]
def _add_and_rotate(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
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
    rotates = tl.program_id(0) < 2  # values stay as they are
    cos, sin = tl.where(rotates, cos, 1.0), tl.where(rotates, sin, 0.0)
    inner = tl.arange(0, RANK)
    inside = (inner < rank_units * UNIT) & (adapter >= 0)
    h_at = h_ptr + row[:, None] * (h_units * UNIT) + adapter * rank_units * UNIT + inner[None, :]
    h = tl.load(h_at, mask=rows[:, None] & inside[None, :], other=0.0)
    kind = y_ptr.dtype.element_ty
    b_ptr += slot * (b_slot * UNIT)
    for head in tl.range(0, heads, num_stages=STAGES):
        column = head * SIZE + tl.arange(0, SIZE)
        at = y_ptr + row[:, None] * ((QUERIES + 2 * KEYS) * SIZE) + (begin + column)[None, :]
        y = tl.load(at, mask=rows[:, None], other=0.0).to(tl.float32)
        b = tl.load(b_ptr + column[None, :] * (b_row * UNIT) + inner[:, None], mask=inside[:, None], other=0.0)
        y = tl.dot(h, b, y, input_precision="ieee").to(kind).to(tl.float32)  # rounded, as torchtune's is
        even, odd = tl.split(tl.reshape(y, (ROWS, SIZE // 2, 2)))
        y = tl.reshape(tl.join(even * cos - odd * sin, odd * cos + even * sin), (ROWS, SIZE))
        tl.store(at, y.to(kind), mask=rows[:, None])


def add_and_rotate(  # noqa: PLR0913, PLR0917
    y: Tensor, h: Tensor, b: Sequence[Tensor], table: Tensor, positions: Tensor, blocks: Tensor, parts: QkvLayout
) -> None:
    """Add the adapters' part to queries, keys and values, and rotate the first two by their positions, in place.

    Args:
        y: the frozen product's output, [T, (queries + 2 keys) · size].
        h: the scaled x Aᵀ of the M adapters, [T, M·R].
        b: their B, M tensors of shape [k, N_m, R].
        table: cosine and sine of each angle by position, [positions, size / 2, 2], fp32.
        positions: shape [T], int64.
        blocks: as `kernels.adapters.expand` takes them.
    """
    assert len({weights.stride()[1:] for weights in b}) == 1, "they are rows of one store"
    rank = next(padded for padded in RANKS if b[0].shape[2] <= padded)
    q, k, v = parts.adapted
    _add_and_rotate[(3, blocks.shape[0])](
        y, table, positions, blocks, h, *units(h.stride(0)),
        *(b[max(nth, 0)] for nth in parts.adapted), *weight_units(b[0]),
        QUERIES=parts.queries, KEYS=parts.keys, SIZE=parts.size, Q=q, K=k, V=v,
        ROWS=ROWS, RANK=rank, STAGES=3, num_warps=4,
    )  # fmt: skip
