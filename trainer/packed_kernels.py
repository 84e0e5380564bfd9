"""Triton kernels for the element-wise passes, and for the product of slots of uneven lengths with their own B.

Profiling led to them (docs/performance.md): compiled by `torch.compile`, the backward pass of SwiGLU and the rotary
embeddings took two to seven times what the memory that they move would, and a pack of few tokens waited for the host,
which checks a compiled function's guards at every call; torch's grouped product writes to a tensor of its own, which
then must be copied to where it belongs.

Invariants: imported only where there is a GPU; Triton comes with torch there. Sums are fp32. The number of tokens is
never a constant of a kernel, so that none is compiled again when slots come and go.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from trainer.packed_layout import ROWS

Tensor = torch.Tensor
FEATURES = 1024  # of a row, for one program
WORDS = 4096  # of the vocabulary, at a time


@triton.jit  # type: ignore[untyped-decorator]
def _silu_mul_back(d_ptr, both_ptr, out_ptr, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    gate_at = row * 2 * size + at
    gate = tl.load(both_ptr + gate_at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(both_ptr + gate_at + size, mask=mask, other=0.0).to(tl.float32)
    d = tl.load(d_ptr + row * size + at, mask=mask, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    tl.store(out_ptr + gate_at, (d * up * sigmoid * (1 + gate * (1 - sigmoid))).to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(out_ptr + gate_at + size, (d * gate * sigmoid).to(out_ptr.dtype.element_ty), mask=mask)


def silu_mul_back(d: Tensor, both: Tensor) -> Tensor:
    """Gradient of silu(gate) · up: d [T, F], gate and up side by side [T, 2 F]; returns [T, 2 F]."""
    rows, size = d.shape
    out = torch.empty_like(both)
    _silu_mul_back[(rows, triton.cdiv(size, FEATURES))](d, both, out, size, BLOCK=FEATURES, num_warps=4)
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _silu_mul(both_ptr, out_ptr, size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    gate = tl.load(both_ptr + row * 2 * size + at, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(both_ptr + row * 2 * size + size + at, mask=mask, other=0.0).to(tl.float32)
    active = (gate * tl.sigmoid(gate)).to(out_ptr.dtype.element_ty).to(tl.float32)  # rounded, as torchtune's is
    tl.store(out_ptr + row * size + at, (active * up).to(out_ptr.dtype.element_ty), mask=mask)


def silu_mul(both: Tensor) -> Tensor:
    """silu(gate) · up: gate and up side by side [T, 2 F] → [T, F]."""
    rows, size = both.shape[0], both.shape[1] // 2
    out = both.new_empty(rows, size)
    _silu_mul[(rows, triton.cdiv(size, FEATURES))](both, out, size, BLOCK=FEATURES, num_warps=4)
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    x_ptr, y_ptr, scale_ptr, sum_ptr, out_ptr, size, eps, ADDS: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * size + tl.arange(0, BLOCK)
    mask = tl.arange(0, BLOCK) < size
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if ADDS:
        x += tl.load(y_ptr + at, mask=mask, other=0.0).to(tl.float32)
        x = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + at, x, mask=mask)
        x = x.to(tl.float32)
    scale = tl.load(scale_ptr + tl.arange(0, BLOCK), mask=mask, other=0.0).to(tl.float32)
    unit = x * tl.rsqrt(tl.sum(x * x, axis=0) / size + eps)
    tl.store(out_ptr + at, (unit * scale).to(out_ptr.dtype.element_ty), mask=mask)


def add_norm(x: Tensor, y: Tensor | None, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of x and y [T, D] (without y: x itself) and its RMS norm."""
    rows, size = x.shape
    total = x if y is None else torch.empty_like(x)
    out = torch.empty_like(x)
    block = triton.next_power_of_2(size)
    warps = min(16, max(1, block // 512))
    _add_norm[(rows,)](x, x if y is None else y, scale, total, out, size, eps, y is not None, block, num_warps=warps)
    return total, out


@triton.jit  # type: ignore[untyped-decorator]
def _norm_back(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    dh_ptr, dn_ptr, h_ptr, scale_ptr, out_ptr, size, eps, ADDS: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * size + tl.arange(0, BLOCK)
    mask = tl.arange(0, BLOCK) < size
    h = tl.load(h_ptr + at, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + tl.arange(0, BLOCK), mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(dn_ptr + at, mask=mask, other=0.0).to(tl.float32) * scale
    rate = tl.rsqrt(tl.sum(h * h, axis=0) / size + eps)
    unit = h * rate
    d = rate * (grad - unit * (tl.sum(grad * unit, axis=0) / size))
    if ADDS:
        d += tl.load(dh_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, d.to(out_ptr.dtype.element_ty), mask=mask)


def norm_back(dh: Tensor | None, dn: Tensor, h: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Gradient of `add_norm`'s inputs, [T, D], from those of its sum (or none) and of its norm."""
    rows, size = h.shape
    out = torch.empty_like(h)
    block = triton.next_power_of_2(size)
    warps = min(16, max(1, block // 512))
    first = dn if dh is None else dh
    _norm_back[(rows,)](first, dn, h, scale, out, size, eps, dh is not None, block, num_warps=warps)
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _turn(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    x_ptr, x_row, out_ptr, out_row, table_ptr, positions_ptr, sign, heads, SIZE: tl.constexpr, HEADS: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    position = tl.load(positions_ptr + row)
    half = tl.arange(0, SIZE // 2)
    cos = tl.load(table_ptr + position * SIZE + 2 * half)[None, :]
    sin = tl.load(table_ptr + position * SIZE + 2 * half + 1)[None, :] * sign
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    mask = (head < heads)[:, None]
    at = head[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    x = tl.load(x_ptr + row * x_row + at, mask=mask, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(x, (HEADS, SIZE // 2, 2)))
    turned = tl.reshape(tl.join(even * cos - odd * sin, odd * cos + even * sin), (HEADS, SIZE))
    tl.store(out_ptr + row * out_row + at, turned.to(out_ptr.dtype.element_ty), mask=mask)


def turn(x: Tensor, out: Tensor, table: Tensor, positions: Tensor, sign: float) -> None:
    """Rotary embedding of torchtune's interleaved kind: x [T, h, size] → out, which may be x itself.

    Args:
        table: cosines and sines by position, [positions, size / 2, 2], fp32.
        sign: -1 turns back, which is the gradient.
    """
    rows, heads, size = x.shape
    block = min(16, triton.next_power_of_2(heads))
    grid = (rows, triton.cdiv(heads, block))
    _turn[grid](x, x.stride(0), out, out.stride(0), table, positions, sign, heads, SIZE=size, HEADS=block, num_warps=2)


@triton.jit  # type: ignore[untyped-decorator]
def _expand(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    h_ptr, h_row, w_ptr, w_slot, w_out, w_in, out_ptr, out_row, blocks_ptr, size, rank,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr
):  # fmt: skip
    block = blocks_ptr + 3 * tl.program_id(0)
    slot = tl.load(block).to(tl.int64)
    row = tl.load(block + 1).to(tl.int64) + tl.arange(0, ROWS)
    rows = (row < tl.load(block + 2))[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    columns = (column < size)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, rank, RANK):
        inner = start + tl.arange(0, RANK)
        h = tl.load(h_ptr + row[:, None] * h_row + inner[None, :], mask=rows & (inner < rank)[None, :], other=0.0)
        at = slot * w_slot + column[None, :] * w_out + inner[:, None] * w_in
        w = tl.load(w_ptr + at, mask=columns & (inner < rank)[:, None], other=0.0)
        total += tl.dot(h, w, input_precision="ieee")
    out_at = out_ptr + row[:, None] * out_row + column[None, :]
    tl.store(out_at, total.to(out_ptr.dtype.element_ty), mask=rows & columns)


def expand(h: Tensor, weights: Tensor, blocks: Tensor, out: Tensor) -> None:
    """out = h · wᵀ for each slot's own w: h [T, R], weights [k, N, R]; out [T, N] may be columns of a wider one.

    Args:
        blocks: for each piece of at most `ROWS` tokens of one slot its slot, first token and end: [pieces, 3], int32.
    """
    size, rank = weights.shape[1:]
    grid = (blocks.shape[0], triton.cdiv(size, 128))
    inner = 16 if rank <= 16 else 32
    _expand[grid](
        h, h.stride(0), weights, *weights.stride(), out, out.stride(0), blocks, size, rank,
        ROWS=ROWS, COLUMNS=128, RANK=inner, num_warps=4,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _cross_entropy(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    logits_ptr, targets_ptr, weights_ptr, losses_ptr, words: tl.constexpr, BACK: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * words
    target = tl.load(targets_ptr + row)
    weight = tl.load(weights_ptr + row)
    hit = tl.load(logits_ptr + target).to(tl.float32)
    top = tl.full((BLOCK,), float("-inf"), tl.float32)  # of each lane, so that lanes meet only once
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, words, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + at, mask=at < words, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(top, x)
        base = tl.where(higher == float("-inf"), 0.0, higher)  # a lane that has seen nothing yet
        total = total * tl.exp(top - base) + tl.exp(x - base)
        top = higher
    peak = tl.max(top, axis=0)
    normaliser = peak + tl.log(tl.sum(total * tl.exp(top - peak), axis=0))
    tl.store(losses_ptr + row, (normaliser - hit) * weight)
    if BACK:
        for start in range(0, words, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(logits_ptr + at, mask=at < words, other=float("-inf")).to(tl.float32)
            d = (tl.exp(x - normaliser) - tl.where(at == target, 1.0, 0.0)) * weight
            tl.store(logits_ptr + at, d.to(logits_ptr.dtype.element_ty), mask=at < words)


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, backward: bool) -> Tensor:
    """Weighted nats of each row, fp32: logits [L, V], targets and weights [L].

    With `backward`, the logits are overwritten by their gradient. A row that is not finite gives a loss that is not.
    """
    rows, words = logits.shape
    losses = torch.empty(rows, device=logits.device)
    _cross_entropy[(rows,)](logits, targets, weights, losses, words, BACK=backward, BLOCK=WORDS, num_warps=16)
    return losses
