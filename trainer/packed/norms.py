"""The RMS norms of a packed decoder, each with the residual sum before it.

Invariant: as torchtune's, they are taken in fp32 and then rounded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function

Tensor = torch.Tensor


def norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """RMS norm of [T, D], as torchtune's: in fp32, then rounded."""
    if x.is_cuda:
        from trainer.packed.kernels import basic

        return basic.add_norm(x, None, scale, eps)[1]
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * scale.float()).to(x.dtype)


def _add_norm(x: Tensor, y: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if x.is_cuda:
        from trainer.packed.kernels import basic

        return basic.add_norm(x, y, scale, eps)
    h = x + y
    return h, norm(h, scale, eps)


def _norm_back(dh: Tensor | None, dn: Tensor, h: Tensor, scale: Tensor, eps: float) -> Tensor:
    if h.is_cuda:
        from trainer.packed.kernels import basic

        return basic.norm_back(dh, dn, h, scale, eps)
    wide, grad = h.float(), dn.float() * scale.float()
    rate = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    unit = wide * rate
    back = (rate * (grad - unit * (grad * unit).mean(-1, keepdim=True))).to(h.dtype)
    return back if dh is None else dh + back


class AddNorm(Function):
    """x, y [T, D] → the residual sum h = x + y and its RMS norm, both [T, D]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        h, normed = _add_norm(x, y, scale, eps)
        ctx.save_for_backward(h, scale)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return h, normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        h, scale = ctx.saved_tensors
        dh, dn = grads  # the last sum goes nowhere but into its norm: dh is None there
        d = _norm_back(dh, dn, h, scale, ctx.eps)
        return d, d, None, None


# autograd's own entry has no types
ADD_NORM: Callable[..., Any] = AddNorm.apply
