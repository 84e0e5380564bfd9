"""The passes of a packed decoder, forward and backward, on flat tokens.

Notation: T tokens of k slots on one line, D features in, N out, R the rank that all slots are padded to, M adapters
that share one input.

Invariants: frozen weights get no gradient. Gradients of adapters are added to the store's own tensors as the backward
pass goes by, never to autograd's, so that nothing is copied and a slot's accumulate in its row. No product mixes
tokens of two slots, so what is not finite in one slot stays there. On a GPU, element-wise work is done by
`trainer.packed_kernels`; nothing is compiled again when slots come and go.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd import Function
from torch.nn.attention import SDPBackend, sdpa_kernel

from trainer.packed_layout import Layout

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
    """out = h · wᵀ for each slot's own w: h [T, R], weights [k, N, R]; out [T, N] may be columns of a wider one."""
    if (n := layout.even) is not None:
        torch.bmm(_stacked(h, n), weights.transpose(1, 2), out=_stacked(out, n))
    elif h.is_cuda:
        from trainer import packed_kernels

        packed_kernels.expand(h, weights, layout.blocks, out)
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
        for (start, end), one in zip(layout.segments(), into, strict=True):
            one.addmm_(a[start:end].t(), b[start:end])


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
    """Linear layers that share their input, as one product, some of them with an adapter.

    Args:
        weight: the frozen weights one above another, shape [N, D]; bias: shape [N] or None.
        columns: of the M adapted layers, where their outputs begin and end in N.
        names: of the M adapted layers, as torchtune names their modules.
        covered: every output column belongs to an adapter.
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
        a: shape [k, M·R, D]; b: M tensors of shape [k, N_m, R]; grad_a and grad_b: the same of the gradients, added to.
        scale: alpha / rank of each token's slot, shape [T, 1].
        noise: M dropout masks of shape [T, D], already divided by what they keep; empty without dropout.
    """

    a: Tensor
    b: Sequence[Tensor]
    grad_a: Tensor
    grad_b: Sequence[Tensor]
    scale: Tensor
    noise: Sequence[Tensor] = ()


class Project(Function):
    """x [T, D] → x Wᵀ + (alpha / rank) · (x ∘ noise) Aᵀ Bᵀ, shape [T, N].

    The adapters' part is written first and the frozen product added to it, so that the sum costs no pass of its own.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, layout: Layout, frozen: Projection, lora: Adapters | None
    ) -> Tensor:
        ctx.layout, ctx.frozen, ctx.lora = layout, frozen, lora
        if lora is None:
            return F.linear(x, frozen.weight, frozen.bias)
        h = _lora_in(x, lora, layout)
        make = x.new_empty if frozen.covered else x.new_zeros
        y = make(x.shape[0], frozen.weight.shape[0])
        for (begin, end), part, b in zip(frozen.columns, h.chunk(len(lora.b), dim=1), lora.b, strict=True):
            expand(part, b, layout, y[:, begin:end])
        y.addmm_(x, frozen.weight.t())
        if frozen.bias is not None:
            y.add_(frozen.bias)
        ctx.save_for_backward(x, h)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,) = grads
        layout, frozen, lora = ctx.layout, ctx.frozen, ctx.lora
        wanted: bool = ctx.needs_input_grad[0]
        if lora is None:
            return (dy @ frozen.weight if wanted else None), None, None, None, None
        x, h = ctx.saved_tensors
        parts = list(zip(frozen.columns, h.chunk(len(lora.b), dim=1), lora.b, lora.grad_b, strict=True))
        for (begin, end), part, _, grad in parts:
            accumulate_outer(dy[:, begin:end], part, layout, grad)
        dh = torch.cat([shrink(dy[:, begin:end], b.transpose(1, 2), layout) for (begin, end), _, b, _ in parts], dim=1)
        dh.mul_(lora.scale)
        dx = _lora_back(x, dh, lora, layout, wanted)
        if dx is not None:
            dx.addmm_(dy, frozen.weight)
        return dx, None, None, None, None


def _lora_in(x: Tensor, lora: Adapters, layout: Layout) -> Tensor:
    """Each slot's scaled x Aᵀ, shape [T, M·R]."""
    if not lora.noise:
        return shrink(x, lora.a, layout).mul_(lora.scale)
    matrices = lora.a.chunk(len(lora.noise), dim=1)
    return torch.cat([shrink(x * m, a, layout) for m, a in zip(lora.noise, matrices, strict=True)], 1).mul_(lora.scale)


def _lora_back(x: Tensor, dh: Tensor, lora: Adapters, layout: Layout, wanted: bool) -> Tensor | None:
    """Add to the gradient of A; returns the adapters' part of the input's gradient, [T, D], where it is wanted."""
    dx = torch.empty_like(x) if wanted else None
    if not lora.noise:
        accumulate_outer(dh, x, layout, lora.grad_a)
        if dx is not None:
            expand(dh, lora.a.transpose(1, 2), layout, dx)
        return dx
    count = len(lora.noise)
    total = torch.zeros_like(x) if wanted else None
    matrices, gradients = lora.a.chunk(count, dim=1), lora.grad_a.chunk(count, dim=1)
    for m, a, grad, part in zip(lora.noise, matrices, gradients, dh.chunk(count, dim=1), strict=True):
        accumulate_outer(part, x * m, layout, grad)
        if total is not None and dx is not None:
            expand(part, a.transpose(1, 2), layout, dx)
            total.addcmul_(dx, m)
    return total


# --- element-wise passes ---------------------------------------------------------------------------------------------


def norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """RMS norm of [T, D], as torchtune's: in fp32, then rounded."""
    if x.is_cuda:
        from trainer import packed_kernels

        return packed_kernels.add_norm(x, None, scale, eps)[1]
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * scale.float()).to(x.dtype)


def _add_norm(x: Tensor, y: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if x.is_cuda:
        from trainer import packed_kernels

        return packed_kernels.add_norm(x, y, scale, eps)
    h = x + y
    return h, norm(h, scale, eps)


def _norm_back(dh: Tensor | None, dn: Tensor, h: Tensor, scale: Tensor, eps: float) -> Tensor:
    if h.is_cuda:
        from trainer import packed_kernels

        return packed_kernels.norm_back(dh, dn, h, scale, eps)
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


def _silu_mul(both: Tensor) -> Tensor:
    if both.is_cuda:
        from trainer import packed_kernels

        return packed_kernels.silu_mul(both)
    gate, up = both.chunk(2, dim=-1)
    return F.silu(gate) * up


def _silu_mul_back(d: Tensor, both: Tensor) -> Tensor:
    if both.is_cuda:
        from trainer import packed_kernels

        return packed_kernels.silu_mul_back(d, both)
    gate, up = both.chunk(2, dim=-1)
    wide, grad = gate.float(), d.float()
    sigmoid = torch.sigmoid(wide)
    d_gate = grad * up.float() * sigmoid * (1 + wide * (1 - sigmoid))
    return torch.cat([d_gate, grad * wide * sigmoid], dim=-1).to(both.dtype)


class SiluMul(Function):
    """gate and up side by side, [T, 2 F] → silu(gate) · up, [T, F]."""

    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        ctx.save_for_backward(both)
        return _silu_mul(both)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        return _silu_mul_back(grads[0], both)


# --- attention -------------------------------------------------------------------------------------------------------


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


# --- loss ------------------------------------------------------------------------------------------------------------


def _cross_entropy(logits: Tensor, targets: Tensor, weights: Tensor, backward: bool) -> Tensor:
    """Weighted nats of each row, fp32; with `backward`, the logits are overwritten by their gradient."""
    if logits.is_cuda:
        from trainer import packed_kernels

        return packed_kernels.cross_entropy(logits, targets, weights, backward)
    wide = logits.float()
    losses = F.cross_entropy(wide, targets, reduction="none")
    if backward:
        back = torch.softmax(wide, dim=-1)
        back[torch.arange(len(targets)), targets] -= 1
        logits.copy_(back.mul_(weights[:, None]))
    return losses * weights


def summed_loss(hidden: Tensor, weight: Tensor, layout: Layout, chunk: int, gradient: bool) -> tuple[Tensor, Tensor]:
    """Output projection and cross entropy over the tokens with a label, the gradient made on the way.

    Args:
        hidden: [T, D]; weight: of the output projection, [V, D].
        chunk: tokens whose logits exist at one time.

    Returns:
        nats summed over each slot's labels, shape [k], fp32; the gradient of their sum, shape [T, D] (without
        `gradient`: empty).
    """
    chosen = hidden[layout.picked]
    losses = torch.empty(chosen.shape[0], device=hidden.device)
    back = torch.empty_like(chosen) if gradient else chosen.new_empty(0)
    for start in range(0, chosen.shape[0], chunk):
        part = slice(start, start + chunk)
        logits = chosen[part] @ weight.t()
        losses[part] = _cross_entropy(logits, layout.targets[part], layout.weights[part], gradient)
        if gradient:
            torch.mm(logits, weight, out=back[part])
    sums: Tensor = torch.segment_reduce(losses, "sum", lengths=layout.counts, initial=0.0, unsafe=True)
    if gradient and chosen.shape[0] != hidden.shape[0]:
        back = torch.zeros_like(hidden).index_copy_(0, layout.picked, back)
    return sums, back


# autograd's own entry has no types
PROJECT: Callable[..., Any] = Project.apply
ADD_NORM: Callable[..., Any] = AddNorm.apply
SILU_MUL: Callable[..., Any] = SiluMul.apply
FLASH_ATTENTION: Callable[..., Any] = FlashAttention.apply
