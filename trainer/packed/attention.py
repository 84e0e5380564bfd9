"""Attention of a packed decoder on flat tokens: queries, keys and values, rotary embeddings, and scaled dot products.

Invariants: a token attends to its own sequence, up to itself, and to nothing else. In bf16 on a GPU, our own kernels
compute what lies between two large products. One adds the adapters' part and rotates (`kernels.qkv`), one is the
attention itself, and two are its backward pass (`kernels.attention`). Large ranks use `kernels.basic`, and long
sequences use torch's kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch.autograd import Function
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainer.packed.layout import RANKS, Layout
from trainer.packed.products import PROJECT, Linear, Projection, adapt, project, project_back

if TYPE_CHECKING:
    from trainer.packed.kernels.qkv import QkvLayout

Tensor = torch.Tensor
# The longest sequence, in tokens, for which our own kernels are faster than cuDNN's, by the size of a head.
OWN_KERNEL_TOKENS = {16: 1024, 32: 1024, 64: 1024, 128: 384}


@dataclass(frozen=True, slots=True)
class Heads:
    """How a fused projection divides into heads.

    Args:
        queries, keys: how many heads there are of queries, and of keys (and as many of values).
        size: features of a head.
    """

    queries: int
    keys: int
    size: int

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.queries, self.keys, self.size

    def split(self, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [T, queries, size], keys and values [T, keys, size], as views of [T, (queries + 2 keys) · size]."""
        heads = qkv.view(qkv.shape[0], -1, self.size)
        q, k, v = heads.split([self.queries, self.keys, self.keys], dim=1)  # type: ignore[no-untyped-call]
        return q, k, v

    def rotated(self, qkv: Tensor) -> Tensor:
        """The part with rotary embeddings, queries and keys: a view of shape [T, queries + keys, size]."""
        return qkv.view(qkv.shape[0], -1, self.size)[:, : self.queries + self.keys]

    def qkv_layout(self, frozen: Projection) -> QkvLayout:
        """How `kernels.qkv` sees the projection."""
        from trainer.packed.kernels.qkv import QkvLayout

        begins = [begin for begin, _ in frozen.columns]
        first = 0, self.queries * self.size, (self.queries + self.keys) * self.size
        q, k, v = (begins.index(column) if column in begins else -1 for column in first)
        return QkvLayout(self.queries, self.keys, self.size, (q, k, v))


def attend(x: Tensor, anchor: Tensor, layer: Linear, table: Tensor, layout: Layout, heads: Heads) -> Tensor:
    """Causal attention within each sequence: [T, D] → [T, queries · size].

    Args:
        anchor: a scalar that requires a gradient, so that autograd runs even if x needs none.
        layer: the projection to queries, keys and values, side by side.
        table: cosine and sine of each angle by position, shape [positions, size / 2, 2].
    """
    if x.is_cuda and x.dtype is torch.bfloat16:
        out: Tensor = FLASH_ATTENTION(x, anchor, layer, table, layout, heads)
        return out
    q, k, v = heads.split(PROJECT(x, anchor, layer, layout))
    angles = table[layout.positions]
    return _padded_attention(_rotate(q, angles), _rotate(k, angles), v, layout)


def _padded_attention(q: Tensor, k: Tensor, v: Tensor, layout: Layout) -> Tensor:
    """Causal attention by torch's own operation, on a rectangle: rotated q, k and v to [T, queries · size]."""
    cells, back = layout.padded_indices()
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, dim=1), v.repeat_interleave(repeats, dim=1)
    square = [tensor[cells].transpose(1, 2) for tensor in (q, k, v)]  # [n, queries, longest, size]
    mixed = F.scaled_dot_product_attention(square[0], square[1], square[2], is_causal=True)
    return mixed.transpose(1, 2).flatten(0, 1)[back].flatten(1)


def rotated_qkv(x: Tensor, layer: Linear, table: Tensor, layout: Layout, heads: Heads) -> Tensor:
    """Queries, keys and values side by side, the first two rotated by their positions; without a gradient.

    The arguments are those of `attend`.
    """
    if x.is_cuda and x.dtype is torch.bfloat16:
        return _rotated_qkv(x, layer, table, layout, heads)[0]
    qkv, _ = project(x, layer, layout)
    both = heads.rotated(qkv)
    both.copy_(_rotate(both, table[layout.positions]))
    return qkv


def causal_attention(qkv: Tensor, layout: Layout, heads: Heads) -> Tensor:
    """Causal attention within each sequence, [T, queries · size], of `rotated_qkv`; without a gradient."""
    if qkv.is_cuda and qkv.dtype is torch.bfloat16:
        return attention_forward(qkv, SimpleNamespace(layout=layout, heads=heads, square=None))[0]
    return _padded_attention(*heads.split(qkv), layout)


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary embedding, interleaved as torchtune's: x [T, h, size], angles [T, size / 2, 2] (cosine, sine)."""
    even, odd = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    cos, sin = angles[:, None, :, 0], angles[:, None, :, 1]
    return torch.stack([even * cos - odd * sin, odd * cos + even * sin], dim=-1).flatten(-2).to(x.dtype)


class FlashAttention(Function):
    """`attend` for autograd. Short sequences, and those of unequal lengths, use our own kernels, others torch's."""

    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917
        ctx: Any, x: Tensor, anchor: Tensor, layer: Linear, table: Tensor, layout: Layout, heads: Heads
    ) -> Tensor:
        qkv, h = _rotated_qkv(x, layer, table, layout, heads)
        ctx.layer, ctx.layout, ctx.heads, ctx.table, ctx.square = layer, layout, heads, table, None
        out, kept = attention_forward(qkv, ctx)
        ctx.save_for_backward(x if h is not None else None, h, *kept)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, h, *saved = ctx.saved_tensors
        back = attention_backward(grads[0], saved, ctx)
        return project_back(back, x, h, ctx.layer, ctx.layout, ctx.needs_input_grad[0]), None, None, None, None, None


def uses_own_kernels(layout: Layout, heads: Heads) -> bool:
    """Whether our own kernels are faster than torch's (measured on an H200).

    They are for sequences of unequal lengths, and for short ones of equal length.
    """
    return heads.size in OWN_KERNEL_TOKENS and (
        layout.rectangle is None or layout.longest <= OWN_KERNEL_TOKENS[heads.size]
    )


def _rotated_qkv(x: Tensor, layer: Linear, table: Tensor, layout: Layout, heads: Heads) -> tuple[Tensor, Tensor | None]:
    """Queries, keys and values side by side, the first two rotated by their positions; and `adapt` of x, or None."""
    if (qkv_layout := _qkv_layout(layer, heads)) is not None:
        from trainer.packed.kernels import qkv as kernels

        assert layer.lora is not None
        h = adapt(x, layer.lora, layout)
        qkv = F.linear(x, layer.frozen.weight, layer.frozen.bias)
        kernels.add_and_rotate(qkv, h, layer.lora.b, table, layout.positions, layout.blocks, qkv_layout)
        return qkv, h
    from trainer.packed.kernels import basic

    qkv, adapted = project(x, layer, layout)
    both = heads.rotated(qkv)
    basic.rotate(both, both, table, layout.positions, 1.0)  # in place: nothing else reads it
    return qkv, adapted


def attention_forward(qkv: Tensor, ctx: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Attention of rotated queries, keys and values, [T, queries · size]; and what the backward pass needs."""
    layout, heads = ctx.layout, ctx.heads
    if uses_own_kernels(layout, heads):
        from trainer.packed.kernels import attention as kernels

        mixed, sums = kernels.forward(qkv, kernels.Sequences(layout.starts, layout.pieces), heads.shape)
        return mixed, (qkv, mixed, sums)
    q, k, v = heads.split(qkv)
    if (shape := layout.rectangle) is not None:
        ctx.square = _square_attention(*(_square(tensor.detach(), shape) for tensor in (q, k, v)))
        square: Tensor = ctx.square[-1].detach().transpose(1, 2)
        return square.flatten(2).flatten(0, 1), ()
    out, lse, seed, offset, _ = torch.ops.aten._flash_attention_forward(
        q, k, v, layout.starts, layout.starts, layout.longest, layout.longest, 0.0, True, False
    )
    return out.flatten(1), (q, k, v, out, lse, seed, offset)


def attention_backward(d: Tensor, saved: Sequence[Tensor], ctx: Any) -> Tensor:
    """Gradient of queries, keys and values side by side before their rotation, [T, (queries + 2 keys) · size]."""
    from trainer.packed.kernels import attention, basic

    layout, heads = ctx.layout, ctx.heads
    if uses_own_kernels(layout, heads):
        qkv, out, sums = saved
        sequences = attention.Sequences(layout.starts, layout.pieces)
        back = attention.backward(d, qkv, out, sums, sequences, heads.shape)
        both = heads.rotated(back)
        basic.rotate(both, both, ctx.table, layout.positions, -1.0)
        return back
    d = d.view(d.shape[0], -1, heads.size)
    if ctx.square is not None:
        *inputs, mixed = ctx.square
        ctx.square = None
        gradients = torch.autograd.grad(mixed, inputs, _square(d, layout.rectangle))
        dq, dk, dv = (gradient.transpose(1, 2).flatten(0, 1).contiguous() for gradient in gradients)
    else:
        q, k, v, out, lse, seed, offset = saved
        span = layout.starts, layout.starts, layout.longest, layout.longest
        dq, dk, dv = torch.ops.aten._flash_attention_backward(d, q, k, v, out, lse, *span, 0.0, True, seed, offset)
    back = d.new_empty(d.shape[0], (heads.queries + 2 * heads.keys) * heads.size)
    into_q, into_k, into_v = heads.split(back)
    basic.rotate(dq, into_q, ctx.table, layout.positions, -1.0)
    basic.rotate(dk, into_k, ctx.table, layout.positions, -1.0)
    into_v.copy_(dv)
    return back


def _qkv_layout(layer: Linear, heads: Heads) -> QkvLayout | None:
    """How `kernels.qkv` sees the projection; None if that kernel does not serve it."""
    if layer.lora is None or layer.lora.b[0].shape[2] > RANKS[-1] or heads.size < RANKS[0]:
        return None
    return heads.qkv_layout(layer.frozen)


def _square(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """[n · s, heads, size] as [n, heads, s, size]."""
    return x.view(*shape, *x.shape[1:]).transpose(1, 2)


def _square_attention(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Attention over sequences of one length, [n, heads, s, size]; cuDNN's kernel is the fastest if there is one.

    Returns:
        q, k, v as leaves, and the output, [n, queries, s, size], with an autograd graph of its own.
    """
    with torch.enable_grad(), sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
        leaves = q.requires_grad_(), k.requires_grad_(), v.requires_grad_()
        mixed = F.scaled_dot_product_attention(leaves[0], leaves[1], leaves[2], is_causal=True, enable_gqa=True)
        return *leaves, mixed


def warm_up_attention(like: Tensor, frozen: Projection, table: Tensor, heads: Heads) -> None:
    """Compile all kernels that queries, keys and values may need on a GPU, for every rank."""
    if like.dtype is not torch.bfloat16:
        return
    from trainer.packed.kernels import basic
    from trainer.packed.kernels import qkv as kernels

    block = torch.tensor([[0, 0, 1]], dtype=torch.int32, device=like.device)
    position = torch.zeros(1, dtype=torch.int64, device=like.device)
    y = like.new_zeros(1, (heads.queries + 2 * heads.keys) * heads.size)
    q, k, _ = heads.split(y)
    both = heads.rotated(y)
    for tensor in (both, q, k):
        basic.rotate(tensor if tensor is both else tensor.contiguous(), tensor, table, position, 1.0)
    for rank in RANKS if frozen.columns and heads.size >= RANKS[0] else ():
        b = [like.new_zeros(1, end - begin, rank) for begin, end in frozen.columns]
        h = like.new_zeros(1, len(b) * rank)
        kernels.add_and_rotate(y, h, b, table, position, block, heads.qkv_layout(frozen))


# torch has no types for `apply`
FLASH_ATTENTION: Callable[..., Any] = FlashAttention.apply
