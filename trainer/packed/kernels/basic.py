"""Triton kernels for the norms, the rotary embeddings and the cross entropy of a packed decoder, and for AdamW.

Profiling led to them (docs/performance.md). Compiled by `torch.compile`, the rotary embeddings took several times as
long as their memory traffic needs. A pack of few tokens waited for the host, which checks a compiled function's guards
at every call. torch's fused AdamW has one learning rate a call, and a call for one slot is too small for a large GPU.

Invariants: this module is imported only if there is a GPU, where torch brings Triton. Sums are fp32. All sizes for
which a kernel is compiled belong to the base, none to a pass, so that nothing is compiled again when slots are added or
removed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from trainer.packed import layout

Tensor = torch.Tensor
UNIT = tl.constexpr(layout.UNIT)
VOCABULARY_BLOCK = 4096  # logits of a row at a time
ROW_BLOCK = 1024  # numbers of a row of the adapter store in one program


@triton.jit  # type: ignore[untyped-decorator]
def _add_norm(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    x_ptr, y_ptr, scale_ptr, sum_ptr, out_ptr, eps, SIZE: tl.constexpr, ADDS: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, BLOCK)
    mask = tl.arange(0, BLOCK) < SIZE
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if ADDS:
        x += tl.load(y_ptr + at, mask=mask, other=0.0).to(tl.float32)
        x = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + at, x, mask=mask)
        x = x.to(tl.float32)
    scale = tl.load(scale_ptr + tl.arange(0, BLOCK), mask=mask, other=0.0).to(tl.float32)
    unit = x * tl.rsqrt(tl.sum(x * x, axis=0) / SIZE + eps)
    tl.store(out_ptr + at, (unit * scale).to(out_ptr.dtype.element_ty), mask=mask)


def add_norm(x: Tensor, y: Tensor | None, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The sum of x and y, both [T, D] (without y: x itself), and its RMS norm times scale [D]."""
    rows, size = x.shape
    total = x if y is None else torch.empty_like(x)
    out = torch.empty_like(x)
    block = triton.next_power_of_2(size)
    warps = min(16, max(1, block // 512))
    _add_norm[(rows,)](x, x if y is None else y, scale, total, out, eps, size, y is not None, block, num_warps=warps)
    return total, out


@triton.jit  # type: ignore[untyped-decorator]
def _norm_back(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    dh_ptr, dn_ptr, h_ptr, scale_ptr, out_ptr, eps, SIZE: tl.constexpr, ADDS: tl.constexpr, BLOCK: tl.constexpr
):
    at = tl.program_id(0).to(tl.int64) * SIZE + tl.arange(0, BLOCK)
    mask = tl.arange(0, BLOCK) < SIZE
    h = tl.load(h_ptr + at, mask=mask, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + tl.arange(0, BLOCK), mask=mask, other=0.0).to(tl.float32)
    grad = tl.load(dn_ptr + at, mask=mask, other=0.0).to(tl.float32) * scale
    rate = tl.rsqrt(tl.sum(h * h, axis=0) / SIZE + eps)
    unit = h * rate
    d = rate * (grad - unit * (tl.sum(grad * unit, axis=0) / SIZE))
    if ADDS:
        d += tl.load(dh_ptr + at, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, d.to(out_ptr.dtype.element_ty), mask=mask)


def norm_back(dh: Tensor | None, dn: Tensor, h: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Gradient of `add_norm`'s inputs, [T, D], from dh, that of the sum (or None), and dn, that of the norm."""
    rows, size = h.shape
    out = torch.empty_like(h)
    block = triton.next_power_of_2(size)
    warps = min(16, max(1, block // 512))
    first = dn if dh is None else dh
    _norm_back[(rows,)](first, dn, h, scale, out, eps, size, dh is not None, block, num_warps=warps)
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _rotate(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    x_ptr,
    out_ptr,
    table_ptr,
    positions_ptr,
    sign,
    X_ROW: tl.constexpr,
    OUT_ROW: tl.constexpr,
    COUNT: tl.constexpr,
    SIZE: tl.constexpr,
    HEADS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    position = tl.load(positions_ptr + row)
    half = tl.arange(0, SIZE // 2)
    cos = tl.load(table_ptr + position * SIZE + 2 * half)[None, :]
    sin = tl.load(table_ptr + position * SIZE + 2 * half + 1)[None, :] * sign
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    mask = (head < COUNT)[:, None]
    at = head[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    x = tl.load(x_ptr + row * X_ROW + at, mask=mask, other=0.0).to(tl.float32)
    even, odd = tl.split(tl.reshape(x, (HEADS, SIZE // 2, 2)))
    rotated = tl.reshape(tl.join(even * cos - odd * sin, odd * cos + even * sin), (HEADS, SIZE))
    tl.store(out_ptr + row * OUT_ROW + at, rotated.to(out_ptr.dtype.element_ty), mask=mask)


def rotate(x: Tensor, out: Tensor, table: Tensor, positions: Tensor, sign: float) -> None:
    """Rotary embedding, interleaved as torchtune's: x [T, h, size] → out, which may be x itself.

    Args:
        table: cosine and sine of each angle by position, [positions, size / 2, 2], fp32.
        sign: 1, or -1 for the inverse rotation, which gives the gradient.
    """
    rows, heads, size = x.shape
    block = min(16, triton.next_power_of_2(heads))
    grid = (rows, triton.cdiv(heads, block))
    _rotate[grid](
        x, out, table, positions, sign,
        X_ROW=x.stride(0), OUT_ROW=out.stride(0), COUNT=heads, SIZE=size, HEADS=block, num_warps=2,
    )  # fmt: skip


@triton.jit  # type: ignore[untyped-decorator]
def _cross_entropy(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    logits_ptr, targets_ptr, weights_ptr, losses_ptr, vocabulary: tl.constexpr, BACK: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * vocabulary
    target = tl.load(targets_ptr + row)
    weight = tl.load(weights_ptr + row)
    hit = tl.load(logits_ptr + target).to(tl.float32)
    peak = float("-inf")
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits_ptr + at, mask=at < vocabulary, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(peak, tl.max(x, axis=0))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # only minus infinity so far
        total = total * tl.exp(peak - base) + tl.exp(x - base)
        peak = higher
    normaliser = peak + tl.log(tl.sum(total, axis=0))
    tl.store(losses_ptr + row, (normaliser - hit) * weight)
    if BACK:
        for start in range(0, vocabulary, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(logits_ptr + at, mask=at < vocabulary, other=float("-inf")).to(tl.float32)
            d = (tl.exp(x - normaliser) - tl.where(at == target, 1.0, 0.0)) * weight
            tl.store(logits_ptr + at, d.to(logits_ptr.dtype.element_ty), mask=at < vocabulary)


def cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, backward: bool) -> Tensor:
    """Weighted nats of each row, shape [L], fp32: logits [L, V], targets and weights [L].

    With `backward`, their gradient overwrites the logits. A row with a number that is not finite has such a loss.
    """
    rows, vocabulary = logits.shape
    losses = torch.empty(rows, device=logits.device)
    _cross_entropy[(rows,)](
        logits, targets, weights, losses, vocabulary, BACK=backward, BLOCK=VOCABULARY_BLOCK, num_warps=8
    )
    return losses


@triton.jit(do_not_specialize=["row_units"])  # type: ignore[untyped-decorator]
def _adamw(  # type: ignore[no-untyped-def]  # noqa: PLR0913, PLR0917
    value_ptr, grad_ptr, average_ptr, square_ptr, table_ptr, row_units, COLUMNS: tl.constexpr, BLOCK: tl.constexpr
):
    row = tl.program_id(1).to(tl.int64)
    table_ptr += row * COLUMNS
    divisor, decay = tl.load(table_ptr), tl.load(table_ptr + 1)
    beta1, rest1 = tl.load(table_ptr + 2), tl.load(table_ptr + 3)
    beta2, rest2 = tl.load(table_ptr + 4), tl.load(table_ptr + 5)
    rate, root, eps = tl.load(table_ptr + 6), tl.load(table_ptr + 7), tl.load(table_ptr + 8)
    size = row_units * UNIT
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = column < size
    at = row * size + column
    kind = value_ptr.dtype.element_ty
    grad = tl.load(grad_ptr + at, mask=mask, other=0.0).to(tl.float32)
    grad = tl.div_rn(grad, divisor)
    value = tl.load(value_ptr + at, mask=mask, other=0.0).to(tl.float32)
    average = tl.load(average_ptr + at, mask=mask, other=0.0).to(tl.float32) * beta1 + rest1 * grad
    square = tl.load(square_ptr + at, mask=mask, other=0.0).to(tl.float32) * beta2 + rest2 * grad * grad
    value -= decay * value
    value -= rate * tl.div_rn(average, tl.div_rn(tl.sqrt_rn(square), root) + eps)
    tl.store(value_ptr + at, value.to(kind), mask=mask)
    tl.store(average_ptr + at, average.to(kind), mask=mask)
    tl.store(square_ptr + at, square.to(kind), mask=mask)
    tl.store(grad_ptr + at, tl.zeros((BLOCK,), kind), mask=mask)


def adamw(values: Tensor, grads: Tensor, averages: Tensor, squares: Tensor, table: Tensor) -> None:
    """A step of AdamW in each row of values, gradients and both moments, [n, P] each; clears the gradients.

    Args:
        table: for each row the divisor of its gradient, rate · decay, beta1, 1 - beta1, beta2, 1 - beta2,
            rate / (1 - beta1^step), the root of 1 - beta2^step, and epsilon: [n, 9], fp32; see `update.step_table`.
    """
    rows, size = values.shape
    assert size % UNIT.value == 0, f"{size} is no multiple of {UNIT.value}"
    grid = triton.cdiv(size, ROW_BLOCK), rows
    _adamw[grid](
        values, grads, averages, squares, table.contiguous(), size // UNIT.value,
        COLUMNS=table.shape[1], BLOCK=ROW_BLOCK, num_warps=4,
    )  # fmt: skip
