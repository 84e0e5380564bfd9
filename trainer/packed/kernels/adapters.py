"""Triton kernels that multiply each slot's tokens by its own matrices.

Notation: T tokens of k slots, R the rank, N features out, F features of gate and of up.

There are two reasons for them (docs/performance.md). torch's grouped product writes to a tensor of its own, which must
then be copied to its place. And SwiGLU reads what the adapters have just added: in one kernel, their sum is never
written to memory.

Invariants: this module is imported only if there is a GPU, where torch brings Triton. Sums are fp32. The number of
tokens and of slots, the rank and the strides of the store can differ between two passes on one base. They are arguments
on which Triton does not specialise, so that nothing is compiled again when a slot is added or removed, or the rank
grows. Strides are passed in units of `UNIT` numbers, of which all are multiples, so that reads stay 16 bytes wide.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from trainer.packed import layout
from trainer.packed.layout import ROWS

Tensor = torch.Tensor
UNIT = tl.constexpr(layout.UNIT)
RANK = 16  # columns of A or B at a time
COLUMNS = 128
FEATURES = 64  # of gate and of up, in one program


@triton.jit  # type: ignore[untyped-decorator]
def _adapted(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    total, h_ptr, h_row, row, rows, w_ptr, w_row, column, columns, rank, ALONG: tl.constexpr, RANK: tl.constexpr
):
    """total + h · wᵀ, h [T, R], w [N, R]; R is contiguous in w, or N if `ALONG`."""
    for start in range(0, rank, RANK):
        inner = start + tl.arange(0, RANK)
        inside = inner < rank
        h = tl.load(h_ptr + row[:, None] * h_row + inner[None, :], mask=rows[:, None] & inside[None, :], other=0.0)
        at = column[None, :] + inner[:, None] * w_row if ALONG else column[None, :] * w_row + inner[:, None]
        w = tl.load(w_ptr + at, mask=columns[None, :] & inside[:, None], other=0.0)
        total += tl.dot(h, w, input_precision="ieee")
    return total


@triton.jit  # type: ignore[untyped-decorator]
def _piece(blocks_ptr, size, ROWS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The slot, rows and columns of this program, with masks of those that exist. Neighbouring programs share rows."""
    block = blocks_ptr + 3 * tl.program_id(1)
    row = tl.load(block + 1).to(tl.int64) + tl.arange(0, ROWS)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    return tl.load(block).to(tl.int64), row, row < tl.load(block + 2), column, column < size


@triton.jit(do_not_specialize=["h_units", "slot_units", "row_units", "rank_units"])  # type: ignore[untyped-decorator]
def _expand(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    h_ptr, h_units, w_ptr, slot_units, row_units, rank_units, out_ptr, blocks_ptr,
    OUT: tl.constexpr, SIZE: tl.constexpr, ALONG: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr
):  # fmt: skip
    slot, row, rows, column, columns = _piece(blocks_ptr, SIZE, ROWS, COLUMNS)
    w_ptr += slot * slot_units * UNIT
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    total = _adapted(
        total,
        h_ptr,
        h_units * UNIT,
        row,
        rows,
        w_ptr,
        row_units * UNIT,
        column,
        columns,
        rank_units * UNIT,
        ALONG,
        RANK,
    )
    out_at = out_ptr + row[:, None] * OUT + column[None, :]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=rows[:, None] & columns[None, :])


def expand(h: Tensor, weights: Tensor, blocks: Tensor, out: Tensor) -> None:
    """out = h · wᵀ for each slot's own w: h [T, R], weights [k, N, R]; out [T, N] may be columns of a wider tensor.

    Args:
        blocks: slot, first token and the slot's end of each block of at most `ROWS` tokens: [m, 3], int32.
    """
    _expand[_grid(blocks, weights.shape[1], COLUMNS)](
        h, *units(h.stride(0)), weights, *weight_units(weights), out, blocks,
        OUT=out.stride(0), SIZE=weights.shape[1], ALONG=weights.stride(2) != 1,
        ROWS=ROWS, COLUMNS=COLUMNS, RANK=RANK, num_warps=4,
    )  # fmt: skip


@triton.jit(do_not_specialize=["h_units", "slot_units", "row_units", "rank_units"])  # type: ignore[untyped-decorator]
def _swiglu(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    both_ptr, out_ptr, blocks_ptr, h_ptr, h_units, gate_ptr, up_ptr, slot_units, row_units, rank_units,
    SIZE: tl.constexpr, ADDS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr
):  # fmt: skip
    slot, row, rows, column, columns = _piece(blocks_ptr, SIZE, ROWS, COLUMNS)
    mask = rows[:, None] & columns[None, :]
    at = row[:, None] * (2 * SIZE) + column[None, :]
    gate = tl.load(both_ptr + at, mask=mask, other=0.0)
    up = tl.load(both_ptr + at + SIZE, mask=mask, other=0.0)
    kind = both_ptr.dtype.element_ty
    if ADDS:
        h_row, w_row, rank, of_slot = h_units * UNIT, row_units * UNIT, rank_units * UNIT, slot * slot_units * UNIT
        wide = _adapted(
            gate.to(tl.float32), h_ptr, h_row, row, rows, gate_ptr + of_slot, w_row, column, columns, rank, False, RANK
        )
        gate = wide.to(kind)  # rounded, as torchtune's is
        wide = _adapted(
            up.to(tl.float32), h_ptr + rank, h_row, row, rows, up_ptr + of_slot, w_row, column, columns, rank, False,
            RANK,
        )  # fmt: skip
        up = wide.to(kind)
    gate = gate.to(tl.float32)
    active = (gate * tl.sigmoid(gate)).to(kind).to(tl.float32)
    tl.store(out_ptr + row[:, None] * SIZE + column[None, :], (active * up.to(tl.float32)).to(kind), mask=mask)


def swiglu(both: Tensor, blocks: Tensor, adapters: tuple[Tensor, Tensor, Tensor] | None) -> Tensor:
    """silu(gate) · up: gate and up side by side [T, 2 F] → [T, F].

    Args:
        blocks: as `expand` takes them.
        adapters: h [T, 2 R], and B of gate and of up, [k, F, R], whose products are first added to gate and up.
    """
    rows, size = both.shape[0], both.shape[1] // 2
    out = both.new_empty(rows, size)
    _swiglu[_grid(blocks, size, FEATURES)](
        both, out, blocks, *_outer_arguments(both, adapters),
        SIZE=size, ADDS=adapters is not None, ROWS=ROWS, COLUMNS=FEATURES, RANK=RANK, num_warps=8,
    )  # fmt: skip
    return out


@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=[
        "h_units", "slot_units", "row_units", "rank_units", "dh_units", "a_slot_units", "a_row_units", "dh_rank_units",
    ]
)  # fmt: skip
def _swiglu_back(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    d_ptr, both_ptr, blocks_ptr, h_ptr, h_units, gate_ptr, up_ptr, slot_units, row_units, rank_units,
    dh_ptr, dh_units, a_ptr, a_slot_units, a_row_units, dh_rank_units,
    SIZE: tl.constexpr, ADDS: tl.constexpr, ADDS_D: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr
):  # fmt: skip
    slot, row, rows, column, columns = _piece(blocks_ptr, SIZE, ROWS, COLUMNS)
    mask = rows[:, None] & columns[None, :]
    at = row[:, None] * (2 * SIZE) + column[None, :]
    kind = both_ptr.dtype.element_ty
    d = tl.load(d_ptr + row[:, None] * SIZE + column[None, :], mask=mask, other=0.0).to(tl.float32)
    if ADDS_D:
        d = _adapted(
            d, dh_ptr, dh_units * UNIT, row, rows, a_ptr + slot * a_slot_units * UNIT, a_row_units * UNIT, column,
            columns, dh_rank_units * UNIT, True, RANK,
        )  # fmt: skip
    gate = tl.load(both_ptr + at, mask=mask, other=0.0)
    up = tl.load(both_ptr + at + SIZE, mask=mask, other=0.0)
    if ADDS:
        h_row, w_row, rank, of_slot = h_units * UNIT, row_units * UNIT, rank_units * UNIT, slot * slot_units * UNIT
        wide = _adapted(
            gate.to(tl.float32), h_ptr, h_row, row, rows, gate_ptr + of_slot, w_row, column, columns, rank, False, RANK
        )
        gate = wide.to(kind)
        wide = _adapted(
            up.to(tl.float32), h_ptr + rank, h_row, row, rows, up_ptr + of_slot, w_row, column, columns, rank, False,
            RANK,
        )  # fmt: skip
        up = wide.to(kind)
    gate = gate.to(tl.float32)
    up = up.to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    tl.store(both_ptr + at, (d * up * sigmoid * (1 + gate * (1 - sigmoid))).to(kind), mask=mask)
    tl.store(both_ptr + at + SIZE, (d * gate * sigmoid).to(kind), mask=mask)


def swiglu_back(
    d: Tensor,
    both: Tensor,
    blocks: Tensor,
    outer: tuple[Tensor, Tensor, Tensor] | None,
    inner: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Gradient of gate and up from d, that of silu(gate) · up, [T, F]; it overwrites `both`, [T, 2 F].

    Args:
        outer: the `adapters` of `swiglu`.
        inner: dh [T, R] and A of each slot, [k, R, F], whose product is first added to d.
    """
    size = d.shape[1]
    dh, a = inner or (both, None)
    of_a = (0, 0, 0) if a is None else weight_units(a.transpose(1, 2))
    _swiglu_back[_grid(blocks, size, FEATURES)](
        d, both, blocks, *_outer_arguments(both, outer), dh, *units(0 if a is None else dh.stride(0)),
        both if a is None else a, *of_a,
        SIZE=size, ADDS=outer is not None, ADDS_D=a is not None, ROWS=ROWS, COLUMNS=FEATURES, RANK=RANK, num_warps=4,
    )  # fmt: skip
    return both


def _outer_arguments(both: Tensor, adapters: tuple[Tensor, Tensor, Tensor] | None) -> tuple[Any, ...]:
    """h, the stride of its rows, both B, and their strides; placeholders without adapters."""
    if adapters is None:
        return both, 0, both, both, 0, 0, 0
    h, gate, up = adapters
    assert gate.stride() == up.stride(), "they are rows of one store"
    return h, *units(h.stride(0)), gate, up, *weight_units(gate)


def weight_units(weights: Tensor) -> tuple[int, ...]:
    """Of [k, N, R], in units: the strides of slots and of rows (of columns if N is contiguous), and R."""
    row = weights.stride(1) if weights.stride(2) == 1 else weights.stride(2)
    return units(weights.stride(0), row, weights.shape[2])


def units(*numbers: int) -> tuple[int, ...]:
    """Numbers in units of `UNIT`, of which they must be multiples."""
    for number in numbers:
        assert number % UNIT.value == 0, f"{number} is no multiple of {UNIT.value}"
    return tuple(number // UNIT.value for number in numbers)


def _grid(blocks: Tensor, size: int, columns: int) -> tuple[int, int]:
    return triton.cdiv(size, columns), blocks.shape[0]
