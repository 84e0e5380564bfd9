"""Attention of a packed decoder on flat tokens: queries, keys and values, rotary embeddings, and the mixing.

Invariants: a token sees its own sequence, up to itself, and nothing else. In bf16 on a GPU what lies between two large
products is a kernel or three: one adds the adapters' part and turns (`packed_qkv_kernels`), one mixes, and two go back
through both (`packed_attention_kernels`). Large ranks and long sequences have others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.autograd import Function
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainer.packed.layout import RANKS, Layout
from trainer.packed.products import PROJECT, Linear, Projection, adapt, project, project_back

if TYPE_CHECKING:
    from trainer.packed.kernels.qkv import Parts

Tensor = torch.Tensor
# Up to so many tokens of a sequence, by the size of a head, our own kernels are faster than cuDNN's.
SHORT = {16: 1024, 32: 1024, 64: 1024, 128: 384}


@dataclass(frozen=True, slots=True)
class Heads:
    """How a fused projection divides into heads of `size` features: queries, then keys, then values."""

    queries: int
    keys: int
    size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.queries, self.keys, self.size

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[T, …] → q [T, queries, size], k and v [T, keys, size]."""
        heads = qkv.view(qkv.shape[0], -1, self.size)
        q, k, v = heads.split([self.queries, self.keys, self.keys], dim=1)  # type: ignore[no-untyped-call]
        return q, k, v

    def turned(self, qkv: Tensor) -> Tensor:
        """Queries and keys, [T, queries + keys, size]."""
        return qkv.view(qkv.shape[0], -1, self.size)[:, : self.queries + self.keys]

    def parts(self, frozen: Projection) -> Parts:
        """The projection as the kernels that walk see it."""
        from trainer.packed.kernels.qkv import Parts

        begins = [begin for begin, _ in frozen.columns]
        first = 0, self.queries * self.size, (self.queries + self.keys) * self.size
        q, k, v = (begins.index(one) if one in begins else -1 for one in first)
        return Parts(self.queries, self.keys, self.size, (q, k, v))


def attend(x: Tensor, anchor: Tensor, layer: Linear, table: Tensor, layout: Layout, heads: Heads) -> Tensor:
    """Causal attention within each sequence: [T, D] → [T, queries · size].

    Args:
        anchor: what makes autograd come by where x needs no gradient.
        layer: the projection to queries, keys and values, side by side.
        table: cosines and sines by position, shape [positions, size / 2, 2].
    """
    if x.is_cuda and x.dtype is torch.bfloat16:
        out: Tensor = FLASH_ATTENTION(x, anchor, layer, table, layout, heads)
        return out
    q, k, v = heads.split(PROJECT(x, anchor, layer, layout))
    angles = table[layout.positions]
    places, back = layout.squares()
    repeats = heads.queries // heads.keys
    q, k, v = _turn(q, angles), _turn(k, angles).repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    square = [one[places].transpose(1, 2) for one in (q, k, v)]  # [n, queries, longest, size]
    mixed = F.scaled_dot_product_attention(square[0], square[1], square[2], is_causal=True)
    return mixed.transpose(1, 2).flatten(0, 1)[back].flatten(1)


def _turn(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding of torchtune's interleaved kind: x [T, h, size], angles [T, size / 2, 2] (cosine, sine)."""
    even, odd = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    cos, sin = angles[:, None, :, 0], angles[:, None, :, 1]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)


class FlashAttention(Function):
    """`attend` for autograd. Short and uneven sequences have kernels of our own, others those that come with torch."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917
        ctx: Any, x: Tensor, anchor: Tensor, layer: Linear, table: Tensor, layout: Layout, heads: Heads
    ) -> Tensor:
        qkv, h = _turned(x, layer, table, layout, heads)
        ctx.layer, ctx.layout, ctx.heads, ctx.table, ctx.square = layer, layout, heads, table, None
        out, kept = mix(qkv, ctx)
        ctx.save_for_backward(x if h is not None else None, h, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, h, *saved = ctx.saved_tensors
        back = mix_back(grads[0], saved, ctx)
        return project_back(back, x, h, ctx.layer, ctx.layout, ctx.needs_input_grad[0]), None, None, None, None, None


def ours(layout: Layout, heads: Heads) -> bool:
    """Whether our own kernels are the faster ones (measured on an H200): of sequences of one length, for short ones."""
    return heads.size in SHORT and (layout.rectangle is None or layout.longest <= SHORT[heads.size])


def _turned(x: Tensor, layer: Linear, table: Tensor, layout: Layout, heads: Heads) -> tuple[Tensor, Tensor | None]:
    """Queries, keys and values side by side, the first two turned by their positions; what the A made of x."""
    if (parts := _parts(layer, heads)) is not None:
        from trainer.packed.kernels import qkv as packed_qkv_kernels

        assert layer.lora is not None
        h = adapt(x, layer.lora, layout)
        qkv = F.linear(x, layer.frozen.weight, layer.frozen.bias)
        packed_qkv_kernels.add_and_turn(qkv, h, layer.lora.b, table, layout.positions, layout.blocks, parts)
        return qkv, h
    from trainer.packed.kernels import basic

    qkv, made = project(x, layer, layout)
    both = heads.turned(qkv)
    basic.turn(both, both, table, layout.positions, 1.0)  # in place: nobody else reads it
    return qkv, made


def mix(qkv: Tensor, ctx: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What attention makes of queries, keys and values, and what the way back needs."""
    layout, heads = ctx.layout, ctx.heads
    if ours(layout, heads):
        from trainer.packed.kernels import attention as kernels

        mixed, sums = kernels.forward(qkv, kernels.Sequences(layout.starts, layout.pieces), heads.shape)
        return mixed, (qkv, mixed, sums)
    q, k, v = heads.split(qkv)
    if (shape := layout.rectangle) is not None:
        ctx.square = _square_attention(*(_square(one.detach(), shape) for one in (q, k, v)))
        square: Tensor = ctx.square[-1].detach().transpose(1, 2)
        return square.flatten(2).flatten(0, 1), ()
    out, lse, seed, offset, _ = torch.ops.aten._flash_attention_forward(
        q, k, v, layout.starts, layout.starts, layout.longest, layout.longest, 0.0, True, False
    )
    return out.flatten(1), (q, k, v, out, lse, seed, offset)


def mix_back(d: Tensor, saved: Sequence[Tensor], ctx: Any) -> Tensor:
    """Gradient of queries, keys and values side by side as they were before they were turned."""
    from trainer.packed.kernels import attention, basic

    layout, heads = ctx.layout, ctx.heads
    if ours(layout, heads):
        qkv, out, sums = saved
        sequences = attention.Sequences(layout.starts, layout.pieces)
        back = attention.backward(d, qkv, out, sums, sequences, heads.shape)
        both = heads.turned(back)
        basic.turn(both, both, ctx.table, layout.positions, -1.0)
        return back
    d = d.view(d.shape[0], -1, heads.size)
    if ctx.square is not None:
        *inputs, mixed = ctx.square
        ctx.square = None
        squares = torch.autograd.grad(mixed, inputs, _square(d, layout.rectangle))
        dq, dk, dv = (one.transpose(1, 2).flatten(0, 1).contiguous() for one in squares)
    else:
        q, k, v, out, lse, seed, offset = saved
        span = layout.starts, layout.starts, layout.longest, layout.longest
        dq, dk, dv = torch.ops.aten._flash_attention_backward(d, q, k, v, out, lse, *span, 0.0, True, seed, offset)
    back = d.new_empty(d.shape[0], (heads.queries + 2 * heads.keys) * heads.size)
    into_q, into_k, into_v = heads.split(back)
    basic.turn(dq, into_q, ctx.table, layout.positions, -1.0)
    basic.turn(dk, into_k, ctx.table, layout.positions, -1.0)
    into_v.copy_(dv)
    return back


def _parts(layer: Linear, heads: Heads) -> Parts | None:
    """How the kernels that walk see the projection; None where they are not for it."""
    if layer.lora is None or layer.lora.b[0].shape[2] > RANKS[-1] or heads.size < RANKS[0]:
        return None
    return heads.parts(layer.frozen)


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


def warm_up_attention(like: Tensor, frozen: Projection, table: Tensor, heads: Heads) -> None:
    """Have all kernels compiled that queries, keys and values may need on a GPU, whatever the adapters' rank."""
    if like.dtype is not torch.bfloat16:
        return
    from trainer.packed.kernels import basic
    from trainer.packed.kernels import qkv as packed_qkv_kernels

    block = torch.tensor([[0, 0, 1]], dtype=torch.int32, device=like.device)
    position = torch.zeros(1, dtype=torch.int64, device=like.device)
    y = like.new_zeros(1, (heads.queries + 2 * heads.keys) * heads.size)
    q, k, _ = heads.split(y)
    both = heads.turned(y)
    for one in (both, q, k):
        basic.turn(one if one is both else one.contiguous(), one, table, position, 1.0)
    for rank in RANKS if frozen.columns and heads.size >= RANKS[0] else ():
        b = [like.new_zeros(1, end - begin, rank) for begin, end in frozen.columns]
        h = like.new_zeros(1, len(b) * rank)
        packed_qkv_kernels.add_and_turn(y, h, b, table, position, block, heads.parts(frozen))


# autograd's own entry has no types
FLASH_ATTENTION: Callable[..., Any] = FlashAttention.apply
