"""Linear layers of a packed decoder: the frozen product that all slots share, and each slot's adapters.

Notation: T tokens of k slots on one line, D features in, N out, R the rank to which all slots are padded, M adapters
that share one input.

Invariants: frozen weights get no gradient. The backward pass adds the adapters' gradients to the store's own tensors
and returns none to autograd, so that nothing is copied and a slot's gradients accumulate in its row. No product mixes
tokens of two slots, so that a number that is not finite stays in its slot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import Function

from trainer.packed.layout import Layout

Tensor = torch.Tensor


# --- products of each slot's tokens with its own matrices -----------------------------------------------------------


def shrink(x: Tensor, weights: Tensor, layout: Layout) -> Tensor:
    """x · wᵀ for each slot's own w: x [T, D], weights [k, R, D]; returns [T, R]."""
    if (n := layout.even) is not None:
        return torch.bmm(_stacked(x, n), weights.transpose(1, 2)).view(-1, weights.shape[1])
    if _grouped(x):
        return _grouped_mm(x, weights.transpose(1, 2), layout.offsets)
    return torch.cat([x[a:b] @ w.t() for (a, b), w in zip(layout.segments(), weights, strict=True)])


def expand(h: Tensor, weights: Tensor, layout: Layout, out: Tensor) -> None:
    """out = h · wᵀ for each slot's own w: h [T, R], weights [k, N, R]; out [T, N] may be columns of a wider tensor."""
    if (n := layout.even) is not None:
        torch.bmm(_stacked(h, n), weights.transpose(1, 2), out=_stacked(out, n))
    elif h.is_cuda:
        from trainer.packed.kernels import adapters

        adapters.expand(h, weights, layout.blocks, out)
    else:
        for (a, b), w in zip(layout.segments(), weights, strict=True):
            torch.mm(h[a:b], w.t(), out=out[a:b])


def accumulate_outer(a: Tensor, b: Tensor, layout: Layout, into: Tensor) -> None:
    """into += aᵀ · b over each slot's tokens: a [T, P], b [T, Q], into [k, P, Q]."""
    if (n := layout.even) is not None:
        into.baddbmm_(_stacked(a, n).transpose(1, 2), _stacked(b, n))
    elif _grouped(a):
        into.add_(_grouped_mm(a.t(), b, layout.offsets))
    else:
        for (start, end), total in zip(layout.segments(), into, strict=True):
            total.addmm_(a[start:end].t(), b[start:end])


def _stacked(x: Tensor, n: int) -> Tensor:
    return x.view(-1, n, x.shape[1])


def _grouped(x: Tensor) -> bool:
    return x.is_cuda and x.dtype is torch.bfloat16 and torch.cuda.get_device_capability(x.device) >= (9, 0)


def _grouped_mm(a: Tensor, b: Tensor, offsets: Tensor) -> Tensor:
    product: Callable[..., Tensor] = getattr(F, "grouped_mm", None) or torch._grouped_mm
    return product(a, b, offs=offsets)


# --- frozen projections with adapters --------------------------------------------------------------------------------


@dataclass(slots=True)
class Projection:
    """Linear layers that share their input, as one product; some of them have an adapter.

    Args:
        weight: the layers' frozen weights one below another, shape [N, D].
        bias: shape [N], or None.
        columns: where the output of each of the M adapted layers begins and ends in N.
        names: torchtune's module names of the M adapted layers.
        covered: every output column belongs to an adapted layer.
    """

    weight: Tensor
    bias: Tensor | None
    columns: tuple[tuple[int, int], ...]
    names: tuple[str, ...]
    covered: bool


@dataclass(slots=True)
class Adapters:
    """The rows of the store that a projection trains in this pass.

    Args:
        a: shape [k, M·R, D].
        b: M tensors of shape [k, N_m, R].
        grad_a, grad_b: the gradients, of the same shapes, to which the backward pass adds.
        scale: alpha / rank of each token's slot, shape [T, 1].
        masks: M dropout masks of shape [T, D], divided by the share that they keep; empty without dropout.
    """

    a: Tensor
    b: Sequence[Tensor]
    grad_a: Tensor
    grad_b: Sequence[Tensor]
    scale: Tensor
    masks: Sequence[Tensor] = ()


@dataclass(slots=True)
class Linear:
    """A projection with the adapters that it has in this pass."""

    frozen: Projection
    lora: Adapters | None


def project(x: Tensor, layer: Linear, layout: Layout) -> tuple[Tensor, Tensor | None]:
    """x [T, D] → x Wᵀ + (alpha / rank) · (x ∘ mask) Aᵀ Bᵀ, shape [T, N], and `adapt` of x (None without adapters).

    The adapters' part is written first, and the frozen product added to it, so that the sum needs no pass of its own.
    """
    frozen, lora = layer.frozen, layer.lora
    if lora is None:
        return F.linear(x, frozen.weight, frozen.bias), None
    h = adapt(x, lora, layout)
    return project_adapted(x, h, frozen, lora, layout), h


def project_adapted(x: Tensor, h: Tensor, frozen: Projection, lora: Adapters, layout: Layout) -> Tensor:
    """The first result of `project`, from x [T, D] and h = `adapt` of x, [T, M·R]."""
    make = x.new_empty if frozen.covered else x.new_zeros
    y = make(x.shape[0], frozen.weight.shape[0])
    for (begin, end), part, b in zip(frozen.columns, h.chunk(len(lora.b), dim=1), lora.b, strict=True):
        expand(part, b, layout, y[:, begin:end])
    y.addmm_(x, frozen.weight.t())
    if frozen.bias is not None:
        y.add_(frozen.bias)
    return y


def project_back(
    dy: Tensor, x: Tensor, h: Tensor | None, layer: Linear, layout: Layout, needs_dx: bool
) -> Tensor | None:
    """Add to the adapters' gradients; returns the gradient of `project`'s input, [T, D], if `needs_dx`.

    Args:
        dy: gradient of the output, [T, N].
        x, h: the input [T, D], and `adapt` of it.
    """
    if layer.lora is None or h is None:
        return dy @ layer.frozen.weight if needs_dx else None
    return input_back(dy, x, output_back(dy, h, layer, layout), layer.frozen, layer.lora, layout, needs_dx)


def input_back(  # noqa: PLR0913, PLR0917
    dy: Tensor, x: Tensor, dh: Tensor, frozen: Projection, lora: Adapters, layout: Layout, needs_dx: bool
) -> Tensor | None:
    """The last part of `project_back`, from dh, the gradient of x Aᵀ, [T, M·R]: adds to the gradient of A."""
    dx = adapt_back(x, dh, lora, layout, needs_dx)
    if dx is not None:
        dx.addmm_(dy, frozen.weight)
    return dx


def adapt(x: Tensor, lora: Adapters, layout: Layout) -> Tensor:
    """(alpha / rank) · (x ∘ mask) Aᵀ of each slot, shape [T, M·R]."""
    if not lora.masks:
        return shrink(x, lora.a, layout).mul_(lora.scale)
    matrices = lora.a.chunk(len(lora.masks), dim=1)
    return torch.cat([shrink(x * m, a, layout) for m, a in zip(lora.masks, matrices, strict=True)], 1).mul_(lora.scale)


def output_back(dy: Tensor, h: Tensor, layer: Linear, layout: Layout) -> Tensor:
    """Add to the gradients of B; returns the gradient of x Aᵀ, shape [T, M·R], from dy [T, N]."""
    lora = layer.lora
    assert lora is not None
    for (begin, end), part, grad in zip(layer.frozen.columns, h.chunk(len(lora.b), dim=1), lora.grad_b, strict=True):
        accumulate_outer(dy[:, begin:end], part, layout, grad)
    return through_output(dy, layer.frozen, lora, layout)


def through_output(dy: Tensor, frozen: Projection, lora: Adapters, layout: Layout) -> Tensor:
    """Gradient of x Aᵀ, shape [T, M·R], from that of the output, dy [T, N]."""
    parts = zip(frozen.columns, lora.b, strict=True)
    dh = torch.cat([shrink(dy[:, begin:end], b.transpose(1, 2), layout) for (begin, end), b in parts], dim=1)
    return dh.mul_(lora.scale)


def adapt_back(x: Tensor, dh: Tensor, lora: Adapters, layout: Layout, needs_dx: bool) -> Tensor | None:
    """Add to the gradient of A; returns the adapters' part of the input's gradient, [T, D], if `needs_dx`."""
    dx = torch.empty_like(x) if needs_dx else None
    if not lora.masks:
        accumulate_outer(dh, x, layout, lora.grad_a)
        if dx is not None:
            expand(dh, lora.a.transpose(1, 2), layout, dx)
        return dx
    count = len(lora.masks)
    total = torch.zeros_like(x) if needs_dx else None
    matrices, gradients = lora.a.chunk(count, dim=1), lora.grad_a.chunk(count, dim=1)
    for m, a, grad, part in zip(lora.masks, matrices, gradients, dh.chunk(count, dim=1), strict=True):
        accumulate_outer(part, x * m, layout, grad)
        if total is not None and dx is not None:
            expand(part, a.transpose(1, 2), layout, dx)
            total.addcmul_(dx, m)
    return total


class Project(Function):
    """`project` for autograd: x [T, D] → [T, N]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, layer: Linear, layout: Layout) -> Tensor:
        ctx.layer, ctx.layout = layer, layout
        y, h = project(x, layer, layout)
        ctx.save_for_backward(x if h is not None else None, h)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, h = ctx.saved_tensors
        return project_back(grads[0], x, h, ctx.layer, ctx.layout, ctx.needs_input_grad[0]), None, None, None


# torch has no types for `apply`
PROJECT: Callable[..., Any] = Project.apply
