"""Triton kernels that fuse SwiGLU with the adapters of gate, up and down.

Notation: T tokens of k slots, F features of gate and of up, R the rank.

The forward kernel loops over the features of a block of tokens. It multiplies silu(gate) · up by down's A before it
writes it. The backward kernel loops over the tokens of a slot. It recomputes silu(gate) · up from gate and up, so that
nothing keeps it, and sums the gradients of down's A and of gate's and up's B from values that it has in registers
(docs/performance.md).

Invariants: as those of `kernels.adapters`, whose kernels serve dropout and ranks above `RANKS[-1]`. A rank is padded to
the next larger of `RANKS`; the kernels are compiled for each of these when the pack gets its base. One program computes
each sum over tokens, in their order, so that the same pass gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from trainer.packed import layout
from trainer.packed.kernels.adapters import units, weight_units
from trainer.packed.layout import RANKS, ROWS

Tensor = torch.Tensor
UNIT = tl.constexpr(layout.UNIT)
# How many programs share the features of a block of tokens: with few blocks, and with enough to keep a GPU busy.
FEW_TOKEN_PROGRAMS, MANY_TOKEN_PROGRAMS = 8, 2
MANY_BLOCKS = 256  # from this many blocks of tokens on


@triton.jit(do_not_specialize=["h_units", "b_slot", "b_row", "rank_units", "a_slot", "a_row", "tokens"])  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    both_ptr, active_ptr, sums_ptr, blocks_ptr, h_ptr, h_units, gate_ptr, up_ptr, b_slot, b_row, rank_units,
    a_ptr, a_slot, a_row, tokens,
    SIZE: tl.constexpr, PART: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr,
    STAGES: tl.constexpr
):  # fmt: skip
    block = blocks_ptr + 3 * tl.program_id(1)
    slot = tl.load(block).to(tl.int64)
    row = tl.load(block + 1).to(tl.int64) + tl.arange(0, ROWS)
    rows = row < tl.load(block + 2)
    inner = tl.arange(0, RANK)
    inside = inner < rank_units * UNIT
    kind = both_ptr.dtype.element_ty
    h_at = h_ptr + row[:, None] * (h_units * UNIT) + inner[None, :]
    gate_h = tl.load(h_at, mask=rows[:, None] & inside[None, :], other=0.0)
    up_h = tl.load(h_at + rank_units * UNIT, mask=rows[:, None] & inside[None, :], other=0.0)
    gate_ptr += slot * (b_slot * UNIT)
    up_ptr += slot * (b_slot * UNIT)
    a_ptr += slot * (a_slot * UNIT)
    total = tl.zeros((ROWS, RANK), tl.float32)
    first = tl.program_id(0) * PART
    for start in tl.range(first, min(first + PART, SIZE), COLUMNS, num_stages=STAGES):
        column = start + tl.arange(0, COLUMNS)
        if SIZE % COLUMNS == 0:  # a mask costs time
            mask, b_mask, a_mask = rows[:, None], inside[:, None], inside[None, :]
        else:
            columns = column < SIZE
            mask, b_mask = rows[:, None] & columns[None, :], columns[None, :] & inside[:, None]
            a_mask = columns[:, None] & inside[None, :]
        at = both_ptr + row[:, None] * (2 * SIZE) + column[None, :]
        gate = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(at + SIZE, mask=mask, other=0.0).to(tl.float32)
        b_at = column[None, :] * (b_row * UNIT) + inner[:, None]
        gate_b = tl.load(gate_ptr + b_at, mask=b_mask, other=0.0)
        up_b = tl.load(up_ptr + b_at, mask=b_mask, other=0.0)
        a_at = a_ptr + column[:, None] + inner[None, :] * (a_row * UNIT)
        a = tl.load(a_at, mask=a_mask, other=0.0)
        gate = tl.dot(gate_h, gate_b, gate, input_precision="ieee").to(kind).to(tl.float32)  # rounded, as torchtune's
        up = tl.dot(up_h, up_b, up, input_precision="ieee").to(kind).to(tl.float32)
        active = ((gate * tl.sigmoid(gate)).to(kind).to(tl.float32) * up).to(kind)
        tl.store(active_ptr + row[:, None] * SIZE + column[None, :], active, mask=mask)
        total = tl.dot(active, a, total, input_precision="ieee")
    sums_at = sums_ptr + (tl.program_id(0).to(tl.int64) * tokens + row[:, None]) * RANK + inner[None, :]
    tl.store(sums_at, total, mask=rows[:, None])


def forward(both: Tensor, blocks: Tensor, h: Tensor, b: Sequence[Tensor], a: Tensor) -> tuple[Tensor, Tensor]:
    """silu(gate) · up, and its product with down's A.

    Args:
        both: gate and up side by side, without the adapters' parts, [T, 2 F].
        blocks: as `kernels.adapters.expand` takes them.
        h: the scaled x Aᵀ of gate and of up, [T, 2 R].
        b: B of gate and of up, [k, F, R] each.
        a: A of down, [k, R, F].

    Returns:
        silu(gate) · up, [T, F], and its product with Aᵀ, [T, R], fp32, which is not scaled.
    """
    tokens, size, rank = both.shape[0], both.shape[1] // 2, a.shape[1]
    programs = FEW_TOKEN_PROGRAMS if blocks.shape[0] < MANY_BLOCKS else MANY_TOKEN_PROGRAMS
    tile = _tile(both, rank, (4, 3, 1))
    part = tile["COLUMNS"] * triton.cdiv(size, tile["COLUMNS"] * programs)
    active = both.new_empty(tokens, size)
    sums = torch.empty(programs, tokens, tile["RANK"], device=both.device)
    _forward[(programs, blocks.shape[0])](
        both, active, sums, blocks, h, *units(h.stride(0)), *b, *weight_units(b[0]),
        a, *weight_units(a.transpose(1, 2))[:2], tokens, SIZE=size, PART=part, ROWS=ROWS, **tile, num_warps=4,
    )  # fmt: skip
    return active, sums[:, :, :rank].sum(0)


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=["h_units", "dh_units", "b_slot", "b_row", "rank_units", "a_slot", "a_row"]
)
def _backward(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    d_ptr, both_ptr, ends_ptr, h_ptr, h_units, dh_ptr, dh_units, gate_ptr, up_ptr, b_slot, b_row, rank_units,
    a_ptr, a_slot, a_row, gate_grad_ptr, up_grad_ptr, a_grad_ptr,
    SIZE: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    slot = tl.program_id(1).to(tl.int64)
    begin = tl.load(ends_ptr + slot - 1, mask=slot > 0, other=0)
    end = tl.load(ends_ptr + slot)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inner = tl.arange(0, RANK)
    inside = inner < rank_units * UNIT
    kind = both_ptr.dtype.element_ty
    b_at = slot * (b_slot * UNIT) + column[:, None] * (b_row * UNIT) + inner[None, :]
    a_at = slot * (a_slot * UNIT) + inner[None, :] * (a_row * UNIT) + column[:, None]
    there = (column < SIZE)[:, None] & inside[None, :]
    gate_b = tl.trans(tl.load(gate_ptr + b_at, mask=there, other=0.0))
    up_b = tl.trans(tl.load(up_ptr + b_at, mask=there, other=0.0))
    a = tl.trans(tl.load(a_ptr + a_at, mask=there, other=0.0))
    gate_grad = tl.zeros((COLUMNS, RANK), tl.float32)
    up_grad = tl.zeros((COLUMNS, RANK), tl.float32)
    a_grad = tl.zeros((COLUMNS, RANK), tl.float32)
    for start in tl.range(begin, end, ROWS, num_stages=STAGES):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        rows = row < end
        mask = rows[:, None] if SIZE % COLUMNS == 0 else rows[:, None] & (column < SIZE)[None, :]
        at = both_ptr + row[:, None] * (2 * SIZE) + column[None, :]
        gate = tl.load(at, mask=mask, other=0.0).to(tl.float32)
        up = tl.load(at + SIZE, mask=mask, other=0.0).to(tl.float32)
        d = tl.load(d_ptr + row[:, None] * SIZE + column[None, :], mask=mask, other=0.0).to(tl.float32)
        h_at = h_ptr + row[:, None] * (h_units * UNIT) + inner[None, :]
        dh_at = dh_ptr + row[:, None] * (dh_units * UNIT) + inner[None, :]
        gate_h = tl.load(h_at, mask=rows[:, None] & inside[None, :], other=0.0)
        up_h = tl.load(h_at + rank_units * UNIT, mask=rows[:, None] & inside[None, :], other=0.0)
        dh = tl.load(dh_at, mask=rows[:, None] & inside[None, :], other=0.0)
        gate = tl.dot(gate_h, gate_b, gate, input_precision="ieee").to(kind).to(tl.float32)
        up = tl.dot(up_h, up_b, up, input_precision="ieee").to(kind).to(tl.float32)
        d = tl.dot(dh, a, d, input_precision="ieee")
        sigmoid = tl.sigmoid(gate)
        silu = gate * sigmoid
        active = (silu.to(kind).to(tl.float32) * up).to(kind)  # as the forward pass rounded it
        d_gate = (d * up * sigmoid * (1 + gate * (1 - sigmoid))).to(kind)
        d_up = (d * silu).to(kind)
        tl.store(at, d_gate, mask=mask)
        tl.store(at + SIZE, d_up, mask=mask)
        gate_grad = tl.dot(tl.trans(d_gate), gate_h, gate_grad, input_precision="ieee")
        up_grad = tl.dot(tl.trans(d_up), up_h, up_grad, input_precision="ieee")
        a_grad = tl.dot(tl.trans(active), dh, a_grad, input_precision="ieee")
    _add(gate_grad_ptr + b_at, gate_grad, there)
    _add(up_grad_ptr + b_at, up_grad, there)
    _add(a_grad_ptr + a_at, a_grad, there)


@triton.jit
def _add(at, more, mask):  # type: ignore[no-untyped-def]
    before = tl.load(at, mask=mask, other=0.0)
    tl.store(at, (before.to(tl.float32) + more).to(before.dtype), mask=mask)


def backward(  # noqa: PLR0913, PLR0917
    d: Tensor, both: Tensor, ends: Tensor, h: Tensor, dh: Tensor, b: Sequence[Tensor], b_grads: Sequence[Tensor],
    a: Tensor, a_grad: Tensor
) -> Tensor:  # fmt: skip
    """Gradient of gate and up, [T, 2 F], which overwrites `both`; adds to the gradients of their B and of down's A.

    Args:
        d: gradient of silu(gate) · up without the part of down's adapter, [T, F].
        both, h, b, a: as `forward` takes them.
        ends: where each slot's tokens end, shape [k], int32.
        dh: gradient of the product with down's Aᵀ, scaled, [T, R].
        b_grads, a_grad: gradients of b and a, of the same shapes and strides.
    """
    size, rank = d.shape[1], a.shape[1]
    for gradient, value in (*zip(b_grads, b, strict=True), (a_grad, a)):
        assert gradient.stride() == value.stride(), "they are rows of tensors of one shape"
    tile = _tile(both, rank, (3, 3, 3))
    rows = ROWS if tile["RANK"] == RANKS[0] or tile["STAGES"] == 1 else ROWS // 2
    _backward[(triton.cdiv(size, tile["COLUMNS"]), ends.shape[0])](
        d, both, ends, h, *units(h.stride(0)), dh, *units(dh.stride(0)), *b, *weight_units(b[0]),
        a, *weight_units(a.transpose(1, 2))[:2], *b_grads, a_grad, SIZE=size, ROWS=rows, **tile, num_warps=4,
    )  # fmt: skip
    return both


def _tile(like: Tensor, rank: int, stages: Sequence[int]) -> dict[str, int]:
    """The padded rank, the features at a time, and how many steps of the loop overlap.

    Args:
        stages: how many steps overlap, for each of `RANKS` (measured on an H200).
    """
    padded, steps = next(pair for pair in zip(RANKS, stages, strict=True) if rank <= pair[0])
    if like.dtype is torch.float32:  # twice the memory
        return {"RANK": padded, "COLUMNS": 32, "STAGES": 1}
    return {"RANK": padded, "COLUMNS": 64, "STAGES": steps}
