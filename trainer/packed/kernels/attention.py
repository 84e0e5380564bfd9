"""Triton kernels for attention over short sequences, and over sequences of unequal lengths, on flat tokens.

torch's kernels are made for long sequences. With rows of a few hundred tokens, cuDNN's backward pass of four kernels
takes nearly twice as long as these, and flash attention for unequal lengths takes longer still (docs/performance.md).
The inverse rotation has a kernel of its own: within these it took as long as all the rest (measured on an H200).

Invariants: this module is imported only if there is a GPU, where torch brings Triton. A token attends to its own
sequence, up to itself. Sums are fp32, and one program computes each in a fixed order, so that the same pass gives the
same numbers. All sizes for which a kernel is compiled belong to the base, none to a pass.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl

from trainer.packed.layout import ROWS

Tensor = torch.Tensor
# Compute capabilities with more than 160 KiB of shared memory a multiprocessor; the others have 100 KiB.
LARGE_SHARED_MEMORY = {(8, 0), (9, 0), (10, 0), (10, 3)}
LOG2_E = tl.constexpr(math.log2(math.e))


@dataclass(frozen=True, slots=True)
class Sequences:
    """Where n sequences begin and end among T tokens.

    Args:
        starts: where each begins, and T: shape [n + 1], int32.
        pieces: sequence, first token and the sequence's end of each block of at most `ROWS` tokens: [m, 3], int32.
    """

    starts: Tensor
    pieces: Tensor


@triton.jit
def _piece(starts_ptr, pieces_ptr, nth):  # type: ignore[no-untyped-def]
    """Where the sequence begins, where the block begins, and where the sequence ends."""
    piece = pieces_ptr + 3 * nth
    return tl.load(starts_ptr + tl.load(piece)), tl.load(piece + 1), tl.load(piece + 2)


@triton.jit  # type: ignore[untyped-decorator]
def _rows(ptr, at, end, column, ROW: tl.constexpr, SIZE: tl.constexpr):  # type: ignore[no-untyped-def]
    """A head's features of these tokens, [tokens, SIZE]; zeros behind the end."""
    where = ptr + at.to(tl.int64)[:, None] * ROW + column + tl.arange(0, SIZE)[None, :]
    return tl.load(where, mask=(at < end)[:, None], other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _store(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    ptr, at, end, column, x, ROW: tl.constexpr, SIZE: tl.constexpr
):
    where = ptr + at.to(tl.int64)[:, None] * ROW + column + tl.arange(0, SIZE)[None, :]
    tl.store(where, x.to(ptr.dtype.element_ty), mask=(at < end)[:, None])


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def _forward(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    x_ptr, out_ptr, sums_ptr, starts_ptr, pieces_ptr, scale, tokens,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    head = tl.program_id(0)
    begin, first, end = _piece(starts_ptr, pieces_ptr, tl.num_programs(1) - 1 - tl.program_id(1))
    row: tl.constexpr = (QUERIES + 2 * KEYS) * SIZE
    at = first + tl.arange(0, ROWS)
    q = _rows(x_ptr, at, end, head * SIZE, row, SIZE)
    k_column = (QUERIES + head // (QUERIES // KEYS)) * SIZE
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    mixed = tl.zeros((ROWS, SIZE), tl.float32)
    for start in tl.range(begin, tl.minimum(first + ROWS, end), ROWS, num_stages=STAGES):
        other = start + tl.arange(0, ROWS)
        k = _rows(x_ptr, other, end, k_column, row, SIZE)
        v = _rows(x_ptr, other, end, k_column + KEYS * SIZE, row, SIZE)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)
        score = tl.where(other[None, :] <= at[:, None], score, float("-inf"))
        higher = tl.maximum(peak, tl.max(score, axis=1))
        p = tl.exp2(score - higher[:, None])
        kept = tl.exp2(peak - higher)
        total = total * kept + tl.sum(p, axis=1)
        mixed = tl.dot(p.to(v.dtype), v, mixed * kept[:, None], input_precision="ieee")
        peak = higher
    _store(out_ptr, at, end, head * SIZE, mixed / total[:, None], QUERIES * SIZE, SIZE)
    tl.store(sums_ptr + head * tokens + at, peak + tl.log2(total), mask=at < end)


def forward(x: Tensor, sequences: Sequences, heads: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Causal attention within each sequence.

    Args:
        x: rotated queries, rotated keys and values side by side, [T, (queries + 2 keys) · size].
        heads: the numbers of query and of key heads, and the features of a head.

    Returns:
        [T, queries · size], and the base-2 logarithm of each softmax's sum, [queries, T], fp32.
    """
    queries, _, size = heads
    out = x.new_empty(x.shape[0], queries * size)
    sums = torch.empty(queries, x.shape[0], device=x.device)
    _forward[(queries, sequences.pieces.shape[0])](
        x, out, sums, sequences.starts, sequences.pieces, size**-0.5, x.shape[0], **_tile(x, heads, 3), num_warps=4
    )
    return out, sums


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def _queries_back(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    x_ptr, out_ptr, d_ptr, sums_ptr, deltas_ptr, dx_ptr, starts_ptr, pieces_ptr, scale, tokens,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    head = tl.program_id(0)
    begin, first, end = _piece(starts_ptr, pieces_ptr, tl.num_programs(1) - 1 - tl.program_id(1))
    row: tl.constexpr = (QUERIES + 2 * KEYS) * SIZE
    at = first + tl.arange(0, ROWS)
    q = _rows(x_ptr, at, end, head * SIZE, row, SIZE)
    d = _rows(d_ptr, at, end, head * SIZE, QUERIES * SIZE, SIZE)
    out = _rows(out_ptr, at, end, head * SIZE, QUERIES * SIZE, SIZE)
    delta = tl.sum(d.to(tl.float32) * out.to(tl.float32), axis=1)
    tl.store(deltas_ptr + head * tokens + at, delta, mask=at < end)
    sums = tl.load(sums_ptr + head * tokens + at, mask=at < end, other=0.0)
    k_column = (QUERIES + head // (QUERIES // KEYS)) * SIZE
    dq = tl.zeros((ROWS, SIZE), tl.float32)
    for start in tl.range(begin, tl.minimum(first + ROWS, end), ROWS, num_stages=STAGES):
        other = start + tl.arange(0, ROWS)
        k = _rows(x_ptr, other, end, k_column, row, SIZE)
        v = _rows(x_ptr, other, end, k_column + KEYS * SIZE, row, SIZE)
        score = tl.dot(q, tl.trans(k), input_precision="ieee") * (scale * LOG2_E)
        p = tl.where(other[None, :] <= at[:, None], tl.exp2(score - sums[:, None]), 0.0)
        dp = tl.dot(d, tl.trans(v), input_precision="ieee")
        dq = tl.dot((p * (dp - delta[:, None])).to(k.dtype), k, dq, input_precision="ieee")
    _store(dx_ptr, at, end, head * SIZE, dq * scale, row, SIZE)


@triton.jit(do_not_specialize=["tokens"])  # type: ignore[untyped-decorator]
def _keys_back(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    x_ptr, d_ptr, sums_ptr, deltas_ptr, dx_ptr, starts_ptr, pieces_ptr, scale, tokens,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr
):  # fmt: skip
    _, first, end = _piece(starts_ptr, pieces_ptr, tl.program_id(1))
    row: tl.constexpr = (QUERIES + 2 * KEYS) * SIZE
    k_column = (QUERIES + tl.program_id(0)) * SIZE
    other = first + tl.arange(0, ROWS)
    k = _rows(x_ptr, other, end, k_column, row, SIZE)
    v = _rows(x_ptr, other, end, k_column + KEYS * SIZE, row, SIZE)
    dk = tl.zeros((ROWS, SIZE), tl.float32)
    dv = tl.zeros((ROWS, SIZE), tl.float32)
    blocks = tl.cdiv(end - first, ROWS)  # of queries that see these keys, for each of the heads that share them
    for nth in tl.range(0, QUERIES // KEYS * blocks, num_stages=STAGES):
        head = tl.program_id(0) * (QUERIES // KEYS) + nth // blocks
        at = first + nth % blocks * ROWS + tl.arange(0, ROWS)
        q = _rows(x_ptr, at, end, head * SIZE, row, SIZE)
        d = _rows(d_ptr, at, end, head * SIZE, QUERIES * SIZE, SIZE)
        sums = tl.load(sums_ptr + head * tokens + at, mask=at < end, other=0.0)
        delta = tl.load(deltas_ptr + head * tokens + at, mask=at < end, other=0.0)
        score = tl.dot(k, tl.trans(q), input_precision="ieee") * (scale * LOG2_E)
        p = tl.where(other[:, None] <= at[None, :], tl.exp2(score - sums[None, :]), 0.0)  # past the end d is zero
        dp = tl.dot(v, tl.trans(d), input_precision="ieee")
        dv = tl.dot(p.to(d.dtype), d, dv, input_precision="ieee")
        dk = tl.dot((p * (dp - delta[None, :])).to(q.dtype), q, dk, input_precision="ieee")
    _store(dx_ptr, other, end, k_column, dk * scale, row, SIZE)
    _store(dx_ptr, other, end, k_column + KEYS * SIZE, dv, row, SIZE)


def backward(d: Tensor, x: Tensor, out: Tensor, sums: Tensor, sequences: Sequences, heads: Sequence[int]) -> Tensor:
    """Gradient of x from d, that of `out`; the other arguments and results are those of `forward`."""
    queries, keys, size = heads
    dx, deltas, d = torch.empty_like(x), torch.empty_like(sums), d.contiguous()
    where = dx, sequences.starts, sequences.pieces, size**-0.5, x.shape[0]
    count = sequences.pieces.shape[0]
    _queries_back[(queries, count)](x, out, d, sums, deltas, *where, **_tile(x, heads, 2), num_warps=4)
    # so that three programs fit on a multiprocessor instead of two
    few = {"maxnreg": 168} if size == 64 and torch.version.hip is None else {}
    _keys_back[(keys, count)](x, d, sums, deltas, *where, **_tile(x, heads, 1), num_warps=4, **few)
    return dx


def _tile(like: Tensor, heads: Sequence[int], stages: int) -> dict[str, Any]:
    """What a kernel is compiled for.

    Args:
        stages: how many steps of its loop overlap (measured on an H200), if there is shared memory for it.
    """
    queries, keys, size = heads
    steps = stages if _capability(like.device) in LARGE_SHARED_MEMORY else 1
    return {"QUERIES": queries, "KEYS": keys, "SIZE": size, "ROWS": ROWS, "STAGES": steps}


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)
