"""Attention of a packed decoder, rotary embeddings included, on flat tokens.

Invariant: a token sees its own sequence, up to itself, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import Function
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainer.packed_layout import Layout

Tensor = torch.Tensor


@dataclass(frozen=True, slots=True)
class Heads:
    """How a fused projection divides into heads of `size` features: queries, then keys, then values."""

    queries: int
    keys: int
    size: int

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[T, …] → q [T, queries, size], k and v [T, keys, size]."""
        heads = qkv.view(qkv.shape[0], -1, self.size)
        q, k, v = heads.split([self.queries, self.keys, self.keys], dim=1)  # type: ignore[no-untyped-call]
        return q, k, v


def _turn(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding of torchtune's interleaved kind: x [T, h, size], angles [T, size / 2, 2] (cosine, sine)."""
    even, odd = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    cos, sin = angles[:, None, :, 0], angles[:, None, :, 1]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)


class FlashAttention(Function):
    """Causal attention within each sequence: [T, …] → [T, …].

    By the flash kernel for sequences of many lengths; where all have one length, by the faster one for that.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, table: Tensor, layout: Layout, heads: Heads) -> Tensor:
        from trainer import packed_kernels

        both = qkv.view(qkv.shape[0], -1, heads.size)[:, : heads.queries + heads.keys]
        packed_kernels.turn(
            both, both, table, layout.positions, 1.0
        )  # in place: nobody else reads a projection's output
        q, k, v = heads.split(qkv)
        ctx.layout, ctx.heads, ctx.table = layout, heads, table
        ctx.square = None
        if (shape := layout.rectangle) is not None:
            ctx.square = _square_attention(*(_square(one.detach(), shape) for one in (q, k, v)))
            mixed: Tensor = ctx.square[-1].detach().transpose(1, 2)
            return mixed.flatten(2).flatten(0, 1)
        out, lse, seed, offset, _ = torch.ops.aten._flash_attention_forward(
            q, k, v, layout.starts, layout.starts, layout.longest, layout.longest, 0.0, True, False
        )
        ctx.save_for_backward(q, k, v, out, lse, seed, offset)
        return out.flatten(1)  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        from trainer import packed_kernels

        layout, heads, table = ctx.layout, ctx.heads, ctx.table
        d = grads[0].view(grads[0].shape[0], -1, heads.size)
        if ctx.square is not None:
            *inputs, mixed = ctx.square
            ctx.square = None
            found = torch.autograd.grad(mixed, inputs, _square(d, layout.rectangle))
            dq, dk, dv = (one.transpose(1, 2).flatten(0, 1).contiguous() for one in found)
        else:
            q, k, v, out, lse, seed, offset = ctx.saved_tensors
            span = layout.starts, layout.starts, layout.longest, layout.longest
            dq, dk, dv = torch.ops.aten._flash_attention_backward(d, q, k, v, out, lse, *span, 0.0, True, seed, offset)
        back = d.new_empty(d.shape[0], (heads.queries + 2 * heads.keys) * heads.size)
        into_q, into_k, into_v = heads.split(back)
        packed_kernels.turn(dq, into_q, table, layout.positions, -1.0)
        packed_kernels.turn(dk, into_k, table, layout.positions, -1.0)
        into_v.copy_(dv)
        return back, None, None, None


def _square(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """[n · s, heads, size] as [n, heads, s, size]."""
    return x.view(*shape, *x.shape[1:]).transpose(1, 2)


def _square_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sequences of one length, [n, heads, s, size]: cuDNN's kernel, where there is one, is the fastest (measured).

    Returns:
        q, k, v as leaves, and what they came to, [n, queries, s, size], for a gradient of its own.
    """
    with torch.enable_grad(), sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
        leaves = q.requires_grad_(), k.requires_grad_(), v.requires_grad_()
        mixed = F.scaled_dot_product_attention(leaves[0], leaves[1], leaves[2], is_causal=True, enable_gqa=True)
        return *leaves, mixed


def attention(qkv: Tensor, table: Tensor, layout: Layout, heads: Heads) -> Tensor:
    """Causal attention within each sequence: qkv [T, (queries + 2 keys) · size] → [T, queries · size].

    Args:
        table: cosines and sines by position, shape [positions, size / 2, 2].
    """
    if qkv.is_cuda and qkv.dtype is torch.bfloat16:
        out: Tensor = FLASH_ATTENTION(qkv, table, layout, heads)
        return out
    q, k, v = heads.split(qkv)
    angles = table[layout.positions]
    places, back = layout.squares()
    repeats = heads.queries // heads.keys
    q, k, v = _turn(q, angles), _turn(k, angles).repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    square = [one[places].transpose(1, 2) for one in (q, k, v)]  # [n, queries, longest, size]
    mixed = F.scaled_dot_product_attention(square[0], square[1], square[2], is_causal=True)
    return mixed.transpose(1, 2).flatten(0, 1)[back].flatten(1)


# autograd's own entry has no types
FLASH_ATTENTION: Callable[..., Any] = FlashAttention.apply
