"""The RMS norms of a packed decoder, each with the residual sum before it.

Invariant: norms are computed in fp32 and then rounded, as torchtune's are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import Function

Tensor = torch.Tensor


def norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """RMS norm of x [T, D], in fp32, then rounded to the dtype of x.

    Args:
        scale: shape [D].
    """
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
        dh, dn = grads  # dh is None for the last sum, which only its norm reads
        d = _norm_back(dh, dn, h, scale, ctx.eps)
        return d, d, None, None


# torch has no types for `apply`
ADD_NORM: Callable[..., Any] = AddNorm.apply
